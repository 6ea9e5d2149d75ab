import numpy as np

from ringmoe_jax.evaluate import routing
from ringmoe_jax.moe.statistics import Statistics

# Two layers, two modalities, four experts; modality 0 may choose 0 and 2, modality 1 may choose 1 and 3.
LOAD = np.array([[[3, 0, 1, 0], [0, 6, 0, 0]], [[4, 0, 0, 0], [0, 3, 0, 3]]], np.float32)
PROBABILITY = np.array([[[2.0, 0, 2, 0], [0, 5, 0, 1]]] * 2, np.float32)


def statistics(**changes):
    values = dict(
        tokens=np.array([[4, 6]] * 2, np.float32),
        load=LOAD,
        probability=PROBABILITY,
        dropped=np.array([[1, 0], [2, 3]], np.float32),
        entropy=np.array([[2, 3], [4, 0.6]], np.float32),
        gate=np.ones((2, 2), np.float32),
        balance=np.ones(2, np.float32),
    )
    return Statistics(**values | changes)


def test_loads_are_shares_of_a_modality_and_layer():
    group = routing.summarise({"specialised": statistics()})["specialised"]
    nan = np.nan
    wanted = [[[0.75, nan, 0.25, nan], [nan, 1, nan, 0]], [[1, nan, 0, nan], [nan, 0.5, nan, 0.5]]]
    np.testing.assert_allclose(group.load, wanted)
    np.testing.assert_allclose(group.drop_rate, [[0.25, 0], [0.5, 0.5]])
    np.testing.assert_allclose(group.entropy, [[0.5, 0.5], [1.0, 0.1]], rtol=1e-6)
    assert group.dead == ((0, 3), (1, 2))
    assert group.tokens.tolist() == [8, 12]


def test_a_modality_that_was_not_seen_has_no_dead_experts():
    unseen = statistics(
        tokens=np.array([[4, 0]] * 2, np.float32), load=LOAD * [[[1], [0]]], probability=PROBABILITY * [[[1], [0]]]
    )
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
