"""Batches for evaluation: every sample once, in order, with labels and without augmentation."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import reader as readers
from input_pipeline import rules
from input_pipeline.dataset import open_dataset
from input_pipeline.rules import Shown
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError

_known: collections.deque[tuple[str, Shown, Callable]] = collections.deque(maxlen=8)  # (reader, shown, what reads it)


class EvalBatches:
    """A split, from its first to its last sample; iterate as often as you like.

    Batches are as `ringmoe_jax.contracts` describes them, with `index` [B] int64, the data set's `labels`
    and `real` [B] bool. All have the same size and all hosts get the same number of them; side by side, host by host,
    they make the batches that one host would get. The last ones are filled up with zero samples whose `real` and
    `valid` are False and whose `index` is -1. A broken record that `max_bad_records` tolerates becomes such a sample
    too, for a replacement would be counted twice.

    Attributes:
        dataset: the opened data set.
    """

    def __init__(
        self,
        directory: str,
        sensors: Sequence[str],
        *,
        split: str = "validation",
        image_size: int,
        batch_size: int,
        bands: Mapping[str, Sequence[str]] | None = None,
        mask_unit: int = 0,
        mask_ratio: float = 0.6,
        seed: int = 0,
        host: int = 0,
        hosts: int = 1,
        max_bad_records: int = 0,
        sizes: Mapping[str, int] | None = None,
        frames: Mapping[str, int] | None = None,
        grid: str = "",
        positions: np.ndarray | None = None,
        reader: str = "tf",
        tile_power: bool = False,
    ):
        """Opens a split.

        A tile is shown whole (the largest centred square, resized to the sensor's size), but where `grid` is given or
        a complex sensor is read its centred size x size samples, and the same ground of the others.

        Args:
            directory: TFDS directory, local or `gs://`.
            sensors: sensors to read; absent from a sample means zeros with `valid` False.
            split: split to read.
            image_size: rows and columns, in pixels, but of the sensors in `sizes`.
            batch_size: samples of a batch on this host.
            bands: see `input_pipeline.dataset.open_dataset`.
            mask_unit: side of a mask cell in pixels, 0 for no masks.
            mask_ratio: fraction of hidden cells.
            seed: masks are a pure function of (seed, index).
            host: index of this process.
            hosts: number of processes.
            max_bad_records: distinct broken records that are tolerated.
            sizes: rows and columns by sensor, in pixels; `image_size` where absent.
            frames: dates shown by sensor, evenly spaced among those with a valid pixel; all stored ones where absent.
            grid: sensor whose stored pixels the window consists of, as in `ViewsConfig`; "" for the whole tile.
            positions: records to show, in this order, for example of `input_pipeline.subset`; all by default.
            reader: "tf", or "device" to compute in JAX, as in `DataConfig`; arrays are NumPy's either way.
            tile_power: as in `DataConfig`.

        Raises:
            ConfigError: a number is out of its range, a position is not in the split or twice, a sensor is unknown,
                `grid` is not read or does not fit a complex sensor, or tracks count the dates of a sensor in `frames`.
            DataError: the data set is missing or not what the sensor table says, or its tiles or series are too small.
        """
        if batch_size < 1 or image_size < 1 or not 0 <= host < hosts or (mask_unit and image_size % mask_unit):
            raise ConfigError(
                f"batch_size = {batch_size}, image_size = {image_size}, mask_unit = {mask_unit}, host = {host}: "
                f"wanted sizes > 0, mask_unit 0 or a divisor of image_size, and host 0 to {hosts - 1}"
            )
        self.dataset = open_dataset(directory, sensors, bands)
        self._batch = batch_size
        further = {"mask_unit": mask_unit, "mask_ratio": mask_ratio, "seed": seed, "tile_power": tile_power}
        self._shown = self._show(image_size, sizes or {}, frames or {}, grid, further)
        self._read = _reads(reader, self._shown)
        self._records = self.dataset.records(split, max_bad_records)
        positions = _checked(positions, self.dataset.size(split))
        self._length = -(-len(positions) // (hosts * batch_size))
        order = np.full(self._length * hosts * batch_size, -1)
        order[: len(positions)] = positions
        self._order = order.reshape(self._length, hosts, batch_size)[:, host].ravel()

    @classmethod
    def of(
        cls,
        data: DataConfig,
        directory: str,
        sensors: Sequence[str],
        *,
        split: str,
        batch_size: int,
        masked: bool = False,
        host: int = 0,
        hosts: int = 1,
        positions: np.ndarray | None = None,
    ) -> EvalBatches:
        """Opens a split and shows it as a data config says: the same ground, bands, sizes and dates for whoever asks.

        Args:
            data: what training reads.
            directory: TFDS directory; need not be one of the config's streams.
            sensors: sensors to read.
            split: split to read.
            batch_size: samples of a batch on this host.
            masked: whether cells are hidden as `data.mask_unit` and `data.mask_ratio` say.
            host: index of this process.
            hosts: number of processes.
            positions: records to show; all by default.

        Raises:
            UserError: see `__init__`.
        """
        by_sensor = lambda values: {name: v for name, v in values.items() if name in sensors}  # noqa: E731
        grid = data.views.grid if data.views and data.views.grid in sensors else ""
        return cls(
            directory,
            tuple(sensors),
            split=split,
            image_size=data.image_size,
            sizes=by_sensor(data.sizes),
            frames=by_sensor(data.frames),
            grid=grid,
            batch_size=batch_size,
            bands=data.bands,
            mask_unit=data.mask_unit if masked else 0,
            mask_ratio=data.mask_ratio,
            seed=data.shuffle_seed,
            host=host,
            hosts=hosts,
            max_bad_records=data.max_bad_records,
            positions=positions,
            reader=data.reader,
            tile_power=data.tile_power,
        )

    @property
    def bad_records(self) -> int:
        """Distinct broken records met so far."""
        return len(self._records.bad)

    @property
    def ground(self) -> float:
        """Metres from the left to the right edge of what is shown; all sensors show the same ground."""
        name = next(iter(self.dataset.sensors))
        share = 1.0 if self._shown.box is None else self._shown.box[3]
        return share * self.dataset.shape(name)[2] * self.dataset.metadata.sensors[name].gsd

    def corners(self, origins: np.ndarray, sensor: str) -> np.ndarray:
        """Where samples lie in what they were cut from, in pixels as a sensor is shown.

        Args:
            origins: [N, 4] of `input_pipeline.scenes`.
            sensor: that is read.

        Returns:
            [N, 2] float64, row and column of the upper left corner of what is shown.
        """
        tile = self.dataset.metadata.sensors[next(iter(self.dataset.metadata.sensors))].shape[1:]
        box = np.array(self._shown.box or (0, 0, 1, 1))
        return (origins[:, 2:] / tile + box[:2]) * self._shown.sizes[sensor] / box[2:]

    def size(self, sensor: str) -> int:
        """Rows and columns that a sensor is shown in, in pixels."""
        return self._shown.sizes[sensor]

    def zoom(self, sensor: str) -> np.ndarray:
        """[2] float64, pixels that a sensor is shown in for every one that is stored, along rows and columns."""
        box = np.array(self._shown.box or (0, 0, 1, 1))
        return self._shown.sizes[sensor] / (box[2:] * self.dataset.shape(sensor)[1:])

    def __len__(self) -> int:
        """Number of batches."""
        return self._length

    def __iter__(self) -> Iterator[dict]:
        return self._read(self._records, self._order, self._batch)

    def _show(self, image_size: int, sizes: Mapping, frames: Mapping, grid: str, further: Mapping) -> Shown:
        unit = further["mask_unit"]
        rules.check_names("sizes", sizes)
        rules.check_names("frames", frames)
        for name, size in sizes.items():
            if size < 1 or (unit and size % unit):
                multiple = f", a multiple of mask_unit = {unit}" if unit else ""
                raise ConfigError(f"sizes.{name} = {size}: wanted pixels > 0{multiple}")
        rules.check_frames(self.dataset, frames)
        for name in self.dataset.labels:
            if not rules.shows_rows(self.dataset, name, self.dataset.sensors, frames):
                carrier = self.dataset.carrier(name)
                raise ConfigError(
                    f'frames.{carrier} = {frames[carrier]}: the tracks "{name}" of {self.dataset.directory} '
                    "count all of its dates: leave it out"
                )
        sizes = {name: sizes.get(name, image_size) for name in self.dataset.sensors}
        return Shown(self.dataset, self._centre(sizes, grid), sizes, image_size, frames, **further)

    def _centre(self, sizes: Mapping[str, int], grid: str):
        shapes = {name: self.dataset.shape(name) for name in self.dataset.sensors}
        snapped = rules.snapping_sensor(self.dataset, sizes, grid, self.dataset.directory)
        if snapped:
            return rules.centre_box(*shapes[snapped][1:], sizes[snapped])
        if all(shape[1:] == (sizes[name],) * 2 for name, shape in shapes.items()):
            return None
        return rules.centre_box(*next(iter(shapes.values()))[1:])


def _reads(reader: str, shown: Shown) -> Callable:
    """What a reader's `evaluation` gives, made once for all passes and splits that are shown alike.

    Building its graph takes longer than reading a small split.
    """
    for name, before, read in _known:
        if (name, before) == (reader, shown):
            return read
    read = readers.load(reader).evaluation(shown)
    _known.append((reader, shown, read))
    return read


def _checked(positions: np.ndarray | None, size: int) -> np.ndarray:
    """Positions of a split of `size` records, all by default, if they are some of them."""
    if positions is None:
        return np.arange(size)
    positions = np.asarray(positions)
    if not len(positions) or len(np.unique(positions)) < len(positions) or not np.isin(positions, range(size)).all():
        raise ConfigError(f"positions = {positions}: wanted some of 0 to {size - 1}, each once")
    return positions
