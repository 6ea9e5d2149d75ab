"""README.md and docs/: the Python lines run, what they name exists, a page fits a screen."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.run import cli

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_the_lines_from_an_array_to_features():
    """As printed; the shapes are those that its comments state."""
    (block,) = _blocks(README.read_text(), "python")
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    pooled, *stages = re.findall(r"\(8, [\d, ]+\)", block[block.index("features.pooled") :])
    features = names["features"]
    assert str(features.pooled["s2_12"].shape) == pooled
    assert [str(features.stages["s1_grd"][i].shape) for i in (0, -1)] == stages
    assert len(features.stages["s1_grd"]) == 4
    assert len(block.strip().split("\n")) <= 16


def test_readme_is_a_page():
    lines = README.read_text().split("\n")
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_name_verbs_and_configurations_that_exist(path):
    text = path.read_text()
    for verb in set(re.findall(r"(?:-m |`)experiments\.(\w+)", text)):
        assert find_spec(f"experiments.{verb}"), verb
    for config in set(re.findall(r"--config (configs/[\w/]+\.py(?::\w+)?)", text)):
        assert cli.read_config(config), config
