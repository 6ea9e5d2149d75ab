"""The folder is whole or absent; what is not one, not whole or not ours is said so; the rules of mlm are kept."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from ringmoe_jax import deploy
from ringmoe_jax.errors import DataError
from tests.helpers.tiny_exports import CARD, SENSORS, tiny

ENUMERATION = set(
    "regression classification scene-classification detection object-detection segmentation semantic-segmentation "
    "instance-segmentation panoptic-segmentation similarity-search generative image-captioning super-resolution "
    "downscaling".split()
)


@pytest.fixture(scope="module")
def program():
    return tiny()


@pytest.fixture
def folder(program, tmp_path):
    deploy.save(tmp_path / "out", program, deploy.describe(program, CARD, 2))
    return tmp_path / "out"


def ones(rows=2):
    inputs = {}
    for name, sensor in SENSORS.items():
        inputs[f"{name}/pixels"] = np.ones((rows, 1, 4, 4, sensor.channels), np.float32)
        inputs[f"{name}/valid"] = np.ones((rows, 1, 4, 4), bool)
    return inputs


def test_what_is_loaded_is_what_was_saved(folder):
    call, metadata = deploy.load(folder)
    np.testing.assert_array_equal(call(ones())["logits"], [[2, 1], [2, 1]])
    assert metadata["properties"]["ringmoe:step"] == 3
    assert not list(folder.parent.glob("*.part"))
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    weights = (folder / "model.safetensors").read_bytes()
    assert metadata["assets"]["weights"]["file:checksum"] == "1220" + hashlib.sha256(weights).hexdigest()
    assert metadata["assets"]["weights"]["file:size"] == len(weights)


def test_descriptions_follow_the_machine_learning_model_extension(folder):
    """The rules of its JSON schema 1.5.2 that concern us, by hand."""
    item = json.loads((folder / "model.json").read_text())
    of = item["properties"]
    assert item["type"] == "Feature"
    assert "https://stac-extensions.github.io/mlm/v1.5.2/schema.json" in item["stac_extensions"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= of.keys()
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", of["mlm:name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?", of["mlm:framework_version"])
    assert set(of["mlm:tasks"]) <= ENUMERATION
    assert of["mlm:total_parameters"] == 2
    assert of["mlm:memory_size"] == 8
    bands = {band["name"]: band for band in of["bands"]}
    for entry in of["mlm:input"]:
        array = entry["input"]
        assert len(array["shape"]) == len(array["dim_order"]) == len(set(array["dim_order"]))
        assert array["shape"][0] == -1
        assert bool(entry["bands"]) == ("bands" in array["dim_order"])
        assert set(entry["bands"]) <= bands.keys()
    blue = bands["s2_10/B02"]
    assert (blue["eo:common_name"], blue["eo:center_wavelength"], blue["gsd"]) == ("blue", 0.4924, 10.0)
    assert (blue["raster:scale"], blue["nodata"], blue["unit"]) == (1e-4, 0, "reflectance")
    assert bands["s1_grd/VV"]["statistics"] == {"mean": -12.620, "stddev": 5.116}
    (output,) = of["mlm:output"]
    assert output["result"] == {"shape": [-1, 2], "dim_order": ["batch", "class"], "data_type": "float32"}
    assert output["classification:classes"][0] == {"value": 0, "name": "sea_ice", "description": "sea ice"}
    for asset in item["assets"].values():
        assert ("mlm:model" in asset["roles"]) == ("mlm:artifact_type" in asset)


def test_versions_of_four_numbers_become_semantic_ones(program, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.12.0.1")
    assert deploy.describe(program, CARD, 2)["properties"]["mlm:framework_version"] == "0.12.0+1"


def test_meanings_must_fit(program):
    wrong = dataclasses.replace(CARD, outputs={"logits": deploy.Meaning(("height", "width"), "")})
    with pytest.raises(ValueError, match="cannot have the axes height, width"):
        deploy.describe(program, wrong, 2)


def test_an_older_export_is_replaced_and_nothing_else(folder, program, tmp_path):
    deploy.save(folder, program, deploy.describe(program, CARD, 2))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(
        DataError, match=r"holds notes.txt, which was not written by this command.*nothing was replaced"
    ):
        deploy.save(folder, program, deploy.describe(program, CARD, 2))
    assert (folder / "notes.txt").read_text() == "mine"
    other = tmp_path / "photos"
    other.mkdir()
    deploy.check_target(other)
    (other / "one.png").touch()
    for path in (other, other / "one.png"):
        with pytest.raises(DataError, match=r"holds one\.png|is a file"):
            deploy.save(path, program, deploy.describe(program, CARD, 2))
    assert (other / "one.png").exists()


def spoil_schema(folder):
    item = json.loads((folder / "model.json").read_text())
    item["properties"]["ringmoe:schema"] = 99
    (folder / "model.json").write_text(json.dumps(item))
    (folder / "checksums.json").unlink()  # as of a version before checksums


def spoil_weights(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), "no exported model in"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is not what was written"),
        (lambda folder: (folder / "README.md").write_text("{"), "README.md has file:size 1"),
        (lambda folder: (folder / "model.stablehlo").unlink(), "model.stablehlo is missing"),
        (spoil_weights, "model.safetensors has file:checksum"),
        (lambda folder: (folder / "model.stablehlo").write_bytes(b""), "model.stablehlo has file:size 0"),
        (spoil_schema, "has schema 99, this program reads 1"),
    ],
)
def test_what_is_not_whole_is_not_loaded(folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=message):
        deploy.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("s1_grd/valid"), "wanted s2_10/pixels, s2_10/valid, s1_grd/pixels, s1_grd/valid"),
        (lambda x: x.update({"s1_grd/pixels": x["s1_grd/pixels"][..., :1]}), r"float32\[b, 1, 4, 4, 2\]"),
        (lambda x: x.update({"s1_grd/valid": x["s1_grd/valid"].astype(int)}), r"is int32\[2, 1, 4, 4\], wanted bool"),
        (lambda x: x.update({"s1_grd/valid": x["s1_grd/valid"][:1]}), "the same b"),
        (lambda x: x.update({name: value[:0] for name, value in x.items()}), "b >= 1"),
        (lambda x: x.update({"s1_grd/valid": 1}), r'input "s1_grd/valid" is int32\[\]'),
    ],
)
def test_bad_inputs_are_named(folder, change, message):
    call, _ = deploy.load(folder)
    inputs = ones()
    change(inputs)
    with pytest.raises(DataError, match=message):
        call(inputs)
