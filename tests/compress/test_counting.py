"""A pass that counts what experts do: the same sums whether or not it was stopped, and images of nothing count none."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, sensors
from ringmoe_jax.compress import Usage, counting
from ringmoe_jax.errors import ConfigError, DataError
from tests.helpers import tiny_networks
from tests.helpers.tiny import batch
from tests.helpers.tiny_networks import network

ONE = tiny_networks.ONE | {"depths": (1,)}
MEASURED = counting.measuring(ONE)
TABLE = sensors.resolve(ONE["sensors"])


@pytest.fixture(scope="module")
def model():
    return models.build(MEASURED)


@pytest.fixture(scope="module")
def params():
    return network(ONE).params


@pytest.fixture(scope="module")
def readers():
    """Three batches of two images, the last one of which is no image."""
    batches = [jax.device_get(batch(ONE, seed=seed)) for seed in range(3)]
    entry = batches[-1]["sensors"]["rgb"]
    batches[-1] = {"sensors": {"rgb": entry | {"valid": entry["valid"] & np.array([True, False])[:, None, None, None]}}}
    return {"rgb": batches}


def without_balance(usage):
    return {group: s._replace(balance=0.0) for group, s in usage.statistics.items()}


def test_the_config_that_measures():
    assert MEASURED["moe"] == ONE["moe"] | {"measure": True, "engine": "dropless"}


@pytest.fixture(scope="module")
def whole(model, params, readers, tmp_path_factory):
    """A pass that was not stopped, and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("whole")
    return counting.count(model, params, TABLE, readers, folder), folder


def test_images_that_show_nothing_are_taken_off(model, params, readers, whole):
    """Beside one pass over the five images that there are."""
    usage, folder = whole
    assert usage.images == {"optical": 5}
    entries = [b["sensors"]["rgb"] for b in readers["rgb"]]
    joined = jax.tree.map(lambda *x: np.concatenate(x)[:5], *entries)
    routing = jax.device_get(jax.jit(model.apply)(params, {"sensors": {"rgb": joined}})["routing"])
    for group, sums in usage.statistics.items():
        assert_array_equal(sums.load, routing[group].load)
        assert_array_equal(sums.tokens, routing[group].tokens)
        assert_allclose(sums.gate, routing[group].gate, rtol=1e-5, atol=1e-4)
    assert [path.name for path in folder.iterdir()] == ["usage.npz"]


def test_a_pass_that_was_stopped_goes_on_exactly(model, params, readers, whole, tmp_path, monkeypatch):
    (whole, _), folder = whole, tmp_path
    monkeypatch.setattr(counting, "EVERY", 1)
    save = Usage.save

    def killed(self, path):
        save(self, path)
        if "2" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Usage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        counting.count(model, params, TABLE, readers, folder)
    monkeypatch.setattr(Usage, "save", save)
    assert sorted(path.name for path in folder.iterdir()) == ["usage.1.npz", "usage.2.npz"]
    seen = []
    monkeypatch.setattr(Usage, "add", lambda self, r, n, add=Usage.add: seen.append(n) or add(self, r, n))
    resumed = counting.count(model, params, TABLE, readers, folder)
    assert seen == [{"optical": 1}]
    assert resumed.images == whole.images
    jax.tree.map(assert_array_equal, *map(without_balance, (resumed, whole)))
    assert [path.name for path in folder.iterdir()] == ["usage.npz"]
    jax.tree.map(assert_array_equal, resumed.statistics, counting.load(folder / "usage.npz", ("optical",)).statistics)


def test_no_image_at_all(model, params, readers, tmp_path):
    entry = readers["rgb"][0]["sensors"]["rgb"]
    blank = {"sensors": {"rgb": entry | {"valid": np.zeros_like(entry["valid"])}}}
    with pytest.raises(DataError, match="no image shows rgb"):
        counting.count(model, params, TABLE, {"rgb": [blank]}, tmp_path)


def test_statistics_of_something_else(tmp_path):
    Usage.none(("optical",)).save(tmp_path / "usage.npz")
    with pytest.raises(ConfigError, match="is about the modalities optical, wanted optical, sar"):
        counting.load(tmp_path / "usage.npz", ("optical", "sar"))
