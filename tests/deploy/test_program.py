"""Programs give what the model gives, hold only what is read, and run for any number of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringmoe_jax import compress, deploy, models
from tests.helpers.parameters import stirred
from tests.helpers.tiny import RINGMOE, SKYSENSE, batch

MIXTURE = RINGMOE | dict(depths=(1, 1), moe=dict(specialised=2, collaborative=2, engine="dense"))


def flat(entries):
    return {f"{name}/{key}": x for name, of in entries.items() for key, x in of.items()}


def subject(config, dates=1):
    """apply, params, abstract inputs of one image, and inputs of three."""
    model = models.build(config)

    def apply(params, inputs):
        nested = {}
        for name, x in inputs.items():
            sensor, key = name.split("/")
            nested.setdefault(sensor, {})[key] = x
        outputs = model.apply(params, {"sensors": nested})
        return {f"pooled/{name}": x for name, x in outputs["pooled"].items()}

    inputs = flat(batch(config, rows=3, dates=dates)["sensors"])
    one = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in inputs.items()}
    return apply, stirred(model.shapes()), one, inputs


def called(program, inputs, rows):
    call = jax.export.deserialize(program.serialised).call
    return jax.jit(call)(program.weights, {name: inputs[name][:rows] for name in program.inputs})


def test_a_linear_map_by_hand():
    apply = lambda params, x: {"y": x["x"] @ params["a"]["w"] + params["a"]["b"]}  # noqa: E731
    params = {"a": {"w": jnp.array([[2.0], [3.0]]), "b": jnp.array([1.0])}, "unread": jnp.zeros(7)}
    shape = jax.ShapeDtypeStruct((2,), np.float32)
    used = deploy.trim(apply, params, {"x": shape, "z": shape})
    assert set(used.params) == {"a/w", "a/b"}
    assert set(used.inputs) == {"x"}
    program = deploy.lower(*used)
    for x, y in (([[1, 1]], [[6]]), ([[1, 0], [0, 1], [2, 2]], [[3], [4], [11]])):
        found = jax.export.deserialize(program.serialised).call(program.weights, {"x": jnp.array(x, jnp.float32)})
        np.testing.assert_array_equal(found["y"], y)
    assert program.outputs["y"].shape == (1,)


@pytest.mark.parametrize(("config", "dates", "entries"), [(MIXTURE, 1, 2), (SKYSENSE, 2, 3)])
def test_programs_equal_the_model_for_any_number_of_images(config, dates, entries):
    """RingMoE with routed experts reads no dates, SkySense does, and neither reads places without a geo-context."""
    apply, params, one, inputs = subject(config, dates)
    used = deploy.trim(apply, params, one)
    assert len(used.inputs) == entries * len(config["sensors"])
    assert "mask_token" not in used.params
    program = deploy.lower(*used)
    exported = jax.export.deserialize(program.serialised)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert {str(aval.shape[0]) for aval in exported.out_avals} == {"b"}
    wanted = jax.jit(apply)(params, inputs)
    for rows in (1, 3):
        for name, x in called(program, inputs, rows).items():
            np.testing.assert_allclose(x, wanted[name][:rows], atol=1e-5)


def test_quantised_weights_are_whole_again_inside_the_program():
    apply, params, one, inputs = subject(RINGMOE | dict(depths=(1,)))
    used = deploy.trim(apply, params, one)
    tree = compress.quantise(used.params)
    program = deploy.lower(lambda t, x: used.apply(compress.dequantise(t), x), tree, used.inputs)
    kinds = {str(w.dtype) for w in program.weights.values()}
    assert kinds == {"int8", "float32"}
    wanted = jax.jit(used.apply)(compress.dequantise(tree), inputs)
    for name, x in called(program, inputs, 3).items():
        np.testing.assert_allclose(x, wanted[name], atol=1e-5)
