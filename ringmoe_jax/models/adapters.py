"""Small trained parts beside frozen blocks: convolutions in the blocks, and low-rank changes of kernels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.models.layers import linear

CONVPASS = "convpass"  # in the path of every parameter of `Convpass`


class Convpass(nnx.Module):
    """Convolutional bypass of a block's branch (Convpass, Jie and Deng 2022, arXiv 2207.07039).

    1 x 1 convolution to a narrow width, GELU, 3 x 3 convolution, GELU, 1 x 1 convolution back. The last one starts at
    zero and the 3 x 3 kernel at the identity, so that a new bypass changes nothing. Call: [B, h, w, D] -> the same.

    Args:
        width: D.
        hidden: width of the bypass; RingMoE reports near full fine-tuning with 7.5 % of the parameters trained.
    """

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs, *, dtype):
        self.down = linear(width, hidden, rngs, dtype=dtype)
        self.convolve = nnx.Conv(hidden, hidden, (3, 3), dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.convolve.kernel[...] = jnp.zeros((3, 3, hidden, hidden)).at[1, 1].set(jnp.eye(hidden))
        self.up = linear(hidden, width, rngs, dtype=dtype)
        self.up.kernel[...] = jnp.zeros_like(self.up.kernel[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(jax.nn.gelu(self.convolve(jax.nn.gelu(self.down(x)))))


def low_rank(key: jax.Array, shape: tuple[int, ...], rank: int) -> dict[str, jax.Array]:
    """A new low-rank change of a kernel: `a` [..., D, r] random, `b` [..., r, F] zero, so it changes nothing.

    Args:
        key: of the random numbers.
        shape: [..., D, F] of the kernel; leading axes (layers, experts) get factors of their own.
        rank: r.
    """
    *lead, rows, columns = shape
    return {
        "a": jax.random.normal(key, (*lead, rows, rank), jnp.float32) / math.sqrt(rows),
        "b": jnp.zeros((*lead, rank, columns), jnp.float32),
    }


def add_low_rank(kernel: jax.Array, change: dict[str, jax.Array], scale: float) -> jax.Array:
    """W + scale A B (LoRA, Hu et al. 2022, arXiv 2106.09685), in the dtype of W.

    The sum costs one product of D r F a kernel and step, far less than a batch of tokens, and lets every layer stay
    as it is; for serving, it is simply the new kernel.
    """
    return kernel + (scale * (change["a"] @ change["b"])).astype(kernel.dtype)
