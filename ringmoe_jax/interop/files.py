"""Tensors of a file, by name: safetensors, and PyTorch's zip files without PyTorch and without running what is in them.

A PyTorch file is a zip of one pickle, which says how tensors lie in storages, and of the storages' bytes. A pickle is a
program; here a machine that knows only how tensors, numbers, texts and containers of them are put together reads it.
Any other name or instruction is refused, so no code of a file is ever imported or called.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import load_file

from ringmoe_jax.errors import DataError

Tensors = dict[str, np.ndarray]
DTYPES = {  # of PyTorch's storages
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MAX_PICKLE = 64 << 20  # bytes of a pickle; tensors lie outside of it


def read(path: str | Path) -> Tensors:
    """The tensors of a file.

    Args:
        path: a safetensors file, or one that `torch.save` of PyTorch 1.6 or newer wrote: a state dict, or a dict that
            holds one among texts and numbers.

    Raises:
        DataError: one line: it is something else, cut off, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is no file: give a safetensors file or one that torch.save wrote")
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        return _read_torch(path) if zipped else load_file(path)
    except (safetensors.SafetensorError, MemoryError, OverflowError, ValueError) as error:
        raise DataError(
            f"{path} is no whole safetensors file and no zip of torch.save (before PyTorch 1.6 it wrote none): {error}"
        ) from error


# ---- PyTorch's zip ------------------------------------------------------------------------------------


def _read_torch(path: Path) -> Tensors:
    try:
        with zipfile.ZipFile(path) as archive:
            return _state(_Pickle(path, archive).load(), path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is no whole zip: {error}: copy or download it again") from error


def _state(value: Any, path: Path) -> Tensors:
    """The state dict: what was saved, or the one mapping of tensors in it."""
    if isinstance(value, dict):
        tensors = {str(name): entry for name, entry in value.items() if isinstance(entry, np.ndarray)}
        inner = {str(name): entry for name, entry in value.items() if isinstance(entry, dict) and _has_tensors(entry)}
        if tensors and not inner:
            return tensors
        if len(inner) == 1 and not tensors:
            return _state(next(iter(inner.values())), path)
        if inner:
            raise DataError(f"{path} holds several sets of tensors, {', '.join(inner)}: save one of them by itself")
    raise DataError(f"{path} holds no tensors by name: save a model's state_dict()")


def _has_tensors(value: dict) -> bool:
    return any(isinstance(x, np.ndarray) or (isinstance(x, dict) and _has_tensors(x)) for x in value.values())


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name that a pickle may say: `call` is what it makes here, of its arguments."""

    text: str
    call: Callable[..., Any] | None = None


def _tensor(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """A tensor on a storage.

    Raises:
        ValueError: it reaches beyond the storage, or has more elements.
    """
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    whole = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride))
    if not whole or (all(shape) and (last >= len(storage) or np.prod(shape, dtype=object) > len(storage))):
        raise ValueError(f"a tensor {list(shape)} does not lie in its storage of {len(storage)}")
    steps = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


NAMES = {
    "collections OrderedDict": _Name("OrderedDict", dict),
    "torch._utils _rebuild_tensor_v2": _Name("tensor", _tensor),
    "torch._utils _rebuild_parameter": _Name("parameter", lambda data, *_: data),
} | {f"torch {storage}": _Name(storage) for storage in DTYPES}


class _Pickle:
    """Reads the pickle of an archive: a stack machine with the instructions that `torch.save` writes."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        self.entries = {name.partition("/")[2]: name for name in archive.namelist()}
        self.storages: dict[str, np.ndarray] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """What was saved."""
        if "byteorder" in self.entries and self._bytes("byteorder", 16) != b"little":
            raise DataError(f"{self.path} was written big-endian: save it on a machine that is not")
        program = io.BytesIO(self._bytes("data.pkl", MAX_PICKLE))
        for code, argument, _ in pickletools.genops(program):
            step = getattr(self, f"_do_{code.name.lower()}", None)
            if step is None and code.name not in _PUSHED | _IGNORED:
                raise DataError(f"{self.path} holds pickled code ({code.name}), which is not run: save a state_dict()")
            try:
                if step:
                    step(argument)
                elif code.name in _PUSHED:
                    self.stack.append(_CONSTANTS.get(code.name, argument))
            except (IndexError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"its pickle makes no sense at {code.name}") from error
        if len(self.stack) != 1:
            raise ValueError("its pickle makes no sense")
        return self.stack[0]

    def _bytes(self, name: str, most: int) -> bytes:
        """An entry of the archive, which has to be stored as it is.

        Raises:
            ValueError: it is missing, compressed, or longer than `most`.
        """
        if name not in self.entries:
            raise ValueError(f"it has no {name}")
        info = self.archive.getinfo(self.entries[name])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise ValueError(f"{name} is compressed, or of {info.file_size} bytes where at most {most} belong")
        return self.archive.read(info)

    def _marked(self) -> list[Any]:
        """What lies above the last mark; takes it off the stack."""
        first = self.marks.pop()
        taken, self.stack[first:] = self.stack[first:], []
        return taken

    def _do_mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def _do_global(self, name: str) -> None:
        if name not in NAMES:
            raise DataError(
                f"{self.path} holds pickled code ({name.replace(' ', '.')}), which is not run: save a state_dict()"
            )
        self.stack.append(NAMES[name])

    def _do_binpersid(self, _: None) -> None:
        kind, storage, key, _, count = self.stack.pop()
        if kind != "storage":
            raise TypeError
        if key not in self.storages:
            dtype = np.dtype(DTYPES[storage.text])
            self.storages[key] = np.frombuffer(self._bytes(f"data/{key}", count * dtype.itemsize), dtype)
        self.stack.append(self.storages[key])

    def _do_reduce(self, _: None) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(name.call(*arguments))

    def _do_build(self, _: None) -> None:
        self.stack.pop()  # attributes of a dict: versions of modules

    def _do_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _do_long_binput = _do_binput

    def _do_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _do_long_binget = _do_binget

    def _do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def _do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][key] = value

    def _do_setitems(self, _: None) -> None:
        items = self._marked()
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _do_append(self, _: None) -> None:
        value = self.stack.pop()
        self.stack[-1].append(value)

    def _do_appends(self, _: None) -> None:
        items = self._marked()
        self.stack[-1].extend(items)

    def _do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self._marked()))

    def _do_tuple1(self, _: None) -> None:
        self._tuple(1)

    def _do_tuple2(self, _: None) -> None:
        self._tuple(2)

    def _do_tuple3(self, _: None) -> None:
        self._tuple(3)

    def _tuple(self, count: int) -> None:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError
        self.stack[-count:] = [tuple(items)]


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSHED = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", *_CONSTANTS}
_IGNORED = {"PROTO", "FRAME", "STOP"}
