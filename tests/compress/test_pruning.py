"""Which experts stay, worked by hand and by properties, and what the pruned network computes."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from ringmoe_jax import models
from ringmoe_jax.compress import Network, choose, prune, pruned_config
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models import count
from ringmoe_jax.models.network import layer_tables, read, split
from tests.helpers.tiny_networks import HEADS, LAYERS, MODEL, ONE, assert_equal, built, network, shapes, with_moe

FOUR = with_moe(ONE, specialised=0, collaborative=4)
TWO = FOUR | {"sensors": ("rgb", "s1_grd")}


def sized(model, parameters=100_000):
    """A network of which no more is known."""
    return Network(model, {"all": jax.ShapeDtypeStruct((parameters,), np.float32)})


def scores(*layers):
    """Importance of collaborative experts of one modality."""
    return {"collaborative": np.array(layers, float)[:, None]}


def rows(allowed):
    """[L] of what the first modality may choose; "" where the layer is whole."""
    return [layer.get("collaborative", ("",))[0] for layer in allowed] or [""] * LAYERS


ONES = [0.4, 0.3, 0.2, 0.1]
LEVEL = [0.25] * 4


@pytest.mark.parametrize(
    ("keep", "kept"), [(0.25, "1000"), (0.26, "1100"), (0.5, "1100"), (0.51, "1110"), (0.01, "1000"), (1.0, "")]
)
def test_a_quarter_rounded_up(keep, kept):
    assert rows(choose(sized(FOUR), scores(*[ONES] * LAYERS), keep=keep)) == [kept] * LAYERS


def test_ties_go_to_the_lower_expert():
    layers = [LEVEL, [0.1, 0.4, 0.4, 0.1], [0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]]
    assert rows(choose(sized(FOUR), scores(*layers), keep=0.5)) == ["1100", "0110", "1100", "0011"]


def test_top_k_stay():
    two = with_moe(FOUR, top_k=2)
    assert rows(choose(sized(two), scores(*[ONES] * LAYERS), keep=0.25)) == ["1100"] * LAYERS


def test_one_ranking_of_all_layers():
    """Layers in which one expert does all the work keep one; one in which nobody does anything loses all."""
    layers = [LEVEL, [0.97, 0.02, 0.01, 0], [0, 0.5, 0.5, 0], LEVEL]
    allowed = choose(sized(FOUR), scores(*layers), keep=11 / 16, scope="global")
    assert rows(allowed) == ["", "1000", "0110", ""]
    importance = scores(*layers) | {"shared": np.array([0, 0, 0, 1e6]).reshape(LAYERS, 1, 1)}  # does it all in layer 3
    assert rows(choose(sized(FOUR), importance, keep=7 / 16, scope="global")) == ["", "1000", "0110", "0000"]


def test_the_last_experts_go_together_or_stay():
    layers = [[0.3, 0.3, 0, 0], LEVEL, LEVEL, LEVEL]
    two = sized(with_moe(FOUR, top_k=2))
    assert rows(choose(two, scores(*layers), keep=10 / 16, scope="global")) == ["1100", "", "1100", "1100"]
    layers[0] = [0, 0, 0, 0]
    importance = scores(*layers) | {"shared": np.ones((LAYERS, 1, 1))}
    assert rows(choose(two, importance, keep=0.75, scope="global")) == ["0000", "", "", ""]


def test_modalities_alike_or_each_for_itself():
    optical, radar = [0.7, 0.2, 0.1, 0], [0, 0.1, 0.3, 0.6]
    importance = {"collaborative": np.array([[optical, radar]] * LAYERS)}
    alike = choose(sized(TWO), importance, keep=0.5)
    own = choose(sized(TWO), importance, keep=0.5, tables="own")
    assert alike[0] == {"collaborative": ("1001", "1001")}  # means 0.35, 0.15, 0.2, 0.3
    assert own[0] == {"collaborative": ("1100", "0011")}
    least = choose(sized(TWO), importance, keep=0.01, scope="global", tables="own")
    assert least[0] == {"collaborative": ("1000", "0001")}  # an expert of each modality's own stays
    assert rows(choose(sized(TWO), importance, keep=0.01, scope="global")) == ["1000", "0000", "0000", "0000"]


def test_specialised_experts_belong_to_somebody():
    """Laid out [N_S, M]: optical has 0 and 2, radar 1 and 3. Neither may lose both."""
    model = with_moe(TWO, specialised=2)
    importance = {"specialised": np.array([[[0.9, 0, 0.8, 0], [0, 0.1, 0, 0.2]]] * LAYERS)}
    allowed = choose(sized(model), importance, keep=0.5, groups=("specialised",))
    assert allowed[0] == {"specialised": ("1000", "0001")}


def test_a_second_pruning_starts_from_the_first():
    once = choose(sized(FOUR), scores(*[ONES] * LAYERS), keep=0.5)
    pruned = sized(pruned_config(FOUR, once))
    again = scores(*[[0.1, 0.2, 0.9, 0.9]] * LAYERS)  # of experts that are gone nothing counts
    assert rows(choose(pruned, again, keep=0.5)) == ["0100"] * LAYERS
    assert pruned_config(pruned.model, ({"collaborative": ("0110",)},) * LAYERS)["moe"]["allowed"][0] == {
        "collaborative": ("0100",)
    }
    assert pruned_config(pruned.model, ()) == pruned.model


EXPERT = [2 * 4 * d * d + 4 * d + 2 * d for d in (8, 8, 16, 16)]  # of each layer: kernels, biases, router
MOST = {("layer", "shared"): 3, ("global", "shared"): 4, ("layer", "own"): 2, ("global", "own"): 2}  # that can go


def size(model, whole):
    """Parameters by the tables."""
    lost = [4 - table["collaborative"].any(axis=0).sum() for table in layer_tables(read(model))]
    return whole - int(np.dot(lost, EXPERT))


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, (LAYERS, 2, 4), elements=st.floats(0, 1)), st.floats(0, 1), st.sampled_from(sorted(MOST)))
def test_a_target_is_met_but_not_by_more_than_a_step(importance, part, how):
    scope, tables = how
    network, given = sized(TWO), {"collaborative": importance}
    target = 100_000 - int(part * MOST[how] * sum(EXPERT))
    model = pruned_config(TWO, choose(network, given, parameters=target, scope=scope, tables=tables))
    assert size(model, 100_000) <= target
    kept = sum(table["collaborative"].sum() for table in layer_tables(read(model)))
    if kept < 8 * LAYERS:
        more = min(1.0, (kept + (2 * LAYERS if scope == "layer" else 1)) / (8 * LAYERS))
        assert size(pruned_config(TWO, choose(network, given, keep=more, scope=scope, tables=tables)), 100_000) > target


def test_sizes_are_those_of_the_built_model():
    importance = {"collaborative": np.random.default_rng(0).random((LAYERS, 2, 4))}
    model = pruned_config(TWO, choose(sized(TWO), importance, keep=0.4, scope="global"))
    shapes = models.build(TWO).shapes()
    assert 0 < count(models.build(model).shapes()) == size(model, count(shapes)) < count(shapes)


def test_all_of_it_is_the_same_network():
    whole = network(MODEL, HEADS)
    importance = {"collaborative": np.ones((LAYERS, 3, 3))}
    for scope, tables in itertools.product(("layer", "global"), ("shared", "own")):
        allowed = choose(whole, importance, keep=1.0, scope=scope, tables=tables)
        assert allowed == ()
        same = prune(whole, allowed)
        assert same.model == whole.model
        assert_equal(same.params, whole.params)


def test_what_stays_is_as_it_was():
    whole = network(MODEL, HEADS)
    own = {"collaborative": ("100", "001", "001"), "specialised": ("100100", "000010", "001001")}
    pruned = prune(whole, (own, {}, {"collaborative": ("000",) * 3}, {}))
    assert shapes(pruned.params) == shapes(built(pruned.model, HEADS)[1])
    kept = {"collaborative": [0, 2], "specialised": [0, 2, 3, 4, 5]}
    before, after = split(whole), split(pruned)
    for group, numbers in kept.items():
        for name, leaf in before[0]["ffn"].pop(group).items():
            assert_array_equal(after[0]["ffn"][group][name], leaf[..., numbers] if name == "router" else leaf[numbers])
        after[0]["ffn"].pop(group)
    before[2]["ffn"].pop("collaborative")
    assert_equal(after, before)  # and all else
    assert_equal(pruned.params["stems"], whole.params["stems"])


FINE = {"collaborative": np.ones((LAYERS, 1, 4))}


@pytest.mark.parametrize(
    ("importance", "how", "message"),
    [
        (FINE, {}, "keep = None and parameters = None: give one of them"),
        (FINE, dict(keep=0.5, parameters=10), "give one of them"),
        (FINE, dict(keep=0.0), "keep = 0.0: wanted a share of the experts above 0, at most 1"),
        (FINE, dict(keep=1.5), "keep = 1.5"),
        (FINE, dict(keep=0.5, scope="globe"), 'scope = "globe" does not exist: did you mean "global"'),
        (FINE, dict(keep=0.5, tables="mine"), 'tables = "mine" does not exist'),
        (FINE, dict(keep=0.5, groups=("specialised",)), 'no router group "specialised" to prune'),
        ({}, dict(keep=0.5), 'no importance of the router group "collaborative"'),
        (
            {"collaborative": np.ones((LAYERS, 1, 3))},
            dict(keep=0.5),
            r"shape \(4, 1, 3\), the model \(4, 1, 4\)",
        ),
        ({"collaborative": -FINE["collaborative"]}, dict(keep=0.5), "negative or not finite"),
        (FINE, dict(parameters=10), r"parameters = 10 cannot be reached: \d+ are left when collaborative experts"),
        (FINE, dict(parameters=10, scope="global"), "parameters = 10 cannot be reached"),
    ],
)
def test_wrong_choices(importance, how, message):
    with pytest.raises(ConfigError, match=message):
        choose(sized(FOUR), importance, **how)


def test_wrong_tables():
    with pytest.raises(ConfigError, match=r"allowed\[0\].collaborative"):
        pruned_config(FOUR, ({"collaborative": ("10",)},) + ({},) * 3)
    with pytest.raises(ConfigError, match=r'model.name = "skysense" cannot be compressed'):
        pruned_config({"name": "skysense"}, ())
