"""The floor plan: which package may import which, and that the library runs without TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "errors",
    "files",
    "config",
    "registry",
    "sensors",
    "units",
    "geo",
    "data_config",
    "contracts",
    "rasters",
    "parallel",
    "moe",
    "models",
    "encoding",
    "pretext",
    "objectives",
    "training",
    "evaluate",
    "compress",
    "tasks",
    "run",
    "interop",
    "planning",
    "deploy",
]
LIBRARY = sorted((ROOT / "ringmoe_jax").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_imports_nothing_above_it(path):
    top = {name.split(".")[0] for name in imported_modules(path)}
    assert not top & {"tensorflow", "tensorflow_datasets", "input_pipeline", "experiments", "configs", "tests"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_one_way(path):
    parts = path.relative_to(ROOT / "ringmoe_jax").with_suffix("").parts
    if parts[0] not in ORDER:
        return
    here = ORDER.index(parts[0])
    for name in imported_modules(path):
        part = name.split(".")[1] if name.startswith("ringmoe_jax.") else None
        if part in ORDER:
            assert ORDER.index(part) <= here, f"{'/'.join(parts)} imports {name}"


def test_only_models_knows_flax():
    for path in LIBRARY:
        if "models" not in path.parts:
            assert not any(name.split(".")[0] == "flax" for name in imported_modules(path)), path


def test_pipeline_needs_only_the_contracts():
    allowed = {
        "sensors",
        "contracts",
        "errors",
        "files",
        "config",
        "data_config",
        "geo",
        "rasters",
        "registry",
        "units",
    }
    for path in (ROOT / "input_pipeline").rglob("*.py"):
        for name in imported_modules(path):
            if name.startswith("ringmoe_jax."):
                assert name.split(".")[1] in allowed, f"{path.name} imports {name}"


def test_library_reader_and_verbs_run_where_tensorflow_is_not_installed():
    program = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "import ringmoe_jax.models, ringmoe_jax.training.loop, ringmoe_jax.training.step, ringmoe_jax.objectives\n"
        "import ringmoe_jax.evaluate.probes, ringmoe_jax.evaluate.style, ringmoe_jax.training.checkpoint\n"
        "import ringmoe_jax.deploy.export, ringmoe_jax.deploy.predict\n"
        "from ringmoe_jax.training.metrics import MetricsWriter\n"
        "import experiments.plan, experiments.benchmark, experiments.run.pretrain, experiments.run.finetune\n"
        "import experiments.run.evaluate, experiments.run.compress, experiments.benchmarks.reading\n"
        "import input_pipeline.device.reader, input_pipeline.evaluation, input_pipeline.subset\n"
        "from input_pipeline.reader import load\n"
        "from ringmoe_jax.errors import ConfigError\n"
        "try:\n"
        "    load('tf')\n"
        "except ConfigError as error:\n"
        "    assert 'needs TensorFlow, which is not installed' in str(error) and 'device' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_budgets():
    for folder in ("ringmoe_jax", "input_pipeline", "experiments", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 500, path
