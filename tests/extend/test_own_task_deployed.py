"""An encoder and a task of one's own leave the house by what they state: exported, and as maps of scenes."""

import jax
import numpy as np
import pytest
import rasterio

from ringmoe_jax import deploy
from ringmoe_jax.contracts import VALUE
from ringmoe_jax.deploy.export import Tiles, export
from ringmoe_jax.deploy.predict import predict
from ringmoe_jax.deploy.windows import window_model
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.run import Run
from ringmoe_jax.tasks import Target
from tests.helpers import tiny, tiny_runs

SIZE, COVER = 8, ("bare", "trees")
VIT = dict(name="own_encoder:PlainViT", image_size=SIZE, patch=4, width=8, depth=2, heads=2)


@pytest.fixture(scope="module")
def shares(own_files, tmp_path_factory):
    """A run of the task that has not begun."""
    values = dict(
        task=dict(name="own_task:Shares", target="cover"),
        model=VIT | dict(sensors=("s1_grd",)),
        data=tiny_runs.data(("s1_grd",), SIZE, mask_unit=0),
    )
    folder = tmp_path_factory.mktemp("runs") / "shares"
    return Run.open(tiny_runs.finetuning(folder, values, Target("cover", VALUE, COVER), {"s1_grd": 1}))


def tiles(*sensors):
    batch = tiny.batch(dict(sensors=sensors, image_size=SIZE), rows=3)
    return Tiles(jax.tree.map(np.asarray, batch), {"here": "first 3 of validation"}, [{"name": "here"}])


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scene.tif"
    place = dict(crs="EPSG:32633", transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10))
    with rasterio.open(path, "w", driver="GTiff", width=20, height=12, count=2, dtype="float32", **place) as file:
        file.write(np.random.default_rng(0).normal(-12, 3, (2, 12, 20)).astype(np.float32))
    return {"s1_grd": [path]}


def test_a_task_is_exported_with_its_meanings(shares, tmp_path):
    item = export(shares, tiles("s1_grd"), tmp_path / "out")
    facts = item["properties"]
    assert facts["description"] == "Shares of cover in s1_grd by ViT, trained on here."
    assert facts["mlm:tasks"] == []
    (output,) = facts["mlm:output"]
    assert (output["name"], output["result"]["dim_order"]) == ("shares", ["batch", "class"])
    assert [c["description"] for c in output["classification:classes"]] == list(COVER)
    assert facts["ringmoe:compared"]["outputs"]["shares"]["max"] < 1e-5
    call, _ = deploy.load(tmp_path / "out")
    entry = tiles("s1_grd").batch["sensors"]["s1_grd"]
    outputs = call({f"s1_grd/{name}": entry[name] for name in ("pixels", "valid")})
    np.testing.assert_allclose(outputs["shares"].sum(-1), 1, atol=1e-5)


def test_a_task_maps_a_scene_under_its_own_names(shares, scene, tmp_path):
    predict(window_model(shares), scene, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.descriptions == COVER
        assert file.shape == (3, 5)
        np.testing.assert_allclose(file.read().sum(0), 1, atol=1e-5)
    with pytest.raises(ConfigError, match=r'--output "classes" is not what the task "own_task:Shares" of .*shares'):
        window_model(shares, "classes")


def test_an_encoder_gives_features_and_embeddings(own_files, scene, tmp_path):
    """It is shown one of its two sensors."""
    alike = dict(alike=dict(name="alignment", sensors=("rgb", "s1_grd")))
    model = VIT | dict(sensors=("rgb", "s1_grd"))
    run = Run.open(tiny_runs.pretraining(tmp_path / "run", model, size=SIZE, objectives=alike))
    item = export(run, tiles("s1_grd"), tmp_path / "out")
    shapes = {output["name"]: output["result"]["shape"][1:] for output in item["properties"]["mlm:output"]}
    assert shapes == {"pooled/s1_grd": [8], "tokens/s1_grd": [1, 2, 2, 8]}
    assert item["properties"]["mlm:architecture"] == "ViT"
    predict(window_model(run), scene, tmp_path / "tokens.tif")
    with rasterio.open(tmp_path / "tokens.tif") as file:
        assert (file.count, file.shape) == (8, (3, 5))
        assert np.isfinite(file.read()).all()
