"""What a run begins with: every parameter that its model shares with a checkpoint, and the checkpoint's model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from experiments.run.encoder import begun, encoder_of
from experiments.run.fit import new_state
from experiments.run.pretrain import open_parts, pretrain
from ringmoe_jax import run as runs
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.downstream import ENCODER
from ringmoe_jax.pretext.distilled import LARGER
from ringmoe_jax.run import ORIGIN, FinetuneConfig, Run, TaskSpec
from ringmoe_jax.run.config import DATASET
from ringmoe_jax.tasks import Target
from ringmoe_jax.training.state import known_of
from tests.helpers import tiny, tiny_data, tiny_runs

MODEL = tiny.RINGMOE | dict(sensors=("rgb",), depths=(1,), patch=8, window=1, stem="convolutional")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run whose stem holds a list of convolutions."""
    return str(tiny_runs.pretraining(tmp_path_factory.mktemp("runs") / "first", MODEL))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    tiny_data.write(folder, "rgb", "s1_grd", train=8)
    return str(folder)


def pretraining(checkpoint, data, *sensors, **changes):
    terms = {name: dict(name="masked_l1", sensor=name) for name in sensors}
    values = dict(objectives=terms, data=tiny_runs.data(sensors, 16, data), optimizer=dict(average=0.9))
    return values | dict(init_from=checkpoint, train=dict(steps=2)) | changes


def finetuning(checkpoint, data, **changes):
    task, target = dict(name="classification", target="label"), Target("label", "classes", ("a", "b"), "", 1)
    config = FinetuneConfig.of(dict(task=task, data=tiny_runs.data(("rgb",), 16, data), init_from=checkpoint) | changes)
    return config, runs.finetuning(config, encoder_of(config), TaskSpec(target, {"rgb": 1}), {})


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_task_begins_with_every_parameter_of_the_encoder(checkpoint, data):
    config, parts = finetuning(checkpoint, data)
    saved = Run.open(checkpoint).params
    begun_with = leaves(new_state(parts, config, known_of(parts.model, {ENCODER: saved})).params[ENCODER])
    wanted = {path: leaf for path, leaf in leaves(saved).items() if path in begun_with}
    assert wanted.keys() == begun_with.keys()
    assert any("convolutions" in path for path in wanted)
    jax.tree.map(assert_array_equal, begun_with, wanted)


def test_pre_training_goes_on_with_other_sensors(checkpoint, data):
    """What both have is as it was, also in the average; what is new is drawn; the normalisation stays."""
    values = pretraining(checkpoint, data, "rgb", "s1_grd", override=dict(sensors=("rgb", "s1_grd")))
    config, _, parts = open_parts(values, "unused")
    run = Run.open(checkpoint)
    known = known_of(parts.model, run.params)
    state = new_state(parts, config, known)
    assert set(known["stems"]) == {"rgb"}
    assert set(state.params["stems"]) == {"rgb", "s1_grd"}
    for params in (state.params, state.pretext["average"]):
        shared = {path: leaf for path, leaf in leaves(params).items() if path in leaves(known)}
        jax.tree.map(assert_array_equal, shared, leaves(known))
    assert parts.statistics["rgb"] == run.statistics["rgb"]
    _, _, fresh = open_parts(values | dict(statistics=DATASET), "unused")
    assert fresh.statistics["rgb"] != run.statistics["rgb"]


MIXTURE = tiny.RINGMOE | dict(
    sensors=("s1_grd",), depths=(1,), stem="physics", moe=dict(specialised=1, collaborative=1)
)
PAIR = dict(alike=dict(name="alignment", sensors=("rgb", "s2_10")))


@pytest.mark.parametrize(
    ("model", "objectives", "unseen"), [(MIXTURE, None, "rgb"), (tiny.SKYSENSE_PHYSICS, PAIR, "irrg")]
)
def test_a_task_on_an_unseen_sensor_begins_without_a_new_stem(model, objectives, unseen, tmp_path):
    """Fine-tuning on bands that pre-training never saw: every parameter of the encoder is the checkpoint's."""
    size = model["image_size"]
    first = str(tiny_runs.pretraining(tmp_path / "first", model, size=size, objectives=objectives))
    values = dict(
        task=dict(name="classification", target="label"),
        data=tiny_runs.data((unseen,), 16, "nowhere"),
        init_from=first,
        override=dict(unseen=(unseen,)),
    )
    config = FinetuneConfig.of(values)
    target = Target("label", "classes", ("a", "b"), "", 1)
    parts = runs.finetuning(config, encoder_of(config), TaskSpec(target, {unseen: 1}), {})
    known = known_of(parts.model, {ENCODER: Run.open(first).params})
    assert leaves(known[ENCODER]).keys() == leaves(parts.model.shapes()[ENCODER]).keys()
    shown = tiny.batch(dict(sensors=(unseen,), image_size=16))
    logits = jax.eval_shape(parts.model.apply, parts.model.shapes(), shown)["predictions"]["logits"]
    assert logits.shape == (2, 2)


def test_eight_devices_begin_as_one(checkpoint, data):
    config, parts = finetuning(checkpoint, data)
    known = known_of(parts.model, {ENCODER: Run.open(checkpoint).params})
    mesh = runs.make_mesh(dataclasses.replace(config.mesh, fsdp=4, data=2))
    assert mesh.size == 8
    one, eight = (new_state(dataclasses.replace(parts, mesh=m), config, known) for m in (None, mesh))
    jax.tree.map(assert_array_equal, *(jax.device_get(s.params[ENCODER]) for s in (one, eight)))


def test_keys_of_parameters_are_those_of_a_checkpoint(checkpoint):
    run = Run.open(checkpoint)
    assert leaves(run.model.shapes()).keys() <= leaves(run.params).keys()


def test_another_model_is_one_line(checkpoint, data):
    _, parts = finetuning(checkpoint, data, override=dict(width=16))
    with pytest.raises(DataError, match=r"the checkpoint's encoder/.* is \[.*\], the model wants \[.*\]"):
        known_of(parts.model, {ENCODER: Run.open(checkpoint).params})
    with pytest.raises(DataError, match="has none of the model's parameters"):
        known_of(parts.model, {"other": np.zeros(1)})
    with pytest.raises(ConfigError, match="give init_from"):
        begun(pretraining("", data, "rgb"))
    with pytest.raises(ConfigError, match='statistics = "own" does not exist'):
        begun(pretraining(checkpoint, data, "rgb", statistics="own"))


def test_the_licence_of_imported_weights_stays(checkpoint, tmp_path):
    """With a run that begins with them, and with a smaller model made of that."""
    run, origin = Run.open(checkpoint), {"licence": "CC-BY-4.0"}
    going_on = dataclasses.replace(run, record=run.record | {ORIGIN: origin})
    going_on.save(tmp_path / "smaller", {"method": "prune"})
    assert Run.open(tmp_path / "smaller").origin == origin
    _, encoder = begun(pretraining(str(tmp_path / "smaller"), "nowhere", "rgb"))
    assert encoder.origin == origin


@pytest.mark.slow
def test_a_released_model_teaches_and_stays_as_it_is(data, tmp_path):
    """The student is half as wide and has another grid; what is opened afterwards is the student alone."""
    teacher = str(tiny_runs.pretraining(tmp_path / "teacher", MODEL | dict(width=16, head_width=16, sensors=("rgb",))))
    student = tiny.RINGMOE | dict(sensors=("rgb",), depths=(1,), window=2)
    values = pretraining("", data, "rgb", model=student, teacher=teacher)
    values["objectives"] |= dict(relations=dict(name="relation_matching", sensor="rgb"))
    state = pretrain(values, str(tmp_path / "student"))
    jax.tree.map(assert_array_equal, jax.device_get(state.pretext[LARGER]), dict(Run.open(teacher).params))
    opened = Run.open(tmp_path / "student")
    assert opened.params["stems"]["rgb"].keys() == state.params["stems"]["rgb"].keys()
    assert LARGER not in opened.params
    rows = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert any("relations" in key and "agreement" in key for row in rows for key in row)
    with pytest.raises(ConfigError, match=r"config.teacher is .*, but the checkpoint was made with"):
        pretrain(
            values | dict(teacher="", objectives=pretraining("", data, "rgb")["objectives"]), str(tmp_path / "student")
        )


def test_a_teacher_has_to_read_what_is_read(checkpoint, data):
    model = tiny.RINGMOE | dict(sensors=("rgb", "s1_grd"))
    with pytest.raises(ConfigError, match=r'config.teacher = .*first" does not read "s1_grd": .*known: rgb'):
        open_parts(pretraining("", data, "rgb", "s1_grd", model=model, teacher=checkpoint), "unused")
