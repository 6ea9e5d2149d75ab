"""Windows that cover a scene, weights that sum to one, and maps without seams."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringmoe_jax.deploy.blending import Blend, Lattice
from ringmoe_jax.errors import ConfigError

LATTICES = st.builds(
    lambda length, cell, cells, overlap: Lattice.of(length, cell * cells, overlap, cells),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 8),
    st.floats(0, 0.9),
)
properties = settings(max_examples=40, deadline=None)


def blended(rows, columns, answer, channels=1):
    """The whole map of `answer(row, column) -> [cells, cells, channels]`."""
    blend, strips = Blend(rows, columns, channels), []
    for row in range(rows.windows):
        for column in range(columns.windows):
            blend.add(row, column, answer(row, column))
        strips.append(blend.finish(row))
    return np.concatenate(strips)


def test_windows_of_a_scene_by_hand():
    lattice = Lattice.of(length=10, window=8, overlap=0.5, cells=4)  # cells of 2 pixels, windows 4 pixels apart
    assert [lattice.start(i) for i in range(lattice.windows)] == [-2, 2, 6]  # their cores 0..4, 4..8, 8..12
    assert [lattice.first(i) for i in range(lattice.windows)] == [-1, 1, 3]
    assert (lattice.size, lattice.reach) == (5, 1)
    assert [lattice.finished(i) for i in range(lattice.windows)] == [(0, 1), (1, 3), (3, 5)]


def test_one_answer_a_window_is_that_of_its_core():
    lattice = Lattice.of(length=10, window=8, overlap=0.5, cells=1)
    assert [lattice.start(i) for i in range(3)] == [-2, 2, 6]
    assert [lattice.first(i) for i in range(3)] == [0, 1, 2]
    assert (lattice.cell, lattice.size, lattice.weights.tolist()) == (4, 3, [[1.0]] * 3)


@properties
@given(LATTICES)
def test_windows_cover_the_scene_and_strips_the_map(lattice):
    assert lattice.windows * lattice.step >= lattice.length > (lattice.windows - 1) * lattice.step
    ends = [lattice.finished(i) for i in range(lattice.windows)]
    assert [a for a, _ in ends] == [0, *(b for _, b in ends[:-1])]
    assert ends[-1][1] == lattice.size
    known = np.zeros(lattice.size)
    for i, weights in enumerate(lattice.weights):
        assert (weights > 0).all()
        for cell, weight in zip(range(lattice.first(i), lattice.first(i) + lattice.cells), weights, strict=True):
            if 0 <= cell < lattice.size:
                known[cell] += weight
    np.testing.assert_allclose(known, 1, rtol=1e-12)
    for i, (a, b) in enumerate(ends):  # the pixels of a finished strip were read for it
        start = lattice.start(i)
        assert a == b or (a * lattice.cell >= start and min(b * lattice.cell, lattice.length) <= start + lattice.window)


@properties
@given(LATTICES, LATTICES, st.integers(0, 9))
def test_strips_give_what_the_whole_scene_in_memory_gives(rows, columns, seed):
    columns = Lattice.of(columns.length, rows.window, 0.5 if rows.cells > 1 else 0.25, rows.cells)
    generator = np.random.default_rng(seed)
    shape = (rows.windows, columns.windows, rows.cells, rows.cells, 2)
    answers = generator.normal(size=shape)
    sums, total = np.zeros((2, rows.size + 99, columns.size + 99, 2))
    bell = 0.01 + 0.99 * np.sin(np.pi * (np.arange(rows.cells) + 0.5) / rows.cells) ** 2
    for r in range(rows.windows):
        for c in range(columns.windows):
            top, left = rows.first(r) + 40, columns.first(c) + 40
            place = np.s_[top : top + rows.cells, left : left + rows.cells]
            sums[place] += np.outer(bell, bell)[..., None] * answers[r, c]
            total[place] += np.outer(bell, bell)[..., None]
    want = (sums / np.where(total > 0, total, 1))[40 : 40 + rows.size, 40 : 40 + columns.size]
    np.testing.assert_allclose(blended(rows, columns, lambda r, c: answers[r, c], 2), want, atol=1e-12)


@properties
@given(LATTICES, st.floats(-1e4, 1e4, width=32))
def test_a_constant_stays_exactly_that(lattice, value):
    constant = blended(lattice, lattice, lambda r, c: np.full((lattice.cells, lattice.cells, 1), value))
    assert (constant.astype(np.float32) == np.float32(value)).all()


def test_seams_are_far_smaller_than_without_overlap():
    """A model that says where in its window a pixel lies, 0..1: its worst step from pixel to pixel is 1 at a seam.

    With half a window's overlap the weights change by at most pi / n a pixel between two answers that differ by 1 / 2,
    and the answers by 1 / n: together below 3 / n.
    """
    n = 32
    place = np.broadcast_to(np.linspace(0, 1, n)[:, None], (n, n, 1))
    steps = {}
    for overlap in (0.0, 0.5):
        lattice = Lattice.of(200, n, overlap, n)
        whole = blended(lattice, lattice, lambda r, c: place)
        steps[overlap] = max(np.abs(np.diff(whole, axis=axis)).max() for axis in (0, 1))
    assert steps[0.0] == pytest.approx(1)
    assert steps[0.5] < 3 / n


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_that_cannot_be(overlap):
    with pytest.raises(ConfigError, match=r"overlap = .* wanted at least 0 and below 1"):
        Lattice.of(10, 8, overlap, 4)
