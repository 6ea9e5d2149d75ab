"""What training reads, as a config says it. Imports no TensorFlow, so that plans and benchmarks need none."""

from __future__ import annotations

import dataclasses

from ringmoe_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One data set of a training mixture.

    Attributes:
        directory: TFDS directory, local or `gs://`.
        sensors: sensors to read. Those of one stream show the same place and share crop, flip and rotation.
        split: split to read.
        crop_scale: smallest and largest area of a crop, as a fraction of the tile.
            (0.2, 0.5) is RingMoE's (snapshot). A stream with a complex sensor ignores it.
        weight: multiplies the data set's size; only for mixing = "temperature".
    """

    directory: str
    sensors: tuple[str, ...]
    split: str = "train"
    crop_scale: tuple[float, ...] = (0.2, 0.5)
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What training reads.

    Attributes:
        streams: data sets by a name of your choice.
        image_size: rows and columns of every image, in pixels.
        batch_size: images of each stream in a step, over all hosts (mixing = "zip"); with
            mixing = "temperature" the streams share batch_size * len(streams).
        mixing: "zip" (the same number of each; released RingMoE code) or "temperature".
        temperature: counts are in proportion to (samples * weight) ** (1 / temperature).
        mask_unit: side of a mask cell, in pixels; 0 for no masks.
        mask_ratio: fraction of hidden cells.
        flip: mirror half of the samples left to right.
        rotate: rotate by a random multiple of 90 degrees.
        max_bad_records: distinct broken records that are skipped before reading stops.
        shuffle_seed: seeds order, augmentation and masks.
        bands: bands to read by sensor, in that order; all bands of the table where absent.
        statistics: "dataset" (of the training split, stored with it) or "table".
        prefetch: batches prepared ahead.
    """

    streams: dict[str, StreamConfig]
    image_size: int
    batch_size: int
    mixing: str = "zip"
    temperature: float = 1.0
    mask_unit: int = 32
    mask_ratio: float = 0.6
    flip: bool = True
    rotate: bool = True
    max_bad_records: int = 0
    shuffle_seed: int = 0
    bands: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    statistics: str = "dataset"
    prefetch: int = 2

    def __post_init__(self):
        def want(good: bool, key: str, wanted: str) -> None:
            if not good:
                raise ConfigError(f"data.{key} = {getattr(self, key)!r}: wanted {wanted}")

        want(bool(self.streams), "streams", "at least one stream")
        want(self.image_size > 0, "image_size", "pixels > 0")
        want(self.batch_size > 0, "batch_size", "images > 0")
        want(self.mixing in ("zip", "temperature"), "mixing", '"zip" or "temperature"')
        want(self.statistics in ("dataset", "table"), "statistics", '"dataset" or "table"')
        want(0 <= self.mask_ratio <= 1, "mask_ratio", "0 to 1")
        divides = self.mask_unit == 0 or self.image_size % max(1, self.mask_unit) == 0
        want(self.mask_unit >= 0 and divides, "mask_unit", f"0 (no masks) or a divisor of {self.image_size}")
        want(self.max_bad_records >= 0, "max_bad_records", "0 or more")
        want(self.shuffle_seed >= 0, "shuffle_seed", "0 or more")
        for name, stream in self.streams.items():
            if not (len(stream.crop_scale) == 2 and 0 < stream.crop_scale[0] <= stream.crop_scale[1] <= 1):
                raise ConfigError(f"data.streams.{name}.crop_scale = {stream.crop_scale}: wanted 0 < min <= max <= 1")
            if not stream.sensors:
                raise ConfigError(f"data.streams.{name}.sensors is empty: wanted at least one sensor")
