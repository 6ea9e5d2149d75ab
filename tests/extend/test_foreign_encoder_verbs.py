"""Every verb with an encoder of one's own: a plain ViT without experts, in a file outside the packages."""

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow")
rasterio = pytest.importorskip("rasterio")

from experiments import compress, evaluate, export, predict  # noqa: E402
from experiments.run.finetune import finetune  # noqa: E402
from experiments.run.pretrain import pretrain  # noqa: E402
from ringmoe_jax import deploy, sensors  # noqa: E402
from ringmoe_jax.errors import ConfigError  # noqa: E402
from tests.helpers import tiny_data  # noqa: E402
from tests.helpers.verbs import run  # noqa: E402

pytestmark = pytest.mark.slow  # test_own_parts.py has a short run of each part
SENSOR, SIZE = "s1_grd", 8
VIT = dict(name="own_encoder:PlainViT", sensors=(SENSOR,), image_size=SIZE, patch=4, width=8, depth=2, heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    tiny_data.write(folder / "data", SENSOR, train=12, validation=6)
    return folder


def config(folder, **changes):
    stream = dict(directory=str(folder / "data"), sensors=(SENSOR,), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    return dict(
        data=dict(streams=dict(all=stream), image_size=SIZE, batch_size=8, mask_unit=4),
        optimizer=dict(learning_rate=1e-2, warmup_steps=0),
        train=dict(steps=2, log_every=1, evaluate_every=0, seed=0),
    ) | dict(changes)


@pytest.fixture(scope="module")
def trained(folder, own_files):
    """The folder of a pre-training run."""
    terms = dict(s1=dict(name="masked_l1", sensor=SENSOR))
    pretrain(config(folder, model=VIT, objectives=terms), str(folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def evaluated(trained):
    assert run(evaluate, "--checkpoint", trained, "--protocol", "knn") == 0
    return trained


def test_evaluate(evaluated):
    result = json.loads((evaluated / "report" / "evaluation.json").read_text())
    assert result["step"] == 2
    assert not result["routing"]


def test_export_says_what_the_architecture_is_called(trained, folder):
    assert run(export, "--checkpoint", trained, "--out", folder / "exported") == 0
    call, metadata = deploy.load(folder / "exported")
    assert metadata["properties"]["mlm:architecture"] == "ViT"
    shapes = {entry["name"]: entry["input"]["shape"][1:] for entry in metadata["properties"]["mlm:input"]}
    kinds = {f"{SENSOR}/valid": bool}
    outputs = call({name: np.ones((1, *shape), kinds.get(name, np.float32)) for name, shape in shapes.items()})
    assert outputs[f"tokens/{SENSOR}"].shape == (1, 1, 2, 2, 8)


def test_compress_refuses_in_one_line(trained, folder, capsys):
    code = run(compress, "--checkpoint", trained, "--modality", SENSOR, "--method", "prune", "--out", folder / "small")
    assert code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert "own_encoder:PlainViT" in said[-1]
    assert "cannot be compressed" in said[-1]


@pytest.fixture(scope="module")
def tuned(trained, folder):
    """The folder of a fine-tuned run, with layer-wise rates."""
    values = config(folder, task=dict(name="segmentation", target="map"), init_from=str(trained))
    values |= dict(head=dict(name="fcn", channels=8), optimizer=values["optimizer"] | dict(layer_decay=0.5))
    finetune(values, str(folder / "task"))
    return folder / "task"


def test_evaluate_a_task(tuned):
    assert run(evaluate, "--checkpoint", tuned) == 0
    assert "mIoU" in json.loads((tuned / "report" / "task.json").read_text())["scores"]


def test_report(evaluated, tuned):
    from experiments import report

    for folder in (evaluated, tuned):
        assert run(report, "--workdir", folder) == 0
        assert SENSOR in (folder / "report.html").read_text()


def test_predict(tuned, folder):
    scene = folder / "scene.tif"
    place = dict(crs="EPSG:32633", transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10))
    with rasterio.open(scene, "w", driver="GTiff", width=20, height=12, count=2, dtype="float32", **place) as file:
        file.write(np.random.default_rng(0).normal(-12, 3, (2, 12, 20)).astype(np.float32))
        file.descriptions = sensors.get(SENSOR).band_names
    assert run(predict, scene, "--checkpoint", tuned, "--out", folder / "map.tif") == 0
    with rasterio.open(folder / "map.tif") as file:
        assert file.read(1).shape == (12, 20)


def test_objectives_that_want_routers_are_refused_before_training(folder, own_files):
    terms = dict(s1=dict(name="masked_l1", sensor=SENSOR), even=dict(name="balance"))
    with pytest.raises(ConfigError, match=r"objective even \(Balance\) reads 'routing'"):
        pretrain(config(folder, model=VIT, objectives=terms), str(folder / "refused"))
