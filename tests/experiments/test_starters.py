"""Configurations that are written beside a data set: they fit its tiles, sensors and labels, and run as they are."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image as Picture

from experiments import prepare, starters
from experiments.run import data
from experiments.run.cli import read_config
from experiments.run.encoder import encoder_of
from input_pipeline.dataset import open_dataset
from input_pipeline.synthetic import dataset as synthetic
from ringmoe_jax import files, models
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.ringmoe import RingMoEConfig
from ringmoe_jax.run import FinetuneConfig, PretrainConfig, build

SIDES = (8, 12, 16, 20, 24, 30, 32, 48, 60, 64, 96, 100, 101, 120, 128, 200, 224, 256, 264, 300, 512)
TASKS = {
    "land_cover": "segmentation",
    "dominant": "classification",
    "setting": "classification",
    "present": "multilabel",
    "boxes": "detection",
    "oriented": "detection",
    "change": "change",
    "tracks": "tracking",
    "ndsm": "height",
}


def fast_first(values, *fast):
    """Parameters of a test that takes long; all but a few are slow tests."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("side", SIDES)
def test_every_tile_has_a_geometry(side):
    geometry = starters.Geometry.of(side)
    assert geometry.size == side or side % 8  # nothing is resized that need not be
    assert side - 32 < geometry.size <= side
    fields = dict(image_size=geometry.size, patch=geometry.patch, depths=geometry.depths, window=geometry.window)
    config = RingMoEConfig(sensors=("rgb",), width=16, **fields)  # raises where it does not fit
    assert 2 <= len(geometry.depths) <= starters.STAGES
    assert config.grid(0) <= starters.GRID
    assert config.grid(len(geometry.depths) - 1) >= 2


def test_common_tiles_keep_the_geometry_of_the_shared_defaults():
    assert starters.Geometry.of(96) == starters.Geometry(96, 4, (2, 2, 2, 2), 6)
    assert starters.Geometry.of(128) == starters.Geometry(128, 4, (2, 2, 2, 2), 8)
    assert starters.Geometry.of(256) == starters.Geometry(256, 8, (2, 2, 2, 2), 8)
    assert starters.Geometry.of(120) == starters.Geometry(120, 5, (2, 2, 2, 2), 6)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    sensors = ("rgb", "s1_grd", "slc_dual", "ndsm")
    synthetic.prepare(folder, scenes=6, size=96, sensors=sensors, dates=2, gsd=2.5)
    starters.write(folder)
    return folder


def test_what_a_data_set_teaches_has_a_configuration(scenes):
    assert {path.name for path in scenes.glob("*.py")} == {"pretrain.py"} | {f"finetune_{name}.py" for name in TASKS}
    for path in scenes.glob("*.py"):
        assert max(map(len, path.read_text().replace(str(scenes), "data/mine").splitlines())) <= 120
        compile(path.read_text(), path, "exec")


@pytest.mark.parametrize("name", fast_first(TASKS, "oriented", "ndsm"))
def test_a_fine_tuning_configuration_builds(scenes, name):
    """All of it: encoder, head, task and objectives, from the data set's own description."""
    config = FinetuneConfig.of(read_config(str(scenes / f"finetune_{name}.py")))
    assert (config.task["name"], config.task["target"]) == (TASKS[name], name)
    assert config.task.get("rotated", False) == (name in ("oriented", "tracks"))
    encoder = encoder_of(config)
    assert name not in encoder.sensors
    spec = data.task_spec(config, data.open_labelled(config, encoder))
    parts = build.finetuning(config, encoder, spec, {})
    assert set(parts.sensors) == ({"rgb"} if name == "tracks" else {"rgb", "s1_grd", "slc_dual", "ndsm"} - {name})
    assert config.data.batch_size == (2 if name == "tracks" else 6)
    assert config.optimizer.warmup(config.train.steps) < config.train.steps == starters.STEPS[0]


def test_a_pre_training_configuration_builds(scenes):
    config = PretrainConfig.of(read_config(str(scenes / "pretrain.py")))
    config.check_streams()
    parts = build.pretraining(config, {})
    assert set(parts.sensors) == {"rgb", "s1_grd", "slc_dual", "ndsm"}
    assert config.objectives["slc_dual"]["name"] == "log_total_power"
    assert models.image_sizes(config.model) == dict.fromkeys(parts.sensors, 48)  # the complex one
    assert config.data.image_size % config.data.mask_unit == 0


def test_a_configuration_that_was_changed_stays(scenes):
    path = scenes / "finetune_dominant.py"
    before = path.read_text()
    path.write_text(before + "# mine\n")
    (scenes / "pretrain.py").unlink()
    starters.write(scenes)
    assert path.read_text() == before + "# mine\n"
    assert (scenes / "pretrain.py").exists()
    path.write_text(before)


def test_a_data_set_of_an_older_version_stays_one(scenes, tmp_path):
    """It has no checksums: a list of the configurations' alone would say that all else is damaged."""
    folder = shutil.copytree(scenes, tmp_path / "old")
    (folder / files.MANIFEST).unlink()
    for path in folder.glob("*.py"):
        path.unlink()
    starters.write(folder)
    assert not (folder / files.MANIFEST).exists()
    assert open_dataset(str(folder), ("rgb",)).labels


@pytest.fixture
def places(tmp_path):
    """Six pictures with masks of a square: 0 and 255."""
    for i in range(6):
        mask = np.zeros((32, 32), np.uint8)
        mask[4 + i : 20 + i, 6:24] = 1
        for kind, values in (("rgb", mask[..., None].repeat(3, -1) * 200 + 20), ("mask", mask * 255)):
            (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
            Picture.fromarray(values.astype(np.uint8)).save(tmp_path / "in" / kind / f"p{i}.png")
    (tmp_path / "in" / "classes.txt").write_text("ground,#c0a080\nbuilding,#d02020\n")
    return tmp_path


def test_prepare_says_what_comes_next(places, capsys):
    out = places / "data" / "town"
    prepare.main.__wrapped__(["--source", str(places / "in"), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "note: mask: no file holds a 1, so 255 is taken for" in printed
    assert f"python -m experiments.finetune --config {out}/finetune_mask.py --workdir runs/town_mask" in printed
    assert f"python -m experiments.pretrain --config {out}/pretrain.py --workdir runs/town\n" in printed
    assert {path.name for path in out.glob("*.py")} == {"finetune_mask.py", "pretrain.py"}
    again = ["--source", str(places / "in"), "--out", str(out), "--overwrite"]
    for ignored, message in (("x", "--ignore x: wanted whole numbers, or none"), ("0", "names building: wanted two")):
        with pytest.raises(SystemExit, match="1"):
            prepare.main([*again, "--ignore", ignored])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main(["--simulate", "3", "--out", str(out), "--ignore", "0"])


MODULE = """
from ringmoe_jax.sensors import Band, Sensor

MINE = Sensor(name="grey_{0}", modality="optical", unit="digital number / 255", dtype="uint8", scale=1 / 255,
              valid_range=(0.0, 1.0), source="made up", bands=(Band("red", 0.5, 0.2, 1.0), Band("green", 0.5, 0.2, 1.0),
              Band("blue", 0.5, 0.2, 1.0)))
"""


@pytest.mark.parametrize("registered", [True, False])
def test_sensors_of_a_file_of_ones_own(places, monkeypatch, registered):
    """Named by `module:NAME`, or registered by a module: the configurations name them likewise."""
    kind = "registered" if registered else "named"
    text = MODULE.format(kind) + ("\nfrom ringmoe_jax.sensors import register\nregister(MINE)\n" if registered else "")
    (places / f"sensors_{kind}.py").write_text(text)
    monkeypatch.syspath_prepend(places)
    (places / "in" / "rgb").rename(places / "in" / f"grey_{kind}")
    given = ["--modules", f"sensors_{kind}"] if registered else ["--sensors", f"sensors_{kind}:MINE"]
    out = places / "data" / "own"
    prepare.main.__wrapped__(["--source", str(places / "in"), "--out", str(out), *given])
    config = PretrainConfig.of(read_config(str(out / "pretrain.py")))
    config.check_streams()
    assert list(build.pretraining(config, {}).sensors) == [f"grey_{kind}"]
    config = FinetuneConfig.of(read_config(str(out / "finetune_mask.py")))
    assert config.modules == ((f"sensors_{kind}",) if registered else ())
    assert list(data.open_labelled(config, encoder_of(config)).sensors) == [f"grey_{kind}"]


def test_a_label_that_is_not_there_is_answered_with_those_that_are(places):
    out = places / "data" / "town"
    prepare.main.__wrapped__(["--source", str(places / "in"), "--out", str(out)])
    config = FinetuneConfig.of(read_config(str(out / "finetune_mask.py")))
    dataset = data.open_labelled(config, encoder_of(config))
    assert data.task_spec(config, dataset).target.colours == ("#c0a080", "#d02020")
    wrong = dataclasses.replace(config, task=config.task | dict(target="land_cover"))
    with pytest.raises(ConfigError, match=r"its labels are mask \(map\); set config.task.target to one of them"):
        data.task_spec(wrong, dataset)
