"""What of an encoder is trained: partition, low-rank changes, bypasses, distances for layer-wise rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringmoe_jax import models
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models import adaptation, depth
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.models.adapters import Convpass, add_low_rank, low_rank
from ringmoe_jax.parallel.sharding import path_name
from ringmoe_jax.training import optimizer
from ringmoe_jax.training.optimizer import OptimizerConfig
from tests.helpers.parameters import stirred
from tests.helpers.tiny import RINGMOE, SKYSENSE, batch


def names(tree) -> set[str]:
    return {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def equal(a, b) -> bool:
    return names(a) == names(b) and all(
        np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@pytest.fixture(scope="module")
def encoder():
    model = models.build(RINGMOE)
    return model, stirred(model.shapes())


@pytest.mark.parametrize("method", adaptation.METHODS)
def test_a_new_adaptation_changes_nothing(encoder, method):
    _, params = encoder
    config = AdaptationConfig(method)
    trained, frozen = adaptation.split(params, config, jax.random.key(1))
    assert equal(adaptation.join(trained, frozen, config), params)


def test_full_freezes_nothing_and_frozen_trains_nothing(encoder):
    _, params = encoder
    trained, frozen = adaptation.split(params, AdaptationConfig("full"), jax.random.key(1))
    assert names(trained["encoder"]) == names(params)
    assert not frozen
    trained, frozen = adaptation.split(params, AdaptationConfig("frozen"), jax.random.key(1))
    assert not trained
    assert names(frozen) == names(params)


def test_also_trains_what_it_names(encoder):
    _, params = encoder
    trained, frozen = adaptation.split(params, AdaptationConfig("frozen", also="norm/"), jax.random.key(1))
    chosen = {name for name in names(params) if "norm/" in name}
    assert names(trained["encoder"]) == chosen
    assert names(frozen) == names(params) - chosen


def test_lora_has_factors_for_every_query_and_value_and_adds_their_product(encoder):
    _, params = encoder
    config = AdaptationConfig("lora", rank=3, alpha=6.0)
    trained, frozen = adaptation.split(params, config, jax.random.key(1))
    kernels = {name for name in names(params) if name.endswith(("query/kernel", "value/kernel"))}
    assert names(trained["lora"]) == {f"{name}/{part}" for name in kernels for part in "ab"}
    change = trained["lora"]["backbone"]["stages"]["stage0"]["blocks"]["run0"]["attention"]["query"]["kernel"]
    change["b"] = jnp.ones_like(change["b"])
    joined = adaptation.join(trained, frozen, config)
    of = lambda tree: tree["backbone"]["stages"]["stage0"]["blocks"]["run0"]["attention"]["query"]["kernel"]  # noqa: E731
    wanted = of(params) + 2 * np.einsum("ldr,lrf->ldf", change["a"], change["b"])  # alpha / rank = 2
    np.testing.assert_allclose(of(joined), wanted, rtol=1e-6, atol=1e-7)
    assert names(joined) == names(params)


def test_low_rank_changes_of_experts_are_matrices_of_each():
    change = low_rank(jax.random.key(0), (2, 4, 16, 64), 8)
    assert change["a"].shape == (2, 4, 16, 8)
    assert change["b"].shape == (2, 4, 8, 64)
    assert np.linalg.matrix_rank(np.asarray(change["a"] @ jnp.ones_like(change["b"]))[0, 0]) == 1
    kernel = jnp.ones((2, 4, 16, 64), jnp.bfloat16)
    assert add_low_rank(kernel, change, 2.0).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "adapters", "does not exist"),
        ("rank", 0, "wanted 1 or more"),
        ("targets", "(", "no regular expression"),
    ],
)
def test_bad_settings_are_named(field, value, message):
    with pytest.raises(ConfigError, match=message):
        AdaptationConfig(**{field: value})


def test_expressions_that_match_nothing_are_named(encoder):
    _, params = encoder
    with pytest.raises(ConfigError, match="matches no kernel"):
        adaptation.split(params, AdaptationConfig("lora", targets="querry"), jax.random.key(0))
    with pytest.raises(ConfigError, match="matches no parameter"):
        adaptation.split(params, AdaptationConfig("frozen", also="nrom"), jax.random.key(0))


@pytest.mark.slow
def test_a_new_bypass_changes_no_output_and_gets_gradients(encoder):
    model, params = encoder
    adapted = models.build(RINGMOE | {"adapter": 4})
    fresh = jax.jit(adapted.init)(jax.random.key(5))
    trained, _ = adaptation.split(fresh, AdaptationConfig("convpass"), jax.random.key(0))
    new = names(fresh) - names(params)
    assert new
    assert names(trained["encoder"]) == new

    def fill(tree, old):
        return {k: fill(v, old[k]) if isinstance(v, dict) and k in old else old.get(k, v) for k, v in tree.items()}

    shown = batch(RINGMOE)
    both = fill(fresh, params)
    before = jax.jit(model.apply)(params, shown)["tokens"]["rgb"]
    np.testing.assert_allclose(jax.jit(adapted.apply)(both, shown)["tokens"]["rgb"], before, rtol=1e-5, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(adapted.apply(p, shown)["tokens"]["rgb"] ** 2)))(both)
    up = gradient["backbone"]["stages"]["stage0"]["blocks"]["run0"]["convpass"]["ffn"]["up"]["kernel"]
    assert float(jnp.abs(up).max()) > 0


def test_a_bypass_sees_its_neighbours_and_no_further():
    from flax import nnx

    layer = Convpass(3, 2, nnx.Rngs(0), dtype=jnp.float32)
    layer.convolve.kernel[...] = jnp.ones_like(layer.convolve.kernel[...])
    layer.up.kernel[...] = jnp.ones_like(layer.up.kernel[...])
    x = np.zeros((1, 7, 7, 3), np.float32)
    x[0, 3, 3] = [5.0, 1.0, 2.0]
    changed = np.abs(np.asarray(layer(jnp.asarray(x))) - np.asarray(layer(jnp.zeros((1, 7, 7, 3))))).sum(-1)[0] > 1e-9
    assert changed[2:5, 2:5].all()
    assert changed.sum() == 9


def test_distances_count_blocks_above(encoder):
    _, params = encoder
    found = depth.distances(params, models.build(RINGMOE).blocks_above)
    blocks = found["backbone"]["stages"]
    # depths of the tiny model: 2, 2 blocks
    np.testing.assert_array_equal(blocks["stage0"]["blocks"]["run0"]["attention"]["query"]["kernel"].ravel(), [3, 2])
    np.testing.assert_array_equal(blocks["stage1"]["blocks"]["run0"]["ffn"]["shared"]["wi"]["bias"].ravel(), [1, 0])
    assert found["backbone"]["merges"]["merge0"]["reduce"]["kernel"] == 2
    assert found["stems"]["rgb"]["project"]["kernel"] == 4
    assert found["mask_token"] == 4
    assert found["norm"]["scale"] == 0
    assert found["stems"]["rgb"]["norm"]["scale"] == 4  # a norm, but of the patch embedding


def test_a_fusion_lies_above_the_encoders():
    model = models.build(SKYSENSE)
    params = model.shapes()
    found = depth.distances(params, model.blocks_above)
    fusion = params["fusion"]["transformer"]["blocks"]["attention"]["query"]["kernel"].shape[0]
    rates = found["fusion"]["transformer"]["blocks"]["attention"]["query"]["kernel"].ravel()
    np.testing.assert_array_equal(rates, np.arange(fusion)[::-1])
    name = next(name for name in params["encoders"] if "vit" in params["encoders"][name])
    vit = found["encoders"][name]["vit"]["transformer"]["blocks"]["attention"]["query"]["kernel"].ravel()
    assert vit[-1] == fusion
    assert found["encoders"][name]["vit"]["positions"] == fusion + len(vit)
    assert found["encoders"][name]["up"]["project"]["kernel"] == fusion
    assert found["dates"] == fusion
    assert found["fusion"]["token"] == fusion


def test_layer_decay_multiplies_updates(encoder):
    _, params = encoder
    trained = {"encoder": params, "decoder": {"kernel": jnp.ones((2, 2))}}
    gradients = jax.tree.map(jnp.ones_like, trained)
    settings = dict(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0, clip_norm=0.0)

    def update(layer_decay):
        above = models.build(RINGMOE).blocks_above
        rule = optimizer.build(OptimizerConfig(**settings, layer_decay=layer_decay), 10, above)
        return jax.jit(lambda tree: rule.update(gradients, rule.init(tree), tree)[0])(trained)

    plain, decayed = update(1.0), update(0.5)
    np.testing.assert_allclose(decayed["decoder"]["kernel"], plain["decoder"]["kernel"])
    of = lambda tree: tree["encoder"]["backbone"]["stages"]["stage0"]["blocks"]["run0"]["attention"]["query"]["kernel"]  # noqa: E731
    np.testing.assert_allclose(of(decayed)[0], of(plain)[0] * 0.5**4, rtol=1e-5)
    np.testing.assert_allclose(of(decayed)[1], of(plain)[1] * 0.5**3, rtol=1e-5)
    stem = lambda tree: tree["encoder"]["stems"]["rgb"]["project"]["kernel"]  # noqa: E731
    np.testing.assert_allclose(stem(decayed), stem(plain) * 0.5**5, rtol=1e-5)


def test_layer_decay_of_a_model_that_states_no_order_is_refused():
    with pytest.raises(ConfigError, match=r"layer_decay = 0.9: this model does not say .* set it to 1"):
        optimizer.build(OptimizerConfig(layer_decay=0.9), 1000)
