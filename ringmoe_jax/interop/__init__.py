"""Weights of others in, and ours out, without PyTorch.

    python -m experiments.convert --source galileo encoder.pt --out runs/galileo_nano

A source (`skysense`, `timm`, `galileo`, `presto`, and `ringmoe_jax` itself) says which model a file's tensors fill and
holds the table between both sides' names, see `mapping`. Files are read by `files`, which runs nothing that is in them.
"""

from __future__ import annotations

from ringmoe_jax.interop import galileo as _galileo  # noqa: F401  (registers)
from ringmoe_jax.interop import presto as _presto  # noqa: F401
from ringmoe_jax.interop import skysense as _skysense  # noqa: F401
from ringmoe_jax.interop import timm as _timm  # noqa: F401
from ringmoe_jax.interop.conversion import convert, write_tensors
from ringmoe_jax.interop.files import read
from ringmoe_jax.interop.mapping import WeightMap, rows
from ringmoe_jax.interop.own import NAME as OWN
from ringmoe_jax.interop.own import is_own, write_run
from ringmoe_jax.interop.source import SOURCES, Source

__all__ = [
    "OWN",
    "SOURCES",
    "Source",
    "WeightMap",
    "convert",
    "is_own",
    "read",
    "rows",
    "write_run",
    "write_tensors",
]
