"""Layers whose weights are made from what physics says of every band, so that they fit any set and order of bands.

A band's kernel is a mixture of `RANK` learned ones, by coefficients that a small network makes of the band's
description (`ringmoe_jax.bands`). That network sees one band at a time, so the order of bands changes nothing and a
band has the same kernel in whatever company: any subset is one code path. DOFA (Xiong et al. 2024, arXiv 2403.15356)
and Copernicus-FM (Wang et al. 2025, arXiv 2503.11849) make kernels by a transformer over all bands, Panopticon
(Waldmann et al. 2025, arXiv 2503.10845) shares one kernel and attends over bands; beyond a patch embedding of its own a
mixture costs one product of [C, R] and [p p, R, D] a pass (our choice).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax import bands
from ringmoe_jax.models.layers import TRUNCATED_NORMAL, layer_norm, linear, patches

RANK = 32  # learned kernels that those of bands are mixed from, R
HIDDEN = 128  # units of the network that makes coefficients


class Coefficients(nnx.Module):
    """What of each learned kernel a band takes. Call: descriptions [C, K] -> [C, R] float32, rows of unit length.

    One hidden layer; its kernels start at the usual 1 / sqrt(inputs), or descriptions would hardly differ in it.
    """

    def __init__(self, rngs: nnx.Rngs):
        options = dict(param_dtype=jnp.float32, rngs=rngs)
        self.wi, self.wo = nnx.Linear(bands.WIDTH, HIDDEN, **options), nnx.Linear(HIDDEN, RANK, **options)

    def __call__(self, description: np.ndarray) -> jax.Array:
        x = self.wo(jax.nn.gelu(self.wi(jnp.asarray(description))))
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class PhysicsStem(nnx.Module):
    """A patch embedding of any bands: generated p x p convolution with stride p, generated bias, layer norm.

    Bands add up, divided by the root of how many are shown, so that the scale of a token says nothing of their number;
    the bias is the mean over the bands that are shown, so that a token knows which these are. A band that is not shown
    adds nothing. The norm may be left out, as in `layers.PatchEmbed`.
    Call: [B, T, H, W, C], descriptions [C, K], and which bands are shown, [B, T, C] bool or None for all
    -> [B, T, H / p, W / p, D].
    """

    def __init__(self, patch: int, width: int, rngs: nnx.Rngs, *, dtype, norm: bool = True):
        self.patch, self.dtype = patch, dtype
        self.coefficients = Coefficients(rngs)
        self.kernel = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (patch * patch, RANK, width), jnp.float32))
        self.bias = linear(RANK, width, rngs, dtype=dtype)
        self.norm = layer_norm(width, rngs, dtype=dtype) if norm else None

    def __call__(self, pixels: jax.Array, description: np.ndarray, shown: jax.Array | None = None) -> jax.Array:
        mixture = self.coefficients(description)
        channels = len(description)
        if shown is None:
            kernel, seen = self._kernel(mixture / channels**0.5), mixture.mean(axis=0)
        else:
            number = jnp.maximum(shown.sum(axis=-1), 1)[:, :, None, None, None]
            pixels = jnp.where(shown[:, :, None, None], pixels, 0) / jnp.sqrt(number)
            kernel = self._kernel(mixture)
            seen = (jnp.dot(shown.astype(jnp.float32), mixture)[:, :, None, None]) / number
        x = jnp.dot(patches(pixels, self.patch).astype(self.dtype), kernel.astype(self.dtype))
        x = x + self.bias(seen.astype(self.dtype))
        return self.norm(x) if self.norm else x

    def _kernel(self, mixture: jax.Array) -> jax.Array:
        """[C, R] -> [p p C, D], by one product: a product for each pixel of a patch is slow on CPUs."""
        size, rank, width = self.kernel.shape
        mixed = jnp.dot(mixture, self.kernel[...].swapaxes(0, 1).reshape(rank, -1))
        return mixed.reshape(-1, size, width).swapaxes(0, 1).reshape(-1, width)


class PhysicsDecoder(nnx.Module):
    """A decoder of any bands: `RANK` maps of a decoder, mixed for every band. Its inputs are those of the decoder.

    Args:
        decoder: gives `RANK` channels, for example a `layers.PixelDecoder`.
    Call: what the decoder takes, and descriptions [C, K] -> [..., H, W, C].
    """

    def __init__(self, decoder: nnx.Module, rngs: nnx.Rngs):
        self.decoder, self.coefficients = decoder, Coefficients(rngs)

    def __call__(self, features, description: np.ndarray) -> jax.Array:
        maps = self.decoder(features)
        return jnp.dot(maps, self.coefficients(description).T.astype(maps.dtype))
