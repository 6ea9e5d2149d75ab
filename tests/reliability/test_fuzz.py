"""Damaged files of every kind: right, or refused in one line; never a traceback, never for long, and where what was
written is known by a checksum, never silently another value.

The short form, `SHORT` mutations in `SECONDS`, is part of `make test`; `python -m tests.reliability.test_fuzz 10000`
prints the table of docs/reliability.md. Mutations follow from the seed and their number, so a find can be had again.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio
from PIL import Image as Picture

from experiments.run.cli import read_config
from input_pipeline import folder_images, folder_labels, folder_masks
from input_pipeline.dataset import open_dataset
from input_pipeline.layouts import annotations
from input_pipeline.places import Report
from ringmoe_jax import deploy, files, geo, interop, sensors
from ringmoe_jax.deploy import directory
from ringmoe_jax.errors import UserError
from ringmoe_jax.run import PretrainConfig, Run
from ringmoe_jax.training.checkpoint import Checkpointer
from tests.helpers import tiny_checkpoints, tiny_exports
from tests.helpers.rasters import tif
from tests.helpers.tiny_data import write

SEED, SHORT, SECONDS, LONGEST = 18, 400, 15.0, 10.0
RIGHT, REFUSED, SILENT, TRACEBACK, HANG = "right", "refused", "silent", "traceback", "hang"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes one into a folder and gives what is damaged.
        read: reads it; what it gives is compared with that of the file as it was.
        checked: what was written is known by a checksum, so another value is a fault.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    checked: bool


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One flipped bit, some other bytes, a piece that is cut off, missing, doubled or zero, or a number of a text."""
    data, at = bytearray(content), int(rng.integers(len(content)))
    length = int(min(len(data) - at, 2 ** rng.integers(0, 8)))
    match rng.integers(7):
        case 0:
            data[at] ^= 1 << int(rng.integers(8))
        case 1:
            data[at : at + length] = rng.bytes(length)
        case 2:
            del data[at:]
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = data[at : at + length]
        case 5:
            data[at : at + length] = bytes(length)
        case 6:
            digits = [i for i, byte in enumerate(data) if 48 <= byte < 58] or [at]
            data[digits[at % len(digits)]] = 48 + int(rng.integers(10))
    return bytes(data)


# ---- Kinds --------------------------------------------------------------------------------------------


def data_set(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        written = write(folder / "data", "rgb", train=4, shards=2)
        (found, *_) = sorted(written.glob(name))
        return found

    return make


def read_data_set(path: Path):
    dataset = open_dataset(str(path.parent), ["rgb"])
    statistics = dataset.statistics("rgb")
    splits = ("train", "validation")
    return statistics, dataset.labels, [(dataset.records(s, 0).read([0, 1]), dataset.scenes(s)) for s in splits]


def picture(folder: Path, ending: str, mode: str) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    path = folder / f"a.{ending}"
    Picture.fromarray(pixels if mode == "RGB" else pixels[..., 0] % 2).save(path)
    return path


def geotiff(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(300, 3000, (32, 32, 12)).astype(np.uint16)
    names = sensors.get("s2_12").band_names
    tif(folder / "a.tif", pixels, names=names, nodata=0, compress="deflate")
    return folder / "a.tif"


def array(folder: Path) -> Path:
    np.save(folder / "a.npy", np.random.default_rng(0).uniform(0, 100, (32, 32, 1)).astype(np.float32))
    return folder / "a.npy"


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


COCO = json.dumps(
    {
        "images": [{"id": i, "file_name": f"p{i}.png", "width": 64, "height": 64} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [3, 4, 10, 12]} for i in range(3)],
        "categories": [{"id": 1, "name": "hut"}, {"id": 2, "name": "boat"}],
    }
)
VOC = """<annotation><size><width>64</width><height>64</height></size><object><name>hut</name>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>13</xmax><ymax>16</ymax></bndbox></object></annotation>"""
DOTA = "imagesource:x\ngsd:1\n1 1 9 1 9 9 1 9 hut 0\n20 20 30 20 30 25 20 25 boat 1\n"


def boxes(parse) -> Callable[[Path], object]:
    def read(path: Path):
        found = parse(path)
        return found.names, {name: found.on(name, (64, 64), Report()).tolist() for name in found.images}

    return read


def table(path: Path):
    ids = [f"p{i}" for i in range(4)]
    found = folder_labels.find(path.parent, {"rgb": (1, 8, 8)}, ids, {}, Report())
    return [(label.info, {stem: str(label.at(stem, geo.Grid.nowhere(8, 8))) for stem in ids}) for label in found]


def legend(path: Path):
    picture(path.parent, "png", "L")
    return folder_masks.legend(path.parent, {"a": path.parent / "a.png"}, None, Report())


def frame(name: str) -> Callable[[Path], object]:
    def read(path: Path):
        got = folder_images.read([path], sensors.get(name))
        return got.pixels.tobytes(), got.valid.tobytes()

    return read


def checkpoint(part: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tiny_checkpoints.save(folder, 1)
        inside = (path for path in (folder / "checkpoints" / "1" / part).rglob("*") if path.is_file())
        return max(inside, key=lambda path: path.stat().st_size)

    return make


def restored(path: Path):
    run = next(parent for parent in path.parents if (parent / "checkpoints").is_dir())
    checkpointer = Checkpointer.open(run)
    try:
        record = checkpointer.record()
        params, _ = checkpointer.restore_model(record["step"])
        return record, {name: np.asarray(leaf).tobytes() for name, leaf in params.items()}
    finally:
        checkpointer.close()


def export(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        program = tiny_exports.tiny()
        deploy.save(folder / "export", program, deploy.describe(program, tiny_exports.CARD, 2))
        return folder / "export" / name

    return make


def encoder(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    run = Run({"config": ENCODER.complete(), "statistics": {}, "step": 1}, {})
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), run.model.shapes())
    interop.write_run(dataclasses.replace(run, params=params), folder / "a.safetensors")
    return folder / "a.safetensors"


def weights(path: Path):
    tensors = interop.read(path)
    model = interop.SOURCES.build({"name": interop.OWN}, "source").model(tensors, path)
    return model, {name: tensor.tobytes() for name, tensor in sorted(tensors.items())}


ENCODER = PretrainConfig.of(
    {
        "model": dict(name="ringmoe", sensors=("rgb",), width=4, depths=(1,), image_size=8, window=2, head_width=4),
        "objectives": dict(rgb=dict(name="masked_l1", sensor="rgb")),
        "data": dict(streams=dict(rgb=dict(directory="x", sensors=("rgb",))), image_size=8, batch_size=2, mask_unit=4),
    }
)
CONFIG = """from configs import common


def get_config():
    config = common.ringmoe(width=8, depths=(2,), head_width=4)
    config.model.update(sensors=("rgb",), image_size=16, window=2)
    config.data.update(image_size=16, batch_size=4)
    return config
"""


KINDS = {
    "record": Kind(data_set("*.tfrecord*"), read_data_set, True),
    "dataset_info": Kind(data_set("dataset_info.json"), read_data_set, True),
    "features": Kind(data_set("features.json"), read_data_set, True),
    "metadata": Kind(data_set("metadata.json"), read_data_set, True),
    "checksums": Kind(data_set("checksums.json"), read_data_set, True),
    "index": Kind(data_set("index.npz"), read_data_set, True),
    "scenes": Kind(data_set("scenes.npz"), read_data_set, True),
    "arrays of a checkpoint": Kind(checkpoint("params"), restored, True),
    "record of a checkpoint": Kind(checkpoint("record"), restored, True),
    "an encoder's file": Kind(encoder, weights, True),
    "an export's program": Kind(export(directory.PROGRAM), lambda path: deploy.load(path.parent)[1], True),
    "an export's weights": Kind(export(directory.WEIGHTS), lambda path: deploy.load(path.parent)[1], True),
    "an export's model.json": Kind(export(directory.DESCRIPTION), lambda path: deploy.load(path.parent)[1], True),
    "configuration": Kind(text("config.py", CONFIG), lambda path: read_config(str(path)), False),
    "PNG": Kind(lambda folder: picture(folder, "png", "RGB"), frame("rgb"), True),  # a CRC-32 a chunk
    "JPEG": Kind(lambda folder: picture(folder, "jpg", "RGB"), frame("rgb"), False),
    "GeoTIFF": Kind(geotiff, frame("s2_12"), False),
    "NPY": Kind(array, frame("ndsm"), False),
    "COCO": Kind(text("boxes.json", COCO), boxes(annotations.coco), False),
    "VOC": Kind(text("p0.xml", VOC), boxes(lambda path: annotations.voc([path])), False),
    "DOTA": Kind(text("p0.txt", DOTA), boxes(lambda path: annotations.dota([path])), False),
    "labels.csv": Kind(text("labels.csv", "p0,a\np1,b\np2,a\np3,c\n"), table, False),
    "classes.txt": Kind(text("classes.txt", "0,land,#aabbcc\n1,water,#102030\n"), legend, False),
    "JSON of a run": Kind(text("a.json", COCO), lambda path: files.read_json(path, "results"), False),
}


# ---- Trying -------------------------------------------------------------------------------------------


def outcome(kind: Kind, path: Path, wanted: str) -> str:
    """What becomes of one damaged file."""
    started = time.monotonic()
    try:
        got = repr(kind.read(path))
    except UserError as error:
        return TRACEBACK if "\n" in str(error) else REFUSED
    except Exception:
        return TRACEBACK
    finally:
        took = time.monotonic() - started
    return HANG if took > LONGEST else RIGHT if got == wanted else SILENT


def fuzz(count: int, seconds: float, keep: Path | None = None) -> dict[str, collections.Counter]:
    """Tries mutations, of all kinds in turn.

    Args:
        count: at most.
        seconds: at most.
        keep: gets the files that were not taken well.

    Returns:
        By kind, how often what happened.
    """
    found: dict[str, collections.Counter] = {name: collections.Counter() for name in KINDS}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, rasterio.Env():
        places = {}
        for name, kind in KINDS.items():
            (Path(folder) / name).mkdir()
            path = kind.make(Path(folder) / name)
            places[name] = (path, path.read_bytes(), repr(kind.read(path)))
        for number in range(count):
            name = list(KINDS)[number % len(KINDS)]
            path, content, wanted = places[name]
            path.write_bytes(mutate(content, np.random.default_rng([SEED, number])))
            result = outcome(KINDS[name], path, wanted)
            found[name][result] += 1
            if keep and (result in (TRACEBACK, HANG) or (result == SILENT and KINDS[name].checked)):
                shutil.copy(path, keep / f"{result}-{number}-{path.name}")
            path.write_bytes(content)
            if time.monotonic() - started > seconds:
                break
    return found


def faults(found: dict[str, collections.Counter]) -> list[str]:
    """What must not happen, in words."""
    bad = [f"{name}: {n[bad]} x {bad}" for name, n in found.items() for bad in (TRACEBACK, HANG) if n[bad]]
    return bad + [f"{name}: {n[SILENT]} x silent" for name, n in found.items() if KINDS[name].checked and n[SILENT]]


def rows(found: dict[str, collections.Counter]) -> str:
    """The table of docs/reliability.md."""
    heads = (RIGHT, REFUSED, SILENT, TRACEBACK, HANG)
    lines = [f"| kind | tried | {' | '.join(heads)} |", "|---|" + "---|" * (1 + len(heads))]
    for name, n in found.items():
        lines.append(f"| {name} | {n.total()} | {' | '.join(str(n[head]) for head in heads)} |")
    return "\n".join(lines)


def test_damaged_files_are_right_or_refused_in_one_line(tmp_path):
    found = fuzz(SHORT, SECONDS, tmp_path)
    assert not faults(found), f"{faults(found)}: {sorted(path.name for path in tmp_path.iterdir())}"
    assert all(n.total() for n in found.values())
    assert sum(n[REFUSED] for n in found.values()) > sum(n.total() for n in found.values()) / 4


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path):
    found = fuzz(10_000, 3_600, tmp_path)
    assert not faults(found), f"{faults(found)}: {sorted(path.name for path in tmp_path.iterdir())}"


if __name__ == "__main__":
    kept = Path(tempfile.mkdtemp())
    print(rows(fuzz(int(sys.argv[1]), float("inf"), kept)))
    print(f"{len(list(kept.iterdir()))} files that were not taken well are in {kept}")
