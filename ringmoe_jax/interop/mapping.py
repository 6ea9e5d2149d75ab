"""A small language for weight maps: tables of what a source calls a tensor, where it lies here, and in which form.

    layers.{stage}.blocks.{block}.attn.proj   stages/stage{stage}/blocks/run0/attention/out[{block}]   linear

Names hold numbers in braces. `{stage+1}` in one column is one more than `{stage}` in the other, `{6*n+5}` counts in
steps; `[{block}]` at the end of a path is a row of stacked parameters. `query+key+value` splits the last axis of what
the source has fused. The form is a rearrangement in einops' notation, with sizes behind a semicolon where reading it
backwards needs them, nothing, or a word of `PAIRS` for a layer with weights and biases. A table is read in both
directions, and is strict in both: a tensor that is left over and a parameter that is left unset are errors.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.interop.files import Tensors
from ringmoe_jax.models import Params
from ringmoe_jax.models.paths import flatten, nest

PAIRS = {  # of layers: the source's suffix, ours, and the form
    "linear": (("weight", "kernel", "o i -> i o"), ("bias", "bias", "")),
    "norm": (("weight", "scale", ""), ("bias", "bias", "")),
    "patches": (("weight", "kernel", "o c h w -> (h w c) o; h={0} w={0}"), ("bias", "bias", "")),
    "shuffle": (("weight", "kernel", "(c h w) i 1 1 -> i (h w c); h={0} w={0}"),
                ("bias", "bias", "(c h w) -> (h w c); h={0} w={0}")),
}  # fmt: skip
NUMBER = re.compile(r"\{(?:(\d+)\*)?(\w+)(?:\+(\d+))?\}")
SHOWN = 4  # names in a message
Place = tuple[str, int | None]  # a parameter, or a row of a stacked one


# ---- Rearrangements -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Form:
    """A rearrangement of axes, in einops' notation: "o c h w -> (h w c) o; h=4 w=4"."""

    text: str = ""

    def __call__(self, x: np.ndarray, *, back: bool = False) -> np.ndarray:
        """The array rearranged from left to right, or `back`.

        Raises:
            ValueError: its axes are not those of the notation.
        """
        if not self.text:
            return x
        pattern, _, given = self.text.partition(";")
        sides = [re.findall(r"\([^)]*\)|\S+", side) for side in pattern.split("->")]
        start, end = ([side.strip("()").split() for side in axes] for axes in (sides[::-1] if back else sides))
        sizes = {"1": 1} | {k: int(v) for k, v in (pair.split("=") for pair in given.split())}
        if x.ndim != len(start):
            raise ValueError
        for names, length in zip(start, x.shape, strict=True):
            (unknown,) = [n for n in names if n not in sizes][:1] or [None]
            known = math.prod(sizes[n] for n in names if n in sizes)
            if unknown:
                sizes[unknown], known = length // known, length // known * known
            if known != length:
                raise ValueError
        names = [name for axis in start for name in axis if name != "1"]
        x = x.reshape([sizes[name] for name in names])
        x = x.transpose([names.index(name) for axis in end for name in axis if name != "1"])
        return x.reshape([math.prod(sizes[name] for name in axis) for axis in end])


# ---- Rows ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        source: the source's name, with numbers in braces.
        path: of the parameter here.
        form: from the source's array to ours.
    """

    source: str
    path: str
    form: Form

    def targets(self, name: str) -> list[Place] | None:
        """Paths, each with a row of a stack or None, of a source's tensor; None where the line is about another."""
        numbers = _match(self.source, name)
        if numbers is None:
            return None
        path, _, index = _fill(self.path, numbers).partition("[")
        return [(p, int(index[:-1]) if index else None) for p in _alternatives(path)]


def rows(table: str, source: str = "", path: str = "*") -> list[Row]:
    """The lines of a table.

    Args:
        table: a line each: name, path and form.
        source: prefix of all names.
        path: of all parameters, with the table's paths where "*" is.
    """
    found = []
    for line in filter(None, map(str.strip, table.strip().splitlines())):
        name, where, *form = line.split(maxsplit=2)
        word, *sizes = (form[0] if form else "").split()[:2] or [""]
        if word not in PAIRS:
            found.append(Row(source + name, path.replace("*", where), Form(*form)))
            continue
        where, bracket, index = where.partition("[")
        for suffix, ours, text in PAIRS[word]:
            place = path.replace("*", f"{where}/{ours}{bracket}{index}")
            found.append(Row(f"{source}{name}.{suffix}", place, Form(text.format(*sizes))))
    return found


def _match(pattern: str, name: str) -> dict[str, int] | None:
    """The numbers of a name, where it fits a pattern."""
    fields, expression, end = [], "", 0
    for found in NUMBER.finditer(pattern):
        expression += re.escape(pattern[end : found.start()]) + r"(\d+)"
        fields.append((found[2], int(found[1] or 1), int(found[3] or 0)))
        end = found.end()
    match = re.fullmatch(expression + re.escape(pattern[end:]), name)
    if match is None:
        return None
    numbers: dict[str, int] = {}
    for (field, step, first), digits in zip(fields, match.groups(), strict=True):
        number, rest = divmod(int(digits) - first, step)
        if rest or number < 0 or numbers.setdefault(field, number) != number:
            return None
    return numbers


def _fill(pattern: str, numbers: Mapping[str, int]) -> str:
    return NUMBER.sub(lambda m: str(int(m[1] or 1) * numbers[m[2]] + int(m[3] or 0)), pattern)


def _alternatives(path: str) -> list[str]:
    """The paths of "a/b+c/d": "a/b/d" and "a/c/d"."""
    choices = [""]
    for part in path.split("/"):
        choices = [f"{choice}/{name}" for name in part.split("+") for choice in choices]
    return [choice[1:] for choice in choices]


# ---- Maps ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WeightMap:
    """A table in both directions.

    Attributes:
        rows: of the table.
        left_out: why some of the source's tensors have no place here, by the start of their names.
    """

    rows: Sequence[Row]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_params(self, tensors: Tensors, new: Params) -> Params:
        """The parameters of a model, float32.

        Args:
            tensors: of a file; floating point of any width.
            new: parameters of a new model, or their shapes.

        Raises:
            DataError: see `assign`.
        """
        assigned, leaves = self.assign(tensors, new), {}
        for path, leaf in flatten(new).items():
            slots = [assigned[path, i] for i in self._slots(path, leaf.shape)]
            leaves[path] = slots[0] if slots[0].shape == leaf.shape else np.stack(slots)
        return nest(leaves)

    def assign(self, tensors: Tensors, new: Params) -> dict[Place, np.ndarray]:
        """What every parameter is filled with.

        Args:
            tensors: of a file; floating point of any width.
            new: parameters of a new model, or their shapes.

        Raises:
            DataError: tensors are left over, parameters unset, or a tensor has another shape or dtype.
        """
        shapes = {}
        for path, leaf in flatten(new).items():
            shapes |= {(path, i): leaf.shape[0 if i is None else 1 :] for i in self._slots(path, leaf.shape)}
        assigned, left, wrong = {}, [], []
        for name, tensor in tensors.items():
            row = next((row for row in self.rows if row.targets(name) is not None), None)
            places = row.targets(name) if row else []
            if row and set(places) <= shapes.keys() - assigned.keys():
                pieces = _pieces(row.form, name, tensor, [shapes[place] for place in places], wrong)
                assigned |= dict(zip(places, pieces, strict=True))
            elif row or not name.startswith(tuple(self.left_out)):
                left.append(name)
        _refuse(left, [_shown(place) for place in shapes if place not in assigned], wrong)
        return assigned

    def to_tensors(self, params: Params) -> Tensors:
        """The source's tensors, float32, from parameters of a model: the inverse of `to_params`.

        Raises:
            DataError: a parameter has no line in the table.
        """
        values = {}
        for path, leaf in flatten(params).items():
            values |= {(path, i): np.asarray(leaf)[... if i is None else i] for i in self._slots(path, np.shape(leaf))}
        tensors, used = {}, set()
        for row in self.rows:
            for name in self._names(row, values):
                places = row.targets(name)
                joined = [values[place] for place in places]
                tensors[name] = row.form(joined[0] if len(joined) == 1 else np.concatenate(joined, -1), back=True)
                used |= set(places)
        _refuse([], [_shown(place) for place in values if place not in used], [])
        return tensors

    def _slots(self, path: str, shape: Sequence[int]) -> Sequence[int | None]:
        """Rows of a parameter that the table names one by one, or None for all of it."""
        stacked = any("[" in row.path and self._numbers(row, path) is not None for row in self.rows)
        return range(shape[0]) if stacked else (None,)

    @staticmethod
    def _numbers(row: Row, path: str) -> dict[str, int] | None:
        found = (_match(choice, path) for choice in _alternatives(row.path.partition("[")[0]))
        return next((numbers for numbers in found if numbers is not None), None)

    def _names(self, row: Row, values: Mapping[Place, np.ndarray]) -> Iterator[str]:
        """Every name of a row that the parameters have a place for."""
        index = row.path.partition("[")[2][:-1]
        first = _alternatives(row.path.partition("[")[0])[0]
        for path, i in values:
            numbers = _match(first, path)
            if numbers is not None and (i is None) == (not index):
                yield _fill(row.source, numbers | (_match(index, str(i)) if index else {}))


def _pieces(form: Form, name: str, tensor: np.ndarray, shapes: Sequence[tuple], wrong: list[str]) -> list[np.ndarray]:
    """A tensor in our form, split where it is fused. Where it does not fit, `wrong` says why, and it is zeros."""
    wanted = (*shapes[0][:-1], len(shapes) * shapes[0][-1]) if shapes[0] else ()
    if not (np.issubdtype(tensor.dtype, np.floating) or tensor.dtype.name == "bfloat16"):
        wrong.append(f"{name} is {tensor.dtype}, wanted floating point")
        return [np.zeros(shape) for shape in shapes]
    try:
        value = form(np.asarray(tensor, np.float32))
    except ValueError:
        value = np.zeros(())
    if value.shape != wanted:
        wrong.append(f"{name} is {list(tensor.shape)}, which does not make the model's {list(wanted)}")
        return [np.zeros(shape) for shape in shapes]
    return np.split(value, len(shapes), axis=-1) if len(shapes) > 1 else [value]


def _shown(place: Place) -> str:
    path, index = place
    return path if index is None else f"{path}[{index}]"


def _refuse(left: Sequence[str], unset: Sequence[str], wrong: Sequence[str]) -> None:
    """Raises a `DataError` that lists what does not fit, if anything."""
    parts = [
        f"{len(names)} {what}, {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"
        for names, what in (
            (wrong, "do not fit"),
            (left, "tensors are left over"),
            (unset, "parameters are left unset"),
        )
        if names
    ]
    if parts:
        raise DataError(f"the file does not fit the model: {'; '.join(parts)}")
