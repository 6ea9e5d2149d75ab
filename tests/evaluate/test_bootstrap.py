import numpy as np

from ringmoe_jax.evaluate import bootstrap


def test_interval_of_a_mean_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    weights = bootstrap.draw(np.arange(400), 2000, seed=1)
    low, high = bootstrap.interval(weights @ values / weights.sum(axis=1))
    error = values.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.2 * error)


def test_tiles_of_a_group_are_drawn_together_and_widen_the_interval():
    groups = np.repeat(np.arange(40), 10)
    values = np.repeat(np.random.default_rng(0).normal(size=40), 10)  # copies: ten tiles say what one says
    weights = bootstrap.draw(groups, 1000)
    assert (weights.reshape(1000, 40, 10) == weights[:, ::10, None]).all()
    assert (weights.sum(axis=1) == 400).all()
    naive = bootstrap.draw(np.arange(400), 1000)
    width = lambda w: np.ptp(bootstrap.interval(w @ values / w.sum(axis=1)))  # noqa: E731
    np.testing.assert_allclose(width(weights) / width(naive), np.sqrt(10), rtol=0.15)


def test_draws_repeat_with_the_seed():
    groups = np.arange(9)
    assert (bootstrap.draw(groups, 5, seed=3) == bootstrap.draw(groups, 5, seed=3)).all()
    assert (bootstrap.draw(groups, 5, seed=3) != bootstrap.draw(groups, 5, seed=4)).any()


def test_undefined_resamples_are_left_out():
    assert bootstrap.interval(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert np.isnan(bootstrap.interval(np.array([np.nan]))).all()


def test_blocks_join_neighbours_and_leave_unknown_places_alone():
    location = [(47.01, 8.02), (47.09, 8.09), (47.11, 8.02), (np.nan, np.nan), (np.nan, np.nan), (-0.01, 8.02)]
    groups = bootstrap.blocks(np.array(location))
    assert bootstrap.blocks(np.array(location[2:3])) == groups[2]  # the same ground in another split
    assert (groups < 0).tolist() == [False, False, False, True, True, False]
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 5


def test_blocks_that_touch():
    here = bootstrap.blocks(np.array([(47.05, 8.05)]))
    places = [(47.05, 8.05), (47.15, 8.05), (46.95, 7.95), (47.25, 8.05), (47.05, 8.25), (np.nan, 8.05)]
    touching = [bootstrap.touching(bootstrap.blocks(np.array([place])), here) for place in places]
    assert touching == [1, 1, 1, 0, 0, 0]
