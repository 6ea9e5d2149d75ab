"""Weights that come with the library: small, open as a run, say what they are, and are worth more than new ones."""

import io
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import ringmoe_jax as rm
from ringmoe_jax import weights
from tests.helpers.real_sets import REAL

EUROSAT = REAL / "classification" / "eurosat_rgb"
LARGEST = 8e6  # bytes


@pytest.mark.parametrize("name", weights.names())
def test_they_are_small_and_say_where_they_are_from(name):
    assert weights.path(name).stat().st_size <= LARGEST
    run = rm.pretrained(name)
    assert {"source", "licence", "citation", "sha256"} <= set(run.origin)
    assert all(run.origin.values())


def tiles(split, each):
    """The first tiles of every class of a split, [N, 64, 64, 3] of 0 to 1, and their classes."""
    names = (EUROSAT / f"eurosat-spatial-{split}.txt").read_text().split()
    classes = sorted({name.split("_")[0] for name in names})
    chosen = [(name, i) for i, kind in enumerate(classes) for name in [n for n in names if n.startswith(kind)][:each]]
    with zipfile.ZipFile(next(EUROSAT.glob("*.zip"))) as archive:
        where = {entry.rsplit("/", 1)[-1]: entry for entry in archive.namelist()}
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(where[name])))) for name, _ in chosen]
    return np.stack(pictures) / np.float32(255), np.array([kind for _, kind in chosen])


@pytest.mark.skipif(not EUROSAT.is_dir(), reason=f"no {EUROSAT.name}")
@pytest.mark.slow
def test_the_reference_tells_real_places_apart_better_than_new_weights():
    run = rm.pretrained("reference")
    (known, kinds), (new, truth) = tiles("train", 60), tiles("val", 30)

    def accuracy(network):
        features = [
            np.concatenate([stage.mean(axis=(1, 2, 3)) for stage in rm.encode(network, {"rgb": x}).stages["rgb"]], -1)
            for x in (known, new)
        ]
        mean, std = features[0].mean(0), features[0].std(0)
        neighbours = KNeighborsClassifier(5).fit((features[0] - mean) / std, kinds)
        return neighbours.score((features[1] - mean) / std, truth)

    assert accuracy(run) > accuracy((run.model, run.model.init(jax.random.key(0)))) + 0.05
