"""The batch and outputs contract: what flows between pipeline, models and objectives.

A batch is a nested dict of arrays (a JAX pytree):

    batch["sensors"][name] = {
        "pixels":   [B, T, H, W, C] float32, in the sensor's physical unit, 0 where not valid
        "valid":    [B, T, H, W] bool, True where every band was observed
        "time":     [B, T] int32, days since 1970-01-01, NO_TIME where unknown
        "location": [B, 2] float32, latitude and longitude in degrees (WGS 84), NaN where unknown
        "bands":    [B, T, C] bool, optional: False for a band that was not observed in an image, or is to be hidden;
                    only for models that can be told so; "valid" is then of the other bands
        "gsd":      [B] float32, optional: metres between the pixels as they are shown, NaN where unknown
        "power":    [B, T, 2] float32, optional: smallest and largest total power, the sum of the squared channels, of
                    the valid pixels of the stored tile that this image is cut from, before any disturbance; 0 where
                    none is valid; only of complex sensors
        "mask":     [B, h, w] bool, optional: cells hidden from the encoder (True = hidden)
        "ground":   [B, 2, 3] float32, optional: A x + b from (row, column) of this image, 0..1 between its outer
                    edges, to (row, column) of the stored tile, likewise
    }
    batch["views"][view][name] = the same entries of further views, optional: "second" shows all sensors, "local0",
                    "local1", ... small crops of one; batch["sensors"] is then the first view
    batch["labels"][name] = [B, ...], optional: [B] int32 of `CLASSES`, [B, C] float32 of `MULTILABEL` and `VALUE`,
                    [B, H, W] int32 of `MAP`, [B, n, 6] float32 of `BOXES`, [B, n, 8] of `TRACKS`
    batch["index"] = [B] int64, optional: position of the sample in its data set, -1 where a batch is filled up
    batch["real"] = [B] bool, optional: False for rows that fill up the last batch of an evaluation, index -1

A sensor that a data set does not hold is an absent key; a sensor that one sample lacks is
zero pixels with `valid` False everywhere. Sensors may have different B where their streams
are independent (RingMoE's pre-training); rows of co-registered sensors show the same place.

Outputs of a model are a dict as well:

    outputs["tokens"][name]          [B, T, h, w, D] features of the last stage
    outputs["stages"][name]          tuple of [B, T, h_i, w_i, D_i], finest first
    outputs["pooled"][name]          [B, D] mean of the tokens
    outputs["heads"][name][head]     [B, T, H, W, channels] decoder outputs
    outputs["standardised"][name]    [B, T, H, W, C] what the encoder was shown, before masking
    outputs["pixel_mask"][name]      [B, T, H, W] bool, hidden and valid: where objectives look; images of which a band
                                     was not observed are nowhere looked at
    outputs["withheld"][name]        [B, T, H, W, C] bool, optional: channels hidden of visible pixels
    outputs["sensors"][name]         `Sensor` with the bands that the model reads; static under `jit`
    outputs["statistics"][name]      `Statistics` of its normalisation; static under `jit`
    outputs["fused"]                 [B, h, w, D] optional: all sensors and dates of a location in one
    outputs["regions"]               [B] int32, optional: region of the geo-context, see `models.geo_context`
    outputs["context"][name]         [B, h, w, D] optional: what a sensor's own tokens read from the geo-context
    outputs["routing"][group]        optional, of models with experts: see `ringmoe_jax.moe.statistics`

A pretext task may add to them:

    outputs["contrast"], ["projected"]  pairs of features of two views, see `ringmoe_jax.pretext.contrastive`
    outputs["embeddings"][stream], ["draw"]  of all views, and a key: see `ringmoe_jax.pretext.joint_embedding`
    outputs["latent"][sensor]        features of hidden cells, foreseen and as a teacher sees them: `pretext.latent`
    outputs["teacher_temperature"]   [] float32, of the teacher's targets; with "contrast"
    outputs["teacher"]               the outputs of a larger model on the same batch, see `pretext.distilled`
    outputs["predictions"][name]     what a head says, [B, ...], see `ringmoe_jax.models.heads`

Entries without "optional" are those of every model; `check_outputs` looks once, when a run is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.sensors import Sensor, Statistics

# Both are frozen and hashable: inside pytrees they hold no arrays, so outputs may carry them through `jit`.
jax.tree_util.register_static(Sensor)
jax.tree_util.register_static(Statistics)

NO_TIME = np.iinfo(np.int32).min
FUSED = "fused"  # what a model makes of all sensors and dates: in outputs, in their "pooled", in `Model.streams`
PIXELS = "pixels"  # decoder output: the standardised bands of the sensor
SECOND = "second"  # the other view of every sample in batch["views"]

UNLABELLED = -1  # class index of "nobody knows"
CLASSES = "classes"  # one class index
MULTILABEL = "multilabel"  # one 0/1 a class
VALUE = "value"  # float vector
MAP = "map"  # one class index a pixel, on the grid of the sensor it names
BOXES = "boxes"  # one row an object, in pixels of the sensor it names; see `BOX`
TRACKS = "tracks"  # one row an object and date; see `TRACK`

# Columns. `x` counts columns from the left edge and `y` rows from the upper edge of the image, both to the box's
# centre; `width` is the extent along `angle`, `height` the one across it, all in pixels. `angle` is in radians from
# the x axis towards the y axis (clockwise as displayed), 0 for a horizontal box. A row whose class is UNLABELLED is
# not used. `track` and `date` are whole numbers: who it is, and which of the T dates.
BOX = ("class", "x", "y", "width", "height", "angle")
TRACK = (*BOX, "track", "date")
BOX_UNITS = "x, y, width, height in pixels and angle in radians, see ringmoe_jax.contracts.BOX"


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What an output means to whoever reads it elsewhere.

    Attributes:
        axes: names of its axes behind the batch, as mlm's `dim_order` wants them: lower case.
        description: one sentence; unit and range.
        classes: names of the classes that it tells apart, in the order of their indices.
        of_classes: whether it tells the target's classes apart, along an axis "class" or by their index.
    """

    axes: tuple[str, ...]
    description: str
    classes: tuple[str, ...] = ()
    of_classes: bool = False


def validate(batch: Mapping, sensors: Mapping[str, Sensor], *, told: bool = False) -> None:
    """Checks keys, ranks, dtypes and channel counts against the sensor table.

    Works on arrays and on `jax.ShapeDtypeStruct`, so it costs nothing inside `jit`.

    Args:
        batch: see the module's text.
        sensors: sensors that the model knows; the batch may hold any non-empty subset.
        told: whether the model can be told which bands are missing.

    Raises:
        DataError: names the sensor, what was got and what was wanted.
    """
    present = batch.get("sensors", {})
    if not present:
        raise DataError(f"the batch holds no sensor, wanted at least one of {', '.join(sensors)}")
    for name, entry in present.items():
        if name not in sensors:
            raise DataError(f'the batch holds "{name}", which the model does not know: {nearest(name, sensors)}')
        sensor = sensors[name]
        if "pixels" not in entry or "valid" not in entry:
            raise DataError(f'sensor "{name}" needs the arrays "pixels" and "valid", got {sorted(entry)}')
        pixels, valid = entry["pixels"], entry["valid"]
        if pixels.ndim != 5 or pixels.shape[-1] != sensor.channels:
            raise DataError(
                f'sensor "{name}": pixels have shape {tuple(pixels.shape)}, wanted [B, T, H, W, {sensor.channels}] '
                f"for the bands {', '.join(sensor.band_names)}"
            )
        if pixels.dtype != jnp.float32:
            raise DataError(f'sensor "{name}": pixels are {pixels.dtype}, wanted float32 in {sensor.unit}')
        if tuple(valid.shape) != tuple(pixels.shape[:-1]) or valid.dtype != jnp.bool_:
            raise DataError(
                f'sensor "{name}": valid is {valid.dtype}{tuple(valid.shape)}, wanted bool{tuple(pixels.shape[:-1])}'
            )
        if "bands" in entry:
            _check_bands(name, entry, told)


def _check_bands(name: str, entry: Mapping, told: bool) -> None:
    bands, (b, t, *_, c) = entry["bands"], entry["pixels"].shape
    if not told:
        raise DataError(
            f'the batch says which bands of "{name}" are missing, which this model cannot be told: train one with '
            'model.stem = "physics", or show all bands'
        )
    if tuple(bands.shape) != (b, t, c) or bands.dtype != jnp.bool_:
        raise DataError(f'sensor "{name}": bands is {bands.dtype}{tuple(bands.shape)}, wanted bool{(b, t, c)}')


def check_outputs(model: Any, pretext: Any, objectives: Mapping[str, Any], batch: Mapping) -> dict[str, Any]:
    """Checks that model and pretext task give what objectives read. Traces them once; compiles nothing.

    Args:
        model: `ringmoe_jax.models.Model`.
        pretext: `ringmoe_jax.pretext.Pretext` on it.
        objectives: terms of the loss by label.
        batch: arrays or shapes, as training will show them: every sensor that an objective is about, and labels where
            objectives read them.

    Returns:
        The outputs as shapes.

    Raises:
        ConfigError: the model lacks an output of every model, or features of the width that it states; or an objective
            reads what neither outputs nor batch hold.
        DataError: the batch is not what the pretext task wants.
    """

    def passes(key, shown):
        params, state = pretext.init(model.init(key), key)
        return pretext.apply(params, state, shown, key=key, train=True)[0]

    outputs = jax.eval_shape(passes, jax.random.key(0), dict(batch))
    if missing := [name for name in OF_EVERY_MODEL if name not in outputs]:
        raise ConfigError(f'the model gives no outputs["{missing[0]}"]: see ringmoe_jax.contracts for what models give')
    for name, tokens in outputs["tokens"].items():
        if model.streams.get(name) != tokens.shape[-1]:
            raise ConfigError(
                f'outputs["tokens"]["{name}"] are {tokens.shape[-1]} wide, but Model.streams says '
                f"{model.streams.get(name)}: state the width of every kind of features"
            )
    for label, objective in objectives.items():
        _check_objective(label, objective, outputs, batch)
    return outputs


OF_EVERY_MODEL = ("tokens", "stages", "pooled", "heads", "standardised", "pixel_mask", "sensors", "statistics")


def _check_objective(label: str, objective: Any, outputs: Mapping, batch: Mapping) -> None:
    for sensor, heads in objective.heads(outputs["sensors"]).items():
        for head, channels in heads.items():
            given = outputs["heads"].get(sensor, {}).get(head)
            if given is None or given.shape[-1] != channels:
                got = "none" if given is None else given.shape[-1]
                raise ConfigError(
                    f'objective {label} wants {channels} channels of outputs["heads"]["{sensor}"]["{head}"], the model '
                    f"gives {got}: make a decoder for every one of the `heads` that `build` is given"
                )
    try:
        jax.eval_shape(objective, outputs, dict(batch))
    except KeyError as error:
        known = nearest(str(error.args[0]), {*outputs, *batch})
        raise ConfigError(
            f"objective {label} ({type(objective).__name__}) reads {error}, which this model and pretext task do not "
            f"give: {known}"
        ) from error


def standardise(pixels, valid, statistics: Statistics):
    """Zero mean and unit variance per band; invalid pixels become 0 (the mean).

    Args:
        pixels: [..., C] float32, in the sensor's unit.
        valid: [...] bool.
        statistics: C means and standard deviations, in the sensor's unit.

    Returns:
        [..., C] float32, without unit.
    """
    mean = jnp.asarray(statistics.mean, jnp.float32)
    std = jnp.asarray(statistics.std, jnp.float32)
    # `where` on both sides of the arithmetic keeps a NaN in an invalid pixel out of values and gradients.
    clean = jnp.where(valid[..., None], pixels, mean)
    return (clean - mean) / std


def restore(standardised, statistics: Statistics):
    """Inverse of `standardise`: [..., C] without unit to [..., C] in the sensor's unit."""
    return standardised * jnp.asarray(statistics.std, jnp.float32) + jnp.asarray(statistics.mean, jnp.float32)


def day_of_year(days):
    """Days since 1970-01-01, any integers, to days since 1 January of their year, 0..365 (Gregorian calendar)."""
    since_march, leap = _since_march(days)
    return jnp.where(since_march >= 306, since_march - 306, since_march + 59 + leap)


def month(days):
    """Days since 1970-01-01, any integers, to the month, 0 (January) to 11."""
    since_march, _ = _since_march(days)
    return ((5 * since_march + 2) // 153 + 2) % 12


def _since_march(days):
    """Days since the last 1 March, and whether the year that it lies in is a leap year.

    Counts in the era of 400 years, so that leap days come last (Hinnant, days_from_civil).
    """
    days = days + 719_468  # days since 0000-03-01
    day = days % 146_097
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    since_march = day - (365 * year + year // 4 - year // 100)
    return since_march, (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))


def cells_to_pixels(mask, height: int, width: int):
    """Enlarges a cell mask [..., h, w] to pixels [..., H, W]; H and W are multiples of h and w."""
    mask = jnp.repeat(mask, height // mask.shape[-2], axis=-2)
    return jnp.repeat(mask, width // mask.shape[-1], axis=-1)


def pixel_mask(entry: Mapping):
    """Where objectives look in a sensor's images: hidden and valid; every valid pixel where nothing is hidden.

    Args:
        entry: of `batch["sensors"]`.

    Returns:
        [B, T, H, W] bool, for `outputs["pixel_mask"]`.
    """
    valid = entry["valid"]
    if "bands" in entry:
        valid = valid & entry["bands"].all(axis=-1)[:, :, None, None]
    if "mask" not in entry:
        return valid
    return valid & cells_to_pixels(entry["mask"], *valid.shape[2:])[:, None]


def unmasked(entries: Mapping) -> dict[str, dict]:
    """`batch["sensors"]` with nothing hidden from the encoder."""
    return {name: {key: x for key, x in entry.items() if key != "mask"} for name, entry in entries.items()}


def valid_cells(valid, grid: tuple[int, int]):
    """Which cells hold a valid pixel: [B, T, H, W] bool to [B, T, h, w]; h, w of `grid` divide H, W."""
    h, w = grid
    b, t, height, width = valid.shape
    return valid.reshape(b, t, h, height // h, w, width // w).any(axis=(3, 5))


def mean_of_cells(features, seen, axis: tuple[int, ...] = (1, 2, 3)):
    """Mean features over the cells that are seen, float32; 0 where none is.

    Args:
        features: [B, T, h, w, D].
        seen: [B, T, h, w] bool, see `valid_cells`.
        axis: of `seen`, what the mean is over: dates and cells give [B, D], (2, 3) gives [B, T, D].
    """
    total = jnp.sum(jnp.where(seen[..., None], features.astype(jnp.float32), 0), axis=axis)
    return total / jnp.maximum(jnp.sum(seen, axis=axis), 1)[..., None]


def moments_of_cells(features, valid):
    """Mean and standard deviation over the valid cells of all dates, [B, D] float32 each; 0 where none is valid.

    Args:
        features: [B, T, h, w, D].
        valid: [B, T, H, W] bool, of pixels; a cell is valid where any of its pixels is.
    """
    seen = valid_cells(valid, features.shape[2:4])
    mean = mean_of_cells(features, seen)
    variance = mean_of_cells(jnp.square(features.astype(jnp.float32) - mean[:, None, None, None]), seen)
    return mean, jnp.sqrt(variance)
