"""Work ahead in a thread: the same items, no more of them than asked for, errors where they belong, and an end."""

import threading
import time

import pytest

from ringmoe_jax.deploy.overlap import Ahead


def counted(made, stop=10, error=None):
    """0, 1, ... up to `stop`, each noted in `made`; then the error, or the end. Notes when it is closed."""
    try:
        for i in range(stop):
            made.append(i)
            yield i
        if error:
            raise error
    finally:
        made.append("closed")


def test_items_come_in_order_and_then_the_end():
    with Ahead(counted([]), 2) as items:
        assert list(items) == list(range(10))
        assert list(items) == []  # and again
    assert items.busy >= 0
    assert items.waited >= 0


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_comes_where_its_item_would_have_come(error):
    with Ahead(counted([], 3, error), 5) as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(type(error)) as raised:
                next(items)
            assert raised.value is error


def test_it_is_so_far_ahead_and_no_further():
    made = []
    with Ahead(counted(made), 2) as items:
        assert next(items) == 0
        time.sleep(0.2)
        assert made == [0, 1, 2, 3]  # one was taken, two wait, one is in the thread's hands
    assert made[-1] == "closed"


def test_leaving_ends_both_threads_of_a_chain():
    before, made = threading.active_count(), []

    def doubled(source):
        with source:
            yield from (2 * i for i in source)

    def fails():
        with Ahead(doubled(Ahead(counted(made, 10**9), 1)), 1) as items:
            assert [next(items), next(items)] == [0, 2]
            raise RuntimeError("the caller")

    with pytest.raises(RuntimeError, match="the caller"):
        fails()
    assert made[-1] == "closed"
    assert threading.active_count() == before


def test_waiting_is_timed():
    def slow():
        time.sleep(0.2)
        yield 1
        yield 2

    with Ahead(slow(), 1) as items:
        assert list(items) == [1, 2]
    assert items.busy > 0.15
    assert items.waited > 0.1
