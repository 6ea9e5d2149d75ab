import jax
import numpy as np
import pytest

from ringmoe_jax import sensors
from ringmoe_jax.evaluate import baselines, features


def entry(pixels, valid=None):
    pixels = np.asarray(pixels, np.float32)
    return {"pixels": pixels, "valid": np.ones(pixels.shape[:-1], bool) if valid is None else valid}


def test_collect_drops_filled_up_tiles_and_stops_at_the_limit():
    def batch(first, real):
        pixels = np.arange(first, first + 3, dtype=np.float32)[:, None, None, None, None]
        valid = np.broadcast_to(pixels[..., 0] != 1, (3, 1, 1, 1))
        return {
            "sensors": {"dem": entry(pixels, valid)},
            "labels": {"class": np.arange(first, first + 3)},
            "real": np.array(real),
        }

    encoders = {"identity": lambda b: {"dem": b["sensors"]["dem"]["pixels"].reshape(3, 1)}}
    parts = [batch(0, [True, True, True]), batch(3, [True, True, False])]
    found = features.collect(parts, encoders)
    assert found.values["identity"]["dem"].ravel().tolist() == [0, 1, 2, 3, 4]
    assert found.labels["class"].tolist() == [0, 1, 2, 3, 4]
    assert found.observed["dem"].tolist() == [True, False, True, True, True]
    assert len(set(found.groups.tolist())) == 5
    assert len(features.collect(parts, encoders, limit=4).groups) == 4
    assert found.joined("identity", ("dem", "dem")).shape == (5, 2)


def test_moments_of_stages_are_over_valid_cells():
    maps = np.arange(2 * 1 * 2 * 2 * 3, dtype=np.float32).reshape(2, 1, 2, 2, 3)
    valid = np.zeros((2, 1, 4, 4), bool)
    valid[0, 0, 0, 0] = valid[0, 0, 3, 1] = True  # a pixel each of the cells (0, 0) and (1, 0)
    batch = {"sensors": {"dem": entry(np.zeros((2, 1, 4, 4, 1)), valid)}}
    moments = features.stage_moments({"stages": {"dem": (maps, maps[:, :, :1, :1] + 1)}}, batch)
    assert moments["dem, stage 1"].tolist() == [[3, 4, 5], [0, 0, 0]]  # of (0, 1, 2) and (6, 7, 8); nothing was seen
    assert moments["dem, stage 2"].tolist() == [[1, 2, 3], [0, 0, 0]]
    assert moments["dem, spread 1"].tolist() == [[3, 3, 3], [0, 0, 0]]
    assert not moments["dem, spread 2"].any()  # of one cell


def test_levels_of_several_sensors_lie_side_by_side():
    def values(number, width):
        return np.full((2, width), number, np.float32)

    own = {"a": values(0, 2), "a, stage 1": values(1, 1), "a, stage 2": values(2, 2)}
    own |= {"b": values(5, 1), "b, stage 1": values(6, 1), "b, stage 2": values(7, 1), "b, stage 3": values(8, 1)}
    own |= {f"{kind}, spread {i}": values(i / 10, 1) for kind in "ab" for i in (1, 2, 3)}
    found = features.Features({"own": own, "flat": {"a": values(0, 2)}}, {}, {}, np.arange(2))
    spread = "all stages and their spread"
    assert found.levels("flat", ["a"]) == ["pooled"]
    assert found.levels("own", ["b"]) == ["pooled", "stage 1", "stage 2", "stage 3", "all stages", spread]
    assert found.levels("own", ["a", "b"]) == ["pooled", "stage 1", "stage 2", "all stages", spread]
    joined = {level: found.joined("own", ["a", "b"], level)[0].tolist() for level in found.levels("own", ["a", "b"])}
    assert np.allclose(joined.pop(spread), [1, 6, 2, 2, 7, 0.1, 0.1, 0.2, 0.2])
    assert joined == {"pooled": [0, 0, 5], "stage 1": [1, 6], "stage 2": [2, 2, 7], "all stages": [1, 6, 2, 2, 7]}


def test_image_statistics_by_hand_leave_out_what_was_not_observed():
    pixels = np.array([0, 1, 2, 3, 4, 999], np.float32).reshape(1, 1, 2, 3, 1)
    encode = baselines.image_statistics({"dem": sensors.get("dem")})
    row = encode({"sensors": {"dem": entry(pixels, pixels[..., 0] != 999)}})["dem"]
    np.testing.assert_allclose(row, [[2, np.sqrt(2), 0.2, 1, 2, 3, 3.8]], rtol=1e-6)
    assert (encode({"sensors": {"dem": entry(pixels, np.zeros((1, 1, 2, 3), bool))}})["dem"] == 0).all()


def test_complex_statistics_are_of_power_and_ignore_phase():
    generator = np.random.default_rng(0)
    amplitude, phase = generator.uniform(0.1, 1, (1, 1, 8, 8, 2)), generator.uniform(0, 6, (1, 1, 8, 8, 2))
    encode = baselines.image_statistics({"slc_dual": sensors.get("slc_dual")})

    def row(turn):
        values = amplitude * np.exp(1j * (phase + turn))
        return encode({"sensors": {"slc_dual": entry(np.stack([values.real, values.imag], -1).reshape(1, 1, 8, 8, 4))}})

    first = row(0)["slc_dual"]
    np.testing.assert_allclose(first, row(1.3)["slc_dual"], rtol=1e-4)
    np.testing.assert_allclose(first[0, :2], (20 * np.log10(amplitude)).mean(axis=(0, 1, 2, 3)), rtol=1e-4)


def test_random_convolutions_pool_over_the_image_and_repeat_with_the_seed():
    sensor = sensors.get("s1_grd")
    pixels = np.broadcast_to(np.array(sensor.statistics.mean, np.float32), (2, 1, 8, 8, 2))
    make = lambda seed: baselines.random_convolutions({"s1_grd": sensor.statistics}, count=16, seed=seed)  # noqa: E731
    at_mean = np.asarray(make(0)({"sensors": {"s1_grd": entry(pixels)}})["s1_grd"])
    np.testing.assert_allclose(at_mean, np.repeat([[0.0] * 8 + [1.0] * 8], 2, 0), atol=1e-5)  # relu(-1) and relu(1)
    other = pixels + np.random.default_rng(0).normal(size=pixels.shape).astype(np.float32)
    first, again, third = (np.asarray(make(s)({"sensors": {"s1_grd": entry(other)}})["s1_grd"]) for s in (0, 0, 1))
    assert (first == again).all()
    assert not np.allclose(first, third)


def test_random_convolutions_are_means_of_two_rectified_responses():
    """By the definition, with the kernels that the seed draws, over images of two dates."""
    pixels = np.random.default_rng(0).normal(size=(2, 2, 6, 5, 1)).astype(np.float32)
    statistics = {"dem": sensors.Statistics((0.5,), (2.0,), "test")}
    found = baselines.random_convolutions(statistics, count=8, seed=3)({"sensors": {"dem": entry(pixels)}})["dem"]
    kernel = np.asarray(jax.random.normal(jax.random.key(3), (3, 3, 1, 4)))
    windows = np.lib.stride_tricks.sliding_window_view((pixels - 0.5) / 2, (3, 3), axis=(2, 3))  # [B, T, h, w, C, 3, 3]
    response = np.einsum("bthwcij,ijcd->bthwd", windows, kernel)
    both = np.concatenate([np.maximum(response - 1, 0), np.maximum(1 - response, 0)], axis=-1)
    np.testing.assert_allclose(found, both.mean(axis=(1, 2, 3)), atol=1e-5)


def test_decibels():
    assert baselines.decibels(np.array([3.0, 4.0, 0.0, 0.1])) == pytest.approx([10 * np.log10(25), -20])
