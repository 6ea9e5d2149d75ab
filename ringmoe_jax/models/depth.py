"""How far every parameter of an encoder lies from its output, for layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from ringmoe_jax.models.api import Params
from ringmoe_jax.parallel.sharding import path_name


def distances(params: Params, blocks_above: Mapping[str, int | Sequence[int]]) -> Params:
    """Blocks that lie above every parameter, up to the encoder's output.

    0 is the last block and what follows it; patch embeddings, tokens and position tables are below the first. Of an
    encoder with a fusion, all blocks of the fusion lie above the sensors' own. Parameters of stacked blocks get an
    array [L, 1, ...], one number a block.

    Args:
        params: of an encoder, arrays or shapes; parts may be absent, and leaves may have further names behind.
        blocks_above: what the model says, see `Model.blocks_above`.

    Returns:
        The same tree of whole numbers.
    """
    prefixes = sorted(blocks_above, key=len, reverse=True)

    def distance(path, leaf):
        name = path_name(path)
        above = blocks_above[next(p for p in prefixes if not p or name == p or name.startswith(p + "/"))]
        return above if isinstance(above, int) else np.asarray(above).reshape(-1, *[1] * (len(leaf.shape) - 1))

    return jax.tree_util.tree_map_with_path(distance, params)


def prefixed(prefix: str, blocks_above: Mapping[str, int | Sequence[int]], further: int) -> dict:
    """What a part says of its own blocks, as the whole says it.

    Args:
        prefix: path of the part.
        blocks_above: of the part, see `Model.blocks_above`.
        further: blocks of the whole above the part's last one.
    """
    return {
        "/".join(filter(None, (prefix, name))): above + further
        if isinstance(above, int)
        else tuple(number + further for number in above)
        for name, above in blocks_above.items()
    }
