import numpy as np
import pytest
import trackeval
from hypothesis import given, settings
from hypothesis import strategies as st

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import TrackingMetric, score
from ringmoe_jax.evaluate.metrics import boxes as geometry

ONE = np.ones((1, 1))


def rows(*points):
    """Boxes of side 4 from (track, date, x)."""
    return np.array([[0, x, 0, 4, 4, 0, track, date] for track, date, x in points], np.float64).reshape(-1, 8)


def tracked(*sequences, **options):
    metric = TrackingMetric(**options)
    for truth, predicted in sequences:
        metric.add(truth, predicted)
    return metric


def random_sequence(generator, tracks=6, dates=8):
    """Objects that move at random; hypotheses that follow them, miss, invent, and change their number."""
    truth, predicted = [], []
    for track in range(tracks):
        x, y = generator.uniform(0, 30, 2)
        name = track
        for date in range(dates):
            x, y = np.array([x, y]) + generator.normal(0, 1, 2)
            width, height = generator.uniform(6, 12, 2)
            if generator.random() < 0.8:
                truth.append([0, x, y, width, height, 0, 10 + track, date])
            if generator.random() < 0.2:
                name = generator.integers(100, 100 + tracks)
            if generator.random() < 0.8 and not any(row[6:] == [name, date] for row in predicted):
                dx, dy = generator.normal(0, 1.2, 2)
                predicted.append([0, x + dx, y + dy, width, height, 0, name, date])
    return np.reshape(truth, (-1, 8)), np.reshape(predicted, (-1, 8))


def reference(truth, predicted, similarity):
    """TrackEval's sums of one sequence, by its metric classes."""
    names = [np.unique(r[:, 6]) for r in (truth, predicted)]
    dates = np.unique(np.append(truth[:, 7], predicted[:, 7]))
    by_date = [[r[r[:, 7] == date] for date in dates] for r in (truth, predicted)]
    data = {
        "num_timesteps": len(dates),
        "num_gt_dets": len(truth),
        "num_tracker_dets": len(predicted),
        "num_gt_ids": len(names[0]),
        "num_tracker_ids": len(names[1]),
        "gt_ids": [np.searchsorted(names[0], r[:, 6]) for r in by_date[0]],
        "tracker_ids": [np.searchsorted(names[1], r[:, 6]) for r in by_date[1]],
        "similarity_scores": [similarity(t, p) for t, p in zip(*by_date, strict=True)],
    }
    quiet = {"PRINT_CONFIG": False}
    metrics = trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(quiet), trackeval.metrics.Identity(quiet)
    return [(metric, metric.eval_sequence(data)) for metric in metrics]


def combined(sequences, similarity):
    """TrackEval's metrics of several sequences, by our names."""
    results = [reference(*sequence, similarity) for sequence in sequences]
    hota, clear, identity = (
        kind[0][0].combine_sequences({str(i): found for i, (_, found) in enumerate(kind)})
        for kind in zip(*results, strict=True)
    )
    return {
        "HOTA": hota["HOTA"].mean(),
        "DetA": hota["DetA"].mean(),
        "AssA": hota["AssA"].mean(),
        "MOTA": clear["MOTA"],
        "MOTP": clear["MOTP"],
        "IDF1": identity["IDF1"],
        "ID switches": clear["IDSW"],
        "FP": clear["CLR_FP"],
        "FN": clear["CLR_FN"],
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([None, 2.5]))
def test_equal_to_trackeval_on_random_sequences(seed, count, distance):
    generator = np.random.default_rng(seed)
    sequences = [random_sequence(generator) for _ in range(count)]

    def similarity(t, p):
        if distance is None:
            return geometry.iou(t[:, 1:6], p[:, 1:6])
        apart = np.linalg.norm(t[:, None, 1:3] - p[None, :, 1:3], axis=2)
        return np.maximum(0, 1 - apart / (2 * distance))  # TrackEval's, with zero_distance = 2 distance

    values = tracked(*sequences, distance=distance).values(np.ones((1, count)))
    expected = combined(sequences, similarity)
    if distance is not None:
        expected["MOTP"] = 2 * distance * (1 - expected["MOTP"])
    assert {name: value[0] for name, value in values.items()} == pytest.approx(expected, abs=1e-9)


def test_by_hand_one_switch_one_miss_one_false_alarm():
    truth = rows((1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0), (2, 0, 50), (2, 1, 50))
    predicted = rows((7, 0, 0), (7, 1, 0), (8, 2, 0), (8, 3, 0), (9, 0, 50), (9, 3, 90))
    values = {name: value[0] for name, value in tracked((truth, predicted)).values(ONE).items()}
    # 5 matches of 6 true and 6 predicted rows; they overlap fully. Of track 1, half goes to 7 and half to 8: their
    # association is 2 / (4 + 2 - 2), that of 2 and 9 is 1 / (2 + 2 - 1).
    deta, assa = 5 / 7, (4 * 2 / 4 + 1 / 3) / 5
    assert values == pytest.approx(
        {
            "HOTA": (deta * assa) ** 0.5,
            "DetA": deta,
            "AssA": assa,
            "MOTA": 1 - (1 + 1 + 1) / 6,
            "MOTP": 1,
            "IDF1": 2 * (2 + 1) / (6 + 6),
            "ID switches": 1,
            "FP": 1,
            "FN": 1,
        }
    )


def test_a_match_is_kept_where_another_hypothesis_comes_closer():
    truth = rows((1, 0, 0), (1, 1, 0))
    predicted = rows((7, 0, 0), (7, 1, 1), (8, 1, 0))
    values = tracked((truth, predicted)).values(ONE)
    assert values["ID switches"] == [0]
    assert values["MOTP"] == pytest.approx([(1 + 3 / 5) / 2])


def test_points_match_up_to_the_distance():
    def seen(x, y):
        truth, predicted = (np.array([[0, *centre, 0, 0, 0, 1, 0.0]]) for centre in ((0, 0), (x, y)))
        return tracked((truth, predicted), distance=3.0).values(ONE)

    for apart, hits in ((3.0, 1), (3.001, 0)):
        values = seen(0, apart)
        assert values["FP"] == values["FN"] == [1 - hits]
        np.testing.assert_allclose(values["MOTP"], [3.0 if hits else np.nan])
    assert seen(3.0, 0)["HOTA"] == pytest.approx(10 / 19)  # similarity 1/2 reaches the thresholds 0.05 to 0.50


def test_turned_boxes_match_by_what_they_share():
    truth = np.array([[0, 0, 0, 20, 2, 0.5, 1, 0.0]])
    turned = truth * [1, 1, 1, 1, 1, -1, 1, 1]
    assert tracked((truth, turned)).values(ONE)["MOTA"] == [1]
    assert tracked((truth, turned), rotated=True).values(ONE)["MOTA"] == [-1]


def test_classes_never_mix_and_rows_of_class_minus_one_are_not_used():
    truth = rows((1, 0, 0), (2, 0, 20))
    other = truth.copy()
    other[0, 0], other[1, 0] = 1, -1
    values = tracked((truth, other)).values(ONE)
    assert (values["FP"], values["FN"], values["HOTA"]) == ([1], [2], [0])


def test_weights_draw_whole_sequences():
    generator = np.random.default_rng(1)
    sequences = [random_sequence(generator, 4, 5) for _ in range(3)]
    values = tracked(*sequences).values(np.array([[2.0, 0, 1]]))
    expected = tracked(sequences[0], sequences[0], sequences[2]).values(np.ones((1, 3)))
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name
    assert list(score(tracked(*sequences), resamples=20)) == list(values)


def test_nothing_seen_and_nothing_there():
    none, one = rows(), rows((1, 0, 0), (1, 1, 0))
    missed, invented, empty = (tracked(pair).values(ONE) for pair in ((one, none), (none, one), (none, none)))
    assert [missed[name][0] for name in ("HOTA", "MOTA", "IDF1", "FN", "FP")] == [0, 0, 0, 2, 0]
    assert [invented[name][0] for name in ("HOTA", "IDF1", "FN", "FP")] == [0, 0, 0, 2]
    assert np.isnan(invented["MOTA"][0])
    assert np.isnan(empty["HOTA"][0])
    with pytest.raises(DataError, match='"HOTA" of 1 images is undefined'):
        score(tracked((none, none)))
    with pytest.raises(DataError, match="holds no images"):
        score(TrackingMetric())


def test_what_cannot_be_scored_is_an_error():
    good = rows((1, 0, 0))
    with pytest.raises(DataError, match="the predicted track 1 is twice on date 0"):
        tracked((good, rows((1, 0, 0), (1, 0, 9))))
    with pytest.raises(DataError, match=r"true tracks have shape \(1, 6\), wanted \[n, 8\]"):
        tracked((good[:, :6], good))
    with pytest.raises(DataError, match="a number of predicted tracks is nan"):
        tracked((good, rows((1, 0, np.nan))))
    with pytest.raises(DataError, match="wanted more than 0 pixels"):
        TrackingMetric(distance=0.0)
