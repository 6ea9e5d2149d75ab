"""Paths with fields: "{split}/images/{id}.png" finds files, says what their names hold, and names other files."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from pathlib import Path

_FIELD = re.compile(r"\{(\w+)\}")


def names(template: str) -> tuple[str, ...]:
    """Fields of a template, each once, in order."""
    return tuple(dict.fromkeys(_FIELD.findall(template)))


def fill(template: str, fields: Mapping[str, str]) -> str:
    """The template with its fields filled in."""
    return template.format_map(fields)


def joined(fields: Mapping[str, str]) -> str:
    """What a person calls a file with these fields."""
    return "/".join(fields.values())


def parse(template: str, text: str, wildcard: str = "[^/]+") -> dict[str, str] | None:
    """Fields of a text that was made from a template; None if it was not. The first fields take what they can.

    Args:
        template: a field that occurs twice must hold the same.
        text: for example a path.
        wildcard: regular expression of a field.
    """
    pattern, seen, end = "", set(), 0
    for match in _FIELD.finditer(template):
        name = match.group(1)
        pattern += re.escape(template[end : match.start()])
        pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{wildcard})"
        seen.add(name)
        end = match.end()
    found = re.fullmatch(pattern + re.escape(template[end:]), text)
    return found.groupdict() if found else None


def find(source: Path, template: str, **known: str) -> list[dict[str, str]]:
    """Fields of all files of a folder that a template describes, ordered by path.

    Args:
        source: folder.
        template: path from there.
        known: fields whose values are given; they are part of what is returned.
    """
    template = _FIELD.sub(lambda match: known.get(match.group(1), match.group(0)), template)
    pattern = "".join("*" if i % 2 else glob.escape(part) for i, part in enumerate(_FIELD.split(template)))
    paths = sorted(path.relative_to(source).as_posix() for path in source.glob(pattern))
    return [known | fields for path in paths if (fields := parse(template, path)) is not None]
