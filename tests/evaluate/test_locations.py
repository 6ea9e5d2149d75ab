"""Maps and similarities of fused features: plain arrays first, then a tiny SkySense with series and a large image."""

import datetime

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from experiments.reports import curves, figures
from ringmoe_jax import sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.evaluate import locations, quicklook
from ringmoe_jax.evaluate.locations import NONE
from ringmoe_jax.models import ringmoe, skysense
from ringmoe_jax.models.geo_context import UNKNOWN, GeoContextConfig
from ringmoe_jax.models.transformer import TransformerConfig
from ringmoe_jax.run.evaluation import Lattice, LocationRow
from tests.helpers.parameters import stirred

SMALL = TransformerConfig(width=16, depth=1, heads=2, drop_path=0.0)
CONFIG = skysense.SkySenseConfig(
    sensors=("rgb", "s2_10", "s1_grd"),
    image_size=32,
    width=8,
    depths=(1, 1),
    window=2,
    head_width=4,
    drop_path=0.0,
    frame=SMALL,
    frame_patch=2,
    frame_size=4,
    fusion=SMALL,
    geo_context=GeoContextConfig(regions=8, prototypes=3),
)
GRID = 4  # locations a side: 8 x 8 pixels of rgb, one of a series
DAY = (datetime.date(2021, 6, 1) - datetime.date(1970, 1, 1)).days


# ---- Plain arrays -------------------------------------------------------------------------------------


def correlated(seed=0, count=200, width=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 5


def test_components_are_eigenvectors_of_the_covariance_in_order():
    x = correlated()
    found = locations.principal(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    largest = np.argsort(-values)[:3]
    overlap = np.abs(np.sum(found.directions * vectors[:, largest].T, axis=1))
    assert_allclose(overlap, 1, atol=1e-9)
    assert_allclose(found.explained, values[largest] / values.sum(), atol=1e-9)
    assert (np.diff(found.explained) < 0).all()
    assert_allclose(found(x).var(axis=0, ddof=1), values[largest])


def test_components_do_not_depend_on_the_basis_of_the_features():
    x = correlated(1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    assert_allclose(locations.principal(x @ turn)(x @ turn), locations.principal(x)(x), atol=1e-9)


def test_features_of_two_directions_have_two_components():
    found = locations.principal(correlated(width=2))
    assert_allclose(found.explained.sum(), 1)
    assert found.explained[2] == 0
    assert_array_equal(found.directions[2], 0)
    assert_array_equal(locations.principal(np.ones((1, 5))).explained, 0)


def test_one_stretch_for_all_maps():
    low, high = np.zeros((2, 2, 3)), np.ones((2, 2, 3))
    seen = np.array([[True, True], [True, False]])
    dark, bright = locations.colours([low, high], [seen, np.ones_like(seen)])
    assert_array_equal(dark[seen], 0)
    assert_array_equal(bright, 1)
    assert_array_equal(dark[~seen], [quicklook.NOT_VALID])


def test_a_grid_of_patches_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(16, 16, 5)) for _ in range(3)]
    tiled = [x + np.tile(3 * rng.normal(size=(4, 4, 5)), (4, 4, 1)) for x in noise]  # another one in every map
    share, period = locations.lattice(tiled)
    assert period == 4
    assert share == pytest.approx(0.9, abs=0.05)
    assert locations.lattice(noise)[0] < 0.02
    assert locations.lattice([np.ones((16, 16, 5))]) == (0.0, 0)
    assert locations.lattice([x[:3] for x in tiled]) == (0.0, 0)


def bank(regions=4, count=5, width=6):
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(regions, count, width))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return {"prototypes": jnp.asarray(vectors, jnp.float32), "visits": jnp.asarray([1.0, 0.0, 7.0, 2.0])}


def test_the_nearest_prototype_is_that_of_the_own_region():
    held, x = bank(), np.random.default_rng(4).normal(size=(3, 2, 2, 6)).astype(np.float32)
    found = locations.nearest_prototypes(x, jnp.array([2, 0, 3]), held)
    for tile, region, chosen in zip(x, (2, 0, 3), found, strict=True):
        assert_array_equal(chosen, np.argmax(tile @ np.asarray(held["prototypes"][region]).T, axis=-1))


def test_unvisited_and_unknown_regions_have_no_prototypes():
    x = np.ones((3, 2, 2, 6), np.float32)
    found = locations.nearest_prototypes(x, jnp.array([1, UNKNOWN, 0]), bank())
    assert_array_equal(found[:2], NONE)
    assert (found[2] >= 0).all()


def test_prototypes_are_ranked_by_use_within_their_region():
    maps = [np.array([[4, 4], [2, NONE]]), np.array([[2, 2], [2, 4]]), np.array([[0, 0], [0, 0]])]
    first, second, other = locations.ranks(maps, [7, 7, 8])
    assert_array_equal(first, [[1, 1], [0, NONE]])  # 2 was chosen four times, 4 three times
    assert_array_equal(second, [[0, 0], [0, 1]])
    assert_array_equal(other, 0)


def test_cosines_are_of_centred_features():
    x = correlated(5, count=4)
    x[3] = x[0]
    found, centred = locations.cosines(x), x - x.mean(axis=0)
    assert_allclose(np.diag(found), 1)
    assert_allclose(found[0, 3], 1)  # identical frames
    assert_allclose(found[0, 1], centred[0] @ centred[1] / np.linalg.norm(centred[0]) / np.linalg.norm(centred[1]))
    assert_allclose(locations.cosines(x + 100), found, atol=1e-6)
    assert_array_equal(locations.cosines(np.full((3, 5), 0.1)), 0)  # a collapse has no directions


def test_agreement_compares_pairs_of_the_same_sensors():
    similarity = np.array([[1, 0.5, 0.1, 0.2], [0.5, 1, 0.3, 0.4], [0.1, 0.3, 1, 0.6], [0.2, 0.4, 0.6, 1]])
    every, *rows = locations.agreement(similarity, [0, 0, 9, 9], ["a", "b", "a", "b"])
    assert every.sensors == ()
    assert (every.within, every.between) == pytest.approx((0.55, 0.25))
    found = {row.sensors: (row.within, row.between) for row in rows}
    assert found["a", "b"] == pytest.approx((0.55, 0.25))
    assert found["a", "a"][1] == pytest.approx(0.1)
    assert np.isnan(found["a", "a"][0])
    (alone,) = locations.agreement(np.ones((1, 1)), [0], ["a"])
    assert np.isnan(alone.within)
    assert np.isnan(alone.between)


def test_dates_are_written_as_iso():
    assert locations.iso(DAY) == "2021-06-01"
    assert locations.iso(NO_TIME) == "undated"


# ---- A model ------------------------------------------------------------------------------------------


def batch(count=3, seed=0):
    """Places 10, 11, ...: one date of rgb, three of s2_10 (one of them not observed), two of s1_grd."""
    rng = np.random.default_rng(seed)
    entries = {}
    for name, dates in (("rgb", 1), ("s2_10", 3), ("s1_grd", 2)):
        side = 8 * GRID if name == "rgb" else GRID
        shape = (count, dates, side, side, sensors.get(name).channels)
        entries[name] = {
            "pixels": rng.normal(size=shape).astype(np.float32),
            "valid": np.ones(shape[:-1], bool),
            "time": np.tile(DAY + 10 * np.arange(dates, dtype=np.int32), (count, 1)),
            "location": np.tile(np.float32([47.1, -8.2]), (count, 1)),
        }
    entries["s2_10"]["valid"][:, 1] = False
    return {"sensors": entries, "index": 10 + np.arange(count)}


@pytest.fixture(scope="module")
def tiny():
    """A tiny model whose parameters are stirred; every region was visited."""
    model = CONFIG.build()
    params = stirred(model.shapes())
    params["geo_context"]["visits"] = jnp.ones(8)
    return model, params


@pytest.fixture(scope="module")
def places(tiny):
    return locations.collect(*tiny, [batch()], {10, 12})


def test_places_hold_what_the_model_says(tiny, places):
    model, params = tiny
    data = batch()
    outputs = jax.jit(model.apply)(params, {"sensors": data["sensors"]})
    assert [place.index for place in places] == [10, 12]
    for place in places:
        row = place.index - 10
        assert_allclose(place.fused, outputs["fused"][row, ..., :16], atol=1e-5)  # without what was read
        own = params["geo_context"]["prototypes"][outputs["regions"][row]]
        assert_array_equal(place.prototypes, np.argmax(np.asarray(place.fused @ own.T), axis=-1))
        assert place.offered == 3
        assert place.location == pytest.approx((47.1, -8.2))
        dates = ["s2_10 2021-06-01", "s2_10 2021-06-21", "s1_grd 2021-06-01", "s1_grd 2021-06-11"]
        assert [frame.label for frame in place.frames] == ["rgb 2021-06-01", *dates]


@pytest.mark.slow
def test_a_frame_alone_is_a_batch_that_holds_nothing_else(tiny, places):
    model, params = tiny
    apply = jax.jit(model.apply)
    for place in places:
        row = slice(place.index - 10, place.index - 9)
        for frame in place.frames:
            entry = batch()["sensors"][frame.sensor]
            t = [locations.iso(int(day)) for day in entry["time"][row][0]].index(frame.date)
            only = {key: x[row] if key == "location" else x[row, t : t + 1] for key, x in entry.items()}
            fused = apply(params, {"sensors": {frame.sensor: only}})["fused"][0, ..., :16]
            assert_allclose(frame.vector, fused.mean(axis=(0, 1)), atol=1e-5)


def test_other_frames_do_not_change_a_frame_alone(tiny, places):
    data = batch()
    data["sensors"]["rgb"]["pixels"] += 1
    (changed,) = locations.collect(*tiny, [data], {10})
    assert np.abs(changed.fused - places[0].fused).max() > 1e-3
    for old, new in zip(places[0].frames, changed.frames, strict=True):
        assert np.array_equal(old.vector, new.vector) == (old.sensor != "rgb")


def test_identical_frames_are_alike_and_what_is_not_seen_does_not_count(tiny):
    data = batch()
    radar = data["sensors"]["s1_grd"]
    radar["pixels"][:, 1], radar["time"][:, 1] = radar["pixels"][:, 0], radar["time"][:, 0]
    for name, entry in data["sensors"].items():
        entry["valid"][0, :, : entry["valid"].shape[2] // 2] = False  # the upper half of place 10
        entry["valid"][1] = False  # all of place 11
        entry["pixels"][0, :, : entry["valid"].shape[2] // 2] = 1e3 if name == "rgb" else 0
    found = locations.collect(*tiny, [data], {10, 11})
    assert [place.index for place in found] == [10]
    frames = [frame for frame in found[0].frames if frame.sensor == "s1_grd"]
    similarity = locations.cosines(np.stack([frame.vector for frame in found[0].frames]))
    assert_array_equal(frames[0].vector, frames[1].vector)
    assert_allclose(similarity[-1, -2], 1)
    assert_array_equal(found[0].seen, np.arange(GRID)[:, None] >= GRID // 2 * np.ones(GRID, int))
    assert_array_equal(found[0].prototypes == NONE, ~found[0].seen)
    (row,), _ = locations.rows(found, {name: sensors.get(name) for name in data["sensors"]})
    assert_array_equal(row.components[~found[0].seen], 1.0)
    assert np.isfinite(row.components).all()


@pytest.mark.slow
def test_models_without_a_fusion_or_without_context():
    assert locations.collect(ringmoe.RingMoEConfig(sensors=("rgb",)).build(), {}, [batch()], {10}) == []
    model = skysense.SkySenseConfig(**{**vars(CONFIG), "geo_context": None}).build()
    params = stirred(model.shapes())
    (place,) = locations.collect(model, params, [batch()], {11})
    assert (place.offered, place.region) == (0, UNKNOWN)
    (row,), _ = locations.rows([place], {name: sensors.get(name) for name in batch()["sensors"]})
    assert row.ranks is None
    figure = figures.locations("d", dict.fromkeys(row.images, "bands"), [row])
    assert not figure.legends
    assert len(figure.axes) == 4  # three sensors and components


# ---- Figures ------------------------------------------------------------------------------------------


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def test_rows_and_pictures_of_places(places):
    table = {name: sensors.get(name) for name in batch()["sensors"]}
    rows, explained = locations.rows(places, table)
    assert explained.shape == (3,)
    assert rows[0].images["rgb"][0].shape == (8 * GRID, 8 * GRID, 3)  # its own size, not that of the locations
    assert rows[0].images["s1_grd"][0].shape == (GRID, GRID, 3)
    assert rows[0].name == "tile 10\n47.10° N, 8.20° W"
    shown = texts(figures.locations("made up", dict.fromkeys(table, "bands"), rows))
    used = locations.used(places[0])
    assert f"region {places[0].region}: {used} of 3 used" in shown
    assert "2021-06-01" in shown
    assert "made up" in shown


def test_ranks_beyond_the_colours_are_grey():
    many = np.arange(12).reshape(3, 4)
    painted = figures._ranked(many)
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) == len(figures.RANKED) + 1
    assert figures._ranked(np.full((2, 2), NONE)) is None


def compared(labels, places):
    """Frames of some places, each alike to itself alone."""
    row = dict(tiles=(), explained=(), lattice=Lattice(0.0, 0), agreement=())
    return LocationRow(
        dataset="d", frames=len(labels), labels=labels, places=places, similarity=np.eye(len(labels)), **row
    )


def test_the_matrix_names_frames_and_places():
    labels = ["s2_10 2021-06-01", "s1_grd 2021-06-01"] * 2
    ax, _ = figures.similarity(compared(labels, (1, 1, 5, 5))).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == labels
    written = [text.get_text() for text in ax.texts]
    assert written.count("tile 1") == written.count("tile 5") == 1
    assert written.count("1.00") == 4
    large, _ = figures.similarity(compared(["x"] * 20, (7,) * 20)).axes
    assert [text.get_text() for text in large.texts] == ["tile 7"]


def test_collapse_watch_has_a_column_a_level():
    records = [{"step": s} | {f"{k}/{m}": 0.5 for k in ("a", "b", "c") for m in curves.COLLAPSE_PANELS} for s in (1, 2)]
    records.append({"step": 2, "validation/loss": 1.0})
    terms = {"a": ("s1_grd", "image"), "b": ("s1_grd", "pixel"), "c": ("fused", "image")}
    figure = curves.collapse(records, terms)
    assert len(figure.axes) == 4
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["image level", "pixel level"]
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"s1_grd", "fused"}
