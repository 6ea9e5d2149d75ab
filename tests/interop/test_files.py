"""Files of tensors: what is read, and the one line that everything else ends in."""

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ringmoe_jax.errors import DataError
from ringmoe_jax.files import write_safetensors
from ringmoe_jax.interop import files

GALILEO = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights" / "galileo_nano" / "encoder.pt"


class Global:
    """What a pickle says as `module name`, without the module."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """An object that a pickle makes by calling a global."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Storage:
    def __init__(self, key, kind, count):
        self.id = ("storage", Global("torch", kind), key, "cpu", count)


class Pickler(pickle._Pickler):
    """Writes globals by name and storages by id, as `torch.save` does."""

    dispatch = pickle._Pickler.dispatch.copy()

    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None

    def save_global_(self, value):
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def save_call(self, value):
        self.save(value.function)
        self.save(value.arguments)
        self.write(pickle.REDUCE)

    dispatch[Global], dispatch[Call] = save_global_, save_call


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
KINDS = {np.dtype(dtype): kind for kind, dtype in files.DTYPES.items()}


def tensor(key, array, *, shape=None, offset=0, stride=None):
    """A tensor on a storage of its own, as a pickle says it."""
    stride = tuple(s // array.itemsize for s in array.strides) if stride is None else stride
    storage = Storage(key, KINDS[array.dtype], array.size)
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(REBUILD, storage, offset, array.shape if shape is None else shape, stride, False, hooks)


def save(path, value, storages, *, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    """A file as `torch.save` writes it."""
    program = io.BytesIO()
    Pickler(program, protocol=2).dump(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
    return path


def example(dtype=np.float32):
    return np.arange(12).reshape(3, 4).astype(dtype)


@pytest.mark.parametrize("dtype", files.DTYPES.values(), ids=files.DTYPES)
def test_every_dtype(tmp_path, dtype):
    array = example(dtype)
    read = files.read(save(tmp_path / "x.pt", {"a": tensor("0", array)}, {"0": array}))
    assert read["a"].dtype == array.dtype
    assert_array_equal(read["a"], array)


def test_views_of_one_storage_and_a_state_dict_among_other_things(tmp_path):
    array = example()
    state = {"t": tensor("0", array, shape=(4, 3), stride=(1, 4)), "row": tensor("0", array, shape=(4,), offset=4,
                                                                               stride=(1,))}  # fmt: skip
    saved = {"epoch": 3, "note": "x", "lr": [0.1, (1, 2, 3)], "state_dict": collections.OrderedDict(state)}
    read = files.read(save(tmp_path / "x.pt", saved, {"0": array}))
    assert_array_equal(read["t"], array.T)
    assert_array_equal(read["row"], array[1])


def test_safetensors_there_and_back(tmp_path):
    tensors = {"a": example(), "b": example(ml_dtypes.bfloat16).T}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    read = files.read(tmp_path / "x.safetensors")
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert_array_equal(read[name], array)


def test_code_in_a_pickle_is_not_run(tmp_path):
    mark = tmp_path / "was_here"
    bad = {"a": tensor("0", example()), "b": Call(Global("os", "mkdir"), str(mark))}
    with pytest.raises(DataError, match=r"pickled code \(os\.mkdir\), which is not run"):
        files.read(save(tmp_path / "x.pt", bad, {"0": example()}))
    assert not mark.exists()
    real = pickle.dumps(os.getcwd)  # protocol 4 or newer says names by STACK_GLOBAL
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("archive/data.pkl", real)
    with pytest.raises(DataError, match="pickled code"):
        files.read(tmp_path / "y.pt")


@pytest.mark.parametrize(
    "changes",
    [
        dict(shape=(4, 4)),
        dict(offset=1),
        dict(offset=-1),
        dict(stride=(4, -1)),
        dict(shape=(10**6, 10**6), stride=(0, 0)),
    ],
)
def test_tensors_that_do_not_lie_in_their_storage(tmp_path, changes):
    with pytest.raises(DataError, match="does not lie in its storage"):
        files.read(save(tmp_path / "x.pt", {"a": tensor("0", example(), **changes)}, {"0": example()}))


def bomb(path):
    """A pickle that puts something at place 2^31 of its memo."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + pickle.LONG_BINPUT + struct.pack("<I", 2**31) + b".")


def other(path, data):
    path.write_bytes(data)


WRONG = {
    "empty": lambda path: other(path, b""),
    "text": lambda path: other(path, b"hello"),
    "header of 10 GB": lambda path: other(path, struct.pack("<Q", 10 << 30) + b"{}"),
    "header that is cut": lambda path: other(path, struct.pack("<Q", 100) + b'{"a":'),
    "pickle alone": lambda path: other(path, pickle.dumps({"a": 1})),
    "cut zip": lambda path: (save(path, {"a": tensor("0", example())}, {"0": example()}),
                             other(path, path.read_bytes()[:-30])),
    "other zip": lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "b"),
    "no storage": lambda path: save(path, {"a": tensor("0", example())}, {}),
    "short storage": lambda path: save(path, {"a": tensor("0", example())}, {"0": example()[:2]}),
    "long storage": lambda path: save(path, {"a": tensor("0", example()[:2])}, {"0": example()}),
    "compressed": lambda path: save(path, {"a": tensor("0", example())}, {"0": example()},
                                    compression=zipfile.ZIP_DEFLATED),
    "big-endian": lambda path: save(path, {"a": tensor("0", example())}, {"0": example()}, byteorder=b"big"),
    "no tensors": lambda path: save(path, {"a": 1}, {}),
    "two models": lambda path: save(path, {k: {"a": tensor("0", example())} for k in "xy"}, {"0": example()}),
    "memo": bomb,
}  # fmt: skip


@pytest.mark.parametrize("write", WRONG.values(), ids=WRONG)
def test_everything_else_ends_in_one_line(tmp_path, write):
    path = tmp_path / "x"
    write(path)
    with pytest.raises(DataError, match="x ") as raised:
        files.read(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="is no file"):
        files.read(tmp_path / "none.pt")


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.data())
def test_bytes_that_were_changed_are_read_or_refused(tmp_path_factory, data):
    """Any change of any bytes of the pickle: nothing else than a `DataError`."""
    folder = tmp_path_factory.getbasetemp()
    path, array = folder / "fuzz.pt", example()
    state = {"w": tensor("0", array), "n": [1, 2.5, None, True, ("a", "b")]}
    save(path, {"state_dict": collections.OrderedDict(state)}, {"0": array})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    program = bytearray(entries["archive/data.pkl"])
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (entries | {"archive/data.pkl": bytes(program)}).items():
            archive.writestr(name, value)
    try:
        files.read(path)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.skipif(not GALILEO.exists(), reason="the published weights are not there")
def test_a_real_file_as_pytorch_reads_it():
    tensors = files.read(GALILEO)
    assert len(tensors) == 106
    assert tensors["space_time_embed.S2_RGB.proj.weight"].shape == (128, 3, 8, 8)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers installs it")
    for name, value in torch.load(GALILEO, map_location="cpu", weights_only=True).items():
        assert_array_equal(tensors[name], value.numpy())
