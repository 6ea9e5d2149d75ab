"""Swin blocks, stacked and scanned; in SwinV2's residual-post-norm order where nothing else is asked for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.models.adapters import Convpass
from ringmoe_jax.models.attention import WindowAttention
from ringmoe_jax.models.layers import EPSILON, PatchMerging, drop_path, layer_norm
from ringmoe_jax.models.stack import scan, stack


class SwinBlock(nnx.Module):
    """x + LN(attention(x)), then x + LN(feed_forward(x)) (released RingMoE code: res-post-norm).

    Both norms start at a gain of `norm_gain`; at zero a new block is the identity (SwinV2 as its authors published it;
    the code of RingMoE and of SkySense starts at 1). With `pre_norm` it is x + attention(LN(x)), then
    x + feed_forward(LN(x)) (Swin, ViT), and they start at 1.

    Args:
        width: D.
        heads: attention heads.
        window: side of an attention window, in tokens.
        make_ffn: builds the feed-forward module from `rngs`; it is called as
            `ffn(x [B, S, n, D], slots, train=, mesh=) -> (x, {group: Statistics})`.
        pre_norm: norms come before the branches, not after them.
        norm_gain: initial gain of norms after the branches.
        adapter: width of a `Convpass` beside each of the two branches, added to what they add; 0 is none.
        epsilon: of both norms.
        drop_before_norm: a branch that is dropped still gives the bias of the norm after it (released SkySense code);
            else nothing (released RingMoE code, ours).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        make_ffn: Callable,
        rngs: nnx.Rngs,
        *,
        cosine: bool,
        dtype,
        pre_norm: bool = False,
        norm_gain: float = 0.0,
        adapter: int = 0,
        epsilon: float = EPSILON,
        drop_before_norm: bool = False,
    ):
        gain = 1.0 if pre_norm else norm_gain
        self.pre_norm, self.drop_before_norm = pre_norm, drop_before_norm
        self.attention = WindowAttention(width, heads, window, rngs, cosine=cosine, dtype=dtype)
        self.attention_norm = layer_norm(width, rngs, dtype=dtype, scale=gain, epsilon=epsilon)
        self.ffn = make_ffn(rngs)
        self.ffn_norm = layer_norm(width, rngs, dtype=dtype, scale=gain, epsilon=epsilon)
        self.adapter = adapter
        if adapter:
            self.convpass = nnx.Dict({b: Convpass(width, adapter, rngs, dtype=dtype) for b in ("attention", "ffn")})

    def __call__(self, x: jax.Array, shifted, slots, *, rate, key, train: bool, mesh):
        """[B, S, h, w, D] -> the same shape, and the feed-forward layer's statistics."""
        batch, slot_count, height, width, depth = x.shape
        keys = (None, None) if key is None else jax.random.split(key)
        images = x.reshape(-1, height, width, depth)
        y = self.attention(self._before(self.attention_norm, images), shifted)
        x = x + self._branch("attention", images, y, rate, keys[0]).reshape(x.shape)
        tokens = self._before(self.ffn_norm, x).reshape(batch, slot_count, height * width, depth)
        y, collected = self.ffn(tokens, slots, train=train, mesh=mesh)
        images = x.reshape(-1, height, width, depth)
        y = self._branch("ffn", images, y.reshape(images.shape), rate, keys[1])
        return x + y.reshape(x.shape), collected

    def _before(self, norm: nnx.LayerNorm, x: jax.Array) -> jax.Array:
        """What a branch is shown of x."""
        return norm(x) if self.pre_norm else x

    def _branch(self, branch: str, x: jax.Array, y: jax.Array, rate, key) -> jax.Array:
        """What a branch adds to images x [B S, h, w, D], given its y: normed, with its bypass, dropped."""
        if self.drop_before_norm:
            y, key = drop_path(y, rate, key), None
        if not self.pre_norm:
            y = getattr(self, f"{branch}_norm")(y)
        if self.adapter:
            y = y + self.convpass[branch](x)
        return drop_path(y, rate, key)


class SwinStage(nnx.Module):
    """The blocks of one resolution, stacked and scanned.

    Odd blocks shift their windows by half a window, unless one window covers the grid; without `shift_thin` unless one
    covers a side of it.

    Args:
        width: D.
        runs: numbers of the layers, in runs of equal layers; each run is one stack.
        window: side of an attention window, in tokens.
        make_block: builds a `SwinBlock` from `rngs` and the number of its layer.
        spread: `spread(statistics, run)` brings those of a run into the shapes that all runs share.
        norm_every: a layer norm follows every so many blocks (SwinV2-H; released SkySense code); 0 is none.
        shift_thin: whether windows shift in a grid that is one window high or wide, and longer the other way; they do
            in the released RingMoE code, and do not in that of SkySense.
    """

    def __init__(
        self,
        width: int,
        runs: tuple[range, ...],
        window: int,
        make_block: Callable,
        rngs: nnx.Rngs,
        *,
        spread: Callable,
        norm_every: int,
        shift_thin: bool,
        dtype,
    ):
        self.runs, self.window, self.spread, self.shift_thin = runs, window, spread, shift_thin
        self.depth = depth = sum(map(len, runs))
        self.norm_every = norm_every if depth >= norm_every else 0
        stacks = [stack(lambda r, run=run: make_block(r, run.start), len(run), rngs) for run in runs]
        self.blocks = nnx.Dict({f"run{i}": blocks for i, blocks in enumerate(stacks)})
        if self.norm_every:
            self.norms = stack(lambda rngs: layer_norm(width, rngs, dtype=dtype), depth // norm_every, rngs)

    def __call__(self, x: jax.Array, slots, *, rates, key, train: bool, mesh, remat: str, unroll: bool = False):
        """[B, S, h, w, D] and `rates` [depth] -> the same shape and statistics stacked [depth, ...]."""
        number = jnp.arange(self.depth)
        keys = None if key is None else jax.random.split(key, self.depth)
        norm, norms = self._norms()
        side = max(x.shape[2:4]) if self.shift_thin else min(x.shape[2:4])

        def call(block, x, number, rate, key, params):
            shifted = number % 2 == 1 if side > self.window else False
            x, collected = block(x, shifted, slots, rate=rate, key=key, train=train, mesh=mesh)
            if norm:
                x = jax.lax.cond((number + 1) % self.norm_every == 0, norm, lambda params, y: y, params, x)
            return x, collected

        collected, first = [], self.runs[0].start
        for i, run in enumerate(self.runs):
            layers = jax.tree.map(lambda a: a[run.start - first : run.stop - first], (number, rates, keys, norms))  # noqa: B023
            x, found = scan(call, self.blocks[f"run{i}"], x, layers, remat, unroll=unroll)
            collected.append(self.spread(found, run))
        return x, jax.tree.map(lambda *s: jnp.concatenate(s), *collected)

    def _norms(self):
        """A function (params, x) -> x of the norms between blocks, and each block's params; None, None without."""
        if not self.norm_every:
            return None, None
        graph, params = nnx.split(self.norms)
        last = self.depth // self.norm_every - 1
        index = jnp.minimum(jnp.arange(self.depth) // self.norm_every, last)
        return lambda params, x: nnx.merge(graph, params)(x), jax.tree.map(lambda p: p[index], params)


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Geometry of a `SwinPyramid`.

    Attributes:
        width: D of the first stage; doubles with every stage.
        depths: blocks of each stage.
        grid: tokens along a side of the first stage; halves with every stage.
        window: side of an attention window in tokens, clamped to a stage's grid.
        head_width: D of one attention head, clamped to `width`.
        cosine: SwinV2's attention, see `attention.WindowAttention`.
        pre_norm: see `SwinBlock`.
        norm_gain: see `SwinBlock`.
        norm_every: see `SwinStage`.
        shift_thin: see `SwinStage`.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        remat: key of `stack.REMAT_POLICIES`.
        unroll: see `stack.scan`.
        adapter: see `SwinBlock`.
        epsilon: of the blocks' norms.
        merge_epsilon: of those behind patch merging.
        drop_before_norm: see `SwinBlock`.
        breaks: layers whose feed-forward module has other shapes than that of the layer below.
    """

    width: int
    depths: tuple[int, ...]
    grid: int
    window: int
    head_width: int
    cosine: bool
    pre_norm: bool = False
    norm_gain: float = 0.0
    norm_every: int = 0
    shift_thin: bool = True
    drop_path: float = 0.0
    remat: str = "none"
    unroll: bool = False
    adapter: int = 0
    epsilon: float = EPSILON
    merge_epsilon: float = EPSILON
    drop_before_norm: bool = False
    breaks: tuple[int, ...] = ()

    def runs(self, stage: int) -> tuple[range, ...]:
        """Numbers of a stage's layers, in runs of layers of equal shapes."""
        first = sum(self.depths[:stage])
        last = first + self.depths[stage]
        starts = [first, *(layer for layer in self.breaks if first < layer < last), last]
        return tuple(itertools.starmap(range, itertools.pairwise(starts)))

    @property
    def blocks_above(self) -> dict[str, int | tuple[int, ...]]:
        """Blocks of the pyramid above its parts, see `ringmoe_jax.models.api.Model`."""
        total, above = sum(self.depths), {}
        for i in range(len(self.depths)):
            left = total - sum(self.depths[: i + 1])
            above |= {f"stages/stage{i}/norms": left, f"merges/merge{i}": left}
            for j, run in enumerate(self.runs(i)):
                above[f"stages/stage{i}/blocks/run{j}"] = tuple(total - 1 - layer for layer in run)
        return above

    def stage_window(self, stage: int) -> int:
        """Window of a stage, clamped to its grid (released code)."""
        return min(self.window, self.grid // 2**stage)


def windows(grid: int, stages: int) -> list[int]:
    """Windows that tile every stage of a pyramid, in tokens a side, ascending.

    Args:
        grid: tokens along one side of the first stage; each further stage has half as many, whole or not.
        stages: their number.
    """
    sides = [grid // 2**stage for stage in range(stages) if grid % 2**stage == 0]
    tiled = range(1, grid + 1) if len(sides) == stages else ()
    return [window for window in tiled if all(side % min(window, side) == 0 for side in sides)]


class SwinPyramid(nnx.Module):
    """Stages of `SwinBlock`s with `PatchMerging` between them.

    Args:
        config: geometry.
        make_ffn: `make_ffn(width, rngs, layer)` builds a layer's feed-forward module, see `SwinBlock`.
        constrain: applied to the tokens at the borders of stages, for example a sharding constraint.
        spread: see `SwinStage`; by default all runs have the same shapes.
    """

    def __init__(
        self,
        config: SwinConfig,
        make_ffn: Callable,
        rngs: nnx.Rngs,
        *,
        constrain: Callable,
        spread: Callable = lambda collected, run: collected,
        dtype,
    ):
        self.config, self.constrain, self.spread = config, constrain, spread
        self.stages = nnx.Dict({f"stage{i}": self._stage(i, make_ffn, rngs, dtype) for i in range(len(config.depths))})
        self.merges = nnx.Dict(
            {
                f"merge{i}": PatchMerging(config.width * 2**i, rngs, dtype=dtype, epsilon=config.merge_epsilon)
                for i in range(len(config.depths) - 1)
            }
        )

    def _stage(self, i: int, make_ffn: Callable, rngs: nnx.Rngs, dtype) -> SwinStage:
        config = self.config
        width, window = config.width * 2**i, config.stage_window(i)
        make_block = lambda rngs, layer: SwinBlock(  # noqa: E731
            width,
            width // min(config.head_width, config.width),
            window,
            lambda rngs: make_ffn(width, rngs, layer),
            rngs,
            cosine=config.cosine,
            dtype=dtype,
            pre_norm=config.pre_norm,
            norm_gain=config.norm_gain,
            adapter=config.adapter,
            epsilon=config.epsilon,
            drop_before_norm=config.drop_before_norm,
        )
        return SwinStage(
            width,
            config.runs(i),
            window,
            make_block,
            rngs,
            spread=self.spread,
            norm_every=config.norm_every,
            shift_thin=config.shift_thin,
            dtype=dtype,
        )

    def __call__(self, x: jax.Array, slots, *, key, train: bool, mesh):
        """[B, S, h, w, D] -> the tokens of every stage, finest first, and statistics stacked over all L layers."""
        config = self.config
        rates = jnp.linspace(0.0, config.drop_path, sum(config.depths))
        if not train or config.drop_path == 0:
            key = None
        stages, collected, first = [], [], 0
        for i, depth in enumerate(config.depths):
            if i:
                x = self.constrain(self.merges[f"merge{i - 1}"](x))
            stage_key = None if key is None else jax.random.fold_in(key, i)
            stage_rates = rates[first : first + depth]
            x, routing = self.stages[f"stage{i}"](
                x,
                slots,
                rates=stage_rates,
                key=stage_key,
                train=train,
                mesh=mesh,
                remat=config.remat,
                unroll=config.unroll,
            )
            first += depth
            x = self.constrain(x)
            stages.append(x)
            collected.append(routing)
        return stages, jax.tree.map(_joined, *collected)


def _joined(*stages: jax.Array) -> jax.Array:
    """Arrays [L_i, ...] of all stages as one; where their last axes differ, as hidden units do, zeros fill them up."""
    last = max(s.shape[-1] for s in stages)
    fill = lambda s: [(0, 0)] * (s.ndim - 1) + [(0, last - s.shape[-1])]  # noqa: E731
    return jnp.concatenate([s if s.ndim == 1 else jnp.pad(s, fill(s)) for s in stages])
