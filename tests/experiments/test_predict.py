"""The verb that maps scenes: files by sensor, no TensorFlow, errors in one line."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from experiments.predict import by_sensor, main
from ringmoe_jax.contracts import MAP
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.tasks import Target
from tests.helpers import tiny_runs
from tests.helpers.tiny import RINGMOE

ROOT = Path(__file__).parents[2]
SIZE = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A segmentation of two classes that has not begun."""
    values = dict(
        task=dict(name="segmentation", target="cover"),
        data=tiny_runs.data(("s2_12",), SIZE, mask_unit=0),
        model=RINGMOE | dict(depths=(1, 1), image_size=SIZE, sensors=("s2_12",)),
        head=dict(name="fcn", channels=8),
    )
    target = Target("cover", MAP, ("bare", "grown"), "s2_12")
    return tiny_runs.finetuning(tmp_path_factory.mktemp("runs") / "cover", values, target, {"s2_12": 1})


@pytest.mark.slow
def test_needs_no_tensorflow_and_says_what_it_did(run, tmp_path):
    """By the command line, in a program of its own."""
    scene, out = tmp_path / "scene.tif", str(tmp_path / "map.tif")
    profile = dict(driver="GTiff", height=40, width=40, count=12, dtype="uint16", crs="EPSG:32633")
    with rasterio.open(scene, "w", transform=Affine(10, 0, 500_000, 0, -10, 5_000_000), **profile) as file:
        file.write(np.random.default_rng(0).integers(1, 9000, (12, 40, 40), dtype=np.uint16))
    program = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "from experiments.predict import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "--checkpoint", run, str(scene), "--out", out]
    said = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert f"{out}: classes of s2_12 by {run} at step {tiny_runs.STEP}" in said[0]
    assert "9 windows in 0 min" in said[0]
    assert "is there already, from the same command" in said[1]
    with rasterio.open(out) as file:
        assert file.shape == (40, 40)
        assert set(np.unique(file.read(1))) <= {0, 1}


def test_files_by_sensor():
    one, two = ("s2_12",), ("s2_12", "s1_grd")
    assert by_sensor(["a.tif", "b.tif"], one) == {"s2_12": ["a.tif", "b.tif"]}
    assert by_sensor(["s1_grd=b.tif", "s2_12=a.tif"], two) == {"s1_grd": ["b.tif"], "s2_12": ["a.tif"]}
    with pytest.raises(ConfigError, match=r'of which sensor is "a.tif"\? Give SENSOR=a.tif'):
        by_sensor(["a.tif"], two)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "error: .*no.tif does not exist: wanted a raster of s2_12"),
        (["--format", "tif"], 'error: format "tif" does not exist'),
        (["--output", "heights"], 'error: --output "heights" is not what the task "segmentation"'),
    ],
)
def test_the_command_line_says_it_in_one_line(more, message, run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--checkpoint", run, "--out", str(tmp_path / "map.tif"), str(tmp_path / "no.tif"), *more])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(message, line)
