"""What a recipe asks for, what it makes of a network, and what is said of the result."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ringmoe_jax import compress
from ringmoe_jax.compress import Usage
from ringmoe_jax.compress.costs import Size
from ringmoe_jax.compress.recipe import METHODS, Recipe
from ringmoe_jax.compress.results import GAIN_LEFT, FrontPoint, ProbeScore, Quality, ReconstructionGain, kept_experts
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate.metrics.base import Score
from ringmoe_jax.moe.statistics import RoutingStatistics
from ringmoe_jax.run.evaluation import TRAINED, ComparisonRow, EvaluatedData, ProbeRow, SensorSummary
from tests.helpers.tiny_networks import LAYERS, ONE, assert_equal, network


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "prun"}, 'method = "prun" does not exist: did you mean "prune"'),
        ({"method": "prune", "importance": "frequent"}, 'did you mean "frequency"'),
        ({"method": "prune", "scope": "locally"}, 'scope = "locally"'),
        ({"method": "prune", "tables": "owned"}, 'did you mean "own"'),
        ({"method": "prune", "keep": 0}, "keep = 0: wanted the share of experts that stay, above 0 and at most 1"),
        ({"method": "sum", "keep": 1.5}, "keep = 1.5"),
        ({"method": "prune", "keep": 0.5, "parameters": 9}, "give one of them"),
        ({"method": "sum", "distil": -1}, "distil = -1: wanted 0 or more"),
        ({"method": "submodel", "distil": 9}, "is exact and keeps every expert"),
        ({"method": "submodel", "keep": 0.5}, "is exact and keeps every expert"),
        ({"method": "mean", "hidden_ratio": 8}, 'hidden_ratio = 8: method = "mean" cannot change'),
    ],
)
def test_a_recipe_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**fields)


def test_defaults_of_recipes():
    assert (Recipe("prune").keep, Recipe("sum").keep, Recipe("prune", parameters=9).keep) == (0.25, 1.0, None)
    needing = {method for method in METHODS if Recipe(method).needs_usage}
    assert needing == {"prune", "weighted", "select"}
    assert Recipe("sum", keep=0.5).needs_usage
    assert Recipe("svd", keep=0.5, hidden_ratio=2, distil=9).title == (
        "svd, keep 0.5, hidden ratio 2, 9 steps of distillation"
    )


def used(loads):
    """Usage of the collaborative experts of one modality, the same in every layer; the others are used evenly."""
    table = lambda row: np.tile(np.float64(row), (LAYERS, 1, 1))  # noqa: E731
    ones = np.ones((LAYERS, 1))

    def statistics(row):
        load = table(row)
        return RoutingStatistics(10 * ones, load, load, 10 + 0 * load, ones, ones, load, np.zeros(LAYERS))

    return Usage(("optical",), {"optical": 1}, {"specialised": statistics([5, 5]), "collaborative": statistics(loads)})


def test_a_recipe_is_its_steps_in_their_order():
    part, usage = network(ONE), used([6, 3, 1])
    assert Recipe("submodel")(part) is part
    pruned = Recipe("prune", keep=0.5)(part, usage)
    assert_equal(pruned.params, compress.prune(part, Recipe("prune", keep=0.5).allowed(part, usage)).params)
    assert_equal(Recipe("mean", keep=0.5)(part, usage).params, compress.merge(pruned, "mean").params)
    wide = Recipe("svd", hidden_ratio=2)(part)
    assert_equal(wide.params, compress.merge(part, "svd", hidden_ratio=2).params)


def test_experts_that_are_kept():
    """The least used of three goes; a recipe that does not prune keeps all, also where it merges them."""
    part, usage = network(ONE), used([6, 1, 3])
    kept = kept_experts(part, Recipe("sum", keep=0.6), usage)
    assert set(kept) == {"specialised", "collaborative"}
    assert_array_equal(kept["collaborative"].before, np.ones((LAYERS, 1, 3), bool))
    assert_array_equal(kept["collaborative"].kept, np.tile([True, False, True], (LAYERS, 1, 1)))
    assert_array_equal(kept["collaborative"].importance[0, 0], [0.6, 0.1, 0.3])
    assert kept["specialised"].kept.all()
    assert kept_experts(part, Recipe("sum"), usage)["collaborative"].kept.all()


def gain(value):
    return ReconstructionGain("d", "rgb", Score(1, 1, 1), Score(value, value - 1, value + 1))


def probe(features, protocol, value):
    return ProbeScore("d", "cover", features, protocol, "accuracy", Score(value, value, value))


def test_what_is_left_of_a_gain():
    worth = lambda *values: Quality((), tuple(map(gain, values)), "", (), False)  # noqa: E731
    before = worth(2.0, -1.0)
    assert worth(1.0, 5.0).gain_left(before) == Score(0.5, 0.0, 1.0)  # an objective without a gain has nothing to keep
    assert math.isnan(worth(1.0).gain_left(worth(0.0)).value)


def test_the_headline_is_the_linear_probe_of_all_sensors():
    probes = (
        probe("rgb", "knn5", 0.1),
        probe("rgb", "linear", 0.2),
        probe("rgb+s1_grd", "linear", 0.3),
        probe("s1_grd", "linear", 0.4),
    )
    worth = Quality(probes, (gain(2.0),), "", (), False)
    assert {key: score.value for key, score in worth.headline().items()} == {
        "d: cover, accuracy": 0.3,
        "d: rgb, gain": 2.0,
    }
    point = FrontPoint("sum", "there", Recipe("sum"), Size(1, 1, 8, 1.0), worth)
    assert {key: score.value for key, score in point.scores(point).items()} == {"d: cover, accuracy": 0.3, GAIN_LEFT: 1}


def test_rows_of_an_evaluation():
    scores = {"accuracy": Score(0.5, math.nan, math.nan), "kappa": Score(0.1, 0, 1)}
    row = {"dataset": "d", "label": "cover", "features": "rgb", "encoder": TRAINED, "protocol": "linear"}
    counts = {"fraction": 1.0, "draws": 1, "left_out": (), "train": 9, "test": 6, "blocks": 5, "near": 0}
    where = {"dataset": "d", "objective": "rgb", "sensor": "rgb", "best": "mean", "tiles": 6, "blocks": 5}
    losses = {"losses": {"model": Score(1, 0.9, 1.1)}, "difference": Score(-0.3, -0.5, 0.1)}
    sensor = SensorSummary(bands=("r",), unit="reflectance", gsd=1.0, shape=(1, 8, 8), simulated=True)
    words = dict.fromkeys(("directory", "description", "licence", "source", "citation", "protocol"), "")
    data = {"name": "d", "split": "test", "samples": {"test": 6}, "sensors": {"rgb": sensor}, "labels": {}, "notes": ()}
    worth = Quality.from_evaluation(
        SimpleNamespace(
            datasets=(EvaluatedData(**words, **data, simulated=True),),
            probes=(ProbeRow(**row, **counts, scores=scores),),
            reconstruction=(ComparisonRow(**where, **losses),),
            protocol="as always",
        )
    )
    (first,) = worth.probes
    assert (first.metric, first.score.value, math.isnan(first.score.low)) == ("accuracy", 0.5, True)
    assert worth.gains[0].gain == Score(0.3, -0.1, 0.5)  # a smaller loss is a gain
    assert (worth.splits, worth.simulated) == (("d: 6 test tiles",), True)
