"""A data set with every kind of sensor and label, gaps, and series of which dates are missing."""

from pathlib import Path

import numpy as np

from input_pipeline import schema
from input_pipeline.builder import write_dataset
from input_pipeline.schema import Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors

GRIDS = {"rgb": (1, 24), "ndsm": (1, 20), "s1_grd": (5, 16), "sar_amplitude": (1, 24), "slc_dual": (1, 48)}
LABELS = {
    "kind": LabelInfo(schema.CLASSES, ("even", "odd"), ""),
    "several": LabelInfo(schema.MULTILABEL, ("a", "b", "c"), ""),
    "value": LabelInfo(schema.VALUE, ("mean",), ""),
    "map": LabelInfo(schema.MAP, tuple("abcdefgh"), "", "s1_grd"),
    "boxes": LabelInfo(schema.BOXES, ("car",), "", "rgb", 4),
    "tracks": LabelInfo(schema.TRACKS, ("car",), "", "s1_grd", 3),
}


def write(directory: Path, train: int = 4) -> Path:
    """Writes it: tiles of 1 km, `GRIDS` dates and pixels a side."""
    infos = {
        name: SensorInfo.of(sensors.get(name), (dates, size, size), 1000 / size)
        for name, (dates, size) in GRIDS.items()
    }
    meta = Metadata("all_kinds", infos, "", "", "", labels=LABELS)
    write_dataset(directory, {split: list(samples(train, split)) for split in ("train", "validation")}, meta)
    return directory


def samples(count: int, split: str):
    """Sample i: values in each sensor's unit, a gap in some, and i + 2 dates of the series, one of them unseen."""
    for i in range(count):
        rng = np.random.default_rng([i, split == "train"])
        size = {name: size for name, (_, size) in GRIDS.items()}
        draw = lambda name, bands, dates=1: rng.normal(size=(dates, size[name], size[name], bands))  # noqa: E731, B023
        height = (3 + draw("ndsm", 1)).astype(np.float32)
        height[0, 3:5, 7] = -9999
        height[0, 15, 2] = np.nan
        dates = 2 + i % 4
        seen = np.ones((dates, 16, 16), bool)
        seen[0, :, :5] = False
        seen[1] = False
        days = np.sort(rng.integers(17000, 18000, dates))
        images = {
            "rgb": Image(rng.integers(0, 256, (1, 24, 24, 3)).astype(np.uint8), time=np.array([17000 + i])),
            "ndsm": Image(height),
            "s1_grd": Image((-15 + 5 * draw("s1_grd", 2, dates)).astype(np.float32), seen, days),
            "sar_amplitude": Image((0.01 + abs(draw("sar_amplitude", 1))).astype(np.float32)),
            "slc_dual": Image(draw("slc_dual", 4).astype(np.float32)),
        }
        yield Sample(f"{split}{i}", images, float(i), -float(i), labels(rng, i))


def labels(rng, i: int) -> dict:
    """Labels of sample i: upright and turned boxes and tracks, one row each not used."""
    boxes = np.full((4, 6), schema.UNLABELLED, np.float32)
    tracks = np.full((3, 8), schema.UNLABELLED, np.float32)
    for rows, side in ((boxes[:3], 24), (tracks[:2], 16)):
        rows[:, 0] = 0
        rows[:, 1:3] = rng.uniform(0, side, (len(rows), 2))
        rows[:, 3:5] = rng.uniform(1, 6, (len(rows), 2))
        rows[:, 5] = 0
        rows[0, 5] = 0.4
    tracks[:2, 6:] = [[0, 0], [1, 1]]
    return {
        "kind": i % 2,
        "several": rng.integers(0, 2, 3),
        "value": rng.normal(size=1),
        "map": rng.integers(-1, 8, (16, 16)),
        "boxes": boxes,
        "tracks": tracks,
    }
