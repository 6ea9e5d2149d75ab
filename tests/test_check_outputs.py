"""What is checked once when a run is built: that model and pretext task give what objectives and heads read."""

import dataclasses

import jax
import pytest

from ringmoe_jax import contracts, models, objectives, pretext
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.downstream import attach
from ringmoe_jax.models.heads.neck import NeckConfig
from ringmoe_jax.tasks import Classification, Target
from tests.helpers.tiny import RINGMOE, batch

HEADS = {"rgb": {"pixels": 3}}
SHAPES = jax.eval_shape(lambda: batch(RINGMOE))
MASKED = {
    "sensors": {
        name: entry | {"mask": jax.ShapeDtypeStruct((2, 4, 4), bool)} for name, entry in SHAPES["sensors"].items()
    }
}


@pytest.fixture(scope="module")
def model():
    return models.build(RINGMOE, heads=HEADS)


def check(model, terms, shown=MASKED, task="masked"):
    return contracts.check_outputs(model, pretext.build({"name": task}, model), objectives.build(terms), shown)


def without(model, *names):
    """The model without some outputs."""
    apply = lambda *a, **k: {n: x for n, x in model.apply(*a, **k).items() if n not in names}  # noqa: E731
    return dataclasses.replace(model, apply=apply)


def test_what_fits_passes_and_gives_shapes(model):
    outputs = check(model, {"rgb": dict(name="masked_l1", sensor="rgb"), "balance": dict(name="balance")})
    assert outputs["heads"]["rgb"]["pixels"].shape == (2, 1, 16, 16, 3)
    assert outputs["sensors"]["rgb"].name == "rgb"  # static


@pytest.mark.parametrize(
    ("lost", "terms", "message"),
    [
        ((), dict(x=dict(name="masked_l1", sensor="s1_grd")), r'x wants 2 channels of .*"s1_grd".*gives none'),
        (
            ("routing",),
            dict(even=dict(name="balance")),
            r"objective even \(Balance\) reads 'routing', which this model",
        ),
        (("pooled",), dict(x=dict(name="masked_l1", sensor="rgb")), r'gives no outputs\["pooled"\]'),
        ((), dict(x=dict(name="feature_matching", sensor="rgb")), "config.teacher"),
        ((), dict(x=dict(name="cross_entropy", label="kind")), 'the head gives no "logits"'),
    ],
)
def test_what_nobody_gives_is_one_line(model, lost, terms, message):
    with pytest.raises(ConfigError, match=message) as error:
        check(without(model, *lost), terms)
    assert "\n" not in str(error.value)


def test_views_that_no_pretext_task_makes(model):
    terms = objectives.build(dict(x=dict(name="self_distillation", stream="rgb", level="image")))
    with pytest.raises(
        ConfigError, match=r"x \(SelfDistillation\) reads 'contrast', which this model and pretext task"
    ):
        contracts.check_outputs(model, pretext.build({"name": "masked"}, model), terms, MASKED)


def test_another_width_than_the_model_states(model):
    wrong = dataclasses.replace(model, streams=dict(model.streams, rgb=5))
    with pytest.raises(ConfigError, match=r'outputs\["tokens"\]\["rgb"\] are 16 wide, but Model.streams says 5'):
        check(wrong, dict(x=dict(name="masked_l1", sensor="rgb")))


def test_a_batch_that_the_pretext_task_does_not_take(model):
    with pytest.raises(DataError, match=r"set data.mask_ratio > 0"):
        check(model, dict(x=dict(name="masked_l1", sensor="rgb")), SHAPES)


def test_a_head_on_an_encoder_without_stages(model):
    task = Classification(target="kind").head_spec(Target("kind", contracts.CLASSES, ("a", "b")))
    with pytest.raises(ConfigError, match=r"the encoder gives no outputs\['stages'\], which heads read"):
        attach(without(model, "stages"), {}, NeckConfig(), task, SHAPES)
