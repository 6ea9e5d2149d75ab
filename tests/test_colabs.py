"""Notebooks run from top to bottom against this checkout, with fewer steps, and show their figures."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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


def _run(name, monkeypatch, **parameters):
    """Executes a notebook with other parameters; returns it."""
    for variable, value in {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax-tests"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(ROOT / "colabs" / name, as_version=4)
    _set(notebook, **parameters)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT / "colabs")}})
    client.execute(env=dict(os.environ))
    return notebook


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
def test_quickstart(tmp_path, monkeypatch):
    notebook = _run("01_quickstart.ipynb", monkeypatch, STEPS=2, WORKDIR=str(tmp_path / "run"))
    images = [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    pictures = {path.name for path in (tmp_path / "run" / "report").glob("*.png")}
    assert {"losses.png", "losses_huber.png", "experts_specialised.png", "experts_collaborative.png"} <= pictures
    assert {"reconstruction_aerial_rgb.png", "reconstruction_sentinel_s2_12.png"} <= pictures
    assert {"reconstruction_sentinel_s1_grd.png", "reconstruction_sentinel_slc_dual.png"} <= pictures
    assert len(images) == 9  # losses, four sensors, their comparison, two router groups, losses of the other objective
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    assert "NOT TESTED" not in text
    assert "MaskedHuber(" in text


@pytest.mark.slow
def test_swap_a_loss(tmp_path, monkeypatch):
    """The reduced form: two steps, two seeds, both arms; a table with both losses and a figure."""
    notebook = _run("02_swap_a_loss.ipynb", monkeypatch, STEPS=2, SEEDS=[0, 1], OUT=str(tmp_path))
    shown = [output.get("data", {}) for output in _outputs(notebook)]
    assert sum("image/png" in data for data in shown) == 1
    (table,) = (data["text/markdown"] for data in shown if "text/markdown" in data)
    rows = [line for line in table.splitlines() if "-ln p of s1_grd" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["l1", "student_t"]
    assert len(list(tmp_path.glob("grd/*/seed*/ablation_run.json"))) == 4
