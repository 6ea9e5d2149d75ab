"""Dense layers made of experts: by hand, by derivation, and as functions."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.compress import MERGES, Usage, merge, merged_config, prune, submodel
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.network import split
from ringmoe_jax.moe.contribution import Contribution
from ringmoe_jax.moe.statistics import RoutingStatistics
from tests.helpers.tiny import batch
from tests.helpers.tiny_networks import HEADS, LAYERS, MODEL, ONE, built, network, outputs, shapes, with_moe

LEAVES = ("wi", "bi", "wo", "bo")
ALWAYS_ON = with_moe(ONE, specialised=1, collaborative=1)  # gates are 1


def experts(network, layer):
    """Leaves of all experts of a layer, [E, ...] float64: specialised, collaborative, shared."""
    ffn = split(network)[layer]["ffn"]
    shared = {"wi": ffn["shared"]["wi"]["kernel"], "bi": ffn["shared"]["wi"]["bias"]}
    shared |= {"wo": ffn["shared"]["wo"]["kernel"], "bo": ffn["shared"]["wo"]["bias"]}
    groups = [ffn[name] for name in ("specialised", "collaborative") if name in ffn]
    return [np.concatenate([*(g[leaf] for g in groups), shared[leaf][None]]).astype(np.float64) for leaf in LEAVES]


def dense(network, layer):
    """Leaves of a merged layer."""
    ffn = split(network)[layer]["ffn"]
    assert list(ffn) == ["shared"]
    shared = ffn["shared"]
    return [np.float64(shared[a][b]) for a in ("wi", "wo") for b in ("kernel", "bias")]


def usage_of(gate, hidden=None):
    """The same in all layers: gates of all 16 tokens by group, [M, E], and mean activations of hidden units."""
    statistics = {}
    for group, gates in gate.items():
        load = np.repeat(16 * np.array(gates, float)[None], LAYERS, axis=0)
        each = np.full((LAYERS, load.shape[1]), 16.0)
        units = None if hidden is None else 16 * np.repeat(hidden[group][None], LAYERS, axis=0)
        contribution = None if hidden is None else Contribution(load, units)
        statistics[group] = RoutingStatistics(each, load, load, load, each, each, load, np.zeros(LAYERS), contribution)
    names = {1: ("optical",), 3: ("optical", "sar_l2", "sar_l1")}[load.shape[1]]
    return Usage(names, dict.fromkeys(names, 1), statistics)


@pytest.fixture(scope="module")
def one():
    return network(ONE, HEADS)


def test_sums_and_means(one):
    for layer in (0, 3):
        for got, parts in zip(dense(merge(one, "sum"), layer), experts(one, layer), strict=True):
            assert_allclose(got, parts.sum(axis=0), atol=1e-5)
        for got, parts in zip(dense(merge(one, "mean"), layer), experts(one, layer), strict=True):
            assert_allclose(got, parts.mean(axis=0), atol=1e-6)


def test_weighted_means(one):
    usage = usage_of({"specialised": [[0.5, 0.3]], "collaborative": [[0.6, 0.0, 0.2]]})
    weights = np.array([0.5, 0.3, 0.6, 0.0, 0.2, 1.0])
    for got, parts in zip(dense(merge(one, "weighted", usage), 2), experts(one, 2), strict=True):
        assert_allclose(got, np.tensordot(weights / 2.6, parts, 1), atol=1e-6)


def test_weights_of_several_modalities_are_their_means():
    several = network(MODEL)
    gates = {
        "specialised": np.tile(0.5 * np.eye(3), 2),
        "collaborative": np.array([[0.9, 0, 0], [0, 0.3, 0], [0, 0, 0.6]]),
    }
    weights = np.array([1 / 6] * 6 + [0.3, 0.1, 0.2, 1.0])
    got = dense(merge(several, "weighted", usage_of(gates)), 1)
    for leaf, parts in zip(got, experts(several, 1), strict=True):
        assert_allclose(leaf, np.tensordot(weights / weights.sum(), parts, 1), atol=1e-6)


def test_svd_at_full_rank_is_the_sum_of_linear_experts(one):
    """Six experts of rank D = 8 in the first stage need 6 D hidden units; constants too."""
    merged = merge(one, "svd", hidden_ratio=24)
    for layer in range(LAYERS):
        wi, bi, wo, bo = dense(merged, layer)
        w1, b1, w2, b2 = experts(one, layer)
        width = w1.shape[1]
        assert wi.shape == (width, 24 * width)
        assert_allclose(wi @ wo, np.einsum("edf,efg->dg", w1, w2), atol=2e-5)
        assert_allclose(bi @ wo + bo, np.einsum("ef,efg->g", b1, w2) + b2.sum(axis=0), atol=2e-5)
        assert (np.linalg.norm(wi, axis=0) > 0).sum() == 6 * width


def test_svd_cuts_each_expert_to_its_share():
    """F = 4 D, three experts in the only group and no shared one: rank K = F // 3 = 10 of at most 8, then of 2."""
    model = with_moe(ONE, specialised=0, shared=False)
    whole = network(model)
    ffn = split(whole)[0]["ffn"]["collaborative"]
    for ratio, rank in ((4, 8), (1, 2)):
        wi, _, wo, _ = dense(merge(whole, "svd", hidden_ratio=ratio), 0)
        best = 0
        for w1, w2 in zip(ffn["wi"].astype(float), ffn["wo"].astype(float), strict=True):
            u, s, v = np.linalg.svd(w1, full_matrices=False)
            best += (u[:, :rank] * s[:rank]) @ v[:rank] @ w2
        assert_allclose(wi @ wo, best, atol=2e-5)


def test_svd_keeps_the_strongest_pieces_of_all_groups(one):
    """Cut to F = D = 8 units: of the pieces of all six experts at their groups' ranks, those of the largest norm."""
    wi, _, wo, _ = dense(merge(one, "svd", hidden_ratio=1), 0)
    w1, _, w2, _ = experts(one, 0)
    norms = []
    for i, rank in enumerate([4, 4, 2, 2, 2, 8]):
        _, s, v = np.linalg.svd(w1[i], full_matrices=False)
        norms += list(s[:rank] * np.linalg.norm(v[:rank] @ w2[i], axis=1))
    kept = np.linalg.norm(wi, axis=0) * np.linalg.norm(wo, axis=1)
    assert_allclose(np.sort(kept), np.sort(norms)[-8:], rtol=1e-5)


@pytest.mark.slow
def test_selection_keeps_the_function_of_experts_that_are_always_on():
    whole = network(ALWAYS_ON, HEADS)
    merged = merge(whole, "select", hidden_ratio=12)
    data = batch(ONE)
    a, b = outputs(whole, data, HEADS), outputs(merged, data, HEADS)
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)
    units = np.abs(dense(merge(whole, "select", hidden_ratio=13), 0)[0]).sum(axis=0)
    assert np.flatnonzero(units).tolist() == list(range(12 * 8))  # of 13 D; what fills up is 0


def test_selection_by_activity():
    """Unit 5 of collaborative expert 1 is by far the most active, and comes with its gate."""
    whole = network(ONE)
    hidden = {"specialised": np.full((1, 2, 64), 1e-3), "collaborative": np.full((1, 3, 64), 1e-3)}
    hidden["shared"] = np.full((1, 1, 64), 1e-3)
    hidden["collaborative"][0, 1, 5] = 1e3
    gates = {"specialised": [[0.5, 0.5]], "collaborative": [[0.0, 0.7, 0.3]], "shared": [[1.0]]}
    merged = merge(whole, "select", usage_of(gates, hidden=hidden), hidden_ratio=1)
    wi, bi, wo, bo = dense(merged, 0)
    w1, b1, w2, b2 = experts(whole, 0)
    unit = np.flatnonzero((wi == w1[3][:, 5:6]).all(axis=0))
    assert len(unit) == 1
    assert bi[unit[0]] == b1[3][5]
    assert_allclose(wo[unit[0]], 0.7 * w2[3][5], rtol=1e-6)
    assert_allclose(bo, np.array([0.5, 0.5, 0, 0.7, 0.3, 1]) @ b2, atol=1e-6)


def test_without_usage_every_expert_has_its_turn(one):
    """One of two specialised and one of three collaborative experts act on a token."""
    bo = dense(merge(one, "select"), 0)[3]
    assert_allclose(bo, np.array([1 / 2] * 2 + [1 / 3] * 3 + [1]) @ experts(one, 0)[3], atol=1e-6)


@pytest.mark.parametrize("method", MERGES)
def test_of_what_pruning_left(method):
    """Layers of different tables become equal ones again, of the shapes of a new dense model."""
    allowed = ({"collaborative": ("100",)}, {"collaborative": ("000",)}, {}, {"collaborative": ("011",)})
    pruned = prune(submodel(network(MODEL, HEADS), ("rgb",)), allowed)
    usage = usage_of({"specialised": [[0.5, 0.3]], "collaborative": [[0.6, 0.2, 0.2]]})
    merged = merge(pruned, method, usage)
    assert merged.model["moe"]["allowed"] == ()
    assert shapes(merged.params) == shapes(built(merged.model, HEADS)[1])
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(merged.params))
    if method == "sum":
        assert_allclose(dense(merged, 1)[0], experts(pruned, 1)[0].sum(axis=0), atol=1e-5)
        assert len(experts(pruned, 1)[0]) == 3
    assert_array_equal(merged.params["mask_token"], pruned.params["mask_token"])


def test_wrong_merges(one):
    with pytest.raises(ConfigError, match=r'no way to merge called "sumn": did you mean "sum"'):
        merge(one, "sumn")
    with pytest.raises(ConfigError, match='merging by "weighted" needs to know how the model uses its experts'):
        merge(one, "weighted")
    with pytest.raises(ConfigError, match='hidden_ratio = 2: "mean" keeps the model\'s 4'):
        merge(one, "mean", hidden_ratio=2)
    with pytest.raises(ConfigError, match="hidden_ratio = 0: wanted 1 or more"):
        merged_config(ONE, 0)
    other = usage_of({"specialised": np.tile(np.eye(3), 2), "collaborative": np.ones((3, 3)) / 3})
    with pytest.raises(ConfigError, match="usage of a model of optical, sar_l2, sar_l1, but this one has optical"):
        merge(one, "weighted", other)
    few = usage_of({"specialised": [[0.5, 0.5]], "collaborative": [[0.5, 0.5]]})
    with pytest.raises(ConfigError, match=r'usage of "collaborative" has the shape \(4, 1, 2\), the model \(4, 1, 3\)'):
        merge(one, "select", few)
    nothing = with_moe(ONE, shared=False, specialised=0)
    empty = prune(network(nothing), ({"collaborative": ("000",)},) * LAYERS)
    with pytest.raises(ConfigError, match="layer 0 has no expert left that could be merged"):
        merge(empty, "sum")
