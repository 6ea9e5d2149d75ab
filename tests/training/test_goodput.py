"""What the time of a run goes into, by a clock that the test sets."""

import pytest

from ringmoe_jax.training import goodput
from ringmoe_jax.training.goodput import COMPILATION, LOST, SAVING, STARTING, STEPS, Goodput


@pytest.fixture
def wait(monkeypatch):
    """Returns a function that lets seconds pass."""
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_steps_get_what_nothing_else_took(wait):
    clock = Goodput()
    wait(3)
    clock.start()
    with clock.on(COMPILATION):
        wait(5)
    wait(10)
    for _ in range(2):
        with clock.on(SAVING):
            wait(1)
    assert clock.seconds == {STEPS: 10, STARTING: 3, COMPILATION: 5, SAVING: 2}
    assert clock.scalars["perf/goodput"] == 0.5
    assert clock.scalars["perf/seconds"] == 20
    assert clock.scalars["perf/seconds/saving"] == 2
    assert str(clock) == "20.0 s: 50.0% in steps, 25.0% compilation, 15.0% starting, 10.0% saving"


def test_steps_after_the_last_checkpoint_are_lost(wait):
    """An attempt of 3 s of starting and 10 s of steps was saved, and logged 4 s more before it was killed."""
    clock = Goodput()
    wait(2)
    clock.resume({STEPS: 10, STARTING: 3}, logged=17)
    wait(1)
    clock.start()
    wait(6)
    assert clock.seconds == {STEPS: 16, STARTING: 6, LOST: 4}
    again = Goodput()
    again.resume(clock.seconds, logged=26)
    again.start()
    assert again.seconds == {STEPS: 16, STARTING: 6, LOST: 4}


def test_the_first_call_of_a_program_is_its_compilation(wait):
    """A pruned model has another train step."""
    clock = Goodput()
    for step in (min, min, max, max):
        with clock.calling(step):
            wait(1)
    assert clock.seconds == {STEPS: 2, COMPILATION: 2}
