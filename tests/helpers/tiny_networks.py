"""Networks that are as small as they can be, with parameters far from their start."""

import jax
import numpy as np

from ringmoe_jax import models
from ringmoe_jax.compress import Network
from tests.helpers.parameters import stirred
from tests.helpers.tiny import RINGMOE

MOE = dict(specialised=2, collaborative=3, engine="dense")
SENSORS = ("rgb", "s1_grd", "rgbn", "slc_dual")  # two of one modality, one complex
MODEL = RINGMOE | {"sensors": SENSORS, "moe": MOE, "power_input": True}
ONE = MODEL | {"sensors": ("rgb",)}
HEADS = {"rgb": {"pixels": 3}, "slc_dual": {"power": 2, "pixels": 4}}
LAYERS = sum(MODEL["depths"])


def built(model, heads=None):
    """A model with the heads of its sensors, and its shapes; each is built once."""
    heads = {sensor: of for sensor, of in (heads or {}).items() if sensor in model["sensors"]}
    if (key := repr((model, heads))) not in _BUILT:
        new = models.build(model, heads=heads)
        _BUILT[key] = new, new.shapes()
    return _BUILT[key]


_BUILT = {}


def network(model=MODEL, heads=None, seed=7):
    return Network(model, stirred(built(model, heads)[1], seed))


def with_moe(model, **changes):
    return model | {"moe": model["moe"] | changes}


def outputs(network, batch, heads=None):
    """Tokens, pooled features and predictions."""
    apply = built(network.model, heads)[0].apply
    found = jax.jit(lambda p, b: apply(p, b))(network.params, batch)
    return {name: found[name] for name in ("tokens", "pooled", "heads")}


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def only(batch, sensors):
    return {"sensors": {name: batch["sensors"][name] for name in sensors}}


def assert_equal(a, b):
    """Same structure, shapes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
