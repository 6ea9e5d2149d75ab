"""Sizes of all configurations against the published and computed ones, by shapes alone."""

import pytest

from configs import ringmoe, ringmoe_micro
from ringmoe_jax import models
from ringmoe_jax.models.layers import count
from ringmoe_jax.run import PretrainConfig

# Millions of parameters without decoders: full model, one modality (its 4 + 4 + 1 experts), dense twin.
# 14b: "14.7 B", "6.5 B" and "1 B" of the paper (arXiv 2504.03166); the rest by the same formula.
TABLE = {
    "nano": (93, 41, 6.9),
    "tiny": (373, 166, 27.5),
    "base": (1200, 534, 87),
    "large": (2710, 1200, 195),
    "14b": (14740, 6530, 1060),
}


def millions(model_config, **changes):
    return count(models.build({**model_config, **changes}).shapes()) / 1e6


@pytest.mark.parametrize("name", [n if n == "14b" else pytest.param(n, marks=pytest.mark.slow) for n in TABLE])
def test_parameter_counts(name):
    values = ringmoe.get_config(name).to_dict()
    config = PretrainConfig.of(values).model
    full, single, dense = TABLE[name]
    assert millions(config) == pytest.approx(full, rel=0.006)
    assert millions(config, sensors=("rgb",)) == pytest.approx(single, rel=0.015)
    moe = {**config["moe"], "specialised": 0, "collaborative": 0}
    assert millions(config, moe=moe) == pytest.approx(dense, rel=0.01)


def test_micro_is_about_ten_million():
    values = ringmoe_micro.get_config().to_dict()
    assert millions(PretrainConfig.of(values).model) == pytest.approx(10.2, rel=0.05)
