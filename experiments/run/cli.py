"""The command line that every verb shares. Imports nothing slow, so that `--help` and a wrong argument answer at once.

A verb reads its command line here, and imports what it needs after that.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging

from ringmoe_jax import files, remote
from ringmoe_jax.config import allow_modules, named_modules
from ringmoe_jax.errors import ConfigError, UserError, nearest
from ringmoe_jax.parallel import host, processes

LENGTH = 300  # of an error that nobody foresaw, in letters
CACHE = ".cache/jax"  # of compiled programs
INSTALLED = Path(__file__).parents[2]  # what holds `configs` as well: a checkout, or where a wheel was unpacked
CONFIG_HELP = """\
configuration:
  --config configs/ringmoe.py:large       a file, and the argument of its get_config where it has one
  --config.optimizer.learning_rate=1e-4   sets a value, whether or not the file states it
  --config.data.streams.rgb=None          takes out what the file states; a key that is not stated has its default
  --sensors rgb s2_12                     takes out all other sensors, with their streams and objectives
"""


def entry_point(main: Callable[..., int | None]) -> Callable[..., None]:
    """Decorator of a verb: every error becomes one line on standard error and exit status 1.

    A `UserError` says itself what to do. Of any other exception the traceback goes to a file that the line names.
    Tunes the host's allocator.

    Processes of one job end together: the last thing that each does is to wait for the others, or to tell them why not.
    """

    @functools.wraps(main)
    def run(*arguments, **keywords):
        logging.set_verbosity(logging.WARNING)  # Orbax and TFDS report every file otherwise
        host.keep_memory()
        try:
            try:
                status = main(*arguments, **keywords)
            finally:
                remote.send()
            processes.leave()
            sys.exit(status)
        except UserError as error:
            processes.give_up(error)
            _fail(str(error))
        except BrokenPipeError:  # whoever read the output has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            processes.give_up(error)
            _fail(f"{_named(error)} (details in {_details()})")
        except KeyboardInterrupt as error:
            processes.give_up(error)
            raise

    return run


def _fail(message: str) -> None:
    """Ends the program with one line."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def _named(error: Exception) -> str:
    """What went wrong in one line: the kind of exception and the first line of its text, at most `LENGTH` letters."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:LENGTH]


def _details() -> str:
    """Writes the traceback of the exception that is handled, and says where."""
    with tempfile.NamedTemporaryFile("w", prefix="ringmoe-error-", suffix=".txt", delete=False) as file:
        file.write(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return file.name


def read_run(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Adds what every verb that trains takes, reads the command line and the configuration, and sets up the cache.

    Args:
        parser: with the verb's own arguments.
        arguments: of the command line; default `sys.argv`.

    Returns:
        The arguments, and the nested dict of the configuration with its `--config.a.b=value` in it.

    Raises:
        ConfigError: see `read_config`.
    """
    add_config(parser)
    parser.add_argument("--compilation-cache", default=CACHE, help='keeps compiled programs; "" for none')
    given, overrides = parser.parse_known_args(arguments)
    values = read_config(given.config, overrides, given.sensors)
    start(given.compilation_cache, trains=True)
    return given, values


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and `--sensors` and explains them; unknown arguments are then overrides, see `read_config`."""
    parser.add_argument("--config", required=True, help="configuration file, see below")
    parser.add_argument("--sensors", nargs="+", default=(), help="of the configuration's; default: all")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = CONFIG_HELP


class Modules(argparse.Action):
    """Of `--modules`: allows records to name them; the parsed arguments do not hold it."""

    def __call__(self, parser, namespace, values, option_string=None):
        allow_modules(values)


def add_modules(parser: argparse.ArgumentParser) -> None:
    """Adds `--modules`, for verbs that open a run which somebody else may have made."""
    wanted = "Python modules of yours that the run names; their code is run"
    parser.add_argument("--modules", nargs="+", action=Modules, default=argparse.SUPPRESS, help=wanted)


def local(text: str) -> str:
    """Type of an argument that names a folder or file of this machine, see `files.check_local`."""
    files.check_local(text)
    return text


def folder(text: str) -> str:
    """Type of an argument that names the folder of a run, which may lie in a bucket, see `ringmoe_jax.remote`."""
    if remote.is_remote(text):
        remote.check(text)
    return text


def start(cache: str = CACHE, *, trains: bool = False, alone: bool = False) -> None:
    """Gets JAX ready: connects the processes of one job, of which only the first prints, and keeps compiled programs.

    Args:
        cache: folder of compiled programs, for runs to come; "" for none.
        trains: whether the verb has a training loop, which asks for all processes to stop after the same step.
        alone: whether the first process does it all, and the others wait here for its end.

    Raises:
        ConfigError: see `processes.connect`.
    """
    processes.connect(stops=trains)
    if processes.number():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if alone:
        processes.leave_to_first()
    import jax

    if cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(cache).absolute()))


# ---- Configuration files ------------------------------------------------------------------------------


def read_config(path: str, overrides: Sequence[str] = (), sensors: Sequence[str] = ()) -> dict[str, Any]:
    """Runs `get_config` of a configuration file and applies the command line to what it says.

    Keys and types are checked later, by the dataclasses that the values become, so that a file states only what
    differs from their defaults.

    Args:
        path: Python file with `get_config() -> ml_collections.ConfigDict`; "<file>:<argument>" where it takes one. The
            file's `CHOICES`, a mapping from arguments, says which there are.
        overrides: `--config.<key>=<value>`; values are Python literals, anything else is a string. None takes out an
            entry that the file states.
        sensors: what `keep_sensors` keeps; () is all.

    Returns:
        Nested dict.

    Raises:
        ConfigError: no such file, argument, entry or sensor (names the nearest).
    """
    values = _plain(_run_file(path))
    if not isinstance(values, dict):
        raise ConfigError(f"get_config of {path} returned {type(values).__name__}, wanted an ml_collections.ConfigDict")
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals or not key.startswith("--config."):
            raise ConfigError(f'unknown argument "{argument}": wanted --config.<key>=<value>')
        keys = key.removeprefix("--config.").split(".")
        value = _literal(text)
        if value is None:
            _take_out(values, keys)
        else:
            _set(values, keys, value)
    allow_modules(named_modules(values))  # the file is the user's own code already
    return keep_sensors(values, sensors) if sensors else values


def keep_sensors(values: Mapping[str, Any], sensors: Sequence[str]) -> dict[str, Any]:
    """A configuration without the other sensors: their streams, objectives that name one, and what is said of them.

    Args:
        values: nested dict of a configuration of pre-training or fine-tuning.
        sensors: that stay; those of the model, and of streams but for the truth that a task learns.

    Raises:
        ConfigError: the configuration has no such sensor; names the nearest.
    """
    model, data, terms, task = (_group(values, key, "config") for key in ("model", "data", "objectives", "task"))
    streams = _group(data, "streams", "config.data")
    streams = {name: {"sensors": ()} | _group(streams, name, "config.data.streams") for name in streams}
    terms = {label: _group(terms, label, "config.objectives") for label in terms}
    truth = task.get("target")
    known = [*model.get("sensors", ()), *(name for stream in streams.values() for name in stream["sensors"])]
    known = [name for name in dict.fromkeys(known) if name != truth]
    for name in sensors:
        if name not in known:
            raise ConfigError(f'--sensors {name}: the configuration has no sensor "{name}": {nearest(name, known)}')
    gone = set(known) - set(sensors)
    left = lambda names: tuple(name for name in names if name not in gone)  # noqa: E731
    kept = lambda entries: {name: entry for name, entry in entries.items() if name not in gone}  # noqa: E731
    streams = {name: stream | {"sensors": left(stream["sensors"])} for name, stream in streams.items()}
    data = {key: kept(entry) if isinstance(entry, Mapping) else entry for key, entry in data.items()}
    data["streams"] = {name: stream for name, stream in streams.items() if set(stream["sensors"]) - {truth}}
    if views := _group(data, "views", "config.data"):
        data["views"] = views | {"photometric": kept(_group(views, "photometric", "config.data.views"))}
    if "sensors" in model:
        model = model | {"sensors": left(model["sensors"])}
    from ringmoe_jax.objectives import without  # with JAX, which help does not need

    changed = {"model": model, "data": data, "objectives": without(terms, gone)}
    return {**values, **{key: group for key, group in changed.items() if key in values}}


def _group(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """A group of keys, empty where there is none."""
    group = values.get(key) or {}
    if not isinstance(group, Mapping):
        raise ConfigError(f"{where}.{key} = {group!r}: wanted a group of keys")
    return group


def _run_file(path: str) -> Any:
    """What `get_config` of a file gives."""
    file, _, argument = path.partition(":")
    places = [folder for folder in (Path(), INSTALLED) if (folder / file).is_file()]
    if not places:
        files = {p.relative_to(folder) for folder in (Path(), INSTALLED) for p in (folder / "configs").rglob("*.py")}
        known = [str(p) for p in files if p.stem not in ("__init__", "common")]
        raise ConfigError(f'no configuration file "{file}": {nearest(file, known)}')
    blamed = functools.partial(_blamed, places[0] / file)
    module = blamed(_import, places[0] / file)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{file} has no function get_config() that returns an ml_collections.ConfigDict")
    takes = inspect.signature(module.get_config).parameters
    if not takes:
        if argument:
            raise ConfigError(f"{path}: get_config of this file takes no argument, say {file}")
        return blamed(module.get_config)
    (parameter, *_) = takes.values()
    choices = getattr(module, "CHOICES", None)
    if not argument:
        if parameter.default is not parameter.empty:
            return blamed(module.get_config)
        known = f": {nearest(argument, choices)}" if choices else ""
        raise ConfigError(f"{file} wants its {parameter.name}, say {file}:<{parameter.name}>{known}")
    if choices is not None and argument not in choices:
        raise ConfigError(f'{file} has no {parameter.name} "{argument}": {nearest(argument, choices)}')
    return blamed(module.get_config, argument)


def _blamed(file: Path, function: Callable, *arguments: Any) -> Any:
    """Calls what a configuration file holds; an exception of its code becomes one line that says where in it."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        where = file.absolute()  # as an imported module says
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == where]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(frames), None)
        said = " ".join(str(error).split()) or "no message"
        raise ConfigError(f"{file}{f', line {line}' if line else ''}: {type(error).__name__}: {said}") from error


def _import(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(values: Any) -> Any:
    """Nested dicts of a `ConfigDict` or a mapping, in which no two entries are one object."""
    values = values.to_dict() if hasattr(values, "to_dict") else values
    return {key: _plain(value) for key, value in values.items()} if isinstance(values, Mapping) else values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _set(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    where = "config"
    for key in keys[:-1]:
        values, where = values.setdefault(key, {}), f"{where}.{key}"
        if not isinstance(values, dict):
            raise ConfigError(f"{where}.{keys[-1]} does not exist: {where} is the value {values!r}, not a group")
    values[keys[-1]] = value


def _take_out(values: dict[str, Any], keys: Sequence[str]) -> None:
    where, entry = "config", values
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            known = nearest(key, entry if isinstance(entry, dict) else ())
            raise ConfigError(f"{where}.{key} = None takes out what is stated, but {where} states no {key}: {known}")
        group, entry, where = entry, entry[key], f"{where}.{key}"
    del group[keys[-1]]
