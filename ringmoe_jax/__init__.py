"""ringmoe_jax: multi-sensor foundation models for Earth observation, in JAX.

Axis letters, used in every docstring of the library:

    B  batch (samples)              N  tokens
    T  acquisition times            D  embedding width
    H  image rows (pixels)          K  experts chosen for a token
    W  image columns (pixels)       E  experts of a group
    C  bands (channels)             F  hidden units of an expert or an MLP
    h, w  token rows and columns    L  layers (Transformer blocks)
    S  image slots of a mixed batch M  modalities

Arrays are channel-last. Pixel values carry the physical unit that
`ringmoe_jax.sensors` states until `ringmoe_jax.contracts.standardise` is called.
"""

__version__ = "0.1.0"
