"""The mixture as the released RingMoE code computes it, against loops over single tokens in float64."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.moe_ffn import MoEConfig, MoEFeedForward, Slots
from ringmoe_jax.moe import table
from ringmoe_jax.parallel.mesh import MeshConfig, make

M, B, N, D, E = 2, 4, 3, 8, 3  # modalities, images of each, tokens of an image, width, experts a router
RELEASED = MoEConfig(
    specialised=E,
    collaborative=E,
    shared=False,
    normalise_gates=True,
    after_drops=True,
    rounds=True,
    by_modality=True,
    balance_groups=True,
    capacity_factor=0.7,
    router_kernel="uniform",
)


def released(tokens, kernel, experts, k, groups):
    """One router of the released code on its tokens [n, D]: outputs and balance loss, expert_num being E.

    Rounds of argmax; an expert that a token has a row of is out for it; first come, first served within a group;
    what was found is divided by its sum. The balance loss of a round and group is E^2 times the mean over experts of
    the share of tokens that ask times the mean of what they had left.
    """
    scores = tokens @ kernel
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    n = len(tokens) // groups
    rows = math.ceil(k * n * RELEASED.capacity_factor / E)
    outputs, losses = np.zeros_like(tokens), []
    for group in range(groups):
        mine = range(group * n, (group + 1) * n)
        used, left = np.zeros(E, int), probabilities.copy()
        found = {t: [] for t in mine}
        loss = 0.0
        for _ in range(k):
            asked = {t: int(left[t].argmax()) for t in mine}
            share = np.bincount(list(asked.values()), minlength=E) / n
            mean = np.mean([left[t] / (left[t].sum() + 1e-9) for t in mine], axis=0)
            loss += E**2 * np.mean(share * mean)
            for t, e in asked.items():
                if used[e] < rows:
                    used[e] += 1
                    found[t].append((e, probabilities[t, e]))
            for t in mine:
                for e, _gate in found[t]:
                    left[t, e] = 0.0
        losses.append(loss)
        for t in mine:
            total = sum(gate for _, gate in found[t]) + 1e-9
            for e, gate in found[t]:
                outputs[t] += gate / total * experts(e, tokens[t])
    return outputs, np.mean(losses)


def expert(layer, e, x):
    """GELU by its approximation, as MindSpore has it."""
    wi, bi, wo, bo = (np.asarray(getattr(layer, name)[...], np.float64)[e] for name in ("wi", "bi", "wo", "bo"))
    h = x @ wi + bi
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ wo + bo


@functools.cache
def layer():
    """With weights so large that experts differ and routers are sure of themselves."""
    ffn = MoEFeedForward(RELEASED, M, D, 2 * D, nnx.Rngs(0), dtype=jnp.float32)
    state = jax.tree.map(lambda x: 8 * x, nnx.state(ffn))
    nnx.update(ffn, state)
    return ffn


def images():
    """[B, M, N, D], image by image as the model lays them out; a common part fills the same experts first."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((B, M, N, D)) + rng.standard_normal(D)).astype(np.float32)


def computed(config, mesh=None):
    """Outputs [B, M, N, D] of the layer under other rules, and its statistics."""
    ffn = layer()
    ffn.config = config
    graph, state = nnx.split(ffn)
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x, Slots((0, 1)), train=True, mesh=mesh))
    return call(state, images())


@pytest.mark.parametrize(("k", "groups"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 4)])
def test_the_released_mixture(k, groups):
    ffn, x = layer(), images()
    outputs, statistics = computed(dataclasses.replace(RELEASED, top_k=k, groups=groups))
    by_modality = x.astype(np.float64).swapaxes(0, 1).reshape(M * B * N, D)
    kernel = np.asarray(ffn.collaborative.router[...], np.float64)
    wanted, common = released(by_modality, kernel, functools.partial(expert, ffn.collaborative), k, groups)
    own = []
    for m in range(M):  # expert s of modality m is column s M + m
        kernel = np.asarray(ffn.specialised.router[...], np.float64)[:, m::M]
        take = lambda s, t, m=m: expert(ffn.specialised, s * M + m, t)  # noqa: E731
        part = slice(m * B * N, (m + 1) * B * N)
        added, loss = released(by_modality[part], kernel, take, k, groups)
        wanted[part] += added
        own.append(loss)
    assert_allclose(outputs.swapaxes(0, 1).reshape(M * B * N, D), wanted, rtol=2e-4, atol=2e-3)
    assert_allclose(statistics["collaborative"].balance, common, rtol=1e-5)
    assert_allclose(statistics["specialised"].balance, np.mean(own), rtol=1e-5)
    assert statistics["collaborative"].dropped.sum() > 0


@pytest.mark.parametrize("change", ["after_drops", "rounds", "by_modality", "balance_groups"])
def test_every_choice_changes_what_it_says(change):
    """Two choices and two groups, so that all of them matter."""
    both = dataclasses.replace(RELEASED, top_k=2, groups=2)
    (one, first), (other, second) = computed(both), computed(dataclasses.replace(both, **{change: False}))
    assert np.allclose(one, other, rtol=1e-4) == (change == "balance_groups")
    same = np.allclose(first["collaborative"].balance, second["collaborative"].balance, rtol=1e-5)
    assert same == (change == "after_drops")


def test_where_nothing_is_dropped_outputs_are_the_same():
    roomy = dict(top_k=2, groups=2, capacity_factor=100.0)
    ours = MoEConfig(specialised=E, collaborative=E, shared=False, normalise_gates=True, **roomy)
    one, other = (computed(config)[0] for config in (dataclasses.replace(RELEASED, **roomy), ours))
    assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_queue_by_hand():
    """Two images of two modalities, two tokens each, in turn: 0 0 1 1 0 0 1 1."""
    modality = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    common = table.queue(table.collaborative(2, 3), modality, 2)
    assert common.place.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert common.group.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]  # one modality a group
    own = table.queue(table.specialised(2, 3), modality, 2)
    assert own.group.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # an image of each
    with pytest.raises(ConfigError, match=r"8 tokens of a router do not split in model.moe.groups = 3"):
        table.queue(table.collaborative(2, 3), modality, 3)


def test_another_engine_has_no_token_groups():
    """So that a run that was trained with them takes any number of images."""
    config = dataclasses.replace(RELEASED, groups=32)
    assert config.with_engine("capacity") == config
    other = config.with_engine("dropless")
    assert (other.engine, other.groups, other.by_modality, other.rounds) == ("dropless", 0, False, True)


def test_router_kernels_start_as_the_framework_left_them():
    ffn = MoEFeedForward(
        dataclasses.replace(RELEASED, specialised=0, collaborative=64), 1, 256, 1, nnx.Rngs(0), dtype=float
    )
    kernel = np.asarray(ffn.collaborative.router[...])
    assert np.abs(kernel).max() <= 1 / 16
    assert_allclose(kernel.std(), 0.0361, rtol=0.02)  # 1 / sqrt(3 * 256)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(router_kernel="unifrom"), 'router_kernel = "unifrom" does not exist: did you mean "uniform"'),
        (dict(after_drops=True), "set normalise_gates to True"),
        (dict(by_modality=True, priority=True), "two orders of service"),
    ],
)
def test_what_does_not_go_together_is_one_line(fields, said):
    with pytest.raises(ConfigError, match=said):
        MoEConfig(**fields)


def test_groups_are_balanced_alike_on_any_number_of_devices():
    config = dataclasses.replace(RELEASED, by_modality=False, groups=4)
    (one, first), (other, second) = computed(config), computed(config, make(MeshConfig(data=2), jax.devices()[:2]))
    assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    for group in first:
        assert_allclose(first[group].balance, second[group].balance, rtol=1e-5)


def test_one_order_of_service_over_several_devices_is_refused():
    mesh = make(MeshConfig(data=2), jax.devices()[:2])
    with pytest.raises(ConfigError, match="by_modality serves the tokens of all devices in one order, and there are 2"):
        computed(dataclasses.replace(RELEASED, groups=2), mesh)
