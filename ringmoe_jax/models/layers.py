"""Small layers that every model shares. This package is the only place with `flax.nnx`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

TRUNCATED_NORMAL = nnx.initializers.truncated_normal(stddev=0.02)  # released RingMoE code, where it sets kernels
EPSILON = 1e-5  # of layer norms where nothing else is said (our choice; PyTorch's)
NORMAL, UNIFORM = KERNELS = ("normal", "uniform")  # how kernels start


def start(kernel: str, inputs: int) -> Callable:
    """Initialiser of a kernel: NORMAL is `TRUNCATED_NORMAL`, UNIFORM is within 1 / sqrt(inputs), as MindSpore's own."""
    limit = inputs**-0.5
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)  # noqa: E731
    return TRUNCATED_NORMAL if kernel == NORMAL else uniform


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, *, dtype, bias: bool = True, kernel: str = NORMAL) -> nnx.Linear:
    """Linear layer, float32 parameters, computed in `dtype`; biases start at zero, or where `kernel` is UNIFORM so."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=start(kernel, inputs),
        bias_init=nnx.initializers.zeros_init() if kernel == NORMAL else start(kernel, inputs),
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def layer_norm(width: int, rngs: nnx.Rngs, *, dtype, scale: float = 1.0, epsilon: float = EPSILON) -> nnx.LayerNorm:
    """Layer norm with float32 statistics and parameters, output in `dtype`; `scale` is the initial gain."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=jnp.float32,
        scale_init=nnx.initializers.constant(scale),
        rngs=rngs,
    )


class Mlp(nnx.Module):
    """D -> F -> D with GELU: its usual approximation by a tanh (released RingMoE code), or `exact` (timm, SkySense).

    Call: [..., D] -> [..., D].
    """

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs, *, dtype, exact: bool = False):
        self.exact = exact
        self.wi = linear(width, hidden, rngs, dtype=dtype)
        self.wo = linear(hidden, width, rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.wo(jax.nn.gelu(self.wi(x), approximate=not self.exact))


class FeedForward(nnx.Module):
    """One `Mlp`, called as blocks call a mixture of experts, see `moe_ffn.MoEFeedForward`; there are no statistics."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs, *, dtype, exact: bool = False):
        self.shared = Mlp(width, hidden, rngs, dtype=dtype, exact=exact)

    def __call__(self, x: jax.Array, slots, *, train: bool, mesh) -> tuple[jax.Array, dict]:
        return self.shared(x), {}


def with_power(image: jax.Array) -> jax.Array:
    """Standardised re, im pairs [..., 2 P] -> [..., 3 P]: the standardised logarithm of each power behind them.

    Single-look speckle of the sensor's mean power has zero mean and unit variance there; no power counts as the mean.
    """
    power = (jnp.square(image[..., 0::2]) + jnp.square(image[..., 1::2])) / 2
    seen = power > 1e-6
    logarithm = (jnp.log(jnp.where(seen, power, 1.0)) + jnp.euler_gamma) / (math.pi / math.sqrt(6))
    return jnp.concatenate([image, jnp.where(seen, logarithm, 0.0)], axis=-1)


class PatchEmbed(nnx.Module):
    """Modality-specific patch embedding: p x p convolution with stride p, bias and, unless left out, layer norm.

    Call: [..., H, W, C] -> [..., H / p, W / p, D].
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        width: int,
        rngs: nnx.Rngs,
        *,
        dtype,
        norm: bool = True,
        epsilon: float = EPSILON,
    ):
        self.patch = patch
        self.project = linear(patch * patch * channels, width, rngs, dtype=dtype)
        self.norm = layer_norm(width, rngs, dtype=dtype, epsilon=epsilon) if norm else None

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x = self.project(patches(pixels, self.patch))
        return self.norm(x) if self.norm else x


def patches(pixels: jax.Array, p: int) -> jax.Array:
    """Patches of p x p pixels as vectors: [..., H, W, C] -> [..., H / p, W / p, p p C]."""
    *lead, height, width, channels = pixels.shape
    x = pixels.reshape(*lead, height // p, p, width // p, p, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, height // p, width // p, p * p * channels)


class ConvolutionalStem(nnx.Module):
    """Modality-specific embedding by 3 x 3 convolutions of stride 2, each with GELU, then a linear layer, layer norm.

    Widths double up to D. Early convolutions make small transformers learn sooner (Xiao et al. 2021, arXiv
    2106.14881). There is no norm between them (our choice): one over few channels takes away how bright a pixel is and
    how strong its texture, which is most of what small networks know of a scene. Kernels start with a variance of
    2 / inputs, which keeps the scale instead. Tokens see a few pixels beyond their patch, so hidden pixels have to be
    blank before it. Convolutions are products of shifted slices: their gradients as convolutions are slow on CPUs.
    Call: [..., H, W, C] -> tokens [..., H / p, W / p, D], and what each convolution gives, finest first.
    """

    def __init__(self, channels: int, patch: int, width: int, rngs: nnx.Rngs, *, dtype):
        widths = [channels, *self.widths(patch, width)]
        options = dict(kernel_init=nnx.initializers.he_normal(), dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.convolutions = nnx.List([nnx.Linear(9 * a, b, **options) for a, b in itertools.pairwise(widths)])
        self.project = linear(widths[-1], width, rngs, dtype=dtype)
        self.norm = layer_norm(width, rngs, dtype=dtype)

    @staticmethod
    def widths(patch: int, width: int) -> tuple[int, ...]:
        """Channels of each convolution."""
        count = patch.bit_length() - 1
        return tuple(max(width >> (count - 1 - i), 8) for i in range(count))

    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        levels, x = [], pixels
        for convolution in self.convolutions:
            x = jax.nn.gelu(convolution(_neighbourhoods(x)))
            levels.append(x)
        return self.norm(self.project(x)), tuple(levels)


def _neighbourhoods(x: jax.Array) -> jax.Array:
    """[..., H, W, C] -> [..., H / 2, W / 2, 9 C]: every second 3 x 3 neighbourhood, zeros beyond the border."""
    height, width = x.shape[-3:-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 0), (1, 0), (0, 0)])
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return jnp.concatenate([x[..., i : i + height - 1 : 2, j : j + width - 1 : 2, :] for i, j in shifts], axis=-1)


class PatchMerging(nnx.Module):
    """Halves rows and columns, doubles the width: 2 x 2 concat, linear without bias, layer norm.

    The order linear, then norm is SwinV2's (released RingMoE code).
    Call: [..., h, w, D] -> [..., h / 2, w / 2, 2 D].
    """

    def __init__(self, width: int, rngs: nnx.Rngs, *, dtype, epsilon: float = EPSILON):
        self.reduce = linear(4 * width, 2 * width, rngs, dtype=dtype, bias=False)
        self.norm = layer_norm(2 * width, rngs, dtype=dtype, epsilon=epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        *lead, height, width, depth = x.shape
        x = x.reshape(*lead, height // 2, 2, width // 2, 2, depth)
        x = jnp.swapaxes(x, -4, -3).reshape(*lead, height // 2, width // 2, 4 * depth)
        return self.norm(self.reduce(x))


class PixelDecoder(nnx.Module):
    """1 x 1 convolution and depth-to-space: a square of outputs for every token.

    Released RingMoE code (SimMIM decoder); SkySense's up-projection to one token a pixel is the same. With `alike` all
    outputs of a token start equal (ICNR, Aitken et al. 2017), or features that are compared pixel by pixel would
    carry the pattern of the grid from the start; `kernel` says how they start, see `start`.
    Call: [..., h, w, D] -> [..., h * stride, w * stride, channels].
    """

    def __init__(
        self,
        width: int,
        stride: int,
        channels: int,
        rngs: nnx.Rngs,
        *,
        dtype,
        alike: bool = False,
        kernel: str = NORMAL,
    ):
        self.stride, self.channels = stride, channels
        self.project = linear(width, stride * stride * channels, rngs, dtype=dtype, kernel=kernel)
        if alike:
            first = self.project.kernel[...][:, :channels]
            self.project.kernel[...] = jnp.tile(first, (1, stride * stride))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        *lead, height, width, _ = tokens.shape
        s = self.stride
        x = self.project(tokens).reshape(*lead, height, width, s, s, self.channels)
        return jnp.swapaxes(x, -4, -3).reshape(*lead, height * s, width * s, self.channels)


class PyramidDecoder(nnx.Module):
    """All stages, normed, projected to the width of the finest and added up there, then a `PixelDecoder` (our choice).

    A square of outputs is as large as a patch, and not as a token of the last stage, so that a reconstruction shows
    what stands within one; coarse stages add what they know of the place around.
    Call: stages, finest first, [..., h_i, w_i, D_i], each h_i a divisor of the finest -> [..., h * stride, w * stride,
    channels].

    Args:
        widths: D_i of each stage, finest first.
        stride: pixels of a token of the finest stage.
        channels: of the output.
        kernel: how that of the `PixelDecoder` starts.
    """

    def __init__(
        self, widths: tuple[int, ...], stride: int, channels: int, rngs: nnx.Rngs, *, dtype, kernel: str = NORMAL
    ):
        self.norms = nnx.List([layer_norm(width, rngs, dtype=dtype) for width in widths])
        self.project = nnx.List([linear(width, widths[0], rngs, dtype=dtype) for width in widths])
        self.pixels = PixelDecoder(widths[0], stride, channels, rngs, dtype=dtype, kernel=kernel)

    def __call__(self, stages: Sequence[jax.Array]) -> jax.Array:
        levels = [project(norm(x)) for x, norm, project in zip(stages, self.norms, self.project, strict=True)]
        total = sum(jax.image.resize(x, levels[0].shape, "nearest") for x in levels)
        return self.pixels(jax.nn.gelu(total))


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """Unit length along an axis, computed in float32, in the dtype of x; zeros stay zeros."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.sum(wide * wide, axis=axis, keepdims=True) + 1e-12)).astype(x.dtype)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
    """Stochastic depth: drops the whole residual branch of a sample with probability `rate`.

    Args:
        x: [B, ...] residual branch.
        rate: in 0..1; may be traced (one value a layer of a scan).
        key: None keeps everything.
    """
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def count(params) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
