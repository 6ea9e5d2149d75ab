"""Alignment by contrast: InfoNCE against a loop, and which rows and cells it looks at."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ringmoe_jax import objectives, sensors
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.alignment import info_nce, shared_cells

PAIR = ("s2_12", "s1_grd")
run_nce = jax.jit(info_nce, static_argnums=3)


def unit(rng, rows, width=6):
    x = rng.normal(size=(rows, width))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def loop_nce(a, b, usable, temperature):
    nats, hits, rows = 0.0, 0.0, np.flatnonzero(usable)
    for x, y in ((a, b), (b, a)):
        for i in rows:
            logits = np.array([x[i].astype(np.float64) @ y[j] / temperature for j in rows])
            own = list(rows).index(i)
            nats += (np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[own]) / 2
            hits += (np.argmax(logits) == own) / 2
    return nats, hits


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_against_a_loop(temperature):
    rng = np.random.default_rng(0)
    a = unit(rng, 9)
    b = unit(rng, 9) * 0.7 + a
    for usable in (np.ones(9, bool), rng.random(9) < 0.6, np.arange(9) == 4, np.zeros(9, bool)):
        assert_allclose(run_nce(a, b, usable, temperature), loop_nce(a, b, usable, temperature), rtol=1e-4, atol=1e-5)


def test_chance_is_the_logarithm_of_the_batch():
    same = np.tile(unit(np.random.default_rng(0), 1), (8, 1))
    nats, hits = run_nce(same, same, np.ones(8, bool), 0.1)
    assert_allclose(nats / 8, np.log(8), rtol=1e-5)
    assert_allclose(hits / 8, 1 / 8)


def case(rows=5, grid=2, dates=(1, 1), seed=0, **entries):
    """Tokens of both sensors over grid x grid cells of 4 x 4 pixels; entries override the batch's."""
    rng = np.random.default_rng(seed)
    tokens = {n: rng.normal(size=(rows, t, grid, grid, 6)).astype(np.float32) for n, t in zip(PAIR, dates, strict=True)}
    valid = {n: np.ones((rows, t, 4 * grid, 4 * grid), bool) for n, t in zip(PAIR, dates, strict=True)}
    batch = {n: {"valid": valid[n]} | {k: v[i] for k, v in entries.items()} for i, n in enumerate(PAIR)}
    return {"tokens": tokens}, {"sensors": batch}


def align(outputs, batch, compile=True, **fields):
    term = objectives.Alignment(sensors=PAIR, **fields)
    value, weight, metrics = (jax.jit(term.__call__) if compile else term)(outputs, batch)
    return float(value), float(weight), {k: float(v) for k, v in metrics.items()}


def pooled(tokens, valid, cells):
    seen = valid.reshape(*valid.shape[:2], 2, 4, 2, 4).any(axis=(3, 5)) & cells[:, None]
    x = np.stack([t[s].mean(axis=0) if s.any() else np.ones(6) for t, s in zip(tokens, seen, strict=True)])
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_features_are_means_over_what_both_sensors_saw():
    outputs, batch = case(dates=(2, 1))
    a, b = (batch["sensors"][name]["valid"] for name in PAIR)
    a[0, :, :, :4] = False  # the left cells of row 0
    a[1, 0] = False  # row 1 is seen at the other date only
    b[2, :, 4:] = False  # the lower cells of row 2
    b[3, 0, :4, :3] = False  # a cell counts where one of its pixels does
    b[4] = False
    cells = np.ones((5, 2, 2), bool)
    cells[0, :, 0] = cells[2, 1] = cells[4] = False
    assert (np.asarray(shared_cells([batch["sensors"][n] for n in PAIR], (2, 2))) == cells).all()
    features = [pooled(outputs["tokens"][name], batch["sensors"][name]["valid"], cells) for name in PAIR]
    nats, hits = loop_nce(*features, np.arange(5) < 4, 0.1)
    value, weight, metrics = align(outputs, batch)
    assert_allclose([value, weight, metrics["accuracy"]], [nats, 4, hits / 4], rtol=1e-4)


def test_rows_at_different_known_locations_do_not_count():
    here = np.array([[48.0, 11.0]] * 5, np.float32)
    there = here.copy()
    there[1, 0] += 0.01
    there[2] = np.nan  # unknown
    there[3, 1] += 1e-4  # ten metres
    outputs, batch = case(location=(here, there))
    cells = np.ones((5, 2, 2), bool)
    features = [pooled(outputs["tokens"][name], batch["sensors"][name]["valid"], cells) for name in PAIR]
    usable = np.array([True, False, True, True, True])
    for compile in (True, False):  # NumPy and traced arrays alike
        value, weight, _ = align(outputs, batch, compile)
        assert_allclose([value, weight], [loop_nce(*features, usable, 0.1)[0], 4], rtol=1e-4)


def test_gradient_is_finite_and_comes_from_usable_rows_and_shared_cells():
    outputs, batch = case()
    batch["sensors"]["s1_grd"]["valid"][0] = False
    batch["sensors"]["s1_grd"]["valid"][1, :, :4, :4] = False
    outputs["tokens"]["s2_12"][0] = np.nan
    outputs["tokens"]["s1_grd"][2] = 0.0  # no direction
    term = objectives.Alignment(sensors=PAIR)
    loss = lambda tokens: term(outputs | {"tokens": tokens}, batch)[0]  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(loss))(outputs["tokens"])
    assert np.isfinite(value)
    for name in PAIR:
        assert np.isfinite(slope[name]).all()
        assert not np.asarray(slope[name])[0].any()
        assert not np.asarray(slope[name])[1, :, 0, 0].any()
        assert np.asarray(slope[name])[1, :, 1, 1].any()
    way = np.random.default_rng(1).normal(size=outputs["tokens"]["s1_grd"].shape).astype(np.float32)
    way[2] = 0  # a kink of the direction of nothing
    moved = [outputs["tokens"] | {"s1_grd": outputs["tokens"]["s1_grd"] + s * way} for s in (1e-2, -1e-2)]
    numeric = (float(loss(moved[0])) - float(loss(moved[1]))) / 2e-2
    assert_allclose(np.sum(np.asarray(slope["s1_grd"]) * way), numeric, rtol=2e-2)


def test_aligned_features_cost_nothing_and_shuffled_ones_much():
    outputs, batch = case(rows=6)
    outputs["tokens"]["s1_grd"] = outputs["tokens"]["s2_12"].copy()
    value, weight, metrics = align(outputs, batch, temperature=0.02)
    assert metrics["accuracy"] == 1.0
    assert value / weight < 0.1
    outputs["tokens"]["s1_grd"] = np.roll(outputs["tokens"]["s1_grd"], 1, axis=0)
    value, weight, metrics = align(outputs, batch, temperature=0.02)
    assert metrics["accuracy"] == 0.0
    assert value / weight > np.log(6)


def test_a_batch_without_one_of_the_sensors_adds_nothing():
    outputs, batch = case()
    del outputs["tokens"]["s1_grd"]
    assert align(outputs, batch, compile=False) == (0.0, 0.0, {})


def test_rows_have_to_show_the_same_place():
    term = objectives.build({"a": {"name": "alignment", "sensors": PAIR}})["a"]
    assert term.together() == PAIR
    assert objectives.collect_heads({"a": term}, sensors.resolve(PAIR)) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensors": ("s2_12",)}, "wanted two different names"),
        ({"sensors": ("s2_12", "s2_12")}, "wanted two different names"),
        ({"sensors": ("s2_12", "s1_grd", "rgb")}, "wanted two different names"),
        ({"sensors": PAIR, "temperature": 0.0}, "temperature = 0.0, wanted > 0"),
        ({"sensors": PAIR, "temperature": float("nan")}, "temperature = nan: wanted a finite number"),
        ({"sensors": ("s2_12", "s1_gdr")}, 'Alignment of "s1_gdr": not in model.sensors: did you mean "s1_grd"'),
    ],
)
def test_bad_configs_of_alignment(fields, message):
    with pytest.raises(ConfigError, match=message):
        objectives.collect_heads(objectives.build({"a": {"name": "alignment", **fields}}), sensors.resolve(PAIR))
