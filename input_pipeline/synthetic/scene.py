"""Draws the truth: land cover, heights, objects that move, and what changes between the dates.

All sizes and frequencies are our choice; they make a toy that looks like a landscape and measure nothing.
A smooth random field floods the lowest part (a coast), another one grows forest; the rest is a Voronoi
pattern of fields. A town has a rotated grid of streets with rectangular buildings between them, and two
roads that cross the scene. Lorries drive on roads and ships on water, straight on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.spatial import cKDTree

from input_pipeline.synthetic import grid
from ringmoe_jax.errors import ConfigError

LAND = ("water", "sand", "soil", "crop", "grass", "forest", "building", "road")
WATER, SAND, SOIL, CROP, GRASS, FOREST, BUILDING, ROAD = range(8)
OBJECTS = ("vehicle", "ship")
VEHICLE, SHIP = range(2)
MATERIALS = LAND + OBJECTS  # what a pixel shows: land cover, or an object on top of it

SETTINGS = ("open country", "town", "coast", "coastal town")  # buildings or not, water or not
NOTABLE = 0.005  # share of a scene from which buildings and water count; few scenes are near it

FIELD = 60.0  # metres: mean distance of the fields' centres
BEACH = 7.0  # metres of sand along water
STREET, MAIN_ROAD = 6.0, 9.0  # metres of width; at least a pixel is drawn
_TRIES = 60  # places tried for an object before it is left out


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """One object that moves straight on; a rectangle.

    Attributes:
        number: of the object, unique in its scene.
        kind: index into `OBJECTS`.
        x: [T] metres east of the upper left corner, of its centre at every date.
        y: [T] metres south of it.
        heading: of its length, in radians from the x axis towards the y axis.
        length: metres.
        width: metres.
        speed: metres from a date to the next, along `heading`.
    """

    number: int
    kind: int
    x: np.ndarray
    y: np.ndarray
    heading: float
    length: float
    width: float
    speed: float


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A piece of ground at T dates: the truth that sensors are rendered from.

    Attributes:
        gsd: metres a pixel.
        classes: [T, H, W] int8 land cover, indices into `LAND`; objects are not in it. H = W.
        heights: [T, H, W] float32 metres of buildings and trees above flat ground; objects are not in it.
        bare: [T, H, W] float32, share 0 to 1 of bare soil in a pixel of crop or grass, of brick in a roof.
        tone: [T, H, W] float32, brightness beside the class's, about 1: fields, roofs and canopies differ.
        tracks: objects that move.
        time: [T] int32 days since 1970-01-01, invented.
        latitude: degrees, invented: nothing of the scene depends on it.
        longitude: degrees, invented.
        sun: elevation above the horizon and azimuth from north over east, in degrees; north is up.
    """

    gsd: float
    classes: np.ndarray
    heights: np.ndarray
    bare: np.ndarray
    tone: np.ndarray
    tracks: tuple[Track, ...]
    time: np.ndarray
    latitude: float = float("nan")
    longitude: float = float("nan")
    sun: tuple[float, float] = (45.0, 150.0)

    @property
    def size(self) -> int:
        """Rows and columns."""
        return self.classes.shape[1]

    @property
    def dates(self) -> int:
        """Number of dates, T."""
        return len(self.classes)

    @property
    def change(self) -> np.ndarray:
        """[H, W] bool, True where the land cover of the last date is not that of the first."""
        return self.classes[0] != self.classes[-1]

    @property
    def present(self) -> np.ndarray:
        """[8] bool: which classes cover at least one pixel at the first date."""
        return self._shares() > 0

    @property
    def dominant(self) -> int:
        """The class that covers most of the scene at the first date."""
        return int(self._shares().argmax())

    @property
    def setting(self) -> int:
        """What kind of scene it is at the first date, an index into `SETTINGS`."""
        shares = self._shares()
        return int(shares[BUILDING] >= NOTABLE) + 2 * int(shares[WATER] >= NOTABLE)

    def _shares(self) -> np.ndarray:
        return np.bincount(self.classes[0].ravel(), minlength=len(LAND)) / self.classes[0].size

    def masks(self, date: int) -> np.ndarray:
        """[tracks, H, W] bool: the pixels whose centre an object covers."""
        masks = np.zeros((len(self.tracks), self.size, self.size), bool)
        for mask, track in zip(masks, self.tracks, strict=True):
            window, inside = _footprint(track, date, self.size, self.gsd)
            mask[window] = inside
        return masks

    def material(self, date: int) -> np.ndarray:
        """[H, W] int8, what is seen from above: indices into `MATERIALS`."""
        material = self.classes[date].copy()
        for track in self.tracks:
            window, inside = _footprint(track, date, self.size, self.gsd)
            material[window][inside] = len(LAND) + track.kind
        return material

    def boxes(self, date: int, oriented: bool = False) -> np.ndarray:
        """[tracks, 6] float32, columns as `input_pipeline.schema.BOX`, in pixels of the scene.

        Args:
            date: which one, 0 to T - 1.
            oriented: the object's own rectangle, `angle` from -pi/2 to pi/2 (one end of it is like the other);
                else the smallest box of whole pixels around its mask, `angle` 0.
        """
        rows = np.zeros((len(self.tracks), 6), np.float32)
        for row, track, mask in zip(rows, self.tracks, self.masks(date), strict=True):
            if oriented:
                angle = (track.heading + np.pi / 2) % np.pi - np.pi / 2
                metres = np.array([track.x[date], track.y[date], track.length, track.width])
                row[:] = [track.kind, *(metres / self.gsd), angle]
            else:
                y, x = (np.nonzero(mask.any(axis))[0] for axis in (1, 0))
                ends = np.array([[x[0], y[0]], [x[-1] + 1, y[-1] + 1]])
                row[:] = [track.kind, *ends.mean(0), *(ends[1] - ends[0]), 0]
        return rows


def draw(
    seed: int | Sequence[int],
    *,
    size: int = 128,
    gsd: float = 2.5,
    dates: int = 1,
    changes: int = 4,
    vehicles: int = 8,
    ships: int = 4,
) -> Scene:
    """Draws a scene; the same arguments give the same scene.

    Args:
        seed: one or more integers >= 0.
        size: rows and columns, 16 or more.
        gsd: metres a pixel, > 0. Coarser than 5 m no vehicle is resolved, and none is drawn.
        dates: T, 1 or more; 30 days lie between two of them.
        changes: fields that change their class between the first and the last date; with them come new
            buildings and a clear-cut where there is forest. Nothing changes where it is 0.
        vehicles: objects on roads, fewer where they do not fit.
        ships: objects on water, fewer where they do not fit.

    Raises:
        ConfigError: a number is out of its range.
    """
    for name, value, least in (("size", size, 16), ("dates", dates, 1), ("gsd", gsd, 1e-3)):
        if not value >= least:
            raise ConfigError(f"{name} = {value}: wanted {least} or more")
    for name, value in (("changes", changes), ("vehicles", vehicles), ("ships", ships)):
        if value < 0:
            raise ConfigError(f"{name} = {value}: wanted 0 or more")
    rng = np.random.default_rng(seed)
    ground = _ground(rng, size, gsd)
    town = _town(rng, ground["water"], gsd)
    classes, heights, bare, tone = _dates(rng, ground, town, dates, changes, gsd)
    return Scene(
        gsd=float(gsd),
        classes=classes,
        heights=heights,
        bare=bare,
        tone=tone,
        tracks=_tracks(rng, classes, town, gsd, vehicles, ships),
        time=(18262 + rng.integers(0, 365) + 30 * np.arange(dates)).astype(np.int32),
        latitude=float(rng.uniform(-60, 60)),
        longitude=float(rng.uniform(-180, 180)),
        sun=(float(rng.uniform(35, 60)), float(rng.uniform(120, 240))),
    )


def smooth(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """[size, size] random field of mean 0 and standard deviation 1, correlated over `sigma` pixels."""
    field = gaussian_filter(rng.standard_normal((size, size)), sigma, mode="reflect")
    return (field - field.mean()) / field.std()


def _ground(rng: np.random.Generator, size: int, gsd: float) -> dict[str, np.ndarray]:
    """Water, sand and forest ([H, W] bool), the number of the field and the canopy's height ([H, W])."""
    level, growth = smooth(rng, size, size / 6), smooth(rng, size, size / 8) + 0.2 * smooth(rng, size, 8 / gsd)
    water = level < np.quantile(level, max(0, rng.uniform(-0.1, 0.5)))
    sand = binary_dilation(water, iterations=max(1, round(BEACH / gsd))) & ~water
    forest = growth > np.quantile(growth, rng.uniform(0.4, 0.97))
    x, y = grid.centres(size, gsd)
    angle = rng.uniform(0, np.pi)
    u, v = _turned(x, y, size * gsd / 2, size * gsd / 2, angle)
    v = 1.7 * v  # fields are longer than wide
    reach = 0.75 * size * gsd
    knots = np.stack(np.meshgrid(np.arange(-reach, reach, FIELD), np.arange(-1.7 * reach, 1.7 * reach, FIELD)), -1)
    knots = knots.reshape(-1, 2) + rng.uniform(-0.25, 0.25, (knots.size // 2, 2)) * FIELD
    number = cKDTree(knots).query(np.stack([u, v], -1))[1]
    canopy = np.clip(14 + 3 * smooth(rng, size, 12 / gsd) + 2 * smooth(rng, size, 3 / gsd), 4, 30)
    return {"water": water, "sand": sand, "forest": forest, "field": number, "canopy": canopy}


def _town(rng: np.random.Generator, water: np.ndarray, gsd: float) -> dict:
    """Where the town and its roads are, the frame of the streets, and rows of buildings.

    Buildings are rows of x, y, length, width (metres), height (metres); all point along `angle`.
    """
    size = len(water)
    x, y = grid.centres(size, gsd)
    land = np.argwhere(~water)
    row, column = land[rng.integers(len(land))] if len(land) else (0, 0)
    centre, angle = ((column + 0.5) * gsd, (row + 0.5) * gsd), rng.uniform(-np.pi / 4, np.pi / 4)
    u, v = _turned(x, y, *centre, angle)
    radius = rng.choice([0.15, 0.3, 0.45], p=[0.3, 0.5, 0.2]) * size * gsd
    town = (np.hypot(u, v) < radius * (1 + 0.2 * smooth(rng, size, 25 / gsd))) & ~water
    pitch = rng.uniform(44, 60), rng.uniform(34, 46)  # metres from street to street

    def near(values, width):
        return abs(values) <= max(width, 1.1 * gsd) / 2

    street = near(_wrapped(u, pitch[0]), STREET) | near(_wrapped(v, pitch[1]), STREET)
    road = ((street & town) | near(u, MAIN_ROAD) | near(v, MAIN_ROAD)) & ~water
    return {
        "town": town,
        "road": road,
        "centre": centre,
        "angle": angle,
        "pitch": pitch,
        "buildings": _buildings(rng, town & ~road, centre, angle, pitch, radius, gsd),
        "trees": town & (smooth(rng, size, 4 / gsd) > 1.2),
    }


def _buildings(rng, free, centre, angle, pitch, radius, gsd) -> np.ndarray:
    """[N, 5]: up to four buildings a block, each on pixels that are free."""
    found, reach = [], [int(1.3 * radius / p) + 1 for p in pitch]
    for i in range(-reach[0], reach[0]):
        for j in range(-reach[1], reach[1]):
            for a, b in ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)):
                u, v = (i + a) * pitch[0], (j + b) * pitch[1]
                length, width = rng.uniform(0.2, 0.36) * pitch[0], rng.uniform(0.18, 0.32) * pitch[1]
                x = centre[0] + np.cos(angle) * u - np.sin(angle) * v
                y = centre[1] + np.sin(angle) * u + np.cos(angle) * v
                tall = rng.uniform(4, 9) + 14 * rng.uniform() ** 2 * max(0, 1 - np.hypot(u, v) / (0.7 * radius))
                window, inside = grid.rectangle(x, y, angle, length, width, len(free), gsd)
                if rng.uniform() < 0.85 and inside.any() and free[window][inside].all():
                    found.append((x, y, length, width, tall))
    return np.array(found).reshape(-1, 5)


def _dates(rng: np.random.Generator, ground, town, dates: int, changes: int, gsd: float) -> tuple[np.ndarray, ...]:
    """Classes, heights, bare and tone of every date, [T, H, W] each."""
    size, fields = len(ground["field"]), ground["field"].max() + 1
    kind = np.tile(rng.choice([SOIL, CROP, GRASS], fields, p=[0.25, 0.5, 0.25]), (dates, 1))
    cut = np.zeros((dates, fields), bool)
    new = np.zeros(len(town["buildings"]), int)  # the date at which a building is first there
    open_land = ~(ground["water"] | ground["sand"] | town["town"] | town["road"])
    if dates > 1 and changes:
        seen = np.unique(ground["field"][open_land & ~ground["forest"]])
        for field in rng.permutation(seen)[:changes]:
            other = rng.choice([c for c in (SOIL, CROP, GRASS) if c != kind[0, field]])
            kind[rng.integers(1, dates) :, field] = other
        for field in rng.permutation(np.unique(ground["field"][open_land & ground["forest"]]))[: (changes + 2) // 3]:
            cut[rng.integers(1, dates) :, field] = True
        new = np.where(rng.uniform(size=len(new)) < 0.2, rng.integers(1, dates, len(new)), 0)
    field_bare, field_tone = rng.uniform(0, 0.5, fields), np.clip(rng.normal(1, 0.1, fields), 0.7, 1.3)
    roof_bare, roof_tone = rng.uniform(0, 1, len(new)), rng.uniform(0.6, 1.5, len(new))
    grain = 1 + 0.03 * smooth(rng, size, 0.5) + 0.03 * smooth(rng, size, 10 / gsd)
    found = []
    for t in range(dates):
        field = ground["field"]
        classes = kind[t][field].astype(np.int8)
        classes[ground["forest"]] = np.where(cut[t][field], SOIL, FOREST)[ground["forest"]]
        classes[town["town"]] = np.where(town["trees"], FOREST, GRASS)[town["town"]]
        classes[ground["sand"]], classes[ground["water"]] = SAND, WATER
        classes[town["road"]] = ROAD
        heights = np.where(classes == FOREST, ground["canopy"] * np.where(town["town"], 0.5, 1), 0)
        bare = np.where(np.isin(classes, (CROP, GRASS)), field_bare[field] * np.where(town["town"], 0.3, 1), 0)
        tone = np.where(np.isin(classes, (SOIL, CROP, GRASS)), field_tone[field], 1) * grain
        for i, (x, y, length, width, tall) in enumerate(town["buildings"]):
            if new[i] <= t:
                window, inside = grid.rectangle(x, y, town["angle"], length, width, size, gsd)
                for values, value in ((classes, BUILDING), (heights, tall), (bare, roof_bare[i]), (tone, roof_tone[i])):
                    values[window][inside] = value
        found.append((classes, *(values.astype(np.float32) for values in (heights, bare, tone))))
    return tuple(np.stack(values) for values in zip(*found, strict=True))


def _tracks(rng: np.random.Generator, classes, town, gsd: float, vehicles: int, ships: int) -> tuple[Track, ...]:
    """Objects that stay inside the scene and on their ground, and never share a pixel."""
    dates, size = len(classes), classes.shape[1]
    taken = np.zeros((dates, size, size), bool)
    tracks: list[Track] = []
    for kind, ground, count in ((VEHICLE, ROAD, vehicles), (SHIP, WATER, ships)):
        places = np.argwhere((classes == ground).all(0))
        for _ in range(count if len(places) else 0):
            for _ in range(_TRIES):
                row, column = places[rng.integers(len(places))]
                track = _object(rng, len(tracks), kind, (column + 0.5) * gsd, (row + 0.5) * gsd, dates, town)
                spots = [(t, *_footprint(track, t, size, gsd)) for t in range(dates)]
                reach = (track.length + track.width) / 2
                inside = all(reach < v < size * gsd - reach for v in (*track.x, *track.y))
                free = [((classes[t][w] == ground) & ~taken[t][w])[mask] for t, w, mask in spots]
                if inside and all(len(f) >= 2 and f.all() for f in free):
                    for t, window, mask in spots:
                        taken[t][window] |= mask
                    tracks.append(track)
                    break
    return tuple(tracks)


def _object(rng, number: int, kind: int, x: float, y: float, dates: int, town) -> Track:
    """A vehicle on the lane nearest to x, y, or a ship there."""
    if kind == SHIP:
        heading, speed, length = rng.uniform(-np.pi, np.pi), rng.uniform(8, 25), rng.uniform(18, 45)
        width = length / 5
    else:
        quarter = rng.integers(4)  # which way along the streets
        heading, speed = town["angle"] + quarter * np.pi / 2, rng.uniform(8, 25)
        length, width = rng.uniform(9, 16), rng.uniform(2.6, 3.2)
        (u, v), (a, b) = _turned(x, y, *town["centre"], town["angle"]), town["pitch"]
        u, v = (u, v - _wrapped(v, b)) if quarter % 2 == 0 else (u - _wrapped(u, a), v)
        c, s = np.cos(town["angle"]), np.sin(town["angle"])
        x, y = town["centre"][0] + c * u - s * v, town["centre"][1] + s * u + c * v
    steps = speed * np.arange(dates)
    return Track(number, kind, x + steps * np.cos(heading), y + steps * np.sin(heading), heading, length, width, speed)


def _footprint(track: Track, date: int, size: int, gsd: float):
    return grid.rectangle(track.x[date], track.y[date], track.heading, track.length, track.width, size, gsd)


def _turned(x, y, x0: float, y0: float, angle: float):
    """Coordinates along and across a direction, from a point."""
    c, s = np.cos(angle), np.sin(angle)
    return c * (x - x0) + s * (y - y0), c * (y - y0) - s * (x - x0)


def _wrapped(values, pitch: float):
    """Signed distance to the nearest multiple of `pitch`."""
    return (values + pitch / 2) % pitch - pitch / 2
