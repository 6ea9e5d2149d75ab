"""Equal blocks as one: parameters stacked [depth, ...] and scanned, so that compile time does not grow with depth."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from ringmoe_jax.models.keys import Keys

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stack(make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` blocks with random numbers of their own, as one module whose parameters have a leading axis."""
    return nnx.vmap(lambda key: make_block(Keys(key)))(jax.random.split(rngs.params(), depth))


def scan(call: Callable, blocks: nnx.Module, x, layers: tuple, remat: str, *, unroll: bool = False):
    """Runs x through stacked blocks.

    Args:
        call: `call(block, x, *layer) -> (x, collected)`.
        blocks: of `stack`.
        x: input of the first block.
        layers: pytrees with a leading axis `depth`; each block gets its slice.
        remat: key of `REMAT_POLICIES`, what the backward pass computes again.
        unroll: writes every block into the program, which takes longer to compile. A loop copies what the backward
            pass needs of every block, so that on CPUs a shallow model's step takes 1.1 to 1.5 times as long
            (docs/benchmarks.md).

    Returns:
        x of the last block, and what was collected, stacked [depth, ...].
    """
    graph, stacked = nnx.split(blocks)

    def body(x, layer):
        params, *own = layer
        return call(nnx.merge(graph, params), x, *own)

    if remat != "none":
        # A loop keeps the two passes apart. Without one, or of one turn, the compiler would share what they compute.
        alone = unroll or len(jax.tree.leaves(stacked)[0]) == 1
        body = jax.checkpoint(body, prevent_cse=alone, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(body, x, (stacked, *layers), unroll=unroll)
