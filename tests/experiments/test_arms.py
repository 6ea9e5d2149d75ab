import pytest

from experiments.reports import arms
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.seeds import ArmScores


def result(arm, value, fraction=1.0, metrics=("mIoU", "F1")):
    scores = {metric: Score(value, value - 0.1, value + 0.2) for metric in metrics}
    return ArmScores(arm=arm, scores=scores, fraction=fraction)


def test_scores_have_a_panel_a_metric_and_a_row_an_arm():
    results = [result("pre-trained", 0.7), result("random", 0.5, metrics=("mIoU",))]
    first, second = arms.scores("set", results).axes
    assert [first.get_title(loc="left"), second.get_title(loc="left")] == ["mIoU", "F1"]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["pre-trained", "random"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first arm is on top
    assert [tuple(line.get_xydata()[0]) for line in first.lines] == [(0.7, 0), (0.5, 1)]
    assert [tuple(bar.get_segments()[0][:, 0]) for bar in first.collections] == [
        pytest.approx((0.6, 0.9)),
        pytest.approx((0.4, 0.7)),
    ]
    assert len(second.lines) == 1  # the other arm has no F1


def test_labels_have_a_logarithmic_axis_and_a_line_an_arm():
    results = [result("pre-trained", 0.3, 0.1), result("pre-trained", 0.2, 0.01), result("random", 0.1, 1.0)]
    figure = arms.labels("set", results)
    ax = figure.axes[0]
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1 %", "10 %", "100 %"]
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.2, 0.3], [0.1]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pre-trained", "random"]


def test_more_metrics_than_columns_leave_no_empty_axes():
    many = tuple(f"metric {i}" for i in range(5))
    for draw in (arms.scores, arms.labels):
        figure = draw("set", [result("pre-trained", 0.5, metrics=many)])
        assert sum(ax.get_visible() for ax in figure.axes) == 5
        box = figure.get_tightbbox()
        assert box.x0 >= 0
        assert box.x1 <= figure.get_size_inches()[0]
