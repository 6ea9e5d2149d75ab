"""What a fusion makes of single locations and of single frames: maps of components and prototypes, and similarities.

All but `collect` works on plain arrays. A "place" is one tile, a "frame" one image of one sensor on one date. The
geo-context's read-out is left out of fused features here: it says where a tile lies, not what is seen there, and
would make frames of one place alike whatever they show.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.contracts import FUSED, NO_TIME, valid_cells
from ringmoe_jax.evaluate import quicklook
from ringmoe_jax.models import Model, Params
from ringmoe_jax.models.geo_context import BANK, UNKNOWN
from ringmoe_jax.sensors import Sensor

NONE = -1  # no prototype: the location was not observed, or its region never visited
COMPONENTS = 3  # red, green, blue
PERIODS = (2, 3, 4, 5, 6, 7, 8)  # of grids that are looked for, in locations
ARRAYS = ("pixels", "valid", "time", "location")  # of a sensor's entry


# ---- Components and prototypes ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Components:
    """Principal components of N features.

    Attributes:
        mean: [D].
        directions: [3, D], orthonormal, of falling variance; rows of zeros where features have fewer.
        explained: [3], share of the variance along each.
    """

    mean: np.ndarray
    directions: np.ndarray
    explained: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[..., D] -> [..., 3] coordinates."""
        return (features - self.mean) @ self.directions.T


def principal(features: np.ndarray) -> Components:
    """The three directions of largest variance, by singular values.

    Signs are free; each is chosen so that the coordinate of largest magnitude is positive, which rotations of the
    features do not change (our choice).

    Args:
        features: [N, D], N >= 1.
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    _, values, rows = np.linalg.svd(features - mean, full_matrices=False)
    kept = min(COMPONENTS, len(values))
    directions, explained = np.zeros((COMPONENTS, features.shape[1])), np.zeros(COMPONENTS)
    directions[:kept] = rows[:kept]
    explained[:kept] = values[:kept] ** 2 / max(np.sum(values**2), np.finfo(np.float64).tiny)
    scores = (features - mean) @ directions.T
    extreme = np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], axis=0)[0]
    return Components(mean, directions * np.where(extreme < 0, -1, 1)[:, None], explained)


def colours(scores: Sequence[np.ndarray], seen: Sequence[np.ndarray]) -> list[quicklook.Image]:
    """Components as red, green and blue, one stretch each for all maps; what was not seen is white.

    Args:
        scores: maps [h, w, 3].
        seen: [h, w] bool of each.
    """
    shown = np.concatenate([s[m] for s, m in zip(scores, seen, strict=True)])
    low, high = np.percentile(shown, quicklook.STRETCH, axis=0)
    scale = np.maximum(high - low, np.finfo(np.float32).tiny)
    return [
        np.where(m[..., None], np.clip((s - low) / scale, 0, 1), quicklook.NOT_VALID)
        for s, m in zip(scores, seen, strict=True)
    ]


def lattice(maps: Sequence[np.ndarray], periods: Sequence[int] = PERIODS) -> tuple[float, int]:
    """How much of what varies within places follows a regular grid: a mark of patches, not of the ground.

    The share of variance between positions modulo a period, each map for itself, adjusted for the number of
    positions (adjusted R^2); about 0 for features without a grid.

    Args:
        maps: [h, w, D] each.
        periods: in locations, ascending.

    Returns:
        The largest share, and the first period that comes within 0.05 of it, for multiples of a period share its
        grid; (0, 0) where maps are too small or constant.
    """
    shares = {}
    total = sum(np.sum((x - x.mean(axis=(0, 1))) ** 2) for x in maps)
    number = sum(x.shape[0] * x.shape[1] for x in maps)
    for period in periods:
        left = number - period**2 * len(maps)  # degrees of freedom
        if min(min(x.shape[:2]) for x in maps) < 2 * period or total == 0:
            continue
        cells = [x[i::period, j::period] for x in maps for i in range(period) for j in range(period)]
        rest = sum(np.sum((x - x.mean(axis=(0, 1))) ** 2) for x in cells)
        shares[period] = float(1 - rest / total * (number - len(maps)) / left)
    most = max(shares.values(), default=0.0)
    if most <= 0:
        return 0.0, 0
    return most, next(period for period, share in shares.items() if share > most - 0.05)


def nearest_prototypes(features: jax.Array, region: jax.Array, bank: Mapping[str, jax.Array]) -> jax.Array:
    """The prototype that every location attends to most, of those of its region.

    Args:
        features: [B, h, w, D], fused, without what was read.
        region: [B] int32, `geo_context.UNKNOWN` where coordinates are missing.
        bank: "prototypes" [R, P, D] and "visits" [R].

    Returns:
        [B, h, w] int32, `NONE` where the region is unknown or was never visited.
    """
    row = jnp.maximum(region, 0)
    scores = jnp.einsum("bhwd,bpd->bhwp", features, bank["prototypes"][row])
    known = (region != UNKNOWN) & (bank["visits"][row] > 0)
    return jnp.where(known[:, None, None], jnp.argmax(scores, axis=-1), NONE).astype(jnp.int32)


def ranks(prototypes: Sequence[np.ndarray], regions: Sequence[int]) -> list[np.ndarray]:
    """Numbers prototypes by use: 0 is the one that most locations of its region chose, over all given maps.

    Args:
        prototypes: maps [h, w] of integers, `NONE` where there is none.
        regions: of each map; prototypes of different regions have nothing to do with each other.

    Returns:
        Maps [h, w] of ranks, `NONE` where there is no prototype.
    """
    order = {}
    for region in set(regions):
        used = np.concatenate([p[p != NONE] for p, r in zip(prototypes, regions, strict=True) if r == region])
        names, counts = np.unique(used, return_counts=True)
        order[region] = {NONE: NONE} | {int(n): i for i, n in enumerate(names[np.argsort(-counts, kind="stable")])}
    return [
        np.array([order[region][int(p)] for p in chosen.flat], int).reshape(chosen.shape)
        for chosen, region in zip(prototypes, regions, strict=True)
    ]


# ---- Similarity of frames -----------------------------------------------------------------------------


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosines of features minus their mean over all frames.

    Without the mean nearly everything is alike: features of one model share a large constant part.

    Args:
        vectors: [F, D].

    Returns:
        [F, F] in -1..1; rows of a frame that lies on the mean are 0.
    """
    centred = np.asarray(vectors, np.float64)
    scale = np.abs(centred).max(initial=0.0)
    centred = centred - centred.mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.where(length > 1e-7 * scale, centred / np.maximum(length, np.finfo(np.float64).tiny), 0.0)
    return np.clip(unit @ unit.T, -1, 1)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Mean similarity of pairs of frames.

    Attributes:
        sensors: of the two frames, or () for all pairs.
        within: over pairs of different frames of one place, NaN without any.
        between: over pairs of different places, NaN without any.
    """

    sensors: tuple[str, ...]
    within: float
    between: float


def agreement(similarity: np.ndarray, places: Sequence[int], sensors: Sequence[str]) -> list[Agreement]:
    """Whether frames of one place are more alike than frames of different places.

    Where places have one frame a sensor, no pair within a place is of one sensor, but many between places are: only
    the rows by sensors compare like with like.

    Args:
        similarity: [F, F].
        places: of each frame.
        sensors: of each frame.

    Returns:
        All pairs first, then those of each two sensors.
    """
    i, j = np.triu_indices(len(similarity), 1)
    values, same = similarity[i, j], np.asarray(places)[i] == np.asarray(places)[j]
    pairs = [tuple(sorted((sensors[a], sensors[b]))) for a, b in zip(i, j, strict=True)]

    def row(names: tuple[str, ...], chosen: np.ndarray) -> Agreement:
        within, between = (values[chosen & part] for part in (same, ~same))
        return Agreement(names, *(float(x.mean()) if x.size else float("nan") for x in (within, between)))

    of = {names: np.array([pair == names for pair in pairs]) for names in sorted(set(pairs))}
    return [row((), np.ones(len(values), bool))] + [row(*item) for item in of.items()]


# ---- From a model -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frame:
    """One observed image.

    Attributes:
        sensor: its name.
        date: ISO, "undated" where unknown.
        pixels: [H, W, C] in the sensor's unit.
        valid: [H, W] bool.
        vector: [D], mean fused feature over what it shows, of the model shown this frame alone.
    """

    sensor: str
    date: str
    pixels: np.ndarray
    valid: np.ndarray
    vector: np.ndarray

    @property
    def label(self) -> str:
        """For example "s2_12 2017-06-13"."""
        return f"{self.sensor} {self.date}"


@dataclasses.dataclass(frozen=True)
class Place:
    """One tile and what the model made of all of its frames.

    Attributes:
        index: position in the split.
        location: (latitude, longitude) in degrees, NaN where unknown.
        frames: observed ones, by sensor and date.
        fused: [h, w, D] float32, without what was read from the geo-context.
        seen: [h, w] bool, locations with a valid pixel of any frame.
        region: row of the geo-context's bank, `UNKNOWN` where there is none.
        prototypes: [h, w] int, `NONE` where not seen or never visited.
        offered: prototypes of a region; 0 for a model without geo-context.
    """

    index: int
    location: tuple[float, float]
    frames: tuple[Frame, ...]
    fused: np.ndarray
    seen: np.ndarray
    region: int
    prototypes: np.ndarray
    offered: int


def collect(model: Model, params: Params, batches: Iterable[Mapping], shown: Collection[int]) -> list[Place]:
    """Runs a model on some tiles, and on each of their frames alone: of all others no pixel is valid.

    Args:
        model: one without fused features gives nothing.
        params: of the model.
        batches: as `ringmoe_jax.contracts` describes them, of co-registered sensors and with "index".
        shown: positions of the tiles; those without any valid pixel are left out.

    Returns:
        In the order of the batches.
    """
    if FUSED not in model.streams:
        return []
    look, offered, places = looker(model), params[BANK]["prototypes"].shape[1] if BANK in params else 0, []
    for batch in batches:
        for row, index in enumerate(np.asarray(batch["index"]).tolist()):
            if index not in shown:
                continue
            entries = {
                name: {key: np.asarray(entry[key][row : row + 1]) for key in ARRAYS if key in entry}
                for name, entry in batch["sensors"].items()
            }
            if any(entry["valid"].any() for entry in entries.values()):
                places.append(_place(index, entries, jax.device_get(look(params, entries)), offered))
        if len(places) == len(shown):
            break
    return places


def looker(model: Model) -> Callable[[Params, Mapping], dict]:
    """The compiled pass over one place, `(params, entries with B = 1) -> seen`.

    `seen` holds "fused" [h, w, D] float32, "seen" [h, w], "region" [], "prototypes" [h, w], and "alone": {sensor:
    [T, D] float32}, the mean over what each frame shows when it is all that the model sees. Frames run one after
    the other, so that a long series needs the memory of one.
    """

    @jax.jit
    def look(params: Params, entries: Mapping) -> dict:
        width = params[BANK]["prototypes"].shape[-1] if BANK in params else None

        def run(entries: Mapping) -> tuple[dict, jax.Array, jax.Array]:
            outputs = model.apply(params, {"sensors": entries})
            fused = outputs[FUSED][..., :width].astype(jnp.float32)
            cells = [valid_cells(entry["valid"], fused.shape[1:3]).any(axis=1) for entry in entries.values()]
            return outputs, fused, functools.reduce(jnp.logical_or, cells)

        def alone(kept: Mapping) -> jax.Array:
            hidden = {n: e | {"valid": e["valid"] & kept[n][None, :, None, None]} for n, e in entries.items()}
            _, fused, seen = run(hidden)
            return jnp.sum(fused * seen[..., None], axis=(0, 1, 2)) / jnp.maximum(seen.sum(), 1)

        outputs, fused, seen = run(entries)
        region = outputs.get("regions", jnp.full((1,), UNKNOWN, jnp.int32))
        chosen = nearest_prototypes(fused, region, params[BANK]) if BANK in params else jnp.full(seen.shape, NONE)
        found = {"fused": fused[0], "seen": seen[0], "region": region[0]}
        found["prototypes"] = jnp.where(seen, chosen, NONE)[0]
        return found | {"alone": _by_frame(alone, {n: e["valid"].shape[1] for n, e in entries.items()})}

    return look


def _by_frame(alone: Callable[[Mapping], jax.Array], dates: Mapping[str, int]) -> dict[str, jax.Array]:
    """Calls `alone` with {sensor: [T] bool} that keep one frame each, and sorts the results by sensor."""
    which = np.eye(sum(dates.values()), dtype=bool)
    ends = np.cumsum(list(dates.values()))
    vectors = jax.lax.map(alone, dict(zip(dates, np.split(which, ends[:-1], axis=1), strict=True)))
    return dict(zip(dates, jnp.split(vectors, ends[:-1]), strict=True))


def _place(index: int, entries: Mapping, found: Mapping, offered: int) -> Place:
    frames = []
    for name, entry in entries.items():
        time = entry.get("time", np.full(entry["valid"].shape[:2], NO_TIME))[0]
        for t in np.argsort(time, kind="stable"):
            if entry["valid"][0, t].any():
                pixels, valid = entry["pixels"][0, t], entry["valid"][0, t]
                frames.append(Frame(name, iso(int(time[t])), pixels, valid, found["alone"][name][t]))
    known = [entry["location"][0] for entry in entries.values() if np.isfinite(entry.get("location", np.nan)).all()]
    location = tuple(map(float, known[0])) if known else (np.nan, np.nan)
    own = (found["fused"], found["seen"], int(found["region"]), found["prototypes"])
    return Place(index, location, tuple(frames), *own, offered)


def iso(days: int) -> str:
    """Days since 1970-01-01 as an ISO date."""
    return "undated" if days == NO_TIME else str(np.datetime64(days, "D"))


# ---- To show ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """What a picture shows of one place.

    Attributes:
        name: of the tile.
        images: {sensor: (image, its date)}, each of its own size; absent sensors were not observed.
        components: [h, w, 3] in 0..1.
        ranks: [h, w] of prototypes, see `ranks`; None for a model without geo-context.
        note: about prototypes.
    """

    name: str
    images: dict[str, tuple[quicklook.Image, str]]
    components: quicklook.Image
    ranks: np.ndarray | None
    note: str


def rows(places: Sequence[Place], sensors: Mapping[str, Sensor]) -> tuple[list[Row], np.ndarray]:
    """Paints places, with components that are fitted over all of them together.

    Returns:
        One row a place, and the shares of variance [3].
    """
    components = principal(np.concatenate([place.fused[place.seen] for place in places]))
    maps = colours([components(place.fused) for place in places], [place.seen for place in places])
    ranked = ranks([place.prototypes for place in places], [place.region for place in places])
    painted = [
        Row(_name(p), _images(p, sensors), image, of if p.offered else None, _note(p))
        for p, image, of in zip(places, maps, ranked, strict=True)
    ]
    return painted, components.explained


def _images(place: Place, sensors: Mapping[str, Sensor]) -> dict[str, tuple[quicklook.Image, str]]:
    """The fullest frame of every sensor."""
    images = {}
    for name in dict.fromkeys(frame.sensor for frame in place.frames):
        frame = max((f for f in place.frames if f.sensor == name), key=lambda f: f.valid.sum())
        values, _ = quicklook.view(sensors[name], frame.pixels)
        scale = quicklook.stretch(values, frame.valid, sensors[name])
        images[name] = (quicklook.paint(values, scale, frame.valid), frame.date)
    return images


def _name(place: Place) -> str:
    latitude, longitude = place.location
    if not np.isfinite(latitude):
        return f"tile {place.index}"
    north, east = "S" if latitude < 0 else "N", "W" if longitude < 0 else "E"
    return f"tile {place.index}\n{abs(latitude):.2f}° {north}, {abs(longitude):.2f}° {east}"


def _note(place: Place) -> str:
    if place.region == UNKNOWN:
        return "no coordinates"
    if (place.prototypes == NONE).all():
        return "region never visited"
    return f"region {place.region}: {used(place)} of {place.offered} used"


def used(place: Place) -> int:
    """Number of prototypes that some location of a place attends to most."""
    return len(np.unique(place.prototypes[place.prototypes != NONE]))
