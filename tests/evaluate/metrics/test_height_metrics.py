import numpy as np
import pytest

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import HeightMetric, score


def measured(*triples, **options):
    metric = HeightMetric(**options)
    for truth, predicted, valid in triples:
        metric.add(np.array([truth], np.float32), np.array([predicted], np.float32), np.array([valid], bool))
    return metric


def test_errors_by_hand():
    # Errors 0.5, 1, -4, 12; the floor of 1 m leaves truths 4, 8, 16 with factors 1.25, 2 and 16 / 0.
    values = measured(
        ([0, 4, 8, 16, 99], [0.5, 5, 4, 0, 0], [1, 1, 1, 1, 0]),
        ([10, 10], [10, 12], [1, 1]),
    ).values(np.array([[1.0, 0], [0, 1], [1, 3]]))
    assert next(iter(values)) == "RMSE"
    squares = 0.25 + 1 + 16 + 256
    np.testing.assert_allclose(values["RMSE"], np.sqrt([squares / 4, 4 / 2, (squares + 12) / 10]))
    np.testing.assert_allclose(values["MAE"], [21.5 / 4, 1, 27.5 / 10])
    np.testing.assert_allclose(values["REL"], [(1 / 4 + 1 / 2 + 1) / 3, 0.1, (7 / 4 + 0.6) / 9])
    np.testing.assert_allclose(values["delta 1"], [0, 1, 6 / 9])  # 1.25 itself is not below 1.25
    np.testing.assert_allclose(values["delta 2"], [1 / 3, 1, 7 / 9])
    np.testing.assert_allclose(values["delta 3"], [1 / 3, 1, 7 / 9])
    np.testing.assert_allclose(values["NRMSE"], values["RMSE"] / [16, np.nan, 16])


def test_floor_leaves_no_pixel_of_flat_ground_for_relative_errors():
    values = measured(([0, 0.5, 2], [0, 0.5, 2], [1, 1, 1]), floor=3.0).values(np.ones((1, 1)))
    assert values["RMSE"] == [0]
    assert np.isnan(values["REL"]).all()
    assert np.isnan(values["delta 1"]).all()


def test_what_is_not_valid_does_not_count_and_what_is_must_be_finite():
    metric = measured(([np.nan, 2], [3, 2], [0, 1]), ([np.nan], [np.nan], [0]))
    assert score(metric, resamples=10)["MAE"].value == 0
    with pytest.raises(DataError, match="a valid height is nan"):
        measured(([np.nan], [1], [1]))
    with pytest.raises(DataError, match="a predicted height is nan"):
        measured(([1], [np.nan], [1]))
    with pytest.raises(DataError, match="wanted the same"):
        measured(([1], [1, 2], [1]))
    with pytest.raises(DataError, match='"RMSE" of 1 images is undefined'):
        score(measured(([1], [1], [0])))
    with pytest.raises(DataError, match="holds no images"):
        score(HeightMetric())
