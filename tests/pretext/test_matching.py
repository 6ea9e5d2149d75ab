"""Which features of two views belong together: pixels that carry their coordinates, and planted clusters."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.pretext import matching
from tests.helpers.references import sinkhorn_knopp

TILE = (12, 20)
SIZE = 6  # of views, in pixels of the tile
TURNS = [(mirrored, quarters) for mirrored in (False, True) for quarters in range(4)]
positions = jax.jit(matching.positions, static_argnums=2)
sample = jax.jit(matching.sample)
clusters = jax.jit(matching.clusters, static_argnums=(4, 5))


def view(top, left, turn, size=(SIZE, SIZE)):
    """A turned crop of a tile whose pixels are the coordinates of their centres, and its affine map, by a fit."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in TILE)
    tile = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    shown = tile[top : top + size[0], left : left + size[1]]
    shown = np.rot90(shown[:, ::-1] if turn[0] else shown, turn[1])
    row, column = np.indices(shown.shape[:2]).reshape(2, -1)
    points = np.stack([(row + 0.5) / shown.shape[0], (column + 0.5) / shown.shape[1], np.ones(row.size)], axis=-1)
    ground = np.linalg.lstsq(points, shown.reshape(-1, 2), rcond=None)[0].T
    assert_allclose(points @ ground.T, shown.reshape(-1, 2), atol=1e-12)
    return shown.astype(np.float32), ground.astype(np.float32)


def stacked(*views):
    return (np.stack(x) for x in zip(*views, strict=True))


def check(first, second):
    (maps_a, ground_a), (maps_b, ground_b) = (stacked(*views) for views in (first, second))
    found, inside = (np.asarray(x) for x in positions(ground_a, ground_b, maps_a.shape[1:3]))
    back = np.einsum("bij,bhwj->bhwi", ground_b[..., :2], found) + ground_b[:, None, None, :, 2]
    assert_allclose(back, maps_a, atol=2e-6)
    half = 0.5 / np.array(TILE)
    low, high = (f(maps_b, axis=(1, 2))[:, None, None] for f in (np.min, np.max))
    assert_array_equal(inside, ((maps_a > low - half) & (maps_a < high + half)).all(axis=-1))
    values = np.asarray(sample(maps_b[:, None], found))[:, 0]
    assert_allclose(values, np.clip(maps_a, low, high), atol=2e-6)  # a map of its own coordinates; borders repeat
    return inside


def test_all_turns_of_overlapping_crops():
    pairs = list(itertools.product(TURNS, TURNS))
    inside = check([view(1, 3, a) for a, _ in pairs], [view(4, 8, b) for _, b in pairs])
    assert_array_equal(inside.sum(axis=(1, 2)), 3)  # rows 4 to 6, column 8


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_random_crops(data):
    draw = lambda: view(  # noqa: E731
        data.draw(st.integers(0, TILE[0] - SIZE)),
        data.draw(st.integers(0, TILE[1] - SIZE)),
        data.draw(st.sampled_from(TURNS)),
    )
    check([draw()], [draw()])


def test_views_of_other_sizes_and_shapes():
    """Grids of 2 x 3 cells and 8 x 5, both upright; a cell of the first is as large as one of the tile."""
    inside = check([view(2, 4, (False, 0), (2, 3))], [view(1, 2, (True, 0), (8, 5))])
    assert inside.all()


def test_a_coarser_view_is_averaged_into_between_its_centres():
    """Second view: the same ground at half the resolution. The weights are 3/4 and 1/4."""
    ground = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
    found, inside = positions(ground, ground, (4, 4))
    maps = np.array([[0.0, 0.0], [4.0, 4.0]], np.float32)[None, None, :, :, None]
    assert np.asarray(inside).all()
    assert_allclose(
        np.asarray(sample(maps, found))[0, 0, :, :, 0], np.repeat([[0], [1], [3], [4]], 4, axis=1), atol=1e-6
    )


def test_the_same_view_gives_the_same_map():
    maps = np.random.default_rng(0).normal(size=(8, 3, SIZE, SIZE, 5)).astype(np.float32)
    _, ground = stacked(*(view(3, 7, turn) for turn in TURNS))
    found, inside = positions(ground, ground, (SIZE, SIZE))
    assert np.asarray(inside).all()
    assert_allclose(sample(maps, found), maps, atol=2e-5)


def test_the_edge_belongs_to_the_view():
    whole = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)

    def inside(shift):
        return bool(positions(whole, np.array([[[0.5, 0, 0.5 + shift], [0, 0.5, 0.25]]], np.float32), (1, 1))[1].all())

    assert [inside(s) for s in (-0.5, -0.501, 0.0, 1e-6, 1e-3)] == [True, False, True, True, False]


def planted(seed=0, images=2, rows=16, width=6, noise=0.05, labels=(4, 4)):
    """Blocks of locations around orthogonal directions, in both views; the first one's are shuffled."""
    rng = np.random.default_rng(seed)
    centres = np.stack([np.linalg.qr(rng.normal(size=(width, width)))[0][:4] for _ in range(images)])
    kinds = [np.stack([rng.permutation(np.arange(rows) % labels[0]) for _ in range(images)])]
    kinds.append(np.tile(np.arange(rows) * labels[1] // rows, (images, 1)))
    views = [np.take_along_axis(centres, k[..., None], axis=1) for k in kinds]
    views = [(3 * v + noise * rng.normal(size=v.shape)).astype(np.float32) for v in views]
    return *views, *kinds


def means(features, kinds):
    return np.stack([[f[k == c].mean(axis=0) for c in range(4)] for f, k in zip(features, kinds, strict=True)])


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_planted_clusters_are_found_in_both_views(temperature):
    first, second, *kinds = planted()
    seen = np.ones(first.shape[:2], bool)
    a, b, used = (np.asarray(x) for x in clusters(first, second, seen, seen, 4, temperature))
    assert used.all()
    # Centres start in the blocks of the second view, in order.
    assert_allclose(a, means(first, kinds[0]), atol=5e-3)
    assert_allclose(b, means(second, kinds[1]), atol=5e-3)


def test_clusters_against_the_recursion():
    """Features without structure: shares are soft, and both views and all weights matter."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(1, 10, 6)).astype(np.float32), rng.normal(size=(1, 7, 6)).astype(np.float32)
    seen = [rng.random((1, n)) < 0.8 for n in (10, 7)]
    got = [np.asarray(x)[0] for x in clusters(first, second, *seen, 3, 0.3)]
    both = np.concatenate([first[0], second[0]]).astype(np.float64)
    x, weight = both / np.linalg.norm(both, axis=-1, keepdims=True), np.concatenate([s[0] for s in seen]) * 1.0
    centres = x[[10, 13, 16]]
    for _ in range(2):
        shares = sinkhorn_knopp(x @ centres.T, weight, 0.3) * weight[:, None]
        centres = shares.T @ x
        centres /= np.linalg.norm(centres, axis=-1, keepdims=True)
    for centre, part in zip(got, (slice(10), slice(10, None)), strict=False):
        assert_allclose(centre, shares[part].T @ both[part] / shares[part].sum(axis=0)[:, None], atol=1e-4)


def test_what_only_one_view_shows_is_not_used():
    first, second, *_ = planted(labels=(3, 4))
    seen = np.ones(first.shape[:2], bool)
    used = np.asarray(clusters(first, second, seen, seen, 4, 0.02)[2])
    assert_array_equal(used, [[True, True, True, False]] * 2)
    for sides in ((seen, ~seen), (~seen, seen), (~seen, ~seen)):
        a, b, used = clusters(first, second, *sides, 4, 0.02)
        assert np.isfinite(a).all()
        assert np.isfinite(b).all()
        assert not np.asarray(used).any()


def test_hidden_locations_do_not_matter():
    first, second, *_ = planted()
    seen = np.ones(first.shape[:2], bool)
    seen[:, 1::5] = False
    other = np.where(seen[..., None], first, 7.0)
    for x, y in zip(*(clusters(f, second, seen, seen[:, :16], 4, 0.1) for f in (first, other)), strict=True):
        assert_array_equal(x, y)


def test_gradients_pass_through_the_means_alone():
    """d a[c, d] / d first[i, e] is share[i, c] / mass[c] if d = e, else 0: shares that sum to 1, and no others."""
    first, second, *_ = planted(images=1, noise=1.0)
    seen = np.ones(first.shape[:2], bool)
    centres = lambda f, s: clusters(f, s, seen, seen, 4, 0.1)[:2]  # noqa: E731
    a, b = jax.jit(jax.jacobian(centres, (0, 1)))(first, second)
    assert not np.asarray(a[1]).any()
    assert not np.asarray(b[0]).any()
    jacobian = np.asarray(a[0])[0, :, :, 0]  # [C, D, n, D]
    shares = jacobian[:, 0, :, 0]
    assert (shares >= 0).all()
    assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)
    assert_allclose(jacobian, shares[:, None, :, None] * np.eye(6)[:, None], atol=1e-6)
    assert_allclose(clusters(first, second, seen, seen, 4, 0.1)[0][0], shares @ first[0], atol=1e-5)
