"""HTML pages in one style, from the templates in `pages/`; they need no other file and no network."""

from __future__ import annotations

import base64
import datetime
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ringmoe_jax import remote
from ringmoe_jax.evaluate.metrics import Score

MINUS = "\u2212"
TEMPLATES = Path(__file__).parent / "pages"


def render(template: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: file name.
        values: what the template names, all of it; `date` is given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score, "number": number, "setting": setting, "short": short, "shown": remote.shown}
    date = f"{datetime.datetime.now(datetime.UTC):%d %B %Y, %H:%M} UTC"
    return environment.get_template(template).render(**values, date=date)


def embedded(image: Path) -> str:
    """A PNG file as text, for `src="data:image/png;base64,..."`."""
    return base64.b64encode(image.read_bytes()).decode()


def score(value: Score, signed: bool = False, digits: int = 3) -> str:
    """For example "0.812 [0.774, 0.850]"; a dash where it is not defined."""
    low, high = number(value.low, signed, digits), number(value.high, signed, digits)
    return f"{number(value.value, signed, digits)} [{low}, {high}]"


def number(value: float, signed: bool = False, digits: int = 3) -> str:
    """For example "0.812" or "1,204.000"; a dash where it is not defined."""
    text = f"{value:{'+' if signed else ''},.{digits}f}" if math.isfinite(value) else "–"  # noqa: RUF001
    return text.replace("-", MINUS)


def setting(value: Any) -> str:
    """A value of the configuration as text."""
    if isinstance(value, Mapping):
        return f"({', '.join(f'{k} {setting(v)}' for k, v in value.items())})"
    return ", ".join(map(setting, value)) if isinstance(value, list | tuple) else str(value)


def short(count: int) -> str:
    """For example "2.6 M" or "29.8 k"."""
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


def listed(names: Sequence[str]) -> str:
    """For example "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def speed(records: Sequence[Mapping]) -> dict[str, float] | None:
    """Medians over the logged intervals of a run, which leave compilation out."""
    timed = [record for record in records if "perf/images_per_second" in record]
    if not timed:
        return None
    names = ("images_per_second", "input_wait", "step_seconds")
    return {name: statistics.median(record[f"perf/{name}"] for record in timed) for name in names}
