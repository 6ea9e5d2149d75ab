"""Objectives with class labels: closed forms, scikit-learn, void labels, and labels that are no class."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import log_loss

from ringmoe_jax import objectives
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.objectives import BinaryCrossEntropy, CrossEntropy, Dice, Lovasz, check_labels

MAPS = (CrossEntropy, functools.partial(CrossEntropy, gamma=2.0, smoothing=0.1), Dice, Lovasz)


@functools.lru_cache
def compiled(term):
    def run(logits, label):
        value, weight, metrics = term({"predictions": {"logits": logits}}, {"labels": {"y": label}})
        return value, (weight, metrics)

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def evaluate(term, logits, label):
    """Value, weight, metrics and gradient of the value by the logits."""
    (value, (weight, metrics)), gradient = compiled(term)(np.float32(logits), label)
    return float(value), float(weight), {k: float(v) for k, v in metrics.items()}, np.asarray(gradient)


def mean(term, logits, label):
    value, weight, *_ = evaluate(term, logits, label)
    return value / weight


def softmax(logits):
    p = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def maps(seed=0, rows=3, size=5, classes=4, void=0.3):
    """Logits [rows, size, size, classes] and labels, some of them void."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (rows, size, size)).astype(np.int32)
    label[rng.random(label.shape) < void] = -1
    return np.float32(rng.normal(size=(*label.shape, classes))), label


def sure(label, classes):
    """Logits that say one class of each pixel."""
    return 40.0 * np.eye(classes, dtype=np.float32)[label]


@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 3.0, 0.0)])
def test_cross_entropy_against_scikit_learn(weights):
    logits, label = maps()
    known = label >= 0
    sample_weight = np.asarray(weights or (1.0,) * 4)[label[known]]
    wanted = log_loss(label[known], softmax(logits)[known], labels=range(4), sample_weight=sample_weight)
    term = CrossEntropy(label="y", class_weights=weights)
    value, weight, metrics, _ = evaluate(term, logits, label)
    assert_allclose(value / weight, wanted, rtol=1e-5)
    assert_allclose(weight, sample_weight.sum(), rtol=1e-6)
    assert_allclose(metrics["accuracy"], (logits.argmax(-1) == label)[known].mean(), rtol=1e-6)
    assert_allclose(metrics["known"], known.mean(), rtol=1e-6)
    # images of one label each are pixels without a map
    rows = mean(term, logits[:, 0, 0], np.array([0, 1, 2], np.int32))
    w = np.asarray(weights or (1.0,) * 4)[:3]
    assert_allclose(rows, log_loss([0, 1, 2], softmax(logits[:, 0, 0]), labels=range(4), sample_weight=w), rtol=1e-5)


def test_the_gradient_of_cross_entropy_is_p_minus_t_and_0_where_void():
    logits, label = maps()
    gradient = evaluate(CrossEntropy(label="y", smoothing=0.2), logits, label)[3]
    known = (label >= 0)[..., None]
    target = 0.8 * np.eye(4)[label] + 0.2 / 4
    assert_allclose(gradient, known * (softmax(logits) - target), atol=1e-6)
    assert_array_equal(gradient[label < 0], 0)


def test_smoothing_and_focal_closed_forms():
    y = np.array([1], np.int32)
    even, tilted = np.zeros((1, 4)), np.log([[0.25, 0.75]])
    assert_allclose(mean(CrossEntropy(label="y", smoothing=0.3), even, y), np.log(4), rtol=1e-6)
    smooth = -(0.9 * np.log(0.75) + 0.1 * np.log(0.25))  # 0.2 / 2 for every class beside 0.8
    assert_allclose(mean(CrossEntropy(label="y", smoothing=0.2), tilted, y), smooth, rtol=1e-6)
    assert_allclose(mean(CrossEntropy(label="y", gamma=2.0), tilted, y), -(0.25**2) * np.log(0.75), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_extreme_logits_stay_finite(gamma):
    logits, y = 1e4 * np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0, 0], np.int32)
    value, _, _, gradient = evaluate(CrossEntropy(label="y", gamma=gamma), logits, y)
    assert_allclose(value, 2e4)
    assert np.isfinite(gradient).all()
    binary = BinaryCrossEntropy(label="y", gamma_positive=gamma, gamma_negative=gamma)
    value, _, _, gradient = evaluate(binary, logits, np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert_allclose(value, 2e4)
    assert np.isfinite(gradient).all()


def test_binary_cross_entropy_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(6, 3)), rng.integers(0, 2, (6, 3)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits))
    term = BinaryCrossEntropy(label="y")
    value, weight, metrics, gradient = evaluate(term, logits, y)
    assert weight == 18
    assert_allclose(value / weight, log_loss(y.ravel(), p.ravel()), rtol=1e-5)
    assert_allclose(metrics["accuracy"], ((p > 0.5) == y).mean(), rtol=1e-6)
    assert_allclose(gradient, p - y, atol=1e-6)
    unknown = y.copy()
    unknown[0], unknown[1, 2] = -1, np.nan
    value, weight, metrics, gradient = evaluate(term, logits, unknown)
    assert weight == 14
    assert_allclose(metrics["known"], 14 / 18, rtol=1e-6)
    assert_allclose(value / 14, log_loss(y[unknown >= 0], p[unknown >= 0]), rtol=1e-5)
    assert_array_equal(gradient[~(unknown >= 0)], 0)


def test_asymmetric_closed_forms():
    present, absent = np.ones((1, 1)), np.zeros((1, 1))
    logit = lambda p: np.log([[p / (1 - p)]])  # noqa: E731
    term = BinaryCrossEntropy(label="y", gamma_positive=1.0, gamma_negative=4.0, margin=0.05)
    assert_allclose(mean(term, logit(0.6), present), -0.4 * np.log(0.6), rtol=1e-5)
    assert_allclose(mean(term, logit(0.6), absent), -(0.55**4) * np.log(0.45), rtol=1e-5)
    value, _, _, gradient = evaluate(term, logit(0.04), absent)  # below the margin nothing is asked for
    assert value == 0
    assert gradient == 0
    for p in (0.1, 0.7):  # equal exponents: focal loss, the same for both sides
        focal = BinaryCrossEntropy(label="y", gamma_positive=2.0, gamma_negative=2.0)
        assert_allclose(mean(focal, logit(p), present), mean(focal, logit(1 - p), absent), rtol=1e-5)


def test_asymmetric_gradients_against_finite_differences():
    rng = np.random.default_rng(0)
    logits, y = jnp.asarray(rng.normal(size=(4, 3))), rng.integers(0, 2, (4, 3)).astype(np.float32)
    term = BinaryCrossEntropy(label="y", gamma_positive=1.0, gamma_negative=4.0, margin=0.05)
    run = jax.jit(lambda x: term({"predictions": {"logits": x}}, {"labels": {"y": y}})[0])
    check_grads(run, (logits,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_dice_by_hand():
    p = np.array([[[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.5, 0.5]]])[None]  # [1, 2, 2, 2]
    label = np.array([[[0, 1], [1, -1]]], np.int32)
    first = 2 * 0.5 / ((0.5 + 0.25 + 0.9) + 1)
    second = 2 * (0.75 + 0.1) / ((0.5 + 0.75 + 0.1) + 2)
    assert_allclose(mean(Dice(label="y"), np.log(p), label), 1 - (first + second) / 2, rtol=1e-5)
    assert_allclose(mean(Dice(label="y", classes=(1,)), np.log(p), label), 1 - second, rtol=1e-5)


@pytest.mark.parametrize("cls", [Dice, Lovasz])
def test_overlap_of_sure_predictions(cls):
    rng = np.random.default_rng(3)
    label, said = (rng.integers(0, 3, (2, 4, 4)).astype(np.int32) for _ in range(2))
    label[0, 0] = -1
    wanted = []
    for y, x in zip(label, said, strict=True):
        both = [((y == k) & (x == k)).sum() for k in range(3)]
        either = [((y == k) | ((x == k) & (y >= 0))).sum() for k in range(3)]
        iou = np.array(both) / either
        wanted.append(1 - (2 * iou / (1 + iou) if cls is Dice else iou).mean())
    term = cls(label="y")
    assert_allclose(mean(term, sure(said, 3), label), np.mean(wanted), rtol=1e-5)
    assert_allclose(mean(term, sure(np.maximum(label, 0), 3), label), 0, atol=1e-6)


def choquet(error, truth):
    """The Lovasz extension of 1 - IoU as an integral over thresholds: of the set of pixels whose error is above."""
    steps = np.unique(np.concatenate([[0.0], error]))
    jaccard = lambda wrong: wrong.sum() / (truth | wrong).sum()  # noqa: E731
    return sum((b - a) * jaccard(error > a) for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("classes", [(), (2,)])
def test_lovasz_is_the_integral_over_thresholds(classes):
    logits, label = maps(seed=1, classes=3)
    label[0][label[0] == 1] = 0  # a class that an image lacks does not count there
    images = []
    for p, y in zip(softmax(logits), label, strict=True):
        known = y >= 0
        shown = [k for k in (classes or range(3)) if (y == k).any()]
        images.append(np.mean([choquet(np.abs((y == k) - p[..., k])[known], (y == k)[known]) for k in shown]))
    assert_allclose(mean(Lovasz(label="y", classes=classes), logits, label), np.mean(images), rtol=1e-5)


@pytest.mark.parametrize("cls", [Dice, Lovasz])
def test_overlap_gradients_against_finite_differences(cls):
    logits, label = maps(seed=2, rows=2, size=3, classes=3)
    term = cls(label="y")
    run = jax.jit(lambda x: term({"predictions": {"logits": x}}, {"labels": {"y": label}})[0])
    check_grads(run, (jnp.asarray(logits),), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


@pytest.mark.parametrize("cls", [Dice, Lovasz])
def test_images_without_the_class_add_nothing(cls):
    logits, label = maps(classes=2)
    label[1] = np.minimum(label[1], 0)
    label[2] = -1
    term = cls(label="y", classes=(1,))
    value, weight, metrics, gradient = evaluate(term, logits, label)
    assert weight == 1
    assert_allclose(metrics["shown"], 1 / 3, rtol=1e-6)
    assert_allclose(value, mean(term, logits[:1], label[:1]), rtol=1e-6)
    assert_array_equal(gradient[1:], 0)


@pytest.mark.parametrize("cls", MAPS)
@given(seed=st.integers(0, 99), void=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=8, deadline=None)
def test_properties(cls, seed, void):
    logits, label = maps(seed, void=void)
    term = cls(label="y")
    value, weight, _, gradient = evaluate(term, logits, label)
    assert np.isfinite([value, weight]).all()
    assert np.isfinite(gradient).all()
    assert_array_equal(gradient[label < 0], 0)
    if void == 1:
        assert value == weight == 0
    # classes have no order, nor have images
    order = np.array([2, 0, 3, 1])
    renamed = np.where(label < 0, -1, np.argsort(order)[label]).astype(np.int32)
    assert_allclose(evaluate(term, logits[..., order], renamed)[0], value, rtol=1e-4, atol=1e-5)
    assert_allclose(evaluate(term, logits[::-1], label[::-1])[:2], (value, weight), rtol=1e-4, atol=1e-5)
    # what the network says of void pixels is not looked at
    other = np.where(label[..., None] < 0, 7.0 - logits, logits)
    assert_allclose(evaluate(term, other, label)[0], value, rtol=1e-5, atol=1e-6)
    # sums of micro-batches are those of the batch
    parts = [evaluate(term, logits[i : i + 1], label[i : i + 1])[:2] for i in range(3)]
    assert_allclose(np.sum(parts, axis=0), (value, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [4, 255, -2])
@pytest.mark.parametrize("cls", MAPS)
def test_a_label_that_is_no_class_does_not_pass(cls, wrong):
    logits, label = maps()
    label[1, 2, 3] = wrong
    assert np.isnan(evaluate(cls(label="y"), logits, label)[0])
    with pytest.raises(DataError, match=rf'label "y" holds {wrong} in row 1, wanted -1 to 3'):
        check_labels({"y": label}, {"y": 4})


def test_check_labels():
    good = {"y": np.array([-1, 0, 3], np.int32), "many": np.array([[0, 1], [-1, np.nan]])}
    check_labels(good, {"y": 4, "many": 2})
    with pytest.raises(DataError, match='no label "mani": did you mean "many"'):
        check_labels(good, {"mani": 2})
    with pytest.raises(DataError, match=r'"many" has shape \(2, 2\), wanted \[B, 3\]'):
        check_labels(good, {"many": 3})
    strange = np.array([[0.0, 2.0]])
    with pytest.raises(DataError, match=r'"many" holds 2.0 in row 0, wanted 0 to 1'):
        check_labels({"many": strange}, {"many": 2})
    assert np.isnan(evaluate(BinaryCrossEntropy(label="y"), np.zeros((1, 2)), strange)[0])


def test_a_config_names_them_and_picks_the_output():
    terms = objectives.build(
        {
            "main": {"name": "cross_entropy", "label": "y", "class_weights": [1, 2.0]},
            "deep": {"name": "cross_entropy", "label": "y", "output": "auxiliary", "scale": 0.4},
            "area": {"name": "dice", "label": "y", "classes": [1]},
        }
    )
    assert objectives.collect_heads(terms, {}) == {}
    outputs = {"predictions": {"logits": np.zeros((1, 2)), "auxiliary": np.log([[0.2, 0.8]])}}
    value, weight, _ = terms["deep"](outputs, {"labels": {"y": np.array([1])}})
    assert_allclose(value / weight, -np.log(0.8), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cross_entropy", "smoothing": 1.0}, "smoothing"),
        ({"name": "cross_entropy", "gamma": 0.5}, "gamma"),
        ({"name": "cross_entropy", "class_weights": [1, -1]}, "class_weights"),
        ({"name": "binary_cross_entropy", "gamma_negative": 0.5}, "gamma_negative"),
        ({"name": "binary_cross_entropy", "margin": 1.0}, "margin"),
    ],
)
def test_values_out_of_range(fields, message):
    with pytest.raises(ConfigError, match=message):
        objectives.build({"x": {"label": "y", **fields}})


@pytest.mark.parametrize("cls", [CrossEntropy, BinaryCrossEntropy, Dice])
def test_what_is_missing_or_does_not_fit_is_said(cls):
    outputs, batch = {"predictions": {"logits": np.zeros((2, 3))}}, {"labels": {"cover": np.zeros(2, np.int32)}}
    with pytest.raises(DataError, match='holds no label "cove": did you mean "cover"'):
        cls(label="cove")(outputs, batch)
    with pytest.raises(DataError, match=r'holds no label "cover": \(known: none\)'):
        cls(label="cover")(outputs, {})
    with pytest.raises(ConfigError, match='the head gives no "logit": did you mean "logits"'):
        cls(label="cover", output="logit")(outputs, batch)
    with pytest.raises(DataError, match=r"cover.*wanted"):
        cls(label="cover")(outputs, {"labels": {"cover": np.zeros((2, 5))}})


def test_class_options_must_suit_the_head():
    outputs, batch = {"predictions": {"logits": np.zeros((2, 3))}}, {"labels": {"y": np.zeros(2, np.int32)}}
    with pytest.raises(ConfigError, match="2 class_weights for 3 classes"):
        CrossEntropy(label="y", class_weights=(1.0, 2.0))(outputs, batch)
    with pytest.raises(ConfigError, match=r"classes = \(3,\), wanted 0 to 2"):
        Dice(label="y", classes=(3,))(outputs, batch)
