"""Small data sets that tests write and break."""

from pathlib import Path

import numpy as np

from input_pipeline.builder import write_dataset
from input_pipeline.schema import CLASSES, MAP, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors


def metadata(*names: str, size: int = 8, labels: bool = True) -> Metadata:
    """Metadata of `tiny`: every sensor with square tiles, slc_* on a grid twice as fine."""
    infos = {
        name: SensorInfo.of(sensors.get(name), (1, *2 * (size * (2 if name.startswith("slc") else 1),)), 10.0)
        for name in names
    }
    known = {
        "kind": LabelInfo(CLASSES, ("even", "odd"), "parity of the sample's number"),
        "map": LabelInfo(MAP, tuple("abcdefgh"), "the pixel's column", names[0]),
    }
    return Metadata("tiny", infos, "made up", "none", "tests", labels=known if labels else {})


def samples(count: int, meta: Metadata, prefix: str = "s"):
    """Sample i holds random pixels; its latitude is i, so that a batch says which sample it holds."""
    for i in range(count):
        images = {}
        for j, (name, info) in enumerate(meta.sensors.items()):
            rng, shape = np.random.default_rng([i, j]), (*info.shape, len(info.bands))
            integers = np.dtype(info.dtype).kind == "u"
            top = np.iinfo(info.dtype).max if integers else 1
            values = rng.integers(1, top, shape) if integers else rng.normal(size=shape)
            images[name] = Image(values.astype(info.dtype), time=np.array([17000 + i]))
        size = next(iter(meta.sensors.values())).shape[1]
        labels = {"kind": i % 2, "map": np.tile(np.arange(size), (size, 1))} if meta.labels else {}
        yield Sample(f"{prefix}{i}", images, float(i), -float(i), labels)


def write(directory: Path, *names: str, train: int = 12, validation: int = 3, size: int = 8, **options) -> Path:
    """Writes `tiny` with these sensors."""
    meta = metadata(*names, size=size)
    splits = {"train": samples(train, meta), "validation": samples(validation, meta, "v")}
    write_dataset(directory, splits, meta, **options)
    return directory


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())
