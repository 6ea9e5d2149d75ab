"""The folder of one's own files is on the Python path, as the folder is that a command is run from."""

import sys
from pathlib import Path

import pytest

OWN = Path(__file__).parent / "own"


@pytest.fixture(autouse=True, scope="module")
def own_files():
    """The folder; what was imported from it is forgotten afterwards."""
    sys.path.insert(0, str(OWN))
    yield OWN
    sys.path.remove(str(OWN))
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]
