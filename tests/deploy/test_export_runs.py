"""Exports of every kind of run give what the model gives, also where this package is not installed."""

import json
import re
import subprocess
import sys
from importlib import metadata

import jax
import numpy as np
import pytest
from packaging.requirements import Requirement

from ringmoe_jax import deploy, models
from ringmoe_jax.contracts import BOXES, CLASSES, MAP, MULTILABEL, TRACKS
from ringmoe_jax.deploy.export import Tiles, as_batch, export, flatten, select_sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.run import Run
from ringmoe_jax.tasks import SENSOR, Target
from tests.helpers import tiny, tiny_runs
from tests.helpers.tiny import RINGMOE, SKYSENSE

SIZE = 16
DENSE = RINGMOE | dict(depths=(1,), sensors=("rgb",))
MIXTURE = RINGMOE | dict(depths=(1,), moe=dict(specialised=2, collaborative=2))
COVER = ("bare", "sea ice", "trees")
TARGETS = {
    "classification": Target("use", CLASSES, COVER),
    "multilabel": Target("uses", MULTILABEL, COVER),
    "segmentation": Target("cover", MAP, COVER, "rgb"),
    "change": Target("changed", MAP, ("no", "yes"), "rgb", 2),
    "height": Target("ndsm", SENSOR, (), "ndsm"),
    "detection": Target("boxes", BOXES, COVER, "rgb"),
    "tracking": Target("tracks", TRACKS, COVER, "rgb", 2),
}
HEADS = {
    "segmentation": dict(name="upernet", channels=8, auxiliary=8),
    "change": dict(name="change_transformer", channels=8, heads=2, decoder_depth=1),
    "height": dict(channels=8, bins=8, max_height=30.0),
    "detection": dict(channels=8, depth=1, groups=2),
    "tracking": dict(channels=8, depth=1, groups=2),
}


def tiles(sensors, rows=3, dates=1):
    """Random tiles, of which a corner was not observed."""
    batch = tiny.batch(dict(sensors=sensors, image_size=SIZE), rows, dates)
    batch = jax.tree.map(np.array, batch)
    for entry in batch["sensors"].values():
        entry["valid"][..., :4, :4] = False
    return Tiles(batch, {"scenes": f"first {rows} of validation"}, [{"name": "scenes", "licence": "MIT"}])


def fine_tuned(workdir, task):
    target = TARGETS[task]
    shown = ("rgb", "ndsm") if target.kind == SENSOR else ("rgb",)
    values = dict(
        task=dict(name=task, target=target.name),
        head=HEADS.get(task, {}),
        model=DENSE,
        data=tiny_runs.data(shown, SIZE, mask_unit=0),
    )
    return Run.open(tiny_runs.finetuning(workdir, values, target, dict.fromkeys(shown, target.dates)))


def exported(run, out):
    """An export of a run of a task, compared on three tiles."""
    target = run.spec.target
    return export(run, tiles(tuple(run.spec.dates), dates=target.dates), out)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return Run.open(tiny_runs.pretraining(tmp_path_factory.mktemp("runs") / "mixture", MIXTURE))


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    return fine_tuned(tmp_path_factory.mktemp("runs") / "segmentation", "segmentation")


def shapes(item, field="mlm:output", key="result"):
    return {entry["name"]: entry[key]["shape"][1:] for entry in item["properties"][field]}


def differences(item):
    """The largest difference of every output from the model's, or the share that differs."""
    compared = item["properties"]["ringmoe:compared"]["outputs"]
    return {name: d.get("max", d.get("share")) for name, d in compared.items()}


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


def dropless(run):
    """The model of a run, with the engine that drops nothing."""
    return models.build(run.config.model | dict(moe=run.config.model["moe"] | dict(engine="dense")))


def installed(names, folder):
    """Links packages and all that they require, and nothing else, into a folder, as an environment of theirs would."""
    folder.mkdir()
    wanted, seen = list(names), set()
    while wanted:
        if (name := wanted.pop().lower().replace("_", "-")) in seen:
            continue
        seen.add(name)
        package = metadata.distribution(name)
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
        required = map(Requirement, package.requires or ())
        wanted += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return folder


@pytest.mark.slow
def test_the_readme_s_program_runs_where_only_what_it_names_is_installed(mixture, tmp_path):
    """Exactly the lines of the README; then the same program on images, against the model."""
    item = export(mixture, tiles(MIXTURE["sensors"], rows=1), tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (named,) = re.findall(r"`pip install (.*?)`", readme)
    site = installed(named.split(), tmp_path / "site")
    inputs = random_inputs(item, 3)
    np.savez(tmp_path / "inputs.npz", **inputs)
    program = (
        f"import sys\nsys.path.append({str(site)!r})\n{snippet}\n"
        f"inputs = dict(np.load(r'{tmp_path / 'inputs.npz'}'))\n"
        "for rows in (1, 3):\n"
        "    outputs = jax.jit(program.call)(weights, {name: x[:rows] for name, x in inputs.items()})\n"
        f"    np.savez(r'{tmp_path}/outputs%d.npz' % rows, **outputs)\n"
    )
    command = [sys.executable, "-S", "-I", "-c", program]  # sees no other package
    ran = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "'pooled/rgb': (1, 8)" in ran.stdout
    expected = jax.jit(dropless(mixture).apply)(mixture.params, as_batch(inputs))
    for rows in (1, 3):
        outputs = np.load(tmp_path / f"outputs{rows}.npz")
        assert set(outputs) == {f"{kind}/{name}" for kind in ("pooled", "tokens") for name in MIXTURE["sensors"]}
        for name in outputs:
            kind, sensor = name.split("/")
            np.testing.assert_allclose(outputs[name], expected[kind][sensor][:rows], atol=1e-5)


def test_a_sub_model_in_8_bits_is_small_and_near(mixture, tmp_path):
    item = export(mixture, tiles(("s1_grd",)), tmp_path / "s1", int8=True, licence="CC-BY-4.0")
    call, loaded = deploy.load(tmp_path / "s1")
    assert loaded == item
    facts = item["properties"]
    assert facts["license"] == "CC-BY-4.0"
    assert facts["mlm:architecture"] == "RingMoE"
    assert facts["ringmoe:data"] == [{"name": "scenes", "licence": "MIT"}]
    assert facts["ringmoe:step"] == tiny_runs.STEP
    assert facts["ringmoe:bytes"]["stored"] < 0.6 * facts["ringmoe:bytes"]["float32"]
    assert facts["mlm:total_parameters"] * 4 == facts["ringmoe:bytes"]["float32"]
    assert set(shapes(item, "mlm:input", "input")) == {"s1_grd/pixels", "s1_grd/valid"}
    assert facts["ringmoe:compared"]["tiles"] == {"scenes": "first 3 of validation"}
    for difference in facts["ringmoe:compared"]["outputs"].values():
        assert 0 < difference["mean"] < 0.02 * difference["size"]
    inputs = random_inputs(item, 2)
    outputs, exact = call(inputs), jax.jit(dropless(mixture).apply)(mixture.params, as_batch(inputs))
    np.testing.assert_allclose(outputs["pooled/s1_grd"], exact["pooled"]["s1_grd"], atol=0.05)


@pytest.mark.slow
def test_maps_are_exported_with_their_classes(segmentation, tmp_path):
    item = exported(segmentation, tmp_path / "out")
    outputs = {entry["name"]: entry for entry in item["properties"]["mlm:output"]}
    assert outputs.keys() == {"logits", "classes"}
    for name in outputs:
        assert [c["description"] for c in outputs[name]["classification:classes"]] == list(COVER)
    assert outputs["logits"]["result"]["shape"] == [-1, SIZE, SIZE, 3]
    assert outputs["classes"]["result"]["dim_order"] == ["batch", "height", "width"]
    assert item["properties"]["mlm:tasks"] == ["semantic-segmentation"]
    assert item["properties"]["mlm:pretrained"] is False
    assert item["properties"]["description"] == "Segmentation of cover in rgb by RingMoE, trained on scenes."
    assert differences(item)["logits"] < 1e-5
    assert differences(item)["classes"] == 0


@pytest.mark.slow
def test_tracking_says_boxes_on_every_date(tmp_path):
    item = exported(fine_tuned(tmp_path / "run", "tracking"), tmp_path / "out")
    sizes = shapes(item)
    points = sizes["points"][1]
    assert sizes["points"] == [2, points, 3]
    assert sizes["box"] == [2, points, 5]
    assert sizes["boxes"] == [2, sizes["scores"][1], 5]
    axes = {entry["name"]: entry["result"]["dim_order"] for entry in item["properties"]["mlm:output"]}
    assert axes["classes"] == ["batch", "time", "object"]
    assert "raw" not in sizes
    assert differences(item)["box"] < 1e-3  # pixels


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multilabel", "change", "height", "detection"])
def test_other_tasks(task, tmp_path):
    """Of heights the truth's pixels are no input, though predictions lie on its grid."""
    item = exported(fine_tuned(tmp_path / "run", task), tmp_path / "out")
    assert set(shapes(item, "mlm:input", "input")) == {"rgb/pixels", "rgb/valid"}
    assert all("axis" not in axis for o in item["properties"]["mlm:output"] for axis in o["result"]["dim_order"])
    assert max(differences(item).values()) < 1e-3


def test_a_model_that_is_told_how_fine_images_are_is_told_by_its_callers():
    """What a model does not read is no input of its program: of metadata, only what it is told."""
    model = models.build(DENSE | dict(metadata=dict(location=False, date=False)))
    batch = tiles(("rgb",)).batch
    apply = lambda params, inputs: model.apply(params, as_batch(inputs))["pooled"]["rgb"]  # noqa: E731
    shapes = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in flatten(batch).items()}
    assert set(deploy.trim(apply, model.shapes(), shapes).inputs) == {"rgb/pixels", "rgb/valid", "rgb/gsd"}


@pytest.mark.slow
def test_skysense_reads_dates_and_gives_fused_features(tmp_path):
    alike = dict(alike=dict(name="alignment", sensors=SKYSENSE["sensors"]))
    run = Run.open(tiny_runs.pretraining(tmp_path / "run", SKYSENSE, objectives=alike))
    item = export(run, tiles(SKYSENSE["sensors"], dates=2), tmp_path / "out")
    assert shapes(item, "mlm:input", "input")["s2_10/time"] == [2]
    assert shapes(item)["fused"] == [SIZE, SIZE, 16]
    assert max(differences(item).values()) < 1e-5
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == item


def test_bad_requests_are_one_clear_line(mixture, segmentation, tmp_path):
    with pytest.raises(DataError, match="no checkpoint in"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match='did you mean "s1_grd"'):
        select_sensors(mixture, ("s1_gdr",))
    with pytest.raises(ConfigError, match="a fine-tuned model reads rgb"):
        select_sensors(segmentation, ("s1_grd",))
    (tmp_path / "photo.png").touch()
    with pytest.raises(DataError, match=r"holds photo.png, which was not written by this command: move it away"):
        export(mixture, tiles(("rgb",)), tmp_path)
    assert not (tmp_path / "out").exists()
