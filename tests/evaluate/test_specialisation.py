"""What experts serve, against tables worked by hand and a model that routes."""

import jax
import numpy as np
import pytest

from ringmoe_jax import models
from ringmoe_jax.evaluate.specialisation import counter, mutual_information, specialisation


@pytest.mark.parametrize(
    ("counts", "nats"),
    [([[4, 0], [0, 4]], np.log(2)), ([[1, 3], [2, 6]], 0), ([[0, 0], [0, 0]], 0), ([[8, 0], [0, 0]], 0)],
)
def test_mutual_information_by_hand(counts, nats):
    assert mutual_information(np.array(counts, float)) == pytest.approx(nats, abs=1e-12)


def test_experts_that_follow_the_kind_lie_far_above_chance():
    kinds = np.arange(120) % 3
    follows = np.eye(3)[kinds] * 8  # layer 1: every token of a kind to one expert
    alike = np.full((120, 3), 8 / 3)  # layer 2: every image uses all experts alike
    told = specialisation(np.stack([follows, alike], axis=1), kinds)
    assert told.information == pytest.approx([np.log(3), 0], abs=1e-9)
    assert told.shuffled[0] < 0.1 * told.information[0]
    assert told.use == pytest.approx([3, 3])


def test_images_of_unknown_kind_are_left_out():
    loads = np.zeros((4, 1, 2))
    loads[[0, 1, 2], 0, [0, 1, 1]] = 5  # the fourth shows nothing
    told = specialisation(loads, np.array([0, 1, -1, 1]))
    assert told.information == pytest.approx([np.log(2)])
    assert told.use == pytest.approx([2])


@pytest.mark.slow
def test_choices_are_those_that_the_model_makes_of_the_whole_batch():
    config = dict(name="ringmoe", sensors=("rgb", "dem"), width=8, depths=(1, 1), image_size=16, patch=4, window=4)
    model = models.build(config | {"moe": {"specialised": 2, "collaborative": 3}})
    random = np.random.default_rng(0)
    sensors = {
        name: {
            "pixels": random.normal(size=(3, 1, 16, 16, channels)).astype(np.float32),
            "valid": np.ones((3, 1, 16, 16), bool),
        }
        for name, channels in (("rgb", 3), ("dem", 1))
    }
    params = model.init(jax.random.key(0))
    chosen = counter(model)(params, sensors)
    assert chosen["collaborative"].load.shape == (3, 2, 2, 3)  # images, layers, modalities, experts
    assert chosen["collaborative"].load[0, 0].sum(axis=-1).tolist() == [16, 16]  # tokens of one image
    whole = jax.jit(model.apply)(params, {"sensors": sensors})["routing"]
    for group, choices in chosen.items():
        np.testing.assert_array_equal(choices.load.sum(axis=0), whole[group].load)
        np.testing.assert_array_equal(choices.reach.sum(axis=0), whole[group].reach)
    # A modality reaches its own two of the four specialised experts, and all that collaborate.
    assert (chosen["specialised"].reach > 0).sum(axis=-1).max() == 2
    assert (chosen["collaborative"].reach > 0).sum(axis=-1).min() == 3
