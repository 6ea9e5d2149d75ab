"""From `ml_collections` files to typed, frozen dataclasses, with errors that name the nearest key."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ringmoe_jax.errors import ConfigError, DataError, nearest

T = TypeVar("T")


def build(
    cls: type[T], values: Mapping[str, Any], where: str = "config", *, base: T | None = None, beside: Iterable[str] = ()
) -> T:
    """Builds a dataclass from a mapping, checking every key and every type.

    Args:
        cls: a dataclass; fields may be scalars, tuples, dicts, dataclasses or dicts of dataclasses.
        values: for example an `ml_collections.ConfigDict`; a group that a field's default fills states what differs
            from that default.
        where: dotted path of `values`, for messages.
        base: what holds where `values` is silent; default: the defaults of the fields.
        beside: names of the entries that this one is one of, for messages.

    Raises:
        ConfigError: a key is unknown (the message names the nearest), missing or of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}.{key} does not exist: {nearest(key, fields)}")
    for name, field in fields.items():
        if base is None and name not in values and _default(field) is dataclasses.MISSING:
            *_, label = where.split(".")
            others = [other for other in beside if other != label]
            instead = f", or name an entry that is there: {nearest(label, others)}" if others else ""
            raise ConfigError(f"{where}.{name} is missing: set it to a {_type_name(hints[name])}{instead}")
    filled = {}
    for name, value in values.items():
        default = _default(fields[name]) if base is None else getattr(base, name)
        filled[name] = _convert(hints[name], value, f"{where}.{name}", default)
    return cls(**filled) if base is None else dataclasses.replace(base, **filled)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, the second one's values over the first one's."""
    return dict(base) | {
        k: merged(base[k], v) if isinstance(v, Mapping) and isinstance(base.get(k), Mapping) else v
        for k, v in changes.items()
    }


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")


def _convert(hint: Any, value: Any, where: str, default: Any = None, beside: Iterable[str] = ()) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r}: wanted the keys of {hint.__name__}")
        return build(hint, value, where, base=default if isinstance(default, hint) else None, beside=beside)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{where} = {value!r}: wanted a list or tuple")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r}: wanted a mapping")
        return {key: _convert(arguments[1], item, f"{where}.{key}", beside=value) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value!r}: wanted a finite number")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} = {value!r} is a {type(value).__name__}, wanted a {_type_name(hint)}")
    return value


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any], where: str) -> tuple[str, Any, Any] | None:
    """Dotted path of the first value in which two trees of JSON types differ, and both values; None where they agree.

    Args:
        a: nested mapping; lists and tuples are the same, a key that is missing is None.
        b: the other one.
        where: what they are, the beginning of the path.
    """
    a, b = (json.loads(json.dumps(tree)) for tree in (a, b))
    for key in sorted(set(a) | set(b)):
        ours, theirs, path = a.get(key), b.get(key), f"{where}.{key}"
        if isinstance(ours, dict) and isinstance(theirs, dict):
            if difference := first_difference(ours, theirs, path):
                return difference
        elif ours != theirs:
            return path, ours, theirs
    return None


def check_ranges(config: Any, where: str, **ranges: tuple[float, float]) -> None:
    """Raises a `ConfigError` where a number of a config lies outside what makes sense.

    Args:
        config: a dataclass.
        where: its dotted path, for messages.
        **ranges: smallest and largest value of a field, both allowed.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not (low <= value <= high and math.isfinite(value)):
            limits = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            raise ConfigError(f"{where}.{name} = {value}: wanted {limits}")


def import_modules(names: Sequence[str]) -> None:
    """Imports modules of the user's own, which register sensors or objectives.

    Raises:
        ConfigError: there is no such module.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f'cannot import the module "{name}" ({error}): run from the folder that holds it'
            ) from error


# ---- Whose code a configuration may name --------------------------------------------------------------

_NAMED = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")  # module:Name
_allowed: set[str] = set()


def named_modules(values: Any) -> set[str]:
    """Modules that a configuration or record has imported: those of "modules", and of every "module:Name"."""
    if isinstance(values, str):
        match = _NAMED.fullmatch(values)
        return {match[1]} if match else set()
    if isinstance(values, Mapping):
        stated = values.get("modules", ())
        own = {name for name in stated if isinstance(name, str)} if isinstance(stated, Sequence) else set()
        return own.union(*(named_modules(value) for value in values.values()))
    if isinstance(values, Sequence):
        return set().union(*map(named_modules, values))
    return set()


def allow_modules(names: Iterable[str]) -> None:
    """Lets records name these modules: whoever started the program says so, on the command line or in a config."""
    _allowed.update(names)


def check_modules(record: Mapping[str, Any], where: Any) -> None:
    """Refuses a record of somebody else that would have code imported which the program did not ask for.

    Args:
        record: of a checkpoint.
        where: it lies, for the message.

    Raises:
        DataError: it names a module that is neither ours, nor imported already, nor allowed.
    """
    ours = __name__.partition(".")[0]
    unknown = sorted(named_modules(record) - _allowed - sys.modules.keys())
    tops = {name: name.partition(".")[0] for name in unknown}
    unknown = [name for name in unknown if tops[name] != ours and importlib.util.find_spec(tops[name])]
    if unknown:
        listed = " ".join(unknown)
        raise DataError(
            f"{where} names modules whose code would be run: {listed}; if you trust them, add --modules {listed}, or "
            "import them first (in Python)"
        )
