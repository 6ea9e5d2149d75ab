"""Order of records: permutations, and streams in proportion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.order import Order, temperature_counts
from ringmoe_jax.errors import ConfigError


@given(size=st.integers(1, 200), epoch=st.integers(0, 9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_an_epoch_is_a_permutation(size, epoch, seed):
    assert sorted(Order(size, (seed,)).epoch(epoch)) == list(range(size))


def test_order_is_the_same_after_a_restart_and_differs_by_epoch_and_seed():
    first = [Order(100, (3, 1)).epoch(e) for e in range(3)]
    again = [Order(100, (3, 1)).epoch(e) for e in (0, 1, 2)]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], Order(100, (4, 1)).epoch(0))


def test_candidates_start_at_the_step_and_go_round_the_epoch():
    order = Order(5, (0,))
    epoch = order.epoch(1)
    assert list(order.candidates(5 + 3)) == [epoch[3], epoch[4], epoch[0], epoch[1], epoch[2]]


@pytest.mark.parametrize(
    ("weights", "temperature", "multiple", "wanted"),
    [
        ({"a": 70, "b": 20, "c": 10}, 1.0, 1, {"a": 21, "b": 6, "c": 3}),  # 30 images in proportion
        ({"a": 81, "b": 16, "c": 1}, 2.0, 1, {"a": 19, "b": 9, "c": 2}),  # 9 : 4 : 1 of 30 = 19.3, 8.6, 2.1
        ({"a": 70, "b": 20, "c": 10}, 1e9, 1, {"a": 10, "b": 10, "c": 10}),
        ({"a": 1e6, "b": 1, "c": 1}, 1.0, 1, {"a": 28, "b": 1, "c": 1}),  # nobody gets nothing
        ({"a": 70, "b": 20, "c": 10}, 1.0, 5, {"a": 20, "b": 5, "c": 5}),  # 4.2, 1.2, 0.6 fives
    ],
)
def test_temperature_counts_by_hand(weights, temperature, multiple, wanted):
    assert temperature_counts(weights, 10, temperature, multiple) == wanted


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6), st.floats(0.2, 10), st.integers(1, 4), st.integers(1, 8))
@settings(deadline=None, max_examples=100)
def test_temperature_counts_are_positive_multiples_with_the_right_sum(sizes, temperature, multiple, batch):
    weights = {str(i): size for i, size in enumerate(sizes)}
    counts = temperature_counts(weights, batch * multiple, temperature, multiple)
    assert sum(counts.values()) == batch * multiple * len(sizes)
    assert all(count > 0 and count % multiple == 0 for count in counts.values())
    assert all(counts[a] >= counts[b] for a in weights for b in weights if weights[a] > weights[b])


def test_impossible_counts():
    with pytest.raises(ConfigError, match="6 images a step for 3 streams on 4 shards"):
        temperature_counts({"a": 1, "b": 1, "c": 1}, 2, 1.0, 4)
