"""How far every parameter of an encoder lies from its output, for layer-wise learning rates."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import numpy as np

from ringmoe_jax.models.api import Params
from ringmoe_jax.parallel.sharding import path_name

_BLOCKS = re.compile(r"^(?P<chain>.*?)(?:stages/stage(?P<stage>\d+)/blocks/run(?P<run>\d+)|transformer/blocks)/")
_MERGE = re.compile(r"^(?P<chain>.*?)merges/merge(?P<stage>\d+)/")
_NORMS = re.compile(r"^(?P<chain>.*?)stages/stage(?P<stage>\d+)/norms/")
_LAST = re.compile(r"(^|/)(norm|up)/|^geo_context/")  # after the last block of its chain
FUSION = "fusion/"


def distances(params: Params) -> Params:
    """Blocks that lie above every parameter, up to the encoder's output.

    0 is the last block and what follows it; patch embeddings, tokens and position tables are below the first. Of an
    encoder with a fusion, all blocks of the fusion lie above the sensors' own. Parameters of stacked blocks get an
    array [L, 1, ...], one number a block.

    Args:
        params: of RingMoE or SkySense, arrays or shapes; whole chains of blocks, but other parts may be absent.

    Returns:
        The same tree of whole numbers.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    lengths: dict[str, dict[tuple[int, int], int]] = {}  # of every stack of a chain, by stage and run
    for name, leaf in leaves.items():
        if match := _BLOCKS.match(name):
            lengths.setdefault(match["chain"], {})[_stack(match)] = leaf.shape[0]

    def distance(path, leaf):
        name = path_name(path)
        chain = _chain(name, lengths)
        stacks = lengths.get(chain, {})
        total = sum(stacks.values())
        above = sum(lengths.get(FUSION, {}).values()) if chain != FUSION else 0
        if match := _BLOCKS.match(name):
            below = sum(n for stack, n in stacks.items() if stack < _stack(match))
            numbers = above + total - 1 - below - np.arange(leaf.shape[0])
            return numbers.reshape(-1, *[1] * (len(leaf.shape) - 1))
        if match := _MERGE.match(name) or _NORMS.match(name):
            return above + total - sum(n for (stage, _), n in stacks.items() if stage <= int(match["stage"]))
        return above + (0 if _LAST.search(name) else total)

    return jax.tree_util.tree_map_with_path(distance, params)


def _stack(match: re.Match) -> tuple[int, int]:
    """Stage and run of a matched name; a transformer is one stack."""
    return int(match["stage"] or 0), int(match["run"] or 0)


def _chain(name: str, lengths: Mapping[str, Mapping]) -> str:
    """The sequence of blocks that a parameter belongs to, by its first letters."""
    if name.startswith("encoders/"):
        return next((chain for chain in lengths if chain.startswith("/".join(name.split("/")[:2]) + "/")), "")
    if name.startswith((FUSION, "dates", "geo_context/")):
        return FUSION
    return next((chain for chain in lengths if chain != FUSION), "")
