"""Every engine gives the values and gradients of the dense reference where nothing is dropped."""

import functools
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.moe_ffn import MoEConfig
from ringmoe_jax.moe import experts as expert_ops
from ringmoe_jax.moe import parallel
from ringmoe_jax.moe.engines import blocks, ranges
from ringmoe_jax.moe.engines.dropless import _say, choose
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel import hlo
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.planning import ahead

N, D, F, E, K = 40, 4, 8, 4, 2
MESHES = [(2, 2, 2), (1, 1, 4), *(pytest.param(m, marks=pytest.mark.slow) for m in ((8, 1, 1), (1, 2, 4)))]
DROPLESS = ["ranges", "blocks", "ragged", "megablox"]


def random_experts(seed, experts=E):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = ((experts, D, F), (experts, F), (experts, F, D), (experts, D))
    return Experts(*(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)))


def chosen(experts, gates):
    experts, gates = jnp.asarray(experts, jnp.int32), jnp.asarray(gates, jnp.float32)
    return Routing(experts, gates, jnp.full((len(experts), E), 1 / E))


def random_choice(seed=0, n=N):
    rng = np.random.default_rng(seed)
    return chosen(np.stack([rng.permutation(E)[:K] for _ in range(n)]), rng.random((n, K)))


@functools.cache
def compiled(engine, rows, groups, mesh, sizes=None, ring=False):
    """One program per engine, shape and sizes of blocks: hypothesis draws values, not shapes."""

    def loss(tokens, gates, experts, choice):
        choices = [choice._replace(gates=gates)]
        y, _ = parallel.run(engine, tokens, choices, [experts], [rows], groups=groups, mesh=mesh, ring=ring)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def value_and_gradients(engine, choice, rows=0, groups=1, mesh=None, sizes=None, ring=False):
    tokens = jax.random.normal(jax.random.key(1), (len(choice.gates), D))
    return compiled(engine, rows, groups, mesh, sizes, ring)(tokens, choice.gates, random_experts(0), choice)


def assert_same(a, b):
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=2e-5, atol=2e-4), a, b)


@st.composite
def routings(draw):
    """All tokens on one expert, unused experts, ties and anything between; two different choices a token."""
    pairs = [(i, j) for i in range(E) for j in range(E) if i != j]
    some = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=len(pairs), unique=True))
    picked = draw(st.lists(st.sampled_from(some), min_size=N, max_size=N))
    gates = draw(st.lists(st.floats(0, 1, width=32), min_size=K * N, max_size=K * N))
    return chosen(picked, np.asarray(gates).reshape(N, K))


@pytest.mark.parametrize("engine", ["capacity", *DROPLESS])
def test_equals_dense(engine):
    @settings(max_examples=15, deadline=None)
    @given(routings())
    def check(choice):
        assert_same(value_and_gradients("dense", choice), value_and_gradients(engine, choice, rows=N))

    check()


@pytest.mark.parametrize("n", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 129))])
@pytest.mark.parametrize("engine", ["capacity", *DROPLESS])
def test_token_counts_that_no_block_divides(engine, n):
    choice = random_choice(n=n)
    assert_same(value_and_gradients("dense", choice), value_and_gradients(engine, choice, rows=n))


@pytest.mark.parametrize(
    ("ladder", "sizes"), [((1,), (8, 4)), ((3,), (8, 4)), ((2, 5, 12), (16, 4)), ((N,), (8, 4)), ((10, 30), (4, 1))]
)
def test_blocks_equal_dense_whatever_the_sizes(monkeypatch, ladder, sizes):
    """Nearly everything in blocks, everything in the buffer, and both; skewed, with an unused expert."""
    monkeypatch.setattr(blocks, "sizes", lambda expected, most: blocks.Sizes(ladder, sizes))
    rng = np.random.default_rng(0)
    picked = np.where(rng.random((N, 1)) < 0.8, [[0, 2]], [[2, 3]])
    choice = chosen(picked, rng.random((N, K)))
    assert_same(value_and_gradients("dense", choice), value_and_gradients("blocks", choice, sizes=(ladder, sizes)))


@pytest.mark.parametrize("ladder", [(1,), (7,), (2, 5, 12), (8, N), (13, 14)])
def test_ranges_equal_dense_whatever_the_sizes(monkeypatch, ladder):
    """One part a range, many, and both; an unused expert in front, between and at the end."""
    monkeypatch.setattr(ranges, "sizes", lambda expected, most: ladder)
    rng = np.random.default_rng(0)
    for pairs in ([[0, 2], [2, 3]], [[0, 1], [1, 2]], [[1, 3], [3, 2]]):
        picked = np.where(rng.random((N, 1)) < 0.8, *pairs)
        choice = chosen(picked, rng.random((N, K)))
        assert_same(value_and_gradients("dense", choice), value_and_gradients("ranges", choice, sizes=(ladder,)))


def test_parts_of_ranges_fit_an_even_load_and_are_never_larger_than_all_tokens():
    assert ranges.sizes(512.0, 4096) == (128, 256, 384, 528, 552, 584, 768, 1024)
    assert ranges.sizes(4.0, 6) == (6,)
    assert ranges.sizes(100.0, 100) == (32, 56, 80, 100)


def test_ranges_compute_few_rows_that_are_not_an_expert_s():
    even, ladder = np.random.default_rng(0).poisson(512, 64), np.asarray(ranges.sizes(512, 4096))
    assert ladder[np.searchsorted(ladder, even)].sum() < 1.06 * even.sum()


def test_blocks_have_room_for_an_even_load_and_never_more_rows_than_tokens():
    assert blocks.sizes(1024.0, 4096) == blocks.Sizes((512, 1072), (512, 128))
    assert blocks.sizes(4.0, 4096) == blocks.Sizes((16, 40), (256, 64))
    assert blocks.sizes(4.0, 20).ladder == (16, 20)


@functools.cache
def dropping(rows):
    return jax.jit(functools.partial(parallel.run, "capacity", rows=[rows]))


@settings(max_examples=15, deadline=None)
@given(routings(), st.sampled_from([1, 5, 20, N]))
def test_capacity_drops_exactly_the_overflow(choice, rows):
    tokens = jax.random.normal(jax.random.key(1), (N, D))
    outputs, (kept,) = dropping(rows)(tokens, [choice], [random_experts(0)])
    seen = np.zeros(E, int)
    expected = np.zeros((N, K), bool)
    for k in range(K):  # first choices first, tokens in their order
        for n in range(N):
            e = int(choice.experts[n, k])
            expected[n, k] = seen[e] < rows
            seen[e] += 1
    assert_array_equal(kept, expected)
    left = choice._replace(gates=choice.gates * expected)
    reference, _ = parallel.run("dense", tokens, [left], [random_experts(0)], [0])
    assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


def test_a_capacity_that_is_exactly_full_drops_nothing():
    picked = np.stack([np.arange(N) % E, (np.arange(N) + 1) % E], axis=1)
    choice = chosen(picked, np.ones((N, K)))
    rows = N * K // E
    tokens = jnp.ones((N, D))
    assert dropping(rows)(tokens, [choice], [random_experts(0)])[1][0].all()
    assert not dropping(rows - 1)(tokens, [choice], [random_experts(0)])[1][0].all()


def test_ranges_of_a_buffer_have_room_for_any_load():
    """Loads of six times the mean, which no part is made for, beside empty experts; the last one is full."""
    x, experts = jax.random.normal(jax.random.key(0), (E, 50, D)), random_experts(1)
    load = jnp.asarray([0, 3, 0, 50], jnp.int32)
    filled = (jnp.arange(50) < load[:, None])[..., None]

    def value_and_gradient(compute):
        loss = lambda experts, x: jnp.sum(jnp.sin(jnp.where(filled, compute(experts, x), 0)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(experts, x)

    assert max(ranges.sizes(8.0, 50)) < 50
    in_ranges = functools.partial(ranges.apply, load=load, expected=8.0)
    assert_same(value_and_gradient(expert_ops.apply), value_and_gradient(in_ranges))


@pytest.mark.parametrize("engine", ["capacity", "ranges"])
def test_flops_of_ranges_are_those_of_an_even_load(monkeypatch, engine):
    """As written and as compiled, forward and backward: no sum over parts of which an expert takes one."""
    monkeypatch.setattr(ranges, "WORTH", 0)
    n = 60 * N
    choice, tokens, experts = random_choice(n=n), jnp.ones((n, D)), random_experts(0)
    run = lambda *of: parallel.run(engine, of[0], [choice], [of[1]], [math.ceil(1.2 * K * n / E)])[0]  # noqa: E731
    even = K * n * 2 * 2 * D * F
    for function, products in ((run, 1), (jax.grad(lambda *of: jnp.sum(jnp.sin(run(*of))), argnums=(0, 1)), 3)):
        written = ahead.count_flops(function, tokens, experts)
        compiled = hlo.analyse(jax.jit(function).lower(tokens, experts).compile().as_text()).flops
        assert products * even <= written <= 1.1 * products * even
        assert products * even <= compiled <= 1.1 * products * even


@pytest.mark.parametrize("rows", [2, 13, N])
def test_capacity_computes_the_same_where_it_leaves_out_empty_rows(monkeypatch, rows):
    """Experts that overflow, are half empty and unused, one of them the last."""
    skewed = np.where(np.random.default_rng(0).random((N, 1)) < 0.8, [[0, 2]], [[2, 1]])
    for choice in (random_choice(), chosen(skewed, random_choice().gates)):
        buffers = value_and_gradients("capacity", choice, rows)
        monkeypatch.setattr(ranges, "WORTH", 0)
        tokens = jax.random.normal(jax.random.key(1), (N, D))
        in_ranges = compiled.__wrapped__("capacity", rows, 1, None)
        text = in_ranges.lower(tokens, choice.gates, random_experts(0), choice).as_text()
        assert text.count("while") > 8  # loops over parts are there
        assert_same(buffers, in_ranges(tokens, choice.gates, random_experts(0), choice))
        monkeypatch.undo()


@pytest.mark.parametrize("engine", ["capacity", "blocks"])
@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_router_groups_add_up(engine, shards):
    """Two groups with different numbers of experts and rows in one call equal the sum of one call each."""
    mesh = None if shards == 1 else make(MeshConfig(1, 1, shards), jax.devices()[:shards])
    tokens = jax.random.normal(jax.random.key(1), (N, D))
    first, second = random_choice(1), random_choice(2)
    second = second._replace(experts=second.experts * 2)
    experts = [random_experts(3), random_experts(4, experts=2 * E)]
    rows = [3, 5]

    @jax.jit
    def run():
        one = functools.partial(parallel.run, engine, tokens, groups=4, mesh=mesh)
        apart = [one([c], [e], [r]) for c, e, r in zip((first, second), experts, rows, strict=True)]
        return one([first, second], experts, rows), apart

    (both, kept), apart = run()
    assert_allclose(both, apart[0][0] + apart[1][0], rtol=2e-5, atol=2e-5)
    assert_array_equal(kept[0], apart[0][1][0])
    assert_array_equal(kept[1], apart[1][1][0])


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("rows", [2, 6])
def test_expert_parallel_equals_one_device_drops_included(sizes, rows):
    mesh = make(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    alone = value_and_gradients("capacity", random_choice(), rows, groups=8)
    assert_same(alone, value_and_gradients("capacity", random_choice(), rows, groups=8, mesh=mesh))


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("engine", ["dense", "ranges", "blocks", "ragged"])
def test_dropless_on_a_mesh_equals_dense(engine, sizes):
    """Routings that send all rows to one device, and none to another, included."""
    mesh = make(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    for choice in (random_choice(), chosen([[0, 1]] * N, np.ones((N, K))), chosen([[3, 0]] * N, np.ones((N, K)))):
        assert_same(value_and_gradients("dense", choice), value_and_gradients(engine, choice, groups=8, mesh=mesh))


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("engine", ["ranges", "ragged"])
def test_experts_that_go_round_equal_dense(engine, sizes):
    """Routings that send all rows to one device's experts, and some that are nobody's, included."""
    mesh = make(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    absent = random_choice()
    absent = absent._replace(experts=absent.experts.at[::3].set(E))
    for choice in (random_choice(), chosen([[0, 1]] * N, np.ones((N, K))), absent):
        round_ = value_and_gradients(engine, choice, groups=8, mesh=mesh, ring=True)
        assert_same(value_and_gradients("dense", choice), round_)


def test_what_goes_round_does_not_grow_with_the_batch():
    """Experts to the next device, in a loop of three turns for four devices; no row is sent."""
    mesh = make(MeshConfig(1, 1, 4), jax.devices()[:4])

    def sent(n):
        run = lambda t: parallel.run(  # noqa: E731
            "blocks", t, [random_choice(n=n)], [random_experts(0)], [0], groups=4, mesh=mesh, ring=True
        )[0]
        return hlo.analyse(jax.jit(run).lower(jnp.ones((n, D))).compile().as_text()).sent()

    assert sent(40) == sent(400)
    weights = sum(leaf.nbytes for leaf in random_experts(0)) / 4
    assert sent(40) == {"collective-permute": 3 * weights}


@pytest.mark.parametrize(("factor", "sent"), [(1.5, 7), (2.0, 10)])
def test_limited_room_takes_the_same_share_of_every_device(factor, sent):
    """All of 4 x 10 tokens want experts 0 and 1 on two of four devices: 40 rows each, an even share is 20.

    Room for 30 takes 7 of every device's 10 rows, its first ones; room for 40 takes all.
    """
    mesh = make(MeshConfig(1, 1, 4), jax.devices()[:4])
    choice = chosen([[0, 1]] * N, random_choice().gates)
    tokens, experts = jax.random.normal(jax.random.key(1), (N, D)), random_experts(0)

    def loss(tokens, gates, experts):
        run = functools.partial(parallel.run, "blocks", groups=4, exchange_factor=factor, mesh=mesh)
        y, kept = run(tokens, [choice._replace(gates=gates)], [experts], [0])
        return jnp.sum(jnp.sin(y)), (y, kept[0])

    (_, (y, kept)), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        tokens, choice.gates, experts
    )
    by_hand = np.arange(N)[:, None] % 10 < [sent, sent]
    assert_array_equal(kept, by_hand)
    (_, reference), (d_tokens, d_gates, d_experts) = value_and_gradients(
        "dense", choice._replace(gates=choice.gates * by_hand)
    )
    assert_same((y, *gradients), (reference, d_tokens, d_gates * by_hand, d_experts))


def test_limited_room_makes_up_for_what_it_drops_where_asked():
    """Expert 0 has room for 7 of every device's 10 first choices; second ones all have it."""
    mesh = make(MeshConfig(1, 1, 4), jax.devices()[:4])
    choice = chosen([[0, 1 + n % 3] for n in range(N)], 0.1 + random_choice().gates)
    tokens, experts = jax.random.normal(jax.random.key(1), (N, D)), random_experts(0)
    run = functools.partial(
        parallel.run, "blocks", rows=[0], groups=4, exchange_factor=1.5, after_drops=True, mesh=mesh
    )
    y, (kept,) = jax.jit(run)(tokens, [choice], [experts])
    by_hand = np.stack([np.arange(N) % 10 < 7, np.ones(N, bool)], axis=1)
    assert_array_equal(kept, by_hand)
    gates = choice.gates * by_hand
    left = choice._replace(gates=gates / gates.sum(axis=1, keepdims=True))
    assert_allclose(y, parallel.run("dense", tokens, [left], [experts], [0])[0], rtol=2e-5, atol=2e-5)


def test_bfloat16_tokens_stay_bfloat16():
    tokens = jax.random.normal(jax.random.key(1), (N, D), jnp.bfloat16)
    reference, _ = parallel.run("dense", tokens.astype(jnp.float32), [random_choice()], [random_experts(0)], [N])
    for engine in ("dense", "capacity", *DROPLESS):
        run = jax.jit(functools.partial(parallel.run, engine, rows=[N]))
        outputs, _ = run(tokens, [random_choice()], [random_experts(0)])
        assert outputs.dtype == jnp.bfloat16
        assert_allclose(np.asarray(outputs, np.float32), reference, rtol=0.1, atol=0.15)


def test_rows_travel_by_all_to_all_only_where_experts_are_split():
    choice = random_choice()

    def exchanges(sizes, router_groups):
        mesh = make(MeshConfig(*sizes))

        def run(tokens):
            many = ([x] * router_groups for x in (choice, random_experts(0), 4))
            return parallel.run("capacity", tokens, *many, groups=8, mesh=mesh)[0]

        return jax.jit(run).lower(jnp.ones((N, D))).compile().as_text().count("all-to-all(")

    assert exchanges((2, 1, 4), 1) == 2  # there and back
    assert exchanges((2, 1, 4), 2) == 2  # one exchange for all router groups
    assert exchanges((8, 1, 1), 2) == 0


def test_exchanged_bytes_per_device_do_not_grow_with_the_mesh():
    """Twice the devices on the data axis, the same tokens per device: every all-to-all keeps its shape."""

    def shapes(data):
        mesh = make(MeshConfig(data, 1, 4), jax.devices()[: 4 * data])
        tokens, choice = jnp.ones((8 * data, D)), random_choice(n=8 * data)
        run = lambda t: parallel.run("capacity", t, [choice], [random_experts(0)], [4], groups=4 * data, mesh=mesh)[0]  # noqa: E731
        text = jax.jit(run).lower(tokens).compile().as_text()
        return sorted(re.findall(r"= (\S+|\(.*?\)) all-to-all\(", text))

    assert shapes(1) == shapes(2) != []


def test_dropless_says_once_what_it_means(capsys):
    _say.cache_clear()
    for n, dtype in ((N, "float32"), (N, "float32"), (4 * N, "float32"), (4 * N, "bfloat16")):  # 20, 80 rows an expert
        parallel.run("dropless", jnp.ones((n, D), dtype), [random_choice(n=n)], [random_experts(0)], [0])
    assert capsys.readouterr().out == (
        'mixture of experts: "dropless" means "blocks" on cpu for few rows an expert; model.moe.engine overrules it\n'
        'mixture of experts: "dropless" means "ranges" on cpu; model.moe.engine overrules it\n'
        'mixture of experts: "dropless" means "blocks" on cpu in bfloat16; model.moe.engine overrules it\n'
    )
    assert choose("tpu") == "megablox"


def test_misfit_is_one_clear_line():
    run = functools.partial(parallel.run, tokens=jnp.ones((N, D)), routings=[random_choice()], rows=[4])
    with pytest.raises(ConfigError, match=r"exchange_factor = 0.5: wanted 1 or more"):
        MoEConfig(exchange_factor=0.5)
    with pytest.raises(ConfigError, match=r'ring is for dropless engines .*, not for engine = "capacity"'):
        MoEConfig(ring=True)
    with pytest.raises(ConfigError, match=r"ring is for dropless engines .*, not for exchange_factor"):
        MoEConfig(ring=True, engine="dropless", exchange_factor=1.5)
    with pytest.raises(ConfigError, match=r'"dens" does not exist: did you mean "dense"'):
        run("dens", experts=[random_experts(0)])
    with pytest.raises(ConfigError, match=r"40 tokens do not split in model[.]moe[.]groups = 3: set it to a divisor"):
        run("capacity", experts=[random_experts(0)], groups=3)
    with pytest.raises(ConfigError, match="cannot split 40 tokens in 3 groups and 4 experts over 8 devices"):
        run("capacity", experts=[random_experts(0)], groups=3, mesh=make(MeshConfig(2, 1, 4)))
    with pytest.raises(ConfigError, match="6 experts over 8 devices with 4 on the expert axis"):
        run("capacity", experts=[random_experts(0, 6)], groups=8, mesh=make(MeshConfig(2, 1, 4)))
    if not importlib.util.find_spec("tokamax"):
        with pytest.raises(ConfigError, match="pip install tokamax"):
            run("tokamax", experts=[random_experts(0)])
