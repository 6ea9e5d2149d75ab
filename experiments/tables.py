"""Results as JSON types and as columns of text: what the scripts print and write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """JSON types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, as wide as they need to be."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def with_interval(score: Mapping[str, float | None]) -> str:
    """For example "0.812 (0.774 to 0.850)"; a dash for what is not defined."""
    number = lambda x: "–" if x is None or not math.isfinite(x) else f"{x:.3f}"  # noqa: E731, RUF001
    return f"{number(score['value'])} ({number(score['low'])} to {number(score['high'])})"
