"""The paper's chain at its size, by shapes alone, and a small one from end to end."""

import jax
import numpy as np
import pytest

from configs import ringmoe
from ringmoe_jax import compress, models
from ringmoe_jax.compress import Network
from ringmoe_jax.models import count
from ringmoe_jax.run import PretrainConfig
from tests.helpers.tiny import batch
from tests.helpers.tiny_networks import HEADS, MODEL, assert_equal, network, outputs


def test_14b_becomes_1b():
    """Billions without decoders: 4.3 and 1 of the paper; its 14.7 and 6.5 are those of tests/models/test_parameters.py.

    4.3 is not what one of four collaborative experts in every layer leaves, but what is left when the two layers of
    the last stage lose all four.
    """
    values = ringmoe.get_config("14b").to_dict()
    full = PretrainConfig.of(values).model
    one = compress.submodel_config(full, ("rgb",))
    importance = {"collaborative": np.random.default_rng(0).random((24, 1, 4))}
    allowed = compress.choose(Network(one, {}), importance, keep=0.25)
    quarter = compress.pruned_config(one, allowed)
    first, gone = {"collaborative": ("1000",)}, {"collaborative": ("0000",)}
    uneven = compress.pruned_config(one, (first,) * 22 + (gone,) * 2)
    dense = compress.merged_config(quarter)
    sizes = [count(models.build(model).shapes()) / 1e9 for model in (quarter, uneven, dense)]
    assert sizes == pytest.approx([4.48, 4.28, 1.06], abs=0.01)


@pytest.mark.slow
def test_a_small_chain_runs():
    """Every link is a model that can be built, run and compressed further."""
    one = compress.submodel(network(MODEL, HEADS), ("rgb", "rgbn"))
    apply = models.build({**one.model, "moe": one.model["moe"] | {"measure": True}}).apply
    data = batch(one.model)
    usage = compress.Usage.none(("optical",))
    usage = usage.add(jax.jit(lambda p, b: apply(p, b)["routing"])(one.params, data), {"optical": 4})
    allowed = compress.choose(one, compress.importance(usage, "norm"), keep=0.5, scope="global")
    pruned = compress.prune(one, allowed)
    dense = compress.merge(pruned, "select", usage)
    small = dense._replace(params=compress.dequantise(compress.quantise(dense.params)))
    assert count(one.params) > count(pruned.params) > count(dense.params)
    found = outputs(small, data, HEADS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_equal(jax.tree.map(np.shape, found), jax.tree.map(np.shape, outputs(one, data, HEADS)))
