"""Exports of every kind of run give what the model gives, also where this package is not installed."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import common, downstream, export
from input_pipeline.dataset import open_dataset
from input_pipeline.synthetic import dataset as synthetic
from ringmoe_jax import deploy, models
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import TrainState
from tests.experiments.test_finetune import HEADS, TASKS
from tests.tiny import RINGMOE, SKYSENSE

SIZE = 16
DENSE = RINGMOE | dict(depths=(1,), sensors=("rgb",))
MIXTURE = RINGMOE | dict(depths=(1,), moe=dict(specialised=2, collaborative=2))
BLOCKED = ("ringmoe_jax", "experiments", "flax", "tensorflow", "orbax", "optax")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    sensors = ("rgb", "s2_10", "s1_grd", "ndsm")
    return str(synthetic.prepare(folder, scenes=9, size=SIZE, sensors=sensors, dates=2, gsd=2.5))


def write(workdir, params, **record):
    """A checkpoint of fresh parameters, as if a run had saved them."""
    checkpointer = Checkpointer(workdir)
    checkpointer.save(7, TrainState(np.int32(7), params, {"count": np.int32(7)}, {}), record)
    checkpointer.close()
    return str(workdir)


def pretrained(scenes, workdir, model):
    stream = dict(directory=scenes, sensors=model["sensors"])
    values = dict(
        model=model,
        objectives=dict(alike=dict(name="alignment", sensors=model["sensors"])),
        data=dict(streams=dict(all=stream), image_size=SIZE, batch_size=2, mask_unit=0),
    )
    config = common.ExperimentConfig.of(values)
    statistics = {name: sensor.statistics for name, sensor in config.sensors.items()}
    params = jax.jit(common.build(config, statistics).model.init)(jax.random.key(0))
    return write(workdir, params, config=values, statistics={n: s.to_json() for n, s in statistics.items()})


def fine_tuned(scenes, workdir, task):
    shown = ("rgb", "ndsm") if task == "height" else ("rgb",)
    values = dict(
        task=dict(name=task) | TASKS[task],
        head=HEADS.get(task, {}),
        model=DENSE,
        data=dict(streams=dict(all=dict(directory=scenes, sensors=shown)), image_size=SIZE, batch_size=2, mask_unit=0),
    )
    config = downstream.DownstreamConfig.of(values)
    encoder = downstream.Encoder.of(config)
    subject = downstream.Subject.of(config, open_dataset(scenes, shown))
    statistics = {name: sensor.statistics for name, sensor in encoder.sensors.items()}
    params = jax.jit(downstream.build(config, encoder, subject, statistics).model.init)(jax.random.key(0))
    return write(
        workdir,
        params,
        config=values,
        statistics={n: s.to_json() for n, s in statistics.items()},
        encoder=encoder.to_json(),
        subject=subject.to_json(),
    )


@pytest.fixture(scope="module")
def mixture(scenes, tmp_path_factory):
    return pretrained(scenes, tmp_path_factory.mktemp("runs") / "mixture", MIXTURE)


@pytest.fixture(scope="module")
def segmentation(scenes, tmp_path_factory):
    return fine_tuned(scenes, tmp_path_factory.mktemp("runs") / "segmentation", "segmentation")


def shapes(item, field="mlm:output", of="result"):
    return {entry["name"]: entry[of]["shape"][1:] for entry in item["properties"][field]}


def random_inputs(item, rows, seed=0):
    """Standard normal pixels, all valid but the first row of each image."""
    random, inputs = np.random.default_rng(seed), {}
    for name, shape in shapes(item, "mlm:input", "input").items():
        if name.endswith("/valid"):
            inputs[name] = np.ones((rows, *shape), bool)
            inputs[name][:, :, 0] = False
        else:
            inputs[name] = random.normal(size=(rows, *shape)).astype(np.float32)
    return inputs


def dropless(trained):
    """The model of a run, with the engine that drops nothing."""
    return models.build(trained.config.model | dict(moe=trained.config.model["moe"] | dict(engine="dense")))


def test_the_readme_s_program_runs_where_only_jax_is_installed(mixture, tmp_path):
    """Exactly the lines of the README; then the same program on images, against the model."""
    item = export.export(mixture, str(tmp_path / "out"))
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    inputs = random_inputs(item, 3)
    np.savez(tmp_path / "inputs.npz", **inputs)
    program = (
        f"import sys\nfor name in {BLOCKED}:\n    sys.modules[name] = None\n{snippet}\n"
        f"inputs = dict(np.load(r'{tmp_path / 'inputs.npz'}'))\n"
        "for rows in (1, 3):\n"
        "    outputs = jax.jit(program.call)(weights, {name: x[:rows] for name, x in inputs.items()})\n"
        f"    np.savez(r'{tmp_path}/outputs%d.npz' % rows, **outputs)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "out", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "'pooled/rgb': (1, 8)" in ran.stdout
    whole = common.load(mixture)
    outputs = jax.jit(dropless(whole).apply)(whole.params, export.as_batch(inputs))
    for rows in (1, 3):
        found = np.load(tmp_path / f"outputs{rows}.npz")
        assert set(found) == {f"{kind}/{name}" for kind in ("pooled", "tokens") for name in MIXTURE["sensors"]}
        for name in found:
            kind, sensor = name.split("/")
            np.testing.assert_allclose(found[name], outputs[kind][sensor][:rows], atol=1e-5)


def test_a_sub_model_in_8_bits_is_small_and_near(mixture, tmp_path, capsys):
    arguments = ["--checkpoint", mixture, "--out", str(tmp_path / "s1"), "--sensors", "s1_grd", "--int8"]
    with pytest.raises(SystemExit, match="0"):
        export.main([*arguments, "--licence", "CC-BY-4.0"])
    printed = capsys.readouterr().out
    assert "MB of weights in int8" in printed
    assert "compared with the model on simulated: first 1 of validation" in printed
    call, item = deploy.load(tmp_path / "s1")
    of = item["properties"]
    assert of["license"] == "CC-BY-4.0"
    assert of["ringmoe:data"][0]["licence"] == "none: computed"
    assert of["ringmoe:data"][0]["simulated"]
    assert of["ringmoe:step"] == 7
    assert of["ringmoe:bytes"]["stored"] < 0.6 * of["ringmoe:bytes"]["float32"]
    assert of["mlm:total_parameters"] * 4 == of["ringmoe:bytes"]["float32"]
    assert set(shapes(item, "mlm:input", "input")) == {"s1_grd/pixels", "s1_grd/valid"}
    for difference in of["ringmoe:compared"]["outputs"].values():
        assert 0 < difference["mean"] < 0.02 * difference["size"]
    whole = common.load(mixture)
    inputs = random_inputs(item, 2)
    outputs, exact = call(inputs), jax.jit(dropless(whole).apply)(whole.params, export.as_batch(inputs))
    np.testing.assert_allclose(outputs["pooled/s1_grd"], exact["pooled"]["s1_grd"], atol=0.05)


def test_maps_are_exported_with_their_classes(segmentation, tmp_path):
    item = export.export(segmentation, str(tmp_path / "out"))
    outputs = {entry["name"]: entry for entry in item["properties"]["mlm:output"]}
    assert outputs.keys() == {"logits", "classes"}
    names = [c["name"] for c in outputs["logits"]["classification:classes"]]
    assert outputs["logits"]["result"]["shape"] == [-1, SIZE, SIZE, len(names)]
    assert outputs["classes"]["result"]["dim_order"] == ["batch", "height", "width"]
    assert item["properties"]["mlm:tasks"] == ["semantic-segmentation"]
    assert item["properties"]["mlm:pretrained"] is False
    compared = item["properties"]["ringmoe:compared"]["outputs"]
    assert compared["logits"]["max"] < 1e-5
    assert compared["classes"]["share"] == 0


@pytest.mark.slow
def test_tracking_says_boxes_on_every_date(scenes, tmp_path):
    item = export.export(fine_tuned(scenes, tmp_path / "run", "tracking"), str(tmp_path / "out"))
    found = shapes(item)
    points = found["points"][1]
    assert found["points"] == [2, points, 3]
    assert found["box"] == [2, points, 5]
    assert found["boxes"] == [2, found["scores"][1], 5]
    axes = {entry["name"]: entry["result"]["dim_order"] for entry in item["properties"]["mlm:output"]}
    assert axes["classes"] == ["batch", "time", "object"]
    assert "raw" not in found
    assert item["properties"]["ringmoe:compared"]["outputs"]["box"]["max"] < 1e-3  # pixels


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multilabel", "change", "height", "detection"])
def test_other_tasks(task, scenes, tmp_path):
    """Of heights the truth's pixels are no input, though predictions lie on its grid."""
    item = export.export(fine_tuned(scenes, tmp_path / "run", task), str(tmp_path / "out"))
    assert set(shapes(item, "mlm:input", "input")) == {"rgb/pixels", "rgb/valid"}
    assert all("axis" not in axis for o in item["properties"]["mlm:output"] for axis in o["result"]["dim_order"])
    for difference in item["properties"]["ringmoe:compared"]["outputs"].values():
        assert difference.get("max", difference.get("share")) < 1e-3


@pytest.mark.slow
def test_skysense_reads_dates_and_gives_fused_features(scenes, tmp_path):
    item = export.export(pretrained(scenes, tmp_path / "run", SKYSENSE), str(tmp_path / "out"))
    assert shapes(item, "mlm:input", "input")["s2_10/time"] == [2]
    assert shapes(item)["fused"] == [SIZE, SIZE, 16]
    assert max(d["max"] for d in item["properties"]["ringmoe:compared"]["outputs"].values()) < 1e-5
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == item


def test_bad_requests_are_one_clear_line(mixture, segmentation, tmp_path):
    with pytest.raises(DataError, match="no checkpoint in"):
        export.export(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match='did you mean "s1_grd"'):
        export.export(mixture, str(tmp_path / "out"), sensors=("s1_gdr",))
    with pytest.raises(ConfigError, match="a fine-tuned model reads rgb"):
        export.export(segmentation, str(tmp_path / "out"), sensors=("s1_grd",))
    (tmp_path / "photo.png").touch()
    with pytest.raises(ConfigError, match="is not an exported model"):
        export.export(mixture, str(tmp_path))
    assert not (tmp_path / "out").exists()
