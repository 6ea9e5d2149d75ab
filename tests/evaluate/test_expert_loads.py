import jax
import numpy as np
import pytest

from ringmoe_jax.evaluate import routing
from ringmoe_jax.moe.statistics import RoutingStatistics
from ringmoe_jax.training.metrics import MetricsWriter, read
from ringmoe_jax.training.step import routing_metrics

# Two layers, two modalities, four experts; modality 0 may choose 0 and 2, modality 1 may choose 1 and 3.
LOAD = np.array([[[3, 0, 1, 0], [0, 6, 0, 0]], [[4, 0, 0, 0], [0, 3, 0, 3]]], np.float32)
REACH = np.array([[[4, 0, 4, 0], [0, 6, 0, 6]]] * 2, np.float32)
PROBABILITY = np.array([[[2.0, 0, 2, 0], [0, 5, 0, 1]]] * 2, np.float32)


def statistics(**changes):
    values = dict(
        tokens=np.array([[4, 6]] * 2, np.float32),
        load=LOAD,
        probability=PROBABILITY,
        reach=REACH,
        dropped=np.array([[1, 0], [2, 3]], np.float32),
        entropy=np.array([[2, 3], [4, 0.6]], np.float32),
        gate=np.array([[[1, 0, 1, 0], [0, 3, 0, 0]], [[1, 0, 0, 0], [0, 2, 0, 4]]], np.float32),
        balance=np.ones(2, np.float32),
    )
    return RoutingStatistics(**values | changes)


def test_loads_are_shares_of_a_modality_and_layer():
    group = routing.summarise({"specialised": statistics()})["specialised"]
    nan = np.nan
    wanted = [[[0.75, nan, 0.25, nan], [nan, 1, nan, 0]], [[1, nan, 0, nan], [nan, 0.5, nan, 0.5]]]
    np.testing.assert_allclose(group.load, wanted)
    np.testing.assert_allclose(group.drop_rate, [[0.25, 0], [0.5, 0.5]])
    np.testing.assert_allclose(group.entropy, [[0.5, 0.5], [1.0, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(group.gate, [[0.5, 0.5], [0.25, 1.0]])
    assert group.dead == ((0, 3), (1, 2))
    assert group.tokens.tolist() == [8, 12]


def test_a_modality_that_was_not_seen_has_no_dead_experts():
    unseen = statistics(tokens=np.array([[4, 0]] * 2, np.float32), load=LOAD * [[[1], [0]]], reach=REACH * [[[1], [0]]])
    group = routing.summarise({"g": unseen})["g"]
    assert np.isnan(group.load[:, 1]).all()
    assert np.isnan(group.entropy[:, 1]).all()
    assert group.dead == ((1, 2),)


def test_batches_add_up_in_double_precision():
    big = statistics(load=np.full((2, 2, 4), 2.0**24, np.float32))
    one = statistics(load=np.ones((2, 2, 4), np.float32))
    total = routing.add([{"g": big}, {"g": one}])["g"]
    assert (total.load == 2**24 + 1).all()  # float32 would have lost the one
    assert total.tokens.tolist() == [[8, 12], [8, 12]]


def test_history_reads_what_training_logs(tmp_path):
    """From sums to logged records and back: two layers, modality 1 absent in the second record."""
    writer = MetricsWriter(tmp_path)
    here = np.array([1, 0])
    names = ("tokens", "dropped", "entropy")
    second = statistics(
        **{name: getattr(statistics(), name) * here for name in names},
        **{name: getattr(statistics(), name) * here[:, None] for name in ("load", "probability", "reach", "gate")},
    )
    for step, sums in ((10, statistics()), (20, second)):
        metrics = jax.device_get(jax.jit(routing_metrics)({"specialised": sums}))
        writer.write(step, *({k: v for k, v in metrics.items() if (np.ndim(v) > 0) == t} for t in (False, True)))
    writer.close()
    records = read(tmp_path)
    assert records[0]["moe/specialised/dead"] == pytest.approx(1 / 4)
    assert records[0]["moe/specialised/drop_rate"] == pytest.approx(6 / 20)
    series = routing.history(records)["specialised"]
    assert series["step"].tolist() == [10, 20]
    np.testing.assert_allclose(series["drop_rate"], [[0.375, 0.25], [0.375, np.nan]], atol=1e-4)
    np.testing.assert_allclose(series["max_load"], [[1.75, 1.5], [1.75, np.nan]], atol=1e-3)
    assert series["most_entropy"].shape == (2, 2)
    assert np.isnan(series["most_entropy"]).tolist() == [[False, False], [False, True]]
    np.testing.assert_allclose(series["gate"][0], [0.375, 0.75], atol=1e-4)
