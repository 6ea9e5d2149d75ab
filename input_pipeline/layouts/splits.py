"""Who is in which split: folders, lists, names in the table, or a rule.

Each kind has `rule`, how it divides, for a person to read, and `divide(request, template)`, which returns the
fields of every place by split, and the rule that was followed.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from input_pipeline.layouts import Request, templates
from ringmoe_jax import files
from ringmoe_jax.errors import DataError, nearest

Places = dict[str, list[dict[str, str]]]  # fields of the places by split
_WORD = r"[^,\s]+"


@dataclasses.dataclass(frozen=True)
class Fractions:
    """Shares by the order of CRC-32, which is the same everywhere and has nothing to do with names (our choice).

    Attributes:
        validation: share.
        test: share; the rest is for training.
        within: field whose values are divided one by one, for example the class.
    """

    validation: float
    test: float = 0.0
    within: str = ""

    @property
    def rule(self) -> str:
        """How it divides."""
        train = 1 - self.validation - self.test
        shares = " / ".join(f"{share:.0%}" for share in (train, self.validation, self.test) if share)
        return f"{shares} of {f'each {self.within}' if self.within else 'all'} by CRC-32: our choice"

    def divide(self, request: Request, template: str) -> tuple[Places, str]:
        """See the module's text."""
        groups: dict[str, list] = {}
        for fields in _found(request.source, template):
            groups.setdefault(fields.get(self.within, ""), []).append(fields)
        places: Places = {"train": [], "validation": []} | ({"test": []} if self.test else {})
        for group in groups.values():
            mixed = sorted(group, key=lambda fields: mixing("/".join(fields.values())))
            first = round(self.validation * len(group))
            last = first + round(self.test * len(group))
            places["validation"] += mixed[:first]
            places["train"] += mixed[last:]
            if self.test:
                places["test"] += mixed[first:last]
        return places, self.rule


@dataclasses.dataclass(frozen=True)
class Folders:
    """One folder a split: the field `split` of the paths.

    Attributes:
        names: what the paths say, by split; several where a split comes in parts.
        validation: share of "train" that is split off where nobody published validation places, by the order of
            CRC-32 as `Fractions` has it.
    """

    names: Mapping[str, str | tuple[str, ...]]
    validation: float = 0.0

    @property
    def rule(self) -> str:
        """How it divides."""
        more = f"; {self.validation:.0%} of train for validation by CRC-32: our choice" if self.validation else ""
        return f"as published, folders {', '.join(name for split in self.names for name in self._parts(split))}{more}"

    def divide(self, request: Request, template: str) -> tuple[Places, str]:
        """See the module's text."""
        places = {
            split: [fields for name in self._parts(split) for fields in _found(request.source, template, split=name)]
            for split in self.names
        }
        if self.validation:
            train = sorted(places["train"], key=lambda fields: mixing("/".join(fields.values())))
            count = round(self.validation * len(train))
            places |= {"train": train[count:], "validation": train[:count]}
        return places, self.rule

    def _parts(self, split: str) -> tuple[str, ...]:
        names = self.names[split]
        return (names,) if isinstance(names, str) else names


@dataclasses.dataclass(frozen=True)
class Lists:
    """Text or CSV files that list the places, one a line.

    They lie in the data set's folder, beside its archive, or in one of `Request.lists`. Files that no list names are
    left out and noted in `Request.report`; a listed one that is not there is an error.

    Attributes:
        files: path by split; one path for all means sections that begin with a line "train:".
        row: template of a line; other lines are an error. Its fields say which place is meant.
        whose: who published the lists.
        otherwise: rule where none of the files is there; an error by default.
    """

    files: Mapping[str, str]
    row: str = "{id}"
    whose: str = "as published"
    otherwise: Fractions | None = None

    @property
    def rule(self) -> str:
        """How it divides."""
        without = f"; without the lists, {self.otherwise.rule}" if self.otherwise else ""
        return f"{self.whose}, lists {', '.join(dict.fromkeys(self.files.values()))}{without}"

    def divide(self, request: Request, template: str) -> tuple[Places, str]:
        """See the module's text."""
        folders = (request.source, *request.lists)
        holding = [folder for folder in folders if any((folder / path).exists() for path in self.files.values())]
        if self.otherwise and not holding:
            return self.otherwise.divide(request, template)
        folder = (holding or folders)[0]
        listed = {split: self._listed(folder / path, split) for split, path in self.files.items()}
        return _chosen(request, template, listed), f"{self.whose}, lists {', '.join(self.files.values())}"

    def _listed(self, path: Path, split: str) -> list[dict[str, str]]:
        text = files.read_text(path, f"the list of the split {split}")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(set(self.files.values())) < len(self.files):
            lines = _section(lines, split, path)
        fields = [templates.parse(self.row, line, _WORD) for line in lines]
        for line, found in zip(lines, fields, strict=True):
            if found is None:
                raise DataError(f"{path}: line {line!r}: wanted {self.row}")
        return fields


@dataclasses.dataclass(frozen=True)
class Named:
    """Places that the table names.

    Attributes:
        ids: values of the field `id`, by split.
        whose: who divided so.
    """

    ids: Mapping[str, tuple[str, ...]]
    whose: str

    @property
    def rule(self) -> str:
        """How it divides."""
        return self.whose

    def divide(self, request: Request, template: str) -> tuple[Places, str]:
        """See the module's text."""
        listed = {split: [{"id": name} for name in names] for split, names in self.ids.items()}
        return _chosen(request, template, listed), self.rule


def mixing(name: str) -> tuple[int, str]:
    """Key that orders names at random, but always alike."""
    return zlib.crc32(name.encode()), name


def _found(source: Path, template: str, **known: str) -> list[dict[str, str]]:
    found = templates.find(source, template, **known)
    if not found:
        raise DataError(
            f"{source} holds no file {template.format_map(_Shown(known))}: is it the data set's archive or folder?"
        )
    return found


def _chosen(request: Request, template: str, listed: Places) -> Places:
    """The places that lists mean: what they do not say of the paths is looked up among the files."""
    source = request.source
    first = next(iter(listed.values()))
    said = set(first[0]) if first else set()
    shared = tuple(name for name in templates.names(template) if name in said)
    if not shared:
        raise DataError(f"{source}: the lists say {', '.join(said) or 'nothing'}, the files are {template}")
    if set(templates.names(template)) <= said:
        return listed
    files = {tuple(f[name] for name in shared): f for f in _found(source, template)}
    keys = {split: [tuple(row[name] for name in shared) for row in rows] for split, rows in listed.items()}
    for split, wanted in keys.items():
        if absent := ["/".join(key) for key in wanted if key not in files]:
            count = f"{len(absent)} of the {len(wanted)} files listed for {split}"
            close = nearest(absent[0], ["/".join(key) for key in files][:100])
            raise DataError(f"{source} lacks {count}: {_some(absent)} ({close})")
    if spare := sorted("/".join(key) for key in set(files).difference(*keys.values())):
        request.report.notes.append(f"{len(spare)} of {len(files)} files are in no list: left out ({_some(spare)})")
    return {s: [files[k] | row for k, row in zip(keys[s], rows, strict=True)] for s, rows in listed.items()}


def _some(names: Sequence[str], count: int = 3) -> str:
    """The first of some names."""
    return ", ".join(names[:count]) + ", ..." * (len(names) > count)


def _section(lines: Iterable[str], name: str, path: Path) -> list[str]:
    """Lines between "name:" and the next line that ends with a colon."""
    sections: dict[str, list[str]] = {}
    for line in lines:
        if line.endswith(":"):
            sections[line[:-1]] = []
        elif sections:
            sections[next(reversed(sections))].append(line)
    if name not in sections:
        raise DataError(f'{path} has no section "{name}:": {nearest(name, sections)}')
    return sections[name]


class _Shown(dict):
    """Shows fields without value as they are written."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"
