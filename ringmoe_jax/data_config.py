"""What training reads, as a config says it. Imports no TensorFlow, so that plans and benchmarks need none."""

from __future__ import annotations

import dataclasses
import math

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One data set of a training mixture.

    Attributes:
        directory: TFDS directory, local or `gs://`.
        sensors: sensors to read. Those of one stream show the same place and share crop, flip and rotation.
        split: split to read.
        crop_scale: smallest and largest area of a crop, as a fraction of the tile.
            (0.2, 0.5) is RingMoE's (snapshot). A stream with a complex sensor ignores it.
        crop_ratio: smallest and largest width / height of a crop on the ground. (3/4, 4/3) is SimMIM's; our choice for
            RingMoE. (1, 1) stretches nothing, and then batches hold boxes and tracks. Ignored like `crop_scale`.
        weight: multiplies the number of samples; only for mixing = "temperature".
        fraction: share of the split's samples that are read; `input_pipeline.subset` says which ones.
        fraction_label: a label of classes: the share is taken of every class, and samples of unknown class are left
            out. "" takes it of all samples.
        fraction_of: "samples", or "scenes", of which all tiles are read: where samples are tiles of larger images.
        subset_seed: chooses the subset; larger fractions hold the smaller ones of the same seed.
    """

    directory: str
    sensors: tuple[str, ...]
    split: str = "train"
    crop_scale: tuple[float, ...] = (0.2, 0.5)
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    weight: float = 1.0
    fraction: float = 1.0
    fraction_label: str = ""
    fraction_of: str = "samples"
    subset_seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "sensors", sensor_table.own_names(self.sensors))


@dataclasses.dataclass(frozen=True)
class PhotometricConfig:
    """How the values of one sensor are disturbed in a view; the same for all bands and dates but where it says so.

    Attributes:
        gain: standard deviation of ln g, where g multiplies the power or reflectance of a band; 0 for none. A band
            of a view has one g; re and im of a complex band share it, so phase stays as it is.
        illumination: the same as `gain`, with one g for all bands of a view: sun, season and haze change how bright a
            place is more than its colours (our choice).
        offset: standard deviation of a shift that is added to a band, in the band's standard deviations
            (`DataConfig.statistics`), as path radiance is; 0 for none. Only where the unit adds: not in dB, where a
            shift is a gain, nor to amplitudes and complex samples.
        blur: probability of a Gaussian blur of 0.1 to 2 px (BYOL), of linear power where the unit is dB or amplitude.
        solarise: probability that values above 0.5 become one minus themselves (BYOL).
        drop_band: probability that a band is lost and holds its mean (`DataConfig.statistics`) wherever it is valid;
            re and im go together, and one band is always kept (our choice).
    """

    gain: float = 0.0
    offset: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0
    drop_band: float = 0.0
    illumination: float = 0.0


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
    """Two views of every sample, each with its own box, flip, rotation, dates and disturbance (SkySense).

    Attributes:
        grid: sensor of every stream whose stored pixels views are snapped to: a view is a window of its size x size
            whole pixels, and the other sensors show exactly that ground. "" draws boxes by the stream's `crop_scale`.
            A complex sensor keeps its native samples either way.
        sizes: rows and columns of both views by sensor, in pixels; those of `DataConfig.size`, which evaluation shows,
            where absent.
        overlap: smallest share of the first view's area that the second shows.
        local: number of local crops, small looks at one sensor.
        local_sensor: the sensor that local crops show.
        local_size: rows and columns of a local crop, in pixels that are as large on the ground as the second view's.
        date_jitter: every known date moves by a random whole number of days, at most this many either way.
        photometric: by sensor; none where absent.
    """

    grid: str = ""
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    overlap: float = 0.25
    local: int = 0
    local_sensor: str = ""
    local_size: int = 0
    date_jitter: int = 0
    photometric: dict[str, PhotometricConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _want(0 <= self.overlap <= 1, "views.overlap", self.overlap, "0 to 1")
        _want(self.local >= 0, "views.local", self.local, "0 or more local crops")
        _want(self.date_jitter >= 0, "views.date_jitter", self.date_jitter, "0 or more days")
        if self.local:
            _want(bool(self.local_sensor), "views.local_sensor", self.local_sensor, "the sensor that local crops show")
            _want(self.local_size > 0, "views.local_size", self.local_size, "pixels > 0")
        for name, values in self.photometric.items():
            where = f"views.photometric.{name}"
            _want(values.gain >= 0, f"{where}.gain", values.gain, "0 or more")
            _want(values.illumination >= 0, f"{where}.illumination", values.illumination, "0 or more")
            _want(values.offset >= 0, f"{where}.offset", values.offset, "0 or more")
            _want(0 <= values.drop_band <= 1, f"{where}.drop_band", values.drop_band, "a probability, 0 to 1")
            _want(0 <= values.blur <= 1, f"{where}.blur", values.blur, "a probability, 0 to 1")
            _want(0 <= values.solarise <= 1, f"{where}.solarise", values.solarise, "a probability, 0 to 1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What training reads.

    Attributes:
        streams: data sets by a name of your choice.
        image_size: rows and columns of every image, in pixels, but of the sensors in `sizes`.
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
        prefetch: batches prepared ahead; only for reader = "tf".
        sizes: rows and columns of an image by sensor, in pixels; `image_size` where absent.
        frames: dates shown by sensor, drawn anew for every view; all stored ones, in their order, where absent.
        views: two views of every sample, or None for one.
        tile_power: whether entries of complex sensors hold "power", the smallest and largest total power of the whole
            stored tile, which `total_power` with limits = "tile" is scaled by (released RingMoE code).
        reader: "tf" reads records as they are needed, with TensorFlow; "device" holds whole splits in the memory of
            the device and needs no TensorFlow. Order and rules are the same, random numbers are not.
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
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    frames: dict[str, int] = dataclasses.field(default_factory=dict)
    views: ViewsConfig | None = None
    tile_power: bool = False
    reader: str = "tf"

    def __post_init__(self):
        def want(good: bool, key: str, wanted: str) -> None:
            _want(good, key, getattr(self, key), wanted)

        want(bool(self.streams), "streams", "at least one stream")
        want(self.image_size > 0, "image_size", "pixels > 0")
        want(self.batch_size > 0, "batch_size", "images > 0")
        want(self.mixing in ("zip", "temperature"), "mixing", '"zip" or "temperature"')
        want(self.statistics in ("dataset", "table"), "statistics", '"dataset" or "table"')
        want(self.reader in ("tf", "device"), "reader", '"tf" or "device"')
        want(0 <= self.mask_ratio <= 1, "mask_ratio", "0 to 1")
        divides = self.mask_unit == 0 or self.image_size % max(1, self.mask_unit) == 0
        want(self.mask_unit >= 0 and divides, "mask_unit", f"0 (no masks) or a divisor of {self.image_size}")
        want(self.max_bad_records >= 0, "max_bad_records", "0 or more")
        want(self.shuffle_seed >= 0, "shuffle_seed", "0 or more")
        for name, stream in self.streams.items():
            _check_stream(f"streams.{name}", stream)
        for name, size in self.sizes.items():
            divides = self.mask_unit == 0 or size % self.mask_unit == 0
            _want(size > 0, f"sizes.{name}", size, "pixels > 0")
            _want(divides, f"sizes.{name}", size, f"a multiple of mask_unit = {self.mask_unit}, or mask_unit = 0")
        for name, count in self.frames.items():
            _want(count > 0, f"frames.{name}", count, "1 or more dates")
        if self.views:
            self._check_views(self.views)

    def size(self, sensor: str) -> int:
        """Rows and columns of a sensor's images, in pixels."""
        return self.sizes.get(sensor, self.image_size)

    def view_size(self, sensor: str) -> int:
        """Rows and columns of a sensor's images in training, in pixels."""
        return self.views.sizes.get(sensor, self.size(sensor)) if self.views else self.size(sensor)

    def _check_views(self, views: ViewsConfig) -> None:
        for name, stream in self.streams.items():
            wanted = f'"" or a sensor that every stream reads, and "{name}" reads {", ".join(stream.sensors)}'
            _want(not views.grid or views.grid in stream.sensors, "views.grid", views.grid, wanted)
        for name, size in views.sizes.items():
            wanted = f"a positive multiple of mask_unit = {self.mask_unit}" if self.mask_unit else "pixels > 0"
            _want(size > 0 and size % max(1, self.mask_unit) == 0, f"views.sizes.{name}", size, wanted)
        if not views.local:
            return
        known = [sensor for stream in self.streams.values() for sensor in stream.sensors]
        wanted = f"a sensor that is read: {nearest(views.local_sensor, known)}"
        _want(views.local_sensor in known, "views.local_sensor", views.local_sensor, wanted)
        size = self.view_size(views.local_sensor)
        wanted = f'at most the {size} px of "{views.local_sensor}"'
        _want(views.local_size <= size, "views.local_size", views.local_size, wanted)
        if views.grid:
            side, wanted = self.view_size(views.grid), f'a whole number of pixels of "{views.grid}"'
            wanted += f': a multiple of {size // math.gcd(size, side)}, for {size} px are {side} of "{views.grid}"'
            _want(views.local_size * side % size == 0, "views.local_size", views.local_size, wanted)


def _check_stream(where: str, stream: StreamConfig) -> None:
    scale, ratio = stream.crop_scale, stream.crop_ratio
    if not stream.sensors:
        raise ConfigError(f"data.{where}.sensors is empty: wanted at least one sensor")
    _want(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, f"{where}.crop_scale", scale, "0 < min <= max <= 1")
    _want(len(ratio) == 2 and 0 < ratio[0] <= ratio[1], f"{where}.crop_ratio", ratio, "0 < min <= max")
    _want(0 < stream.fraction <= 1, f"{where}.fraction", stream.fraction, "a share above 0, at most 1")
    units = ("samples",) if stream.fraction_label else ("samples", "scenes")  # a share of every class is of samples
    wanted = " or ".join(f'"{unit}"' for unit in units)
    _want(stream.fraction_of in units, f"{where}.fraction_of", stream.fraction_of, wanted)
    _want(stream.subset_seed >= 0, f"{where}.subset_seed", stream.subset_seed, "0 or more")


def _want(good: bool, key: str, got: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"data.{key} = {got!r}: wanted {wanted}")
