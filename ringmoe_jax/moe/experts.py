"""The experts: E two-layer perceptrons of equal shape, their weights stacked."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Experts(NamedTuple):
    """Stacked weights of E experts (D -> F -> D, GELU, biases; released RingMoE code).

    Attributes:
        wi: [E, D, F] float32.
        bi: [E, F] float32.
        wo: [E, F, D] float32.
        bo: [E, D] float32.
    """

    wi: jax.Array
    bi: jax.Array
    wo: jax.Array
    bo: jax.Array

    @property
    def count(self) -> int:
        """Number of experts, E."""
        return self.wi.shape[0]

    def take(self, indices) -> Experts:
        """The experts at `indices` [E'] only."""
        return Experts(*(leaf[indices] for leaf in self))

    def astype(self, dtype) -> Experts:
        """The same experts in another dtype."""
        return Experts(*(leaf.astype(dtype) for leaf in self))


def apply(experts: Experts, x: jax.Array) -> jax.Array:
    """Runs expert e on the rows x[e].

    Args:
        experts: weights, cast to the dtype of `x`.
        x: [E, R, D], R rows for each expert.

    Returns:
        [E, R, D] in the dtype of `x`.
    """
    experts = experts.astype(x.dtype)
    return contract(experts, expand(experts, x))


def expand(experts: Experts, x: jax.Array) -> jax.Array:
    """First product, before bias and GELU: [E, R, D] -> [E, R, F]."""
    return jnp.einsum("erd,edf->erf", x, experts.wi)


def contract(experts: Experts, z: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """Bias, GELU, second product and bias: [E, R, F] -> [E, R, D].

    With `gate` [E, R] the output is gate * y. The gate enters before the second product, so that its
    gradient needs the hidden units, which the backward pass has anyway, and not y.
    """
    hidden, bias = jax.nn.gelu(z + experts.bi[:, None]), experts.bo[:, None]
    if gate is not None:
        gate = gate[..., None].astype(z.dtype)
        hidden, bias = gate * hidden, gate * bias
    return jnp.einsum("erf,efd->erd", hidden, experts.wo) + bias
