"""The average of the parameters against its sum by hand."""

import jax.numpy as jnp
from numpy.testing import assert_allclose

from ringmoe_jax.pretext import Pretext
from ringmoe_jax.pretext.averaged import averaged


def task():
    def apply(params, state, batch, *, key, train):
        return {"seen": state["own"]}, state | {"own": state["own"] + 1}

    return Pretext(
        apply,
        init=lambda params, key: (params | {"extra": jnp.ones(2)}, {"own": 0}),
        after=lambda params, state: state | {"own": 10 * state["own"]},
        export=lambda params, state: {name: value for name, value in params.items() if name != "extra"},
    )


def test_it_is_the_weighted_mean_and_the_task_keeps_its_state():
    passes = averaged(task(), 0.9)
    params, state = passes.init({"w": jnp.zeros(1)}, None)
    mean = 0.0
    for step in range(1, 201):
        outputs, state = passes.apply(params, state, {}, key=None, train=True)
        assert outputs["seen"] == 0
        assert state["own"] == 1
        state = passes.after({"w": jnp.full(1, float(step)), "extra": jnp.ones(2)}, state)
        assert state["own"] == 10
        state["own"] = 0
        m = min(0.9, step / (step + 9))
        mean = m * mean + (1 - m) * step
    exported = passes.export(params, state)
    assert set(exported) == {"w"}
    assert_allclose(exported["w"], [mean], rtol=1e-5)
    assert_allclose(mean, 200 - 9, rtol=1e-3)  # of a ramp it lags momentum / (1 - momentum) steps behind
