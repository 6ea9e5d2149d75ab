"""A file in, a run out, and every verb on it; out again under the source's names."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("tensorflow")
rasterio = pytest.importorskip("rasterio")

from experiments import convert, evaluate, export, predict, report  # noqa: E402
from experiments.run import few_labels  # noqa: E402
from experiments.run.finetune import finetune  # noqa: E402
from ringmoe_jax.errors import ConfigError  # noqa: E402
from ringmoe_jax.files import write_safetensors  # noqa: E402
from ringmoe_jax.interop import files  # noqa: E402
from ringmoe_jax.run import IMPORTED, Run  # noqa: E402
from tests.helpers import peers, tiny_data  # noqa: E402
from tests.helpers.verbs import run  # noqa: E402

LICENCE, SIZE = "CC-BY-4.0", 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set, and a small ViT of timm as a file and as a run."""
    folder = tmp_path_factory.mktemp("convert")
    tiny_data.write(folder / "data", "rgb", train=12, validation=6)  # 8 px tiles, shown at 32
    write_safetensors(folder / "vit.safetensors", peers.weights(peers.golden("vit_small")[0]))
    options = ["--source", "timm", "--dataset", folder / "data", "--licence", LICENCE]
    assert run(convert, folder / "vit.safetensors", "--out", folder / "vit", *options) == 0
    return folder


def test_the_record_says_where_weights_come_from(folder):
    opened = Run.open(folder / "vit")
    assert opened.kind == IMPORTED
    assert opened.origin["licence"] == LICENCE
    assert opened.origin["file"] == "vit.safetensors"
    assert len(opened.origin["sha256"]) == 64
    assert "ImageNet" in opened.statistics["rgb"].source


@pytest.mark.slow
def test_evaluate_and_another_run_beside_it(folder):
    options = ["--protocol", "knn", "--beside", folder / "vit"]
    assert run(evaluate, "--checkpoint", folder / "vit", *options) == 0
    result = json.loads((folder / "vit" / "report" / "evaluation.json").read_text())
    scores = {(row["encoder"], row["protocol"]): row["scores"] for row in result["probes"]}
    assert scores["vit", "knn5"] == scores["pre-trained", "knn5"]  # the same weights on the same tiles
    assert result["origins"]["vit"]["licence"] == result["origins"]["pre-trained"]["licence"] == LICENCE
    assert run(report, "--workdir", folder / "vit") == 0
    assert LICENCE in (folder / "vit" / "report.html").read_text()


def test_two_runs_of_one_name_cannot_stand_beside_each_other():
    with pytest.raises(ConfigError, match="two folders have one name"):
        few_labels.anchors(["a/x", "b/x"])


def test_arms_of_other_encoders():
    arms = few_labels.anchors(["runs/galileo"])
    assert list(arms) == ["galileo, fine-tuned", "galileo, frozen"]
    assert arms["galileo, frozen"] == dict(adaptation=dict(method="frozen"), init_from="runs/galileo")


def test_export_keeps_the_licence(folder):
    assert run(export, "--checkpoint", folder / "vit", "--out", folder / "exported") == 0
    properties = json.loads((folder / "exported" / "model.json").read_text())["properties"]
    assert properties["license"] == LICENCE
    assert properties["ringmoe:origin"]["sha256"] == Run.open(folder / "vit").origin["sha256"]


def test_predict(folder):
    scene = folder / "scene.tif"
    place = dict(crs="EPSG:32633", transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10))
    with rasterio.open(scene, "w", driver="GTiff", width=40, height=36, count=3, dtype="uint8", **place) as file:
        file.write(np.random.default_rng(0).integers(1, 255, (3, 36, 40), dtype=np.uint8))
        file.descriptions = ("red", "green", "blue")
    assert run(predict, scene, "--checkpoint", folder / "vit", "--out", folder / "map.tif") == 0
    with rasterio.open(folder / "map.tif") as file:
        assert file.count == 64


@pytest.mark.slow
def test_finetune_remembers_the_licence(folder):
    stream = dict(directory=str(folder / "data"), sensors=("rgb",), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    values = dict(
        task=dict(name="classification", target="kind"),
        init_from=str(folder / "vit"),
        data=dict(streams=dict(all=stream), image_size=SIZE, batch_size=8, mask_unit=0),
        optimizer=dict(warmup_steps=0),
        train=dict(steps=1, log_every=1, evaluate_every=0),
    )
    finetune(values, str(folder / "task"))
    assert Run.open(folder / "task").origin["licence"] == LICENCE


def test_out_again(folder):
    assert run(convert, folder / "vit", "--out", folder / "again.safetensors") == 0
    before, after = files.read(folder / "vit.safetensors"), files.read(folder / "again.safetensors")
    assert before.keys() - after.keys() == {"head.weight", "head.bias"}
    for name, value in after.items():
        assert_array_equal(value, before[name])
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers installs it")
    from safetensors.torch import load_file

    read = load_file(folder / "again.safetensors")
    assert all(torch.equal(value, torch.from_numpy(before[name])) for name, value in read.items())


def test_a_folder_that_holds_a_run_is_kept(folder, capsys):
    assert run(convert, folder / "vit.safetensors", "--out", folder / "vit", "--source", "timm") == 1
    assert "holds a run" in capsys.readouterr().err


def test_fields_of_the_model():
    assert convert.fields(["a.b=3", "a.c=(1, 2)", "d=text"]) == {"a": {"b": 3, "c": (1, 2)}, "d": "text"}
    with pytest.raises(ConfigError, match="wanted FIELD=VALUE"):
        convert.fields(["window"])
