"""Notebooks run from top to bottom as in Colab, with fewer steps: pip installs this tree, and figures are shown."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import rasterio
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from tests.helpers import quick

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_hold_no_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def _set(notebook, **parameters):
    """Replaces the values of `NAME = ...  # @param` lines."""
    for name, value in parameters.items():
        found = False
        for cell in notebook.cells:
            lines = cell.source.split("\n")
            for i, line in enumerate(lines):
                if line.startswith(f"{name} = ") and "@param" in line:
                    lines[i], found = f"{name} = {value!r}", True
            cell.source = "\n".join(lines)
        assert found, f"the notebook has no parameter {name}"


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """A machine such as Colab's: folders of notebooks, of the package's source, of its own Python and of its kernel."""

    content: Path
    address: Path
    python: Path
    kernels: Path


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """No checkout around the notebook, sample data that were prepared before, pinned dependencies, an own Python."""
    content, address, python, kernels = (
        tmp_path_factory.mktemp(name) for name in ("content", "tree", "env", "jupyter")
    )
    for name in ("ringmoe_jax", "input_pipeline", "experiments", "configs"):
        shutil.copytree(ROOT / name, address / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]:
        shutil.copy(path, address)
    (ROOT / "data").mkdir(exist_ok=True)
    (content / "data").symlink_to(ROOT / "data")
    venv.create(python, with_pip=True)
    (site,) = python.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    kernel = kernels / "kernels" / "elsewhere"
    kernel.mkdir(parents=True)
    start = [str(python / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": start, "display_name": "elsewhere", "language": "python"}))
    return Elsewhere(content, address, python, kernels)


def _execute(notebook, elsewhere, monkeypatch):
    for variable, value in {
        "XLA_FLAGS": quick.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(quick.CACHE),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PIP_NO_DEPS": "1",
        "JUPYTER_PATH": str(elsewhere.kernels),
    }.items():
        monkeypatch.setenv(variable, value)
    where = {"metadata": {"path": str(elsewhere.content)}}
    NotebookClient(notebook, timeout=900, resources=where, kernel_name="elsewhere").execute(env=dict(os.environ))
    return notebook


def _run(name, elsewhere, monkeypatch, **parameters):
    """Executes a notebook with other parameters; returns it."""
    notebook = nbformat.read(ROOT / "colabs" / name, as_version=4)
    _set(notebook, ADDRESS=str(elsewhere.address), **parameters)
    return _execute(notebook, elsewhere, monkeypatch)


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _install_cell(path):
    (cell,) = (cell for cell in nbformat.read(path, as_version=4).cells if "ADDRESS = " in cell.source)
    return cell


def test_notebooks_install_alike():
    """One variable holds the address, and nothing is cloned."""
    (source,) = {_install_cell(path).source for path in NOTEBOOKS}
    assert source.count('ADDRESS = ""  # @param') == 1
    assert "git clone" not in source


@pytest.mark.slow
def test_install_as_in_colab(elsewhere, monkeypatch):
    """Without an address: one line. With one: the package, its configurations and its templates are there."""
    cell = _install_cell(NOTEBOOKS[0])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    with pytest.raises(CellExecutionError, match="say above where to install from, for example"):
        _execute(notebook, elsewhere, monkeypatch)
    imports = "import configs.ringmoe_micro, ringmoe_jax as rm\nprint(rm.__file__, callable(rm.encode))"
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(imports)])
    _set(notebook, ADDRESS=str(elsewhere.address))
    text = "".join(output.get("text", "") for output in _outputs(_execute(notebook, elsewhere, monkeypatch)))
    (package,) = elsewhere.python.glob("lib/python*/site-packages/ringmoe_jax")
    assert f"{package}/__init__.py True" in text
    assert list((package.parent / "experiments").rglob("*.j2"))
    # Verbs find the configurations that came with the package.
    command = [elsewhere.python / "bin" / "python", "-m", "experiments.pretrain", "--workdir", "runs/never"]
    command += ["--config", "configs/ringmoe_micro.py", "--sensors", "rbg"]
    done = subprocess.run(command, cwd=elsewhere.content, capture_output=True, text=True, timeout=120, check=False)
    assert 'did you mean "rgb"' in done.stderr


@pytest.mark.slow
def test_quickstart(tmp_path, elsewhere, monkeypatch):
    notebook = _run("01_quickstart.ipynb", elsewhere, monkeypatch, STEPS=2, WORKDIR=str(tmp_path / "run"))
    images = [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    pictures = {path.name for path in (tmp_path / "run" / "report").glob("*.png")}
    assert {"losses.png", "losses_huber.png", "experts_specialised.png", "experts_collaborative.png"} <= pictures
    assert {"reconstruction_aerial_rgb.png", "reconstruction_sentinel_s2_12.png"} <= pictures
    assert {"reconstruction_sentinel_s1_grd.png", "reconstruction_sentinel_slc_dual.png"} <= pictures
    assert len(images) == 9  # losses, four sensors, their comparison, two router groups, losses of the other objective
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    assert f"from {elsewhere.python}" in text  # the installed package, not the checkout
    assert "a vector an image (2, 64)" in text
    assert "MaskedHuber(" in text


@pytest.mark.slow
def test_your_data(tmp_path, elsewhere, monkeypatch):
    """The reduced form: from GeoTIFFs that the notebook writes to a map of another scene, which it shows."""
    folders = {name: str(tmp_path / name.lower()) for name in ("SOURCE", "DATA", "WORKDIR")}
    notebook = _run("03_your_data.ipynb", elsewhere, monkeypatch, STEPS=2, **folders)
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    assert 'note: 1 of 25 places, "place03" among them, have no s1_grd: stored as not observed' in text
    assert "segmentation of mask, data/validation, 5 samples" in text
    assert "right: " in text
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 2  # samples, and the map
    with rasterio.open(tmp_path / "workdir" / "map.tif") as file:
        assert (file.shape, file.colormap(1)[0][:3]) == ((192, 192), (0x20, 0x60, 0xC0))
        assert file.tags()["CLASS_0"] == "water"


@pytest.mark.slow
def test_trained_weights(tmp_path, elsewhere, monkeypatch):
    """The reduced form; neighbours by trained features are of one land cover more often than by colour."""
    folders = {name: str(tmp_path / name.lower()) for name in ("RUN", "SCENE", "DATA", "WORKDIR")}
    notebook = _run("04_trained_weights.ipynb", elsewhere, monkeypatch, STEPS=2, **folders)
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    assert "Apache-2.0 | ringmoe_jax reference run" in text
    assert "a vector an image (1, 192)" in text
    features, colours, chance = (int(share) for share in re.findall(r"(\d+)%", text)[:3])
    assert features >= colours > chance
    assert "segmentation of land_cover, simulated/validation, 12 samples" in text
    assert "the same features: True" in text
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 2  # the search, and samples


def _eurosat(path):
    """Pictures of two kinds in the archive's layout, without lists of splits."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for kind, colour in (("Forest", 60), ("River", 150)):
            for i in range(60):
                picture = io.BytesIO()
                values = rng.normal(colour, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(values).save(picture, "jpeg")
                archive.writestr(f"EuroSAT_RGB/{kind}/{kind}_{i}.jpg", picture.getvalue())


@pytest.mark.slow
def test_reference_run(tmp_path, elsewhere, monkeypatch):
    """The reduced form: two steps, a point of the curve after each, beside new and shipped weights."""
    _eurosat(tmp_path / "EuroSAT_RGB.zip")
    folders = dict(SOURCE=str(tmp_path / "EuroSAT_RGB.zip"), DATA=str(tmp_path / "data"), WORKDIR=str(tmp_path / "run"))
    notebook = _run("05_reference_run.ipynb", elsewhere, monkeypatch, STEPS=2, **folders)
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    shown = {name: float(re.search(rf"{name} +([0-9.]+)", text)[1]) for name in ("new weights", "this run", "shipped")}
    assert all(value > 0.9 for value in shown.values())  # dark and bright pictures: a curve of chance would show
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 2  # the views, and the curve


@pytest.mark.slow
def test_routing_atlas(elsewhere, monkeypatch):
    """The reduced form: experts of the shipped weights tell land covers apart that nobody named to them."""
    notebook = _run("06_routing_atlas.ipynb", elsewhere, monkeypatch, SCENES=3)
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    told = [tuple(map(float, line)) for line in re.findall(r"layer \d+: ([0-9.]+) nats, ([0-9.]+) by chance", text)]
    assert len(told) == 6
    assert max(information / chance for information, chance in told) > 5
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 3  # bars, tiles, the map


@pytest.mark.slow
def test_any_sensor(tmp_path, elsewhere, monkeypatch):
    """The reduced form: a satellite that training never saw, in two orders of its bands, and errors by band."""
    folders = {name: str(tmp_path / name.lower()) for name in ("DATA", "WORKDIR")}
    notebook = _run("07_any_sensor.ipynb", elsewhere, monkeypatch, STEPS=2, SCENES=10, **folders)
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    assert "trained on B01 B02 B03 B04 B07 B08 B09 B11 B12" in text
    assert "its tokens choose among the experts of multispectral and the collaborative ones" in text
    assert float(re.search(r"another order: features differ by at most (\S+)", text)[1]) < 1e-4
    assert "missing bands told" in text
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 2  # wavelengths, and bands


@pytest.mark.slow
def test_swap_a_loss(tmp_path, elsewhere, monkeypatch):
    """The reduced form: two steps, two seeds, both arms; a table with both losses and a figure."""
    notebook = _run("02_swap_a_loss.ipynb", elsewhere, monkeypatch, STEPS=2, SEEDS=[0, 1], OUT=str(tmp_path))
    shown = [output.get("data", {}) for output in _outputs(notebook)]
    assert sum("image/png" in data for data in shown) == 1
    (table,) = (data["text/markdown"] for data in shown if "text/markdown" in data)
    rows = [line for line in table.splitlines() if "-ln p of s1_grd" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["l1", "student_t"]
    assert len(list(tmp_path.glob("grd/*/seed*/ablation_run.json"))) == 4
