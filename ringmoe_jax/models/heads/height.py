"""Heights above ground by adaptive bins."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.contracts import Meaning
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.heads.base import HEADS, ROWS_COLUMNS, HeadConfig
from ringmoe_jax.models.heads.dense import DenseConfig, DenseHead, resize
from ringmoe_jax.models.layers import linear


@HEADS.register("height")
@dataclasses.dataclass(frozen=True)
class HeightConfig(DenseConfig, HeadConfig):
    """As `DenseConfig`, and the bins.

    Attributes:
        bins: K, at least 2.
        max_height: upper edge of the last bin in metres; the first one starts at 0.
        residual: adds what a regression says to the mean over bins, in units of a mean bin width. It then may leave
            0..`max_height`.
    """

    gives: ClassVar = {"height": Meaning(ROWS_COLUMNS, "height above ground of every pixel in metres")}
    bins: int = 64
    max_height: float = 100.0
    residual: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.bins < 2 or not self.max_height > 0:
            raise ConfigError(
                f"head.bins = {self.bins}, max_height = {self.max_height}: wanted at least 2 bins and more than 0 m"
            )

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> HeightHead:
        """See `HeadConfig`."""
        return HeightHead(self, widths, outputs, rngs, dtype=dtype)


class HeightHead(nnx.Module):
    """height = sum_k p_k c_k over bins whose widths the image chooses.

    Widths are max_height * softmax(MLP(mean of the last level)), c_k the bins' centres and p_k a softmax over bins for
    every pixel. Source: AdaBins (Bhat et al. 2021, arXiv 2011.14141, section 3.2, Eq. 1), whose transformer is left
    out and whose ReLU is a softmax (our choices); `residual` is our choice. Heights are computed on the grid of the
    finest level and then enlarged, which keeps them between 0 and `max_height`.
    Call: levels and size -> {"height": [N, H, W], "bins": [N, K] centres, ascending}, float32 metres.

    Raises:
        ConfigError: `outputs` is not 1.
    """

    def __init__(self, config: HeightConfig, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype):
        if outputs != 1:
            raise ConfigError(f"the height head has one output, got outputs = {outputs}")
        self.config = config
        self.head = DenseHead(config, widths, config.bins + config.residual, rngs, dtype=dtype)
        self.hidden = linear(widths[-1], config.channels, rngs, dtype=dtype)
        self.shares = linear(config.channels, config.bins, rngs, dtype=dtype)

    def __call__(self, levels: tuple[jax.Array, ...], size: tuple[int, int], *, key, train: bool) -> dict:
        config, centres = self.config, self._centres(levels[-1])
        maps = self.head.coarse(levels, key=key, train=train)
        height = jnp.einsum("nhwk,nk->nhw", jax.nn.softmax(maps[..., : config.bins], axis=-1), centres)
        if config.residual:
            height += maps[..., -1] * (config.max_height / config.bins)
        return {"height": resize(height[..., None], size)[..., 0], "bins": centres}

    def _centres(self, last: jax.Array) -> jax.Array:
        """[N, h, w, D] -> [N, K] float32 metres."""
        pooled = last.astype(jnp.float32).mean(axis=(1, 2))
        shares = self.shares(jax.nn.gelu(self.hidden(pooled))).astype(jnp.float32)
        widths = self.config.max_height * jax.nn.softmax(shares, axis=-1)
        return jnp.cumsum(widths, axis=-1) - widths / 2
