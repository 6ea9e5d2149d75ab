"""Regions from coordinates against independent formulas, and the read-out of their prototypes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models import geo_context, skysense
from ringmoe_jax.models.api import from_module
from ringmoe_jax.models.geo_context import UNKNOWN, GeoContext, GeoContextConfig

CITIES = {
    "Berlin": (52.52, 13.405),
    "Tokyo": (35.6590699, 139.7006793),
    "New York": (40.7128, -74.006),
    "Sydney": (-33.8688, 151.2093),
    "Ushuaia": (-54.8019, -68.303),
    "Quito": (-0.1807, -78.4678),
    "Longyearbyen": (78.2232, 15.6267),
}
EARTH = 111.195 * 180 / math.pi  # km, radius
cells = jax.jit(geo_context.cells, static_argnums=1)
regions = jax.jit(geo_context.regions, static_argnums=1)


def places(*pairs):
    return np.array(pairs, np.float32).reshape(-1, 2)


def tile(latitude, longitude, zoom):
    """Row and column of a Web-Mercator tile (OpenStreetMap, "Slippy map tilenames")."""
    n, angle = 2**zoom, math.radians(latitude)
    row = (1 - math.log(math.tan(angle) + 1 / math.cos(angle)) / math.pi) / 2 * n
    return math.floor(row), math.floor((longitude + 180) / 360 * n)


@pytest.mark.parametrize("zoom", [0, 5, 9, 12])
def test_mercator_cells_are_web_tiles(zoom):
    row, column = cells(places(*CITIES.values()), GeoContextConfig(zoom=zoom))
    assert_array_equal(np.stack([row, column], axis=-1), [tile(*place, zoom) for place in CITIES.values()])


def test_a_known_tile():
    row, column = cells(places(CITIES["Tokyo"]), GeoContextConfig(zoom=15))
    assert (int(column[0]), int(row[0])) == (232798 >> 3, 103246 >> 3)  # 18/232798/103246


@settings(deadline=None, max_examples=100)
@given(latitude=st.floats(-85, 85, width=32), longitude=st.floats(-180, 180, width=32, exclude_max=True))
def test_any_place_lies_in_its_web_tile(latitude, longitude):
    (row,), (column,) = cells(places((latitude, longitude)), GeoContextConfig())
    near = [tile(latitude + d, longitude + e, 9) for d in (-1e-4, 0, 1e-4) for e in (-1e-4, 0, 1e-4)]
    assert (int(row), int(column) % 512) in [(r, c % 512) for r, c in near]  # float32 at an edge


def test_poles_and_the_date_line():
    at = places((90, 0), (86, 0), (-90, 0), (-86, 0), (0, 180), (0, -180), (0, 179.9), (0, 0), (1e-3, -1e-3))
    row, column = cells(at, GeoContextConfig(zoom=9))
    assert_array_equal(row, [0, 0, 511, 511, 256, 256, 256, 256, 255])
    assert_array_equal(column, [256, 256, 256, 256, 511, 0, 511, 256, 255])
    row, column = cells(at, GeoContextConfig(grid="equal_area"))
    assert_array_equal(row[:4], [0, 6, 305, 298])
    assert int(column[4]) == int(column[6]) == round(2 * math.pi * EARTH / 65.5) - 1
    assert int(column[5]) == 0


def bounds(edges):
    """Where a function of a fine axis changes: [n] cells' lower edges."""
    return np.flatnonzero(np.diff(edges)) + 1


def test_equal_area_cells_have_equal_areas():
    """Edges are measured: rows along a meridian, and a row's columns, counted along its parallel."""
    config = GeoContextConfig(grid="equal_area")
    latitude = np.linspace(90, -90, 200_001)
    row = np.asarray(cells(places(*zip(latitude, np.zeros_like(latitude), strict=True)), config)[0])
    assert_array_equal(np.unique(row), np.arange(306))
    edges = np.concatenate([[90], latitude[bounds(row)], [-90]])
    middles = (edges[1:] + edges[:-1]) / 2
    last = np.asarray(cells(places(*zip(middles, np.full(306, 180.0), strict=True)), config)[1])
    bands = 2 * math.pi * EARTH**2 * -np.diff(np.sin(np.deg2rad(edges)))
    areas = (bands / (last + 1))[np.abs(middles) < 85]
    assert_allclose(areas, 65.5**2, rtol=0.03)
    assert_allclose(areas.mean(), 4294, rtol=2e-3)  # the paper's region
    assert_allclose((bands.sum(), (last + 1).sum()), (4 * math.pi * EARTH**2, 4 * math.pi * EARTH**2 / 4294), rtol=2e-3)
    longitude = np.linspace(-180, 180, 100_001)[:-1]
    column = np.asarray(cells(places(*zip(np.full_like(longitude, 50.0), longitude, strict=True)), config)[1])
    widths = np.diff(bounds(column)) * 360 / 100_000 * 111.195 * math.cos(math.radians(50))
    assert_allclose(widths, 65.5, rtol=0.01)


def test_a_tile_of_zoom_9_is_the_papers_region_at_33_degrees():
    side = 2 * math.pi * EARTH / 512 * math.cos(math.radians(33))
    assert_allclose(side**2, 4294, rtol=0.01)


def test_unknown_places():
    at = places((np.nan, 0), (0, np.nan), (90.1, 0), (0, -180.1), (np.inf, 0), (0, -np.inf), (0, 0), (-90, 180))
    found = np.asarray(regions(at, GeoContextConfig()))
    assert_array_equal(found == UNKNOWN, [True] * 6 + [False] * 2)
    assert UNKNOWN < 0 <= found[-2:].min()


@pytest.mark.parametrize("grid", ["mercator", "equal_area"])
@pytest.mark.parametrize("area", [(-60, 70, -180, 180), (47, 55, 6, 15)])  # the land's latitudes; Germany
def test_regions_spread_evenly(grid, area):
    """Places of one cell share a region; cells fall into 64 regions as drawn at random, near ones too."""
    config, rng = GeoContextConfig(regions=64, grid=grid), np.random.default_rng(0)
    at = places(*zip(rng.uniform(*area[:2], 20_000), rng.uniform(*area[2:], 20_000), strict=True))
    cell, region = np.stack(cells(at, config), axis=-1), np.asarray(regions(at, config))
    assert region.min() >= 0
    assert region.max() < 64
    unique, first, inverse = np.unique(cell, axis=0, return_index=True, return_inverse=True)
    assert_array_equal(region, region[first][inverse.ravel()])
    used = np.bincount(region[first], minlength=64)
    expected = len(unique) / 64
    chi_square = ((used - expected) ** 2 / expected).sum()
    assert 30 < chi_square < 110  # 63 degrees of freedom: 99.9 % lie there


def test_the_share_of_tiles_that_collide_is_the_documented_one():
    rng, config, shares = np.random.default_rng(0), GeoContextConfig(), []
    for _ in range(20):
        at = places(*zip(rng.uniform(-60, 70, 400), rng.uniform(-180, 180, 400), strict=True))
        first = np.unique(np.stack(cells(at, config), axis=-1), axis=0, return_index=True)[1]
        region = np.asarray(regions(at, config))[first]
        shares.append((np.bincount(region)[region] > 1).mean() / (len(first) / config.regions))
    assert_allclose(np.mean(shares), 1.0, atol=0.1)


@pytest.mark.parametrize("grid", ["mercator", "equal_area"])
def test_compiled_equals_eager(grid):
    rng, config = np.random.default_rng(0), GeoContextConfig(grid=grid)
    at = places(*zip(rng.uniform(-95, 95, 500), rng.uniform(-190, 190, 500), strict=True))
    assert (regions(at, config) != geo_context.regions(jnp.asarray(at), config)).sum() <= 1  # edges


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": "mercater"}, 'geo_context.grid = "mercater" does not exist: did you mean "mercator"'),
        ({"regions": 0}, "regions = 0"),
        ({"prototypes": 1}, "prototypes = 1"),
        ({"zoom": 16}, "zoom = 16"),
        ({"side_km": 0.0}, "side_km = 0.0"),
        ({"side_km": float("nan")}, "side_km = nan"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        GeoContextConfig(**change)


REGIONS, COUNT, WIDTH = 32, 6, 4


@pytest.fixture(scope="module")
def module():
    """The module as functions, its parameters stirred, and features of three places, one of them unknown."""
    from flax import nnx

    config = GeoContextConfig(regions=REGIONS, prototypes=COUNT)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: GeoContext(config, WIDTH, nnx.Rngs(0))))

    @jax.jit
    def read(params, features, location):
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(features, location)

    rng = np.random.default_rng(0)
    at = places(CITIES["Berlin"], (np.nan, np.nan), CITIES["Quito"])
    found = np.asarray(regions(at, config))
    prototypes, visits = rng.normal(size=(REGIONS, COUNT, WIDTH)), np.zeros(REGIONS)
    visits[found[0]] = 1
    params = {"prototypes": prototypes.astype(np.float32), "visits": visits.astype(np.float32)}
    return read, params, rng.normal(size=(3, 2, 5, WIDTH)).astype(np.float32), at, found


def test_the_read_out_is_attention_without_projections(module):
    read, params, features, at, found = module
    everywhere = params | {"visits": np.ones(REGIONS, np.float32)}
    got, region = read(everywhere, features, at)
    assert_array_equal(region, found)
    for b in (0, 2):
        own = params["prototypes"][found[b]].astype(np.float64)
        scores = features[b].astype(np.float64) @ own.T / math.sqrt(WIDTH)
        shares = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
        assert_allclose(got[b], shares @ own, rtol=1e-4, atol=1e-5)


def test_unknown_places_and_regions_that_nobody_visited_read_zeros(module):
    read, params, features, at, _ = module
    got = np.asarray(read(params, features, at)[0])
    assert_array_equal(np.abs(got).max(axis=(1, 2, 3)) > 0, [True, False, False])
    spoiled = params | {"prototypes": np.full_like(params["prototypes"], np.inf)}
    assert_array_equal(np.asarray(read(spoiled, features, at)[0])[1:], 0)


def test_gradients_reach_features_and_no_prototypes(module):
    read, params, features, at, _ = module
    bank, own = jax.jit(jax.grad(lambda p, f: (read(p, f, at)[0] ** 2).sum(), (0, 1)))(params, features)
    assert_array_equal(np.abs(np.asarray(own)).max(axis=(1, 2, 3)) > 0, [True, False, False])
    jax.tree.map(lambda g: assert_array_equal(g, 0), bank)


@pytest.mark.parametrize(("count", "width"), [(3, 8), (20, 8)])
def test_new_prototypes_are_the_same_directions_everywhere(count, width):
    config = GeoContextConfig(regions=5, prototypes=count)
    new = from_module(functools.partial(GeoContext, config, width)).init(jax.random.key(0))
    bank = np.asarray(new["prototypes"])
    assert bank.shape == (5, count, width)
    assert not np.asarray(new["visits"]).any()
    assert_array_equal(bank, np.broadcast_to(bank[:1], bank.shape))
    gram = bank[0] @ bank[0].T
    assert_allclose(np.diag(gram), 1.0, rtol=1e-5)
    assert_allclose(gram[: min(count, width), : min(count, width)], np.eye(min(count, width)), atol=1e-5)


def test_shapes_of_the_released_size():
    model = skysense.SkySenseConfig(geo_context=GeoContextConfig(), remat="full").build()
    sides = {"rgb": (1, 512, 3), "s2_10": (20, 16, 10), "s1_grd": (10, 16, 2)}
    entries = {
        name: {
            "pixels": jax.ShapeDtypeStruct((2, t, n, n, c), jnp.float32),
            "valid": jax.ShapeDtypeStruct((2, t, n, n), jnp.bool_),
            "time": jax.ShapeDtypeStruct((2, t), jnp.int32),
            "location": jax.ShapeDtypeStruct((2, 2), jnp.float32),
        }
        for name, (t, n, c) in sides.items()
    }
    out = jax.eval_shape(model.apply, model.shapes(), {"sensors": entries})
    assert out["fused"].shape == (2, 16, 16, 2048)
    assert out["pooled"]["fused"].shape == (2, 2048)
    assert {n: x.shape for n, x in out["context"].items()} == dict.fromkeys(sides, (2, 16, 16, 1024))
    assert out["regions"].shape == (2,)
    assert model.shapes()["geo_context"]["prototypes"].shape == (4096, 100, 1024)
    assert model.streams == {"rgb": 2816, "s2_10": 2816, "s1_grd": 2816, "fused": 2048}
