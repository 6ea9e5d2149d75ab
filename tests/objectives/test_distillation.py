"""Self-distillation: cross-entropy in NumPy, its minimum, and what a collapse looks like."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import objectives
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import NOTHING

ROWS, OUTPUTS = 7, 5


def term(**fields):
    return objectives.build({"a": {"name": "self_distillation", "stream": "rgb", "level": "pixel"} | fields})["a"]


@jax.jit
def compiled(pairs, temperature):
    # The temperature is static in an objective; a division of the cosines makes it an argument of the program.
    scaled = pairs | {"student": pairs["student"] / temperature}
    return term(temperature=1.0)({"contrast": {"rgb": {"pixel": scaled}}}, {})


def run(student, teacher, weight, temperature=1.0):
    arrays = {"student": student, "teacher": teacher, "weight": weight}
    value, total, metrics = compiled({k: np.asarray(v, np.float32) for k, v in arrays.items()}, temperature)
    return float(value), float(total), {k: float(v) for k, v in metrics.items()}


def case(seed=0):
    rng = np.random.default_rng(seed)
    weight = (rng.random(ROWS) < 0.6).astype(np.float64)
    return rng.uniform(-1, 1, (ROWS, OUTPUTS)), rng.dirichlet(np.ones(OUTPUTS), ROWS), weight


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def entropy(p):
    return -(p * np.log(p)).sum(axis=-1)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), temperature=st.floats(0.02, 2.0))
def test_cross_entropy_and_metrics(seed, temperature):
    student, teacher, weight = case(seed)
    value, total, metrics = run(student, teacher, weight, temperature)
    nats = -(teacher * np.log(softmax(student / temperature))).sum(axis=-1)
    assert_allclose((value, total), ((nats * weight).sum(), weight.sum()), rtol=1e-4)
    rows = weight > 0
    wanted = {"teacher_entropy": 0.0, "usage": 0.0, "agreement": 0.0}
    if rows.any():
        wanted["teacher_entropy"] = entropy(teacher[rows]).mean() / np.log(OUTPUTS)
        wanted["usage"] = entropy(teacher[rows].mean(axis=0)) / np.log(OUTPUTS)
        wanted["agreement"] = (teacher[rows].argmax(axis=-1) == student[rows].argmax(axis=-1)).mean()
    assert {k: pytest.approx(v, abs=1e-5) for k, v in wanted.items()} == metrics


def test_the_temperature_divides_cosines():
    student, teacher, weight = case()
    pairs = {"contrast": {"rgb": {"pixel": {"student": student, "teacher": teacher, "weight": weight}}}}
    assert_allclose(term(temperature=0.3)(pairs, {})[0], run(student, teacher, weight, 0.3)[0], rtol=1e-5)
    assert_allclose(term()(pairs, {})[0], run(student, teacher, weight, 0.1)[0], rtol=1e-5)


def test_the_minimum_is_the_entropy_of_the_targets():
    student, teacher, weight = case()
    best = run(np.log(teacher), teacher, weight)[0]
    assert_allclose(best, (entropy(teacher) * weight).sum(), rtol=1e-5)
    for step in np.random.default_rng(1).normal(scale=0.1, size=(5, ROWS, OUTPUTS)):
        assert run(np.log(teacher) + step, teacher, weight)[0] > best
    loss = lambda s: compiled({"student": s, "teacher": teacher, "weight": weight}, 1.0)[0]  # noqa: E731
    assert_allclose(jax.grad(loss)(student), (softmax(student) - teacher) * weight[:, None], atol=1e-6)


def test_metrics_tell_a_collapse():
    one, ones = np.tile(np.eye(OUTPUTS)[2], (OUTPUTS, 1)), np.ones(OUTPUTS)
    even = np.full((OUTPUTS, OUTPUTS), 1 / OUTPUTS)
    for teacher, wanted in ((one, (0, 0)), (even, (1, 1)), (np.eye(OUTPUTS), (0, 1))):
        metrics = run(np.eye(OUTPUTS), teacher, ones)[2]
        assert_allclose((metrics["teacher_entropy"], metrics["usage"]), wanted, atol=1e-6)
    assert run(np.eye(OUTPUTS), np.eye(OUTPUTS), ones)[2]["agreement"] == 1
    assert_allclose(run(np.eye(OUTPUTS), one, ones)[2]["agreement"], 1 / OUTPUTS)


def test_pairs_without_weight_add_nothing():
    student, teacher, weight = case()
    other = np.where(weight[:, None] > 0, student, 1e3)
    assert run(other, teacher, weight) == run(student, teacher, weight)
    assert run(student, teacher, 0 * weight)[:2] == (0.0, 0.0)


def test_views_that_lack_the_stream_or_level_add_nothing():
    assert term()({"contrast": {}}, {}) == NOTHING
    assert term()({"contrast": {"fused": {"pixel": {}}, "rgb": {"image": {}}}}, {}) == NOTHING


def test_what_it_asks_the_pretext_for():
    terms = {"a": {"level": "pixel"}, "b": {"level": "image"}, "c": {"stream": "fused", "level": "image"}}
    built = {label: term(**fields) for label, fields in terms.items()}
    built |= objectives.build({"d": {"name": "alignment", "sensors": ("rgb", "s1_grd"), "projected": True}})
    built |= objectives.build({"e": {"name": "alignment", "sensors": ("rgb", "s2_10")}})
    wanted = {"rgb": ("pixel", "image", "align"), "fused": ("image",), "s1_grd": ("align",)}
    assert objectives.collect_projections(built) == wanted


def test_a_projected_alignment_reads_projections():
    rng = np.random.default_rng(0)
    pair = ("rgb", "s1_grd")
    tokens, projected = ({n: rng.normal(size=(4, 1, 2, 2, 6)).astype(np.float32) for n in pair} for _ in range(2))
    batch = {"sensors": {n: {"valid": np.ones((4, 1, 2, 2), bool)} for n in pair}}
    plain, ours = (objectives.Alignment(sensors=pair, projected=p) for p in (False, True))
    got = ours({"tokens": tokens, "projected": projected}, batch)
    assert_array_equal(got[0], plain({"tokens": projected}, batch)[0])
    assert got[0] != plain({"tokens": tokens}, batch)[0]
    assert ours({"tokens": tokens, "projected": {"rgb": projected["rgb"]}}, batch) == NOTHING


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "pixels"}, 'level = "pixels" does not exist: did you mean "pixel"'),
        ({"temperature": 0.0}, "temperature = 0.0, wanted > 0"),
        ({"temperature": float("nan")}, "temperature = nan: wanted a finite number"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ConfigError, match=message):
        term(**fields)
