"""Columns of text: what verbs print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ringmoe_jax.evaluate.metrics import Score


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, as wide as they need to be."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def with_interval(score: Score) -> str:
    """For example "0.812 (0.774 to 0.850)"; a dash for what is not defined."""
    number = lambda x: f"{x:.3f}" if math.isfinite(x) else "–"  # noqa: E731, RUF001
    return f"{number(score.value)} ({number(score.low)} to {number(score.high)})"
