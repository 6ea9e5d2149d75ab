"""Projection heads of self-distillation, contrast and joint embedding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.models.api import Model, from_module
from ringmoe_jax.models.layers import layer_norm, unit


class Projection(nnx.Module):
    """DINO's head: an MLP of three layers to a narrow unit vector, then cosines with K learned directions.

    Source: Caron et al. 2021 (their weight-normalised last layer with its gain fixed at 1). Kernels start with variance
    1 / inputs, which at their width is DINO's 0.02, and does not vanish in narrow heads. SkySense's features end
    without a norm and start small and nearly alike, so heads standardise (our choice): with `norm` "batch" the input
    and both hidden layers over the rows of the batch, as SwAV and MoCo v3 do; with "layer" the input of every row by
    itself, so that rows do not depend on each other.

    Args:
        width: D of the features.
        hidden: of the MLP.
        bottleneck: width of the unit vector.
        outputs: K; 0 ends at the bottleneck, after two layers, before it is made a unit vector.
        norm: "batch" or "layer".
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, outputs: int, norm: str, rngs: nnx.Rngs):
        self.norm = norm
        self.first = nnx.Linear(width, hidden, rngs=rngs)
        self.middle = nnx.Linear(hidden, hidden, rngs=rngs) if outputs else None
        self.last = nnx.Linear(hidden, bottleneck, rngs=rngs)
        if outputs:
            drawn = jax.random.normal(rngs.params(), (bottleneck, outputs)) * bottleneck**-0.5
            self.directions = nnx.Param(drawn)

    def __call__(self, rows: tuple[jax.Array, jax.Array], *, key=None, train: bool = False) -> jax.Array:
        """Features [N, D] and their weights [N] -> [N, K] float32 in -1..1, or [N, bottleneck]."""
        features, weight = rows
        x = features.astype(jnp.float32)
        if self.norm == "batch":
            over_rows = functools.partial(standardise_rows, weight=weight)
            x = over_rows(x)
        else:
            over_rows = lambda x: x  # noqa: E731
            x = standardise_rows(x.T, jnp.ones(x.shape[-1])).T
        x = jax.nn.gelu(over_rows(self.first(x)))
        if self.middle is None:
            return self.last(x)
        x = self.last(jax.nn.gelu(over_rows(self.middle(x))))
        return unit(x) @ unit(self.directions[...], axis=0)


class Projector(nnx.Module):
    """Three linear layers with batch norm and ReLU between them (VICReg).

    Kernels start with variance 1 / inputs. Batch norm is over all rows that have weight, of all devices; features are
    standardised before the first layer as well, for they may start nearly alike (our choice).

    Call: features [N, D] and their weights [N] -> [N, K] float32.
    """

    def __init__(self, width: int, hidden: int, outputs: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.middle = nnx.Linear(hidden, hidden, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(hidden, outputs, use_bias=False, rngs=rngs)
        for name in ("first", "middle"):
            setattr(self, f"{name}_scale", nnx.Param(jnp.ones(hidden)))
            setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(hidden)))

    def __call__(self, rows: tuple[jax.Array, jax.Array], *, key=None, train: bool = False) -> jax.Array:
        features, weight = rows
        x = standardise_rows(features.astype(jnp.float32), weight)
        for name in ("first", "middle"):
            x = standardise_rows(getattr(self, name)(x), weight)
            x = jax.nn.relu(x * getattr(self, f"{name}_scale")[...] + getattr(self, f"{name}_bias")[...])
        return self.last(x)


def standardise_rows(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Zero mean and unit variance of every column over the rows, of all devices, that have weight; [N, D] and [N]."""
    share = (weight / jnp.maximum(weight.sum(), 1))[:, None]
    x = x - jnp.sum(share * x, axis=0)
    return x * jax.lax.rsqrt(jnp.sum(share * jnp.square(x), axis=0) + 1e-10)


def build(width: int, hidden: int, bottleneck: int, outputs: int, norm: str = "batch") -> Model:
    """`Projection` as two pure functions, `init(key)` and `apply(params, (features, weights))`."""
    return from_module(functools.partial(Projection, width, hidden, bottleneck, outputs, norm))


class Predictor(nnx.Module):
    """D -> F -> K with layer norm and GELU, each row by itself (I-JEPA's predictor is a transformer; our choice).

    Call: [..., D] -> [..., K] float32.
    """

    def __init__(self, width: int, hidden: int, outputs: int, rngs: nnx.Rngs):
        self.norm = layer_norm(width, rngs, dtype=jnp.float32)
        self.first = nnx.Linear(width, hidden, rngs=rngs)
        self.last = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, rows: jax.Array, *, key=None, train: bool = False) -> jax.Array:
        return self.last(jax.nn.gelu(self.first(self.norm(rows))))


def build_predictor(width: int, hidden: int, outputs: int) -> Model:
    """`Predictor` as two pure functions, `init(key)` and `apply(params, rows)`."""
    return from_module(functools.partial(Predictor, width, hidden, outputs))


def build_projector(width: int, hidden: int, outputs: int) -> Model:
    """`Projector` as two pure functions, `init(key)` and `apply(params, (features, weights))`."""
    return from_module(functools.partial(Projector, width, hidden, outputs))
