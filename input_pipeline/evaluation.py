"""Batches for evaluation: every sample once, in order, with labels and without augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import augment, pipeline, schema, views
from input_pipeline.cpu_tf import tf
from input_pipeline.dataset import open_dataset
from input_pipeline.views import View
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError


class EvalBatches:
    """A split, from its first to its last sample; iterate as often as you like.

    Batches are as `ringmoe_jax.contracts` describes them, with `index` [B] int64, the data set's `labels`
    and `real` [B] bool. All have the same size and all hosts get the same number of them: the last
    ones are filled up with zero samples whose `real` and `valid` are False and whose `index` is -1. A broken
    record that `max_bad_records` tolerates becomes such a sample too, for a replacement would be counted twice.

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
        self._batch, self._seed = batch_size, seed
        self._unit, self._ratio = mask_unit, mask_ratio
        self._view = self._open_view(image_size, sizes or {}, frames or {}, grid)
        self._parse = pipeline.parse(self.dataset)
        self._records = self.dataset.records(split, max_bad_records)
        positions = _checked(positions, self.dataset.size(split))
        self._length = -(-len(positions) // (hosts * batch_size))
        order = positions[host::hosts]
        self._order = np.concatenate([order, np.full(self._length * batch_size - len(order), -1)])

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
        )

    @property
    def bad_records(self) -> int:
        """Distinct broken records met so far."""
        return len(self._records.bad)

    @property
    def ground(self) -> float:
        """Metres from the left to the right edge of what is shown; all sensors show the same ground."""
        name = next(iter(self.dataset.sensors))
        share = 1.0 if self._view.box is None else float(self._view.box[3])
        return share * self.dataset.shape(name)[2] * self.dataset.metadata.sensors[name].gsd

    def __len__(self) -> int:
        """Number of batches."""
        return self._length

    def __iter__(self) -> Iterator[dict]:
        reading = pipeline.Reading()
        dataset = (
            tf.data.Dataset.from_tensor_slices(self._order)
            .batch(self._batch)
            .map(pipeline.read_map(self._reader(), reading))
            .unbatch()
            .map(pipeline.untouched(self._sample), num_parallel_calls=pipeline.PARALLEL)
            .batch(self._batch)
            .prefetch(1)
        )
        return reading.start(dataset)

    def _open_view(self, image_size: int, sizes: Mapping[str, int], frames: Mapping[str, int], grid: str) -> View:
        views.check_names("sizes", sizes)
        views.check_names("frames", frames)
        for name, size in sizes.items():
            if size < 1 or (self._unit and size % self._unit):
                multiple = f", a multiple of mask_unit = {self._unit}" if self._unit else ""
                raise ConfigError(f"sizes.{name} = {size}: wanted pixels > 0{multiple}")
        views.check_frames(self.dataset, frames)
        for name, label in self.dataset.labels.items():
            if label.kind == schema.TRACKS and label.sensor in frames and label.sensor in self.dataset.sensors:
                raise ConfigError(
                    f'frames.{label.sensor} = {frames[label.sensor]}: the tracks "{name}" of {self.dataset.directory} '
                    "count all of its dates: leave it out"
                )
        sizes = {name: sizes.get(name, image_size) for name in self.dataset.sensors}
        return View(self._centre(sizes, grid), sizes, image_size, frames)

    def _centre(self, sizes: Mapping[str, int], grid: str):
        shapes = {name: self.dataset.shape(name) for name in self.dataset.sensors}
        snapped = views.snapping_sensor(self.dataset, sizes, grid, self.dataset.directory)
        if snapped:
            return augment.centre_box(*shapes[snapped][1:], sizes[snapped])
        if all(shape[1:] == (sizes[name],) * 2 for name, shape in shapes.items()):
            return None
        return augment.centre_box(*next(iter(shapes.values()))[1:])

    def _reader(self):
        blank = schema.serialiser(self.dataset.metadata)(schema.blank(self.dataset.metadata))

        def read(positions):
            found = iter(self._records.read(positions[positions >= 0]))
            payloads = [next(found) if position >= 0 else None for position in positions]
            kept = [-1 if payload is None else p for p, payload in zip(positions, payloads, strict=True)]
            return kept, [payload or blank for payload in payloads]

        return read

    def _sample(self, _, position, payload):
        sample = self._parse(payload)
        labels = pipeline.place_labels(self.dataset, sample, self._view)
        shown = pipeline.place(self.dataset, sample, self._view)
        seed = tf.random.experimental.stateless_fold_in(tf.constant([self._seed, 0], tf.int64), position)
        shown = pipeline.hide(shown, seed, self._view.sizes, self._unit, self._ratio)
        batch = {"sensors": shown, "index": position, "real": position >= 0}
        return {**batch, **({"labels": labels} if labels else {})}


def _checked(positions: np.ndarray | None, size: int) -> np.ndarray:
    """Positions of a split of `size` records, all by default, if they are some of them."""
    if positions is None:
        return np.arange(size)
    positions = np.asarray(positions)
    if not len(positions) or len(np.unique(positions)) < len(positions) or not np.isin(positions, range(size)).all():
        raise ConfigError(f"positions = {positions}: wanted some of 0 to {size - 1}, each once")
    return positions
