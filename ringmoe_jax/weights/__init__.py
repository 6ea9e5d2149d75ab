"""Weights that come with the library, which it trained itself: one safetensors file each, see `interop.own`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ringmoe_jax.errors import ConfigError

if TYPE_CHECKING:
    from ringmoe_jax.run import Run

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """What there is."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def path(name: str) -> Path:
    """The file of some weights.

    Raises:
        ConfigError: there are none of that name.
    """
    if name not in names():
        raise ConfigError(f'no weights "{name}" come with ringmoe_jax: choose from {", ".join(names())}')
    return FOLDER / f"{name}.safetensors"


def pretrained(name: str = "reference") -> Run:
    """An encoder that comes with the library, trained, in memory; `run.origin` says on what and under which licence.

    Args:
        name: of `names()`; "reference" is that of docs/reference.md, for 8-bit red, green and blue, 64 px.

    Raises:
        ConfigError: there are no weights of that name.
    """
    from ringmoe_jax import interop

    return interop.convert(interop.SOURCES.build({"name": interop.OWN}, "source"), path(name))
