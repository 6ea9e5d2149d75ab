"""What is known of a model's use of its experts: sums, files, and importances worked by hand."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models
from ringmoe_jax.compress import Usage, importance
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.moe.contribution import Contribution
from ringmoe_jax.moe.statistics import RoutingStatistics
from tests.helpers.tiny import batch
from tests.helpers.tiny_networks import LAYERS, ONE, network, with_moe

MODALITIES = ("optical", "sar_l2")


def statistics(load, gate, tokens, norm=None):
    """One layer, two modalities, three experts."""
    one = np.zeros((1, 2))
    measured = None if norm is None else Contribution(np.array([norm], np.float32), np.ones((1, 2, 3, 4), np.float32))
    load, gate, tokens = (np.array([x], np.float32) for x in (load, gate, tokens))
    return {
        "collaborative": RoutingStatistics(
            tokens, load, gate, tokens[..., None] + 0 * load, one, one, gate, np.zeros(1), measured
        )
    }


FIRST = statistics([[3, 1, 0], [0, 0, 2]], [[1.5, 0.5, 0], [0, 0, 2]], [4, 2], [[6, 8, 0], [0, 0, 1]])
SECOND = statistics([[1, 3, 0], [2, 0, 0]], [[0.5, 0.5, 0], [1, 0, 0]], [4, 2], [[2, 0, 0], [2, 0, 0]])


@pytest.fixture
def usage():
    return Usage.none(MODALITIES).add(FIRST, {"optical": 2, "sar_l2": 1}).add(SECOND, {"optical": 2, "sar_l2": 1})


def test_importances_by_hand(usage):
    assert usage.images == {"optical": 4, "sar_l2": 2}
    assert_allclose(importance(usage, "frequency")["collaborative"], [[[0.5, 0.5, 0], [0.5, 0, 0.5]]])
    assert_allclose(importance(usage, "gate")["collaborative"], [[[0.25, 0.125, 0], [0.25, 0, 0.5]]])
    assert_allclose(importance(usage, "norm")["collaborative"], [[[1, 1, 0], [0.5, 0, 0.25]]])
    assert importance(usage, "norm")["collaborative"].dtype == np.float64


def test_sums_are_exact_beyond_float32():
    usage = Usage.none(MODALITIES)
    big = statistics([[2**24, 0, 0]] * 2, [[0] * 3] * 2, [2**24] * 2)
    one = statistics([[1, 0, 0]] * 2, [[0] * 3] * 2, [1] * 2)
    for batch_ in (big, one, one):
        usage = usage.add(batch_, {"optical": 1})
    assert usage.statistics["collaborative"].load[0, 0, 0] == 2**24 + 2


def test_files(usage, tmp_path):
    for kept in (usage, Usage.none(MODALITIES)):
        kept.save(tmp_path / "usage.npz")
        back = Usage.load(tmp_path / "usage.npz")
        assert (back.modalities, back.images) == (kept.modalities, kept.images)
        assert jax.tree.structure(back.statistics) == jax.tree.structure(kept.statistics)
        jax.tree.map(assert_array_equal, back.statistics, kept.statistics)
    assert [path.name for path in tmp_path.iterdir()] == ["usage.npz"]


def test_files_of_earlier_versions_say_who_was_in_reach(usage, tmp_path):
    usage.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        np.savez(tmp_path / "old.npz", **{name: x for name, x in file.items() if not name.endswith("/reach")})
    back = Usage.load(tmp_path / "old.npz").statistics["collaborative"]
    assert_array_equal(back.reach, [[[8, 8, 0], [4, 0, 4]]])  # the third expert, the second: no probability in either
    assert_array_equal(back.load, usage.statistics["collaborative"].load)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no file"):
        Usage.load(tmp_path / "usage.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=1)
    for name in ("text.npz", "other.npz"):
        with pytest.raises(DataError, match="is no record of how a model uses its experts"):
            Usage.load(tmp_path / name)


def test_of_a_model():
    measured = network(with_moe(ONE, measure=True))
    built = models.build(measured.model)
    routing = jax.jit(lambda p, b: built.apply(p, b)["routing"])(measured.params, batch(ONE))
    usage = Usage.none(("optical",)).add(routing, {"optical": 2})
    found = importance(usage, "frequency")
    assert {group: values.shape for group, values in found.items()} == {
        "specialised": (LAYERS, 1, 2),
        "collaborative": (LAYERS, 1, 3),
        "shared": (LAYERS, 1, 1),
    }
    for values in found.values():
        assert_allclose(values.sum(axis=-1), 1, rtol=1e-6)
    assert (importance(usage, "gate")["collaborative"] <= found["collaborative"]).all()


def test_wrong_usage(usage):
    with pytest.raises(ConfigError, match=r'no importance "gat": did you mean "gate"\?'):
        importance(usage, "gat")
    with pytest.raises(DataError, match="no image was looked at"):
        importance(Usage.none(MODALITIES), "gate")
    with pytest.raises(DataError, match="no image of sar_l2 was looked at"):
        importance(Usage.none(MODALITIES).add(FIRST, {"optical": 4}), "gate")
    plain = {"collaborative": FIRST["collaborative"]._replace(contribution=None)}
    with pytest.raises(ConfigError, match=r"set model.moe.measure = True"):
        importance(Usage.none(MODALITIES).add(plain, {"optical": 1, "sar_l2": 1}), "norm")
    with pytest.raises(DataError, match="gave no routing statistics"):
        usage.add({}, {"optical": 1})
    with pytest.raises(DataError, match="routing statistics of another model"):
        usage.add(plain, {"optical": 1})
    with pytest.raises(DataError, match="statistics of 2 modalities, wanted those of optical"):
        Usage.none(("optical",)).add(FIRST, {"optical": 1})
    with pytest.raises(DataError, match='the modality "sar": did you mean "sar_l2"'):
        usage.add(FIRST, {"sar": 1})
