"""Relations to a teacher's: a NumPy reference, the minimum, and what must not count."""

import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ringmoe_jax import objectives

ROWS, TEMPERATURE = 6, 0.5


def taught(seed=0, unseen=()):
    """Outputs [B, T, h, w, D] of a student of two stages and of a wider teacher on another grid, and their batch."""
    random = np.random.default_rng(seed)
    valid = np.ones((ROWS, 1, 8, 8), bool)
    valid[list(unseen)] = False
    fine, coarse, wide = (
        random.normal(1, 2, (ROWS, 1, side, side, width)).astype(np.float32)
        for side, width in ((4, 3), (2, 5), (1, 16))
    )
    student = {"tokens": {"rgb": coarse}, "stages": {"rgb": (fine, coarse)}}
    return student | {"teacher": {"tokens": {"rgb": wide}}}, {"sensors": {"rgb": {"valid": valid}}}


@functools.cache
def term(**fields):
    """As one program: by itself every operation is compiled for every shape."""
    values = dict(name="relation_matching", sensor="rgb", temperature=TEMPERATURE) | fields
    return jax.jit(objectives.build({"x": values})["x"].__call__)


def likeness(*maps):
    """[B, B] by loops: softmax over the others of cosines of centred means."""
    means = np.concatenate([x.astype(np.float64).mean(axis=(1, 2, 3)) for x in maps], axis=1)
    means -= means.mean(axis=0)
    found = np.zeros((len(means), len(means)))
    for i, a in enumerate(means):
        others = [j for j in range(len(means)) if j != i]
        cosines = [a @ means[j] / np.linalg.norm(a) / np.linalg.norm(means[j]) for j in others]
        powers = np.exp(np.array(cosines) / TEMPERATURE)
        found[i, others] = powers / powers.sum()
    return found


@pytest.mark.parametrize("level", ["tokens", "stages"])
def test_divergence_of_whom_an_image_is_like(level):
    outputs, batch = taught()
    value, weight, metrics = term(level=level)(outputs, batch)
    maps = outputs["stages"]["rgb"]
    p, q = likeness(outputs["teacher"]["tokens"]["rgb"]), likeness(*(maps if level == "stages" else maps[-1:]))
    off = ~np.eye(ROWS, dtype=bool)
    assert_allclose(value / weight, np.sum(p[off] * np.log(p[off] / q[off])) / ROWS, rtol=1e-4)
    assert_allclose(metrics["agreement"], np.mean(p.argmax(axis=1) == q.argmax(axis=1)))
    assert weight == ROWS


def test_a_student_like_its_teacher_has_nothing_to_learn():
    outputs, batch = taught()
    alike = outputs | {
        "teacher": {"tokens": {"rgb": 3 * outputs["tokens"]["rgb"] + 7}}
    }  # scale and offset do not count

    def loss(tokens):
        return term(level="tokens")(alike | {"tokens": {"rgb": tokens}}, batch)[0]

    value, slope = jax.value_and_grad(loss)(outputs["tokens"]["rgb"])
    assert abs(value) < 1e-5
    assert np.abs(slope).max() < 1e-4
    assert term(level="tokens")(alike, batch)[2]["agreement"] == 1


def test_a_step_down_the_gradient_brings_relations_nearer():
    outputs, batch = taught()

    @jax.value_and_grad
    def loss(tokens):
        return term(level="tokens")(outputs | {"tokens": {"rgb": tokens}}, batch)[0]

    value, slope = loss(outputs["tokens"]["rgb"])
    nearer, _ = loss(outputs["tokens"]["rgb"] - slope)
    assert 0 < nearer < value


def test_images_that_show_nothing_are_like_nobody_and_change_nothing():
    outputs, batch = taught(unseen=(1, 4))
    keep = [0, 2, 3, 5]
    fewer = jax.tree.map(lambda x: x[np.array(keep)], (outputs, batch))
    (value, weight, _), (wanted, count, _) = term()(outputs, batch), term()(*fewer)
    assert weight == count == len(keep)
    assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_too_few_images_say_nothing(left):
    outputs, batch = taught(unseen=range(left, ROWS))
    value, slope = jax.value_and_grad(lambda stages: term()(outputs | {"stages": {"rgb": stages}}, batch)[0])(
        outputs["stages"]["rgb"]
    )
    assert value == 0
    assert all(not np.asarray(x).any() for x in slope)


def test_a_teacher_that_lacks_the_sensor_is_named():
    outputs, batch = taught()
    with pytest.raises(objectives.base.ConfigError, match=r'of "rgb": the teacher does not know it: .*rgb8'):
        term()(outputs | {"teacher": {"tokens": {"rgb8": outputs["tokens"]["rgb"]}}}, batch)
