"""ringmoe_jax: multi-sensor foundation models for Earth observation, in JAX.

    import ringmoe_jax as rm

    run = rm.Run.open("runs/micro")                         # a trained run, or
    run = rm.pretrained("reference")                        # weights that come with the library, or
    model = rm.build("ringmoe", sensors=["s2_12"])          # a new model, and params = model.init(jax.random.key(0))
    features = rm.encode(run, {"s2_12": reflectance})       # [B, H, W, 12] -> tokens, stages, pooled, moments
    rm.sensors.get("s2_12").band_names                      # what a sensor is

The names below are the front door; each is imported when it is first asked for, so that `import ringmoe_jax` costs
nothing. Every module of the library can be imported by itself, too.

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

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers read
    from ringmoe_jax import compress, contracts, models, objectives, sensors
    from ringmoe_jax.encoding import Features, build, encode
    from ringmoe_jax.errors import UserError
    from ringmoe_jax.models import Model
    from ringmoe_jax.run import Run
    from ringmoe_jax.sensors import Band, Sensor, Statistics
    from ringmoe_jax.weights import pretrained

__version__ = "0.1.0"

__all__ = [
    "Band",
    "Features",
    "Model",
    "Run",
    "Sensor",
    "Statistics",
    "UserError",
    "build",
    "compress",
    "contracts",
    "encode",
    "models",
    "objectives",
    "pretrained",
    "sensors",
]

# Where each name that is not a module lives.
_HOMES = {
    "Band": "sensors",
    "Features": "encoding",
    "Model": "models",
    "Run": "run",
    "Sensor": "sensors",
    "Statistics": "sensors",
    "UserError": "errors",
    "build": "encoding",
    "encode": "encoding",
    "pretrained": "weights",
}


def __getattr__(name: str) -> Any:
    """Imports a name of the front door when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
