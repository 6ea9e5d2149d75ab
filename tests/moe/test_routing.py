"""Routing and dispatch against matrices worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.moe_ffn import MoEConfig
from ringmoe_jax.moe import dispatch, parallel, routing, statistics, table
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing

# Three tokens, three experts. The router's kernel is the identity, so a token is its own logits.
LOGITS = np.log([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.7, 0.2, 0.1]]).astype(np.float32)
ONE = np.ones((1, 3), bool)
NOBODY = np.zeros(3, np.int32)


def placed(chosen, experts, rows, priority=None):
    """Choices in buffers of equal size, side by side."""
    choices = dispatch.sort(chosen, experts, priority)
    return dispatch.fill(choices, np.full(experts, rows), rows * np.arange(experts), chosen.shape)


def multiply_experts(factors):
    """Experts that multiply a non-negative one-channel token: x -> f x, exactly, through the biases' room."""
    # gelu(x + 50) = x + 50 in float32, so wo = f and bo = -50 f give f x.
    n = len(factors)
    f = jnp.asarray(factors, jnp.float32).reshape(n, 1, 1)
    return Experts(jnp.ones((n, 1, 1)), jnp.full((n, 1), 50.0), f, -50.0 * f[:, 0])


def test_a_token_of_nothing_chooses_nobody():
    some, modality = np.array([True, False, True]), np.array([0, routing.NOTHING, 0], np.int32)
    choice = routing.route(jnp.asarray(LOGITS), NOBODY, ONE, k=2, normalise_gates=True, observed=some)
    assert_array_equal(choice.experts, [[0, 1], [3, 3], [0, 1]])
    assert_allclose(choice.gates.sum(axis=1), [1, 0, 1], rtol=1e-6)
    sums = statistics.layer(choice, np.ones((3, 2), bool), modality, ONE)
    assert_array_equal(sums.tokens, [2])
    assert_array_equal(sums.load, [[2, 2, 0]])
    assert_allclose(sums.probability, np.exp(LOGITS)[[0, 2]].sum(axis=0, keepdims=True), rtol=1e-6)


def test_top1_keeps_the_softmax_probability():
    choice = routing.route(jnp.asarray(LOGITS), NOBODY, ONE, k=1)
    assert_array_equal(choice.experts, [[0], [0], [0]])
    assert_allclose(choice.gates, [[0.5], [0.6], [0.7]], rtol=1e-6)
    assert_allclose(choice.probabilities, np.exp(LOGITS), rtol=1e-6)


def test_a_low_temperature_decides_sooner_and_chooses_the_same():
    scores = jnp.asarray([[0.1, 0.3, 0.2]])
    plain, sharp = (
        routing.route(scores, NOBODY[:1], ONE, k=1, router=routing.SoftmaxTopK(temperature))
        for temperature in (1, 0.05)
    )
    assert plain.experts.tolist() == sharp.experts.tolist() == [[1]]
    assert_allclose(sharp.probabilities, jnp.exp(scores / 0.05) / jnp.exp(scores / 0.05).sum(), rtol=1e-5)
    assert plain.gates[0, 0] < 0.4
    assert sharp.gates[0, 0] > 0.8
    with pytest.raises(ConfigError, match="temperature = 0: wanted above 0"):
        routing.SoftmaxTopK(0)


def test_top1_normalised_gate_is_one_and_blind_to_the_router():
    def gate(logits):
        return routing.route(logits, NOBODY, ONE, k=1, normalise_gates=True).gates.sum()

    assert_allclose(gate(jnp.asarray(LOGITS)), 3.0, rtol=1e-6)
    assert_allclose(jax.grad(gate)(jnp.asarray(LOGITS)), np.zeros((3, 3)), atol=1e-7)


def test_top2_normalised():
    choice = routing.route(jnp.asarray(LOGITS), NOBODY, ONE, k=2, normalise_gates=True)
    assert_array_equal(choice.experts, [[0, 1], [0, 2], [0, 1]])
    assert_allclose(choice.gates, [[5 / 8, 3 / 8], [6 / 9, 3 / 9], [7 / 9, 2 / 9]], rtol=1e-5)


def test_a_bias_changes_the_choice_and_not_the_gate():
    """p + b is 0.2 0.3 0.26; 0.3 0.1 0.36; 0.4 0.2 0.16."""
    route = lambda bias: routing.route(jnp.asarray(LOGITS), NOBODY, ONE, k=1, bias=bias)  # noqa: E731
    choice = route(jnp.asarray([-0.3, 0.0, 0.06]))
    assert_array_equal(choice.experts, [[1], [2], [0]])
    assert_allclose(choice.gates, [[0.3], [0.3], [0.7]], rtol=1e-6)
    assert_allclose(choice.probabilities, np.exp(LOGITS), rtol=1e-6)
    assert_array_equal(jax.grad(lambda bias: route(bias).gates.sum())(jnp.zeros(3)), np.zeros(3))


def test_no_bias_lifts_an_expert_that_is_out_of_reach():
    modality, allowed = jnp.asarray([0, 1], jnp.int32), table.specialised(2, 2)
    choice = routing.route(jnp.zeros((2, 4)), modality, allowed, k=2, bias=jnp.asarray([-3.0, 9.0, -2.0, 9.0]))
    assert_array_equal(choice.experts, [[2, 0], [1, 3]])
    assert_allclose(choice.gates, 0.5)


def test_capacity_two_drops_the_last_token_and_serves_first_choices_first():
    """k = 2, C = 2. Expert 0 is everybody's first choice: tokens 0 and 1 get it, token 2 does not.

    Second choices: token 0 -> expert 1 (row 0), token 1 -> expert 2 (row 0), token 2 -> expert 1 (row 1).
    """
    choice = routing.route(jnp.asarray(LOGITS), NOBODY, ONE, k=2)
    d = placed(choice.experts, 3, 2)
    assert_array_equal(d.kept, [[True, True], [True, True], [False, True]])
    # Choice k * 3 + n of every row; 6 = empty row.
    assert_array_equal(np.asarray(d.choice).reshape(3, 2), [[0, 1], [3, 5], [4, 6]])
    assert_array_equal(d.slot, [[0, 2], [1, 4], [6, 3]])

    tokens = jnp.asarray([[1.0], [2.0], [4.0]])
    outputs, _ = parallel.run("capacity", tokens, [choice], [multiply_experts([1.0, 10.0, 100.0])], [2])
    by_hand = [[0.5 * 1 + 0.3 * 10], [0.6 * 2 + 0.3 * 200], [0.2 * 40]]
    assert_allclose(outputs, by_hand, rtol=2e-4)


def test_priority_drops_the_least_confident_token():
    """The same routing with batch priority: expert 0 serves its most confident tokens, 2 and 1, not 0."""
    choice = routing.route(jnp.asarray(LOGITS), NOBODY, ONE, k=2)
    d = placed(choice.experts, 3, 2, priority=choice.gates.max(axis=1))
    assert_array_equal(d.kept, [[False, True], [True, True], [True, True]])
    assert_array_equal(np.asarray(d.choice).reshape(3, 2), [[2, 1], [5, 3], [4, 6]])


def test_one_product_scores_all_router_groups():
    tokens = jax.random.normal(jax.random.key(0), (5, 4))
    kernels = [jax.random.normal(jax.random.key(i), (4, e)) for i, e in ((1, 3), (2, 2))]
    for scores, kernel in zip(routing.logits(tokens, kernels), kernels, strict=True):
        assert_allclose(scores, np.asarray(tokens) @ np.asarray(kernel), rtol=1e-5, atol=1e-5)


def test_modalities_choose_only_their_own_experts():
    allowed = table.specialised(3, 2)
    assert_array_equal(allowed[1], [False, True, False, False, True, False])  # expert = s * M + m
    modality = jnp.asarray([0, 1, 2, 2], jnp.int32)
    tokens = jax.random.normal(jax.random.key(0), (4, 5))
    choice = routing.route(tokens @ jax.random.normal(jax.random.key(1), (5, 6)), modality, allowed, k=2)
    assert_array_equal(np.asarray(choice.experts) % 3, np.asarray(modality)[:, None].repeat(2, 1))
    assert_allclose(choice.probabilities.sum(axis=1), 1.0, rtol=1e-6)
    assert np.all(np.asarray(choice.probabilities)[~allowed[modality]] == 0)


def test_ties_go_to_the_lower_index():
    choice = routing.route(jnp.zeros((2, 3)), NOBODY[:2], ONE, k=2)
    assert_array_equal(choice.experts, [[0, 1], [0, 1]])


def test_too_few_experts_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"top-3 routing, but modality 0 may choose 2 of 4 experts"):
        table.check(table.specialised(2, 2), 3)


@pytest.mark.parametrize(
    ("allowed", "tokens", "k", "factor", "rows"),
    [
        (table.collaborative(1, 4), (100,), 1, 1.2, 30),  # ceil(1 * 100 * 1.2 / 4), the released formula
        (table.collaborative(2, 4), (60, 40), 2, 1.2, 60),
        (table.specialised(4, 4), (25, 25, 25, 25), 1, 1.2, 8),  # ceil(25 * 1.2 / 4) = ceil(7.5)
        (table.specialised(2, 4), (80, 20), 1, 1.0, 20),  # the busier modality sets the size
        (table.collaborative(1, 4), (10,), 1, 100.0, 10),  # never more rows than tokens
    ],
)
def test_capacity_formula(allowed, tokens, k, factor, rows):
    assert table.capacity(allowed, tokens, k, factor) == rows


def test_submodel_is_a_slice_of_the_table():
    assert_array_equal(table.reachable(table.specialised(3, 2), (1,)), [1, 4])
    assert_array_equal(table.reachable(table.collaborative(3, 4), (1,)), [0, 1, 2, 3])


def test_statistics_by_hand():
    """Four tokens of two modalities on collaborative experts, capacity 1: two choices are dropped."""
    probabilities = np.asarray([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]], np.float32)
    modality = jnp.asarray([0, 0, 1, 1])
    allowed = table.collaborative(2, 2)
    choice = routing.route(jnp.log(probabilities), modality, allowed, k=1)
    kept = placed(choice.experts, 2, 1).kept
    s = statistics.layer(choice, kept, modality, allowed)
    assert_array_equal(s.tokens, [2, 2])
    assert_array_equal(s.load, [[2, 0], [1, 1]])
    assert_array_equal(s.dropped, [1, 1])
    assert_allclose(s.probability, [[1.7, 0.3], [1.1, 0.9]], rtol=1e-6)
    assert_allclose(s.gate, [[1.7, 0], [0.7, 0.6]], rtol=1e-6)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    assert_allclose(s.entropy, [entropy[:2].sum(), entropy[2:].sum()], rtol=1e-5)
    # f = (3/4, 1/4), P = (2.8/4, 1.2/4): 2 * (0.75 * 0.7 + 0.25 * 0.3)
    assert_allclose(s.balance, 2 * (0.75 * 0.7 + 0.25 * 0.3), rtol=1e-6)


def test_balance_of_specialised_experts_is_the_mean_over_modalities_that_are_there():
    allowed = table.specialised(3, 2)
    load = np.asarray([[4, 0, 0, 4, 0, 0], [0, 8, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    value = statistics.balance_loss(jnp.asarray([8.0, 8.0, 0.0]), jnp.asarray(load), jnp.asarray(load), allowed)
    assert_allclose(value, (1.0 + 2.0) / 2, rtol=1e-6)  # balanced: 1; all on one of two: 2; absent: not counted


def test_balance_pushes_probability_away_from_the_busy_expert():
    allowed = table.collaborative(1, 2)
    slope = jax.grad(lambda p: statistics.balance_loss(jnp.asarray([4.0]), jnp.asarray([[3.0, 1.0]]), p, allowed))(
        jnp.asarray([[2.0, 2.0]])
    )
    assert slope[0, 0] > slope[0, 1] > 0


@pytest.mark.parametrize(
    ("load", "reach", "excess"),
    [
        ([[2, 0], [1, 1]], [[2, 2], [2, 2]], [1, -1]),  # one router: 3 and 1 of 4
        ([[4, 0, 0, 0], [0, 1, 0, 3]], [[4, 0, 4, 0], [0, 4, 0, 4]], [2, -1, -2, 1]),  # each modality by itself
        ([[4, 0, 0], [0, 2, 2]], [[4, 4, 0], [0, 4, 4]], [2, -2, 0]),  # even: 2, 2 + 2, 2
        ([[3, 1], [0, 0]], [[4, 4], [0, 0]], [1, -1]),  # who is absent asks for nothing
    ],
)
def test_excess_by_hand(load, reach, excess):
    load, reach = (np.asarray(x, np.float32) for x in (load, reach))
    s = statistics.nothing(*load.shape)._replace(load=load, reach=reach)
    assert_array_equal(statistics.excess(s), excess)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), s)
    assert_array_equal(statistics.excess(stacked), [excess, np.zeros(len(excess))])


def test_expand_puts_a_slice_back():
    s = statistics.nothing(3, 2)._replace(load=jnp.ones((3, 2)))
    assert_array_equal(statistics.expand(s, np.asarray([1, 4]), 6).load[0], [0, 1, 0, 0, 1, 0])


def test_reach_is_what_the_table_allows_unless_a_router_says_otherwise():
    modality, allowed = jnp.asarray([0, 1, 1], jnp.int32), table.specialised(2, 2)
    choice = routing.route(jnp.zeros((3, 4)), modality, allowed, k=1)
    assert_array_equal(
        statistics.layer(choice, jnp.ones((3, 1), bool), modality, allowed).reach, [[1, 0, 1, 0], [0, 2, 0, 2]]
    )
    near = choice._replace(reach=jnp.asarray([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1]], bool))
    assert_array_equal(
        statistics.layer(near, jnp.ones((3, 1), bool), modality, allowed).reach, [[1, 0, 0, 0], [0, 2, 0, 1]]
    )


@pytest.mark.parametrize("engine", ["dense", "capacity", "blocks"])
def test_a_choice_of_nobody_adds_nothing_takes_no_row_and_is_not_dropped(engine):
    """Two router groups of two experts in two token groups; index 2 is nobody."""
    first = Routing(jnp.asarray([[2], [0], [0], [2]]), jnp.asarray([[0.0], [1.0], [1.0], [0.0]]), jnp.full((4, 2), 0.5))
    second = Routing(
        jnp.asarray([[0], [2], [1], [0]]), jnp.asarray([[1.0], [0.0], [1.0], [1.0]]), jnp.full((4, 2), 0.5)
    )
    tokens = jnp.asarray([[1.0], [2.0], [4.0], [8.0]])
    experts = [multiply_experts([1.0, 10.0]), multiply_experts([100.0, 1000.0])]
    outputs, kept = parallel.run(engine, tokens, [first, second], experts, [1, 1], groups=2)
    assert_allclose(outputs, [[100.0], [2.0], [4.0 + 4000.0], [800.0]], rtol=2e-4)
    for choice, rows in zip((first, second), kept, strict=True):
        s = statistics.layer(choice, rows, jnp.zeros(4, jnp.int32), np.ones((1, 2), bool))
        assert_array_equal(s.dropped, [0])
        assert_array_equal(s.load.sum(), np.sum(np.asarray(choice.experts) < 2))


def test_unknown_routers_and_their_fields_are_named():
    with pytest.raises(
        ConfigError, match=r'moe.router.name = "softmax_topk" does not exist: did you mean "softmax_top_k"'
    ):
        MoEConfig(router={"name": "softmax_topk"})
    with pytest.raises(ConfigError, match=r"config.model.moe.router.k does not exist"):
        MoEConfig(router={"k": 2})
