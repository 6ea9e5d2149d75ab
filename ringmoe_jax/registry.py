"""One rule for every part that a config names: a short name, or `module:Name` of one's own file.

A part with choices is a frozen dataclass. Its fields are the keys that the config writes beside `name`, and its methods
are what the part's base class asks for: an objective, a router or a task works as it is; a model, a pretext task or a
head has a method `build(...)` that makes what runs from what only the run knows (sensors, a mesh, widths). A part
without choices, such as a sensor, a data set, an engine or the class of a metric, is the thing itself.

    @objectives.register("student_t")                        # in a module that `config.modules` names, then
    name = "student_t"                                       # in the config; or without registering anything
    name = "my_losses:StudentT"                              # the class StudentT of my_losses.py on the Python path
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ringmoe_jax import config as configuration
from ringmoe_jax.errors import ConfigError, nearest

P = TypeVar("P")


class Registry(Mapping[str, Any]):
    """The parts of one kind by short name, in the order in which they came.

    Args:
        kind: what a part is, for messages: "objective".
        base: that a part's class is made from, or that it belongs to.

    Attributes:
        parts: by short name.
    """

    def __init__(self, kind: str, base: type):
        self.kind, self.base = kind, base
        self.parts: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def add(self, name: str, part: P) -> P:
        """Makes a part known by a short name.

        The same part again is fine, such as a class of a notebook cell that was run twice: the newest one counts.

        Raises:
            ConfigError: another part has the name, or it is no part of this kind.
        """
        self._check(part, f'{self.kind} "{name}"')
        known = self.parts.get(name, part)
        if _identity(known) != _identity(part):
            what = _shown(known) if isinstance(known, type) else "in the table"
            raise ConfigError(f'{self.kind} "{name}" is {what} already: choose another name')
        self.parts[name] = part
        return part

    def register(self, name: str) -> Callable[[P], P]:
        """Decorator: `add` for a class."""
        return lambda part: self.add(name, part)

    def find(self, name: Any, where: str = "") -> Any:
        """The part that a short name or `module:Name` stands for.

        Args:
            name: what a config says.
            where: dotted path of the key that says it, for messages.

        Raises:
            ConfigError: there is none; the message names the nearest. Or it cannot be imported, or is of another kind.
        """
        if isinstance(name, str) and name in self.parts:
            return self.parts[name]
        said = f'{where} = "{name}"' if where else f'{self.kind} "{name}"'
        module, _, attribute = str(name).partition(":")
        if not attribute:
            known = nearest(str(name), self.parts)
            raise ConfigError(f"{said} does not exist: {known}" if where else f"unknown {said}: {known}")
        try:
            part = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{said} cannot be imported: {error}") from error
        self._check(part, said)
        return part

    def build(self, values: Mapping[str, Any], where: str, default: str | None = None) -> Any:
        """The dataclass that `values["name"]` names, made from the other keys.

        Args:
            values: for example one objective of a config.
            where: dotted path of `values`, for messages.
            default: name where `values` has none.

        Raises:
            ConfigError: see `find`; or a key is unknown, missing or of the wrong type.
        """
        values = dict(values)
        part = self.find(values.pop("name", default), f"{where}.name")
        if not (isinstance(part, type) and dataclasses.is_dataclass(part)):
            raise ConfigError(
                f"{where}.name is {_shown(part)}, wanted a dataclass: put @dataclasses.dataclass before it"
            )
        return configuration.build(part, values, where)

    def _check(self, part: Any, said: str) -> None:
        if isinstance(part, type):
            if not issubclass(part, self.base):
                raise ConfigError(f"{said} is {_shown(part)}, wanted a class made from {_shown(self.base)}")
        elif not isinstance(part, self.base):
            raise ConfigError(f"{said} is a {type(part).__name__}, wanted a {self.base.__name__}")


def _identity(part: Any) -> Any:
    """Classes and functions are the same where they were defined by the same name, objects where they are equal."""
    return (part.__module__, part.__qualname__) if hasattr(part, "__qualname__") else part


def _shown(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}" if hasattr(part, "__qualname__") else repr(part)
