"""What every reader agrees on, in plain Python: which windows and dates fit, what physics allows, how views are drawn.

The readers draw and compute in TensorFlow (`augment.py`, `views.py`, `pipeline.py`) or in JAX (`device/`) by these
rules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from input_pipeline import schema
from input_pipeline.dataset import Dataset
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.data_config import DataConfig, PhotometricConfig, ViewsConfig
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.sensors import Sensor, Statistics

WHOLE = 1 - 1e-5  # share of valid source pixels from which a resampled pixel is valid
TINY = 1e-12  # linear power below which dB is cut off (-120 dB)
BLUR = (0.1, 2.0)  # sigma of a blur in pixels (BYOL)
LEAST = 1e-3  # of a pixel: what a box shows less of, it does not show
CANDIDATES = 8  # boxes that may become the second view; the last is the first view's
_REFLECTANCE = 2.0  # largest plausible value of what is solarised: 1, or reflectance with clouds

# Where an image's pixel lay before a turn: [mirrored, quarters] to a map of relative row and column.
UNTURN = (
    (((1, 0, 0), (0, 1, 0)), ((0, 1, 0), (-1, 0, 1)), ((-1, 0, 1), (0, -1, 1)), ((0, -1, 1), (1, 0, 0))),
    (((1, 0, 0), (0, -1, 1)), ((0, 1, 0), (1, 0, 0)), ((-1, 0, 1), (0, 1, 0)), ((0, -1, 1), (-1, 0, 1))),
)


def mirror_signs(sensor: Sensor) -> tuple[float, ...]:
    """What a mirror multiplies the channels of a sensor by, one a band.

    A turned or mirrored image is taken for one of a turned or mirrored world, its radar included. A quarter turn then
    leaves the scattering matrix as it is, for horizontal and vertical go by the line of sight; a mirror turns the
    horizontal axis around, S' = R S R with R = diag(-1, 1): the sign of the cross-polarised channels flips, that of
    HH and VV does not. Powers and other sensors stay as they are.
    """
    if sensor.resampling != sensor_table.COMPLEX:
        return (1.0,) * sensor.channels
    polarisations = (name.partition("_")[0] for name in sensor.band_names)
    return tuple(-1.0 if len(set(polarisation)) == 2 else 1.0 for polarisation in polarisations)


@dataclasses.dataclass(frozen=True)
class ViewRules:
    """What the views of a stream's samples are drawn by.

    Attributes:
        config: what training reads.
        scale: smallest and largest area of a box, as a fraction of the tile.
        ratio: smallest and largest width / height of a box on the ground.
        sizes: rows and columns by sensor, in pixels.
        statistics: by sensor, see `statistics`.
        snapped: sensor whose whole pixels boxes are made of, or "".
        shape: rows and columns of the tile in pixels of `snapped`, or of any sensor.
        stretched: boxes may be no squares on the ground.
        local_shape: rows and columns that local crops are made of whole; None where they need not.
    """

    config: DataConfig
    scale: tuple[float, float]
    ratio: tuple[float, float]
    sizes: Mapping[str, int]
    statistics: Mapping[str, Statistics]
    snapped: str
    shape: tuple[int, int]
    stretched: bool
    local_shape: tuple[int, int] | None

    @classmethod
    def of(cls, config: DataConfig, stream: str, dataset: Dataset) -> ViewRules:
        """Rules of a stream.

        Args:
            config: what training reads.
            stream: name of the stream.
            dataset: its data set.

        Raises:
            ConfigError: two sensors cannot share a box, or a sensor does not allow a disturbance.
            DataError: a tile is smaller than its window, or has fewer dates than are asked for.
        """
        scale, ratio = config.streams[stream].crop_scale, config.streams[stream].crop_ratio
        sizes = {name: config.view_size(name) for name in dataset.sensors}
        check_frames(dataset, config.frames)
        grid = config.views.grid if config.views else ""
        snapped = snapping_sensor(dataset, sizes, grid, f"data.streams.{stream}")
        # Any grid will do where boxes need not hit its pixels.
        shape = dataset.shape(snapped or next(iter(dataset.sensors)))[1:]
        fits = scale[1] * max(shape) <= min(shape)  # no side of a square is cut off
        stretched = not snapped and not (fits and tuple(ratio) == (1, 1))
        local_shape = None
        if config.views:
            check_photometric(dataset.sensors, config.views.photometric)
            local = config.views.local_sensor
            native = local in dataset.sensors and dataset.sensors[local].resampling == sensor_table.COMPLEX
            if grid or native:
                local_shape = dataset.shape(grid or local)[1:]
        own = statistics(config, dataset)
        return cls(config, tuple(scale), tuple(ratio), sizes, own, snapped, shape, stretched, local_shape)

    @property
    def views(self) -> ViewsConfig | None:
        """Of the config."""
        return self.config.views

    @property
    def local_sizes(self) -> dict[str, int]:
        """Rows and columns of local crops by sensor: of one, or none where this stream has no local crops."""
        views = self.views
        return {views.local_sensor: views.local_size} if views and views.local_sensor in self.sizes else {}

    @property
    def local_share(self) -> float:
        """Of the sides of the second view, that a local crop shows."""
        return self.views.local_size / self.sizes[self.views.local_sensor]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What an evaluation shows of every sample.

    Attributes:
        dataset: opened.
        box: top, left, height, width as fractions of the tile, or None to show tiles of the right size as they are.
        sizes: rows and columns by sensor, in pixels.
        image_size: rows and columns of labels on the grid of a sensor that is not shown.
        frames: dates by sensor, evenly spaced; all stored ones where absent.
        mask_unit: side of a mask cell in pixels, 0 for no masks.
        mask_ratio: fraction of hidden cells.
        seed: of the masks.
        tile_power: whether entries of complex sensors hold the limits of their tile's total power.
    """

    dataset: Dataset
    box: tuple[float, float, float, float] | None
    sizes: Mapping[str, int]
    image_size: int
    frames: Mapping[str, int]
    mask_unit: int
    mask_ratio: float
    seed: int
    tile_power: bool = False


def centre_box(height: int, width: int, size: int | None = None) -> tuple[float, float, float, float]:
    """The largest centred square, or the centred one of `size` whole pixels, as fractions of the tile."""
    side = size or min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return top / height, left / width, side / height, side / width


def statistics(config: DataConfig, dataset: Dataset) -> dict[str, Statistics]:
    """Normalisation of every sensor, as `DataConfig.statistics` chose it."""
    stored = config.statistics == "dataset"
    return {name: dataset.statistics(name) if stored else table.statistics for name, table in dataset.sensors.items()}


def hidden_cells(height: int, width: int, ratio: float) -> int:
    """Number of hidden cells: ceil(ratio * cells), the same in every image (RingMoE snapshot)."""
    return math.ceil(round(ratio * height * width, 6))  # 0.6 * 5 is 3.0000000000000004 to a float


def shows_rows(dataset: Dataset, label: str, sizes: Mapping[str, int], frames: Mapping[str, int]) -> bool:
    """Whether rows of `BOXES` or `TRACKS` hold for a view of these sensors: tracks count all dates that are stored."""
    carrier = dataset.carrier(label)
    return not (dataset.labels[label].kind == schema.TRACKS and carrier in sizes and carrier in frames)


def complex_box(
    shapes: Mapping[str, tuple[int, int, int]],
    resampling: Mapping[str, str],
    size: int | Mapping[str, int],
    where: str,
):
    """Height and width of the crop that shows `size` native samples of the complex sensors.

    Args:
        shapes: T, H, W of the stored tiles, by sensor.
        resampling: by sensor.
        size: image size in pixels, of all sensors or by sensor.
        where: names the stream in messages.

    Returns:
        (height, width) as fractions of the tile, or None where no sensor is complex.

    Raises:
        DataError: a complex tile is smaller than `size`.
        ConfigError: two complex sensors have different grids.
    """
    boxes = {}
    for name, (_, height, width) in shapes.items():
        if resampling[name] != sensor_table.COMPLEX:
            continue
        side = size if isinstance(size, int) else size[name]
        if min(height, width) < side:
            raise DataError(
                f'{where}: tiles of "{name}" are {height} x {width} px, smaller than image_size = {side}, and complex '
                f"data is never resampled: set image_size (or sizes.{name}) to at most {min(height, width)}, "
                "or cut larger tiles"
            )
        boxes[name] = (side / height, side / width)
    if len(set(boxes.values())) > 1:
        raise ConfigError(f"{where}: complex sensors on different grids cannot share a crop: {', '.join(boxes)}")
    return next(iter(boxes.values()), None)


def snapping_sensor(dataset: Dataset, sizes: Mapping[str, int], grid: str, where: str) -> str:
    """The sensor whose whole pixels boxes are made of: `grid`, else a complex one, else "".

    Args:
        dataset: whose tiles are shown.
        sizes: rows and columns by sensor, in pixels.
        grid: sensor that boxes are snapped to, or "".
        where: names the stream in messages.

    Raises:
        ConfigError: `grid` is not read, or its window and a complex sensor's show different ground.
        DataError: a tile of `grid` or of a complex sensor is smaller than its window.
    """
    shapes = {name: dataset.shape(name) for name in dataset.sensors}
    resampling = {name: sensor.resampling for name, sensor in dataset.sensors.items()}
    native = complex_box(shapes, resampling, sizes, where)
    complex_sensor = next((name for name in shapes if resampling[name] == sensor_table.COMPLEX), "")
    if not grid:
        return complex_sensor
    if grid not in shapes:
        raise ConfigError(f'{where} reads no sensor "{grid}", which is the grid of its views: {nearest(grid, shapes)}')
    height, width = shapes[grid][1:]
    if min(height, width) < sizes[grid]:
        raise DataError(
            f'{where}: tiles of "{grid}" are {height} x {width} px, smaller than the {sizes[grid]} px of a view that '
            f"is snapped to them: set sizes.{grid} to at most {min(height, width)}, or cut larger tiles"
        )
    window = (sizes[grid] / height, sizes[grid] / width)
    if native and native != window:
        raise ConfigError(
            f'{where}: {sizes[grid]} px of the grid "{grid}" are {window[0]:.4g} x {window[1]:.4g} of a tile and '
            f'{sizes[complex_sensor]} samples of "{complex_sensor}" {native[0]:.4g} x {native[1]:.4g}, and complex '
            "data is never resampled: choose sizes that show the same ground"
        )
    return grid


def check_names(key: str, names: Iterable[str]) -> None:
    """Refuses sensors that the table does not know; those that are not read may stand in a config.

    Raises:
        ConfigError: names the nearest sensor.
    """
    for name in names:
        if name not in sensor_table.SENSORS:
            raise ConfigError(f'{key} names "{name}", which is no sensor: {nearest(name, sensor_table.SENSORS)}')


def check_frames(dataset: Dataset, frames: Mapping[str, int]) -> None:
    """Refuses more dates than are stored.

    Raises:
        DataError: names the sensor.
    """
    for name in dataset.sensors:
        stored = dataset.shape(name)[0]
        if not 1 <= frames.get(name, 1) <= stored:
            raise DataError(
                f'{dataset.directory}: "{name}" has {stored} dates, and frames.{name} = {frames[name]}: '
                f"wanted 1 to {stored}"
            )


def check_photometric(sensors: Mapping[str, Sensor], photometric: Mapping[str, PhotometricConfig]) -> None:
    """Refuses what the physics of a sensor does not allow.

    Raises:
        ConfigError: an offset of values that nothing adds to: amplitudes and complex samples add in power, and in dB
            a shift is a gain; a blur of complex samples, which would change their power; a solarisation of values
            that are no reflectance or brightness of 0 to 1; or a dropped band of a sensor that has but one.
    """
    for name, config in photometric.items():
        if name not in sensors:
            continue
        key, sensor = f"data.views.photometric.{name}", sensors[name]
        if config.offset and sensor.resampling != sensor_table.LINEAR:
            hint = ", and a shift in dB is a gain: set gain" if sensor.resampling == sensor_table.DECIBEL else ""
            raise ConfigError(
                f'{key}.offset = {config.offset}: values are in "{sensor.unit}", to which nothing adds, wanted 0{hint}'
            )
        if config.blur and sensor.resampling == sensor_table.COMPLEX:
            raise ConfigError(f"{key}.blur = {config.blur}: complex samples are never averaged, wanted 0")
        low, high = sensor.valid_range
        if config.solarise and not (sensor.resampling == sensor_table.LINEAR and low >= 0 and high <= _REFLECTANCE):
            raise ConfigError(
                f'{key}.solarise = {config.solarise}: values are in "{sensor.unit}", {low:g} to {high:g}, and only '
                "brightness or reflectance of 0 to 1 can be solarised: wanted 0"
            )
        if config.drop_band and sensor.channels <= channels_a_band(sensor.resampling):
            raise ConfigError(
                f"{key}.drop_band = {config.drop_band}: one band is always kept, and it has one: wanted 0"
            )


def channels_a_band(resampling: str) -> int:
    """Channels that are one band to whoever disturbs it: re and im of a complex one belong together."""
    return 2 if resampling == sensor_table.COMPLEX else 1
