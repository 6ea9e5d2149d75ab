"""What a look shows of a sample: images in physical units, masks, labels. Twin of `input_pipeline.pipeline`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import rules, schema
from input_pipeline.dataset import Dataset
from input_pipeline.device import boxes, dates, resampling, values
from input_pipeline.device.looks import Look
from ringmoe_jax.contracts import NO_TIME, SECOND
from ringmoe_jax.data_config import DataConfig, PhotometricConfig
from ringmoe_jax.sensors import COMPLEX, Statistics


@dataclasses.dataclass(frozen=True)
class Shows:
    """What looks of one kind show; all of it is known before anything is drawn.

    Attributes:
        dataset: whose samples.
        sizes: rows and columns by sensor, in pixels, of the sensors that are shown.
        image_size: rows and columns of labels on the grid of a sensor that is not.
        frames: dates by sensor; all stored ones where absent.
        date_jitter: largest number of days that a date moves.
        photometric: by sensor.
        statistics: of the sensors that `photometric` names.
        grounded: entries say where they lie in the tile.
        stretched: boxes may be no squares on the ground.
        tile_power: entries of complex sensors hold the limits of their tile's total power.
    """

    dataset: Dataset
    sizes: Mapping[str, int]
    image_size: int
    frames: Mapping[str, int]
    date_jitter: int = 0
    photometric: Mapping[str, PhotometricConfig] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, Statistics] = dataclasses.field(default_factory=dict)
    grounded: bool = False
    stretched: bool = False
    tile_power: bool = False

    @classmethod
    def of(cls, chosen: rules.ViewRules, dataset: Dataset, sizes: Mapping[str, int]) -> Shows:
        """What training shows of some sensors."""
        config, views = chosen.config, chosen.views
        always = dict(stretched=chosen.stretched, tile_power=config.tile_power)
        shows = cls(dataset, sizes, config.image_size, config.frames, **always)
        if not views:
            return shows
        return dataclasses.replace(
            shows,
            date_jitter=views.date_jitter,
            photometric=views.photometric,
            statistics=chosen.statistics,
            grounded=True,
        )


def place(shows: Shows, sample: Mapping, look: Look) -> dict:
    """Brings what a look shows to images in physical units.

    Args:
        shows: what is shown.
        sample: of `storage`, one row of every array.
        look: at it.

    Returns:
        By sensor the arrays of `ringmoe_jax.contracts`, without the batch's axis and without a mask.
    """
    return {name: _place(shows, name, sample, look) for name in shows.sizes}


def draws(dataset: Dataset) -> dict[str, int]:
    """How many uniform numbers a look takes, by sensor: two a date, and those of `values.disturb`."""
    return {name: 2 * dataset.shape(name)[0] + 3 * len(dataset.channels[name]) + 4 for name in dataset.sensors}


def _place(shows: Shows, name: str, sample: Mapping, look: Look) -> dict:
    entry, dataset = sample["sensors"][name], shows.dataset
    stored, time, valid = entry["stored"], entry["time"], entry.get("valid")
    info, size = dataset.metadata.sensors[name], shows.sizes[name]
    rule, (height, width) = dataset.sensors[name].resampling, dataset.shape(name)[1:]
    drawn = (None,) * 3
    if look.draws is not None:
        drawn = jnp.split(look.draws[name], np.arange(1, 3) * dataset.shape(name)[0])
    box = None if look.box is None else boxes.shown(look.box, height, width, size, rule)
    if name in shows.frames:
        stored, time, valid = _frames(stored, time, valid, box, shows.frames[name], drawn[0])
    pixels = values.physical(info, stored, valid)
    further = {"power": values.power_limits(pixels, valid)} if shows.tile_power and rule == COMPLEX else {}
    if box is not None:
        window = resampling.window(box, look.mirrored, look.quarters, height, width, size, rule)
        pixels, valid = resampling.resample(pixels, valid, window, rule)
        if min(signs := rules.mirror_signs(dataset.sensors[name])) < 0:
            pixels = pixels * jnp.where(look.mirrored, jnp.array(signs), 1.0)
    if name in shows.photometric:
        given = shows.photometric[name], rule, shows.statistics[name]
        pixels, valid = values.disturb(pixels, valid, drawn[2], *given)
    if shows.date_jitter:
        time = dates.move_dates(time, shows.date_jitter, drawn[1][: len(time)])
    valid = jnp.ones(pixels.shape[:-1], bool) if valid is None else valid
    placed = {"pixels": pixels, "valid": valid, "time": time, "location": sample["location"]} | further
    share = 1.0 if box is None else box[2] * height / size  # of a stored pixel's side
    placed["gsd"] = jnp.float32(info.gsd * share)
    if shows.grounded:
        placed["ground"] = boxes.ground(box, look.mirrored, look.quarters)
    return placed


def _frames(stored, time, valid, box, count: int, draw):
    """Chooses among the dates on which a pixel in the box was observed."""
    seen = jnp.ones(stored.shape[:3], bool) if valid is None else valid
    if box is not None:
        begin = box[:2] * jnp.array(seen.shape[1:])
        end = begin + box[2:] * jnp.array(seen.shape[1:])
        rows, columns = (
            (jnp.arange(n) + 1 > begin[i] + rules.LEAST) & (jnp.arange(n) < end[i] - rules.LEAST)
            for i, n in enumerate(seen.shape[1:])
        )
        seen = seen & rows[:, None] & columns
    index, present = dates.choose_frames(seen.any((1, 2)), count, draw)
    if valid is not None:
        valid = valid[index] & present[:, None, None]
    return stored[index], jnp.where(present, time[index], NO_TIME), valid


def place_labels(shows: Shows, sample: Mapping, look: Look) -> dict:
    """Labels of what a look shows, by name: see `input_pipeline.pipeline.place_labels`."""
    dataset, labels = shows.dataset, dict(sample["labels"])
    box = jnp.array([0.0, 0.0, 1.0, 1.0]) if look.box is None else look.box
    for name, info in dataset.labels.items():
        size = shows.sizes.get(dataset.carrier(name), shows.image_size)
        if info.kind == schema.MAP:
            labels[name] = resampling.crop_map(labels[name], box, look.mirrored, look.quarters, size)
        elif info.kind in (schema.BOXES, schema.TRACKS):
            rows = labels.pop(name)
            if not shows.stretched and rules.shows_rows(dataset, name, shows.sizes, shows.frames):
                rows = boxes.crop_rows(rows, box, dataset.shape(info.sensor)[1:], size)
                labels[name] = boxes.turn_rows(rows, look.mirrored, look.quarters, size)
    return labels


def hide(entries: dict, key, sizes: Mapping[str, int], unit: int, ratio: float) -> dict:
    """Adds to every sensor a `mask` [size / unit, size / unit] bool of its own; none where `unit` is 0."""
    if not unit:
        return entries
    keys = jax.random.split(key, len(entries))
    return {
        name: {**entry, "mask": random_mask(keys[i], sizes[name] // unit, ratio)}
        for i, (name, entry) in enumerate(entries.items())
    }


def random_mask(key, cells: int, ratio: float):
    """Hides `rules.hidden_cells` of an image, every set of them with the same probability: [cells, cells] bool."""
    noise = jax.random.uniform(key, (cells**2,))
    hidden = jnp.argsort(jnp.argsort(noise)) < rules.hidden_cells(cells, cells, ratio)
    return hidden.reshape(cells, cells)


def train_sample(config: DataConfig, chosen: rules.ViewRules, dataset: Dataset, sample: Mapping, looks, key) -> dict:
    """One sample of a training batch, as `input_pipeline.reader` describes it, without `index`.

    Args:
        config: what training reads.
        chosen: how views are drawn.
        dataset: whose sample it is.
        sample: of `storage`, one row of every array.
        looks: of `looks.draw`.
        key: of the masks.
    """
    shown, local = looks
    shows = Shows.of(chosen, dataset, chosen.sizes)
    entries = jax.vmap(lambda look: place(shows, sample, look))(shown)
    first = hide(_nth(entries, 0), key, chosen.sizes, config.mask_unit, config.mask_ratio)
    batch = {"sensors": first}
    if labels := place_labels(shows, sample, _nth(shown, 0)):
        batch["labels"] = labels
    if chosen.views:
        batch["views"] = {SECOND: _nth(entries, 1)}
    if local is not None:
        small = Shows.of(chosen, dataset, chosen.local_sizes)
        entries = jax.vmap(lambda look: place(small, sample, look))(local)
        batch["views"] |= {f"local{i}": _nth(entries, i) for i in range(chosen.views.local)}
    return batch


def _nth(tree, i: int):
    return jax.tree.map(lambda x: x[i], tree)
