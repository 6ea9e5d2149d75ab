"""Models whose layers have lost experts: what is left computes what it did, and the rest is gone."""

import jax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models
from ringmoe_jax.errors import ConfigError
from tests.helpers.parameters import stirred
from tests.helpers.tiny import RINGMOE, batch

MOE = dict(specialised=2, collaborative=3, engine="dense")
WHOLE = RINGMOE | {"moe": MOE}
ONLY_FIRST = {"collaborative": ("100", "100")}  # of rgb and of s1_grd
OWN = {"collaborative": ("110", "011")}
GONE = {"collaborative": ("000", "000")}


def pruned(*layers, **moe):
    return RINGMOE | {"moe": MOE | {"allowed": layers} | moe}


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(models.build(model).shapes()))


def parameters(model):
    return stirred(models.build(model).shapes())


def one_expert(stage):
    width = 8 * 2**stage
    return 2 * 4 * width**2 + 5 * width + width  # two kernels, two biases, a column of the router


def test_parameters_of_pruned_experts_are_gone():
    whole = count(WHOLE)
    assert count(pruned({}, {}, {}, {})) == whole
    assert count(pruned(ONLY_FIRST, {}, {}, {})) == whole - 2 * one_expert(0)
    assert count(pruned(ONLY_FIRST, ONLY_FIRST, {}, GONE)) == whole - 4 * one_expert(0) - 3 * one_expert(1)
    assert count(pruned(OWN, {}, {}, {})) == whole  # every expert is still somebody's


def test_equal_neighbours_share_a_stack():
    blocks = lambda model: models.build(model).shapes()["backbone"]["stages"]  # noqa: E731
    uniform = blocks(pruned(*[ONLY_FIRST] * 4))
    assert [list(stage["blocks"]) for stage in uniform.values()] == [["run0"], ["run0"]]
    mixed = blocks(pruned(ONLY_FIRST, {}, {}, {}))
    assert [list(stage["blocks"]) for stage in mixed.values()] == [["run0", "run1"], ["run0"]]
    assert mixed["stage0"]["blocks"]["run0"]["ffn"]["collaborative"]["wi"].shape == (1, 1, 8, 32)


def test_layers_that_lost_as_many_share_a_stack_too():
    """What is left has equal shapes; statistics still tell which experts these were."""
    second = {"collaborative": ("010", "010")}
    model = pruned(ONLY_FIRST, second, second, ONLY_FIRST)
    stages = models.build(model).shapes()["backbone"]["stages"]
    assert [list(stage["blocks"]) for stage in stages.values()] == [["run0"], ["run0"]]
    routing = jax.jit(models.build(model).apply)(parameters(model), batch(WHOLE))["routing"]
    chosen = (routing["collaborative"].load.sum(axis=1) > 0).tolist()
    assert chosen == [[True, False, False], [False, True, False], [False, True, False], [True, False, False]]


def test_experts_of_another_modality_are_another_stack():
    rgb, sar = ({"specialised": rows} for rows in (("1010", "0100"), ("1000", "0101")))
    stages = models.build(pruned(rgb, sar, rgb, rgb)).shapes()["backbone"]["stages"]
    assert [list(stage["blocks"]) for stage in stages.values()] == [["run0", "run1"], ["run0"]]


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=pytest.mark.slow) for name in ("capacity", "dense", "dropless")]
)
def test_one_of_three_left_is_a_model_with_one(engine):
    moe = dict(engine=engine, groups=1)
    few = models.build(pruned(*[ONLY_FIRST] * 4, **moe))
    one = models.build(RINGMOE | {"moe": dict(specialised=2, collaborative=1) | moe})
    params, data = parameters(pruned(*[ONLY_FIRST] * 4)), batch(WHOLE)
    slim, small = jax.jit(few.apply)(params, data), jax.jit(one.apply)(params, data)
    jax.tree.map(assert_array_equal, slim["tokens"], small["tokens"])
    load = slim["routing"]["collaborative"].load
    assert load.shape == (4, 2, 3)
    assert_array_equal(load[..., :1], small["routing"]["collaborative"].load)
    assert not load[..., 1:].any()


@pytest.mark.slow
def test_an_absent_sensor_leaves_the_others_as_they_were():
    """Columns that only the other sensor may choose are skipped: the same numbers from fewer experts."""
    model = models.build(pruned(OWN, OWN, {}, GONE))
    params, data = parameters(pruned(OWN, OWN, {}, GONE)), batch(WHOLE)
    both = jax.jit(model.apply)(params, data)
    alone = jax.jit(model.apply)(params, {"sensors": {"s1_grd": data["sensors"]["s1_grd"]}})
    assert_allclose(alone["pooled"]["s1_grd"], both["pooled"]["s1_grd"], rtol=1e-5, atol=1e-6)
    assert_array_equal(alone["routing"]["collaborative"].load[:, 1], both["routing"]["collaborative"].load[:, 1])
    assert not both["routing"]["collaborative"].load[3].any()


@pytest.mark.slow
def test_measured_contributions_come_with_the_statistics():
    model = models.build(pruned(ONLY_FIRST, GONE, {}, {}, measure=True))
    params, data = parameters(pruned(ONLY_FIRST, GONE, {}, {})), batch(WHOLE)
    routing = jax.jit(model.apply)(params, data)["routing"]
    assert set(routing) == {"specialised", "collaborative", "shared"}
    collaborative, shared = routing["collaborative"], routing["shared"]
    assert_array_equal(collaborative.contribution.norm > 0, collaborative.load > 0)
    assert not collaborative.contribution.norm[1].any()
    assert_allclose(shared.load[..., 0], shared.tokens)
    assert shared.contribution.norm.shape == (4, 2, 1)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{}, {}], r"model.moe.allowed has 2 entries, the model 4 layers: give one each"),
        ([{"collaborativ": ("1", "1")}, {}, {}, {}], r'allowed\[0\].collaborativ: .* did you mean "collaborative"'),
        ([{"collaborative": ("11", "11")}, {}, {}, {}], "wanted 2 strings of 3 characters 0 or 1"),
        ([{}, {"collaborative": ("000", "100")}, {}, {}], "top-1 routing, but modality 0 may choose 0 of 3 experts"),
    ],
)
def test_wrong_tables(layers, message):
    with pytest.raises(ConfigError, match=message):
        models.build(pruned(*layers)).shapes()
