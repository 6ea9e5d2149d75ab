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


def apply(experts: Experts, x: jax.Array) -> jax.Array:
    """Runs expert e on the rows x[..., e, :, :].

    Args:
        experts: weights, cast to the dtype of `x`.
        x: [..., E, R, D], R rows for each expert.

    Returns:
        [..., E, R, D] in the dtype of `x`.
    """
    wi, bi, wo, bo = (leaf.astype(x.dtype) for leaf in experts)
    hidden = jax.nn.gelu(jnp.einsum("...erd,edf->...erf", x, wi) + bi[:, None])
    return jnp.einsum("...erf,efd->...erd", hidden, wo) + bo[:, None]
