import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ringmoe_jax.evaluate import task_figures
from ringmoe_jax.evaluate.style import AMBER, ORANGE, SKY

IMAGE = np.random.default_rng(0).random((24, 32, 3))
NAMES = ("water", "forest", "road")


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def fits(figure):
    """Nothing is cut off at the edges of the page."""
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01


def shown(ax):
    return np.ma.filled(ax.images[0].get_array(), np.nan)


@pytest.mark.parametrize("count", [2, 8, 20, 60])
def test_confusion_is_readable_for_any_number_of_classes(count):
    names = [f"class {i}" for i in range(count)]
    matrix = np.diag(np.full(count, 1500)) + 1
    matrix[0] = 0
    figure = task_figures.confusion_matrix("set", matrix, names)
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    assert np.isnan(shown(ax)[0]).all()  # nothing true, nothing to share out
    np.testing.assert_allclose(shown(ax)[1:].sum(axis=1), 1)
    numbers = [text.get_text() for text in ax.texts]
    assert len(numbers) == (count * (count - 1) if count <= 20 else 0)
    assert len(figure.axes) == (1 if count <= 20 else 2)  # a colour bar where there are no numbers
    assert f"{1500 + count:,}".replace(",", "\u202f") in texts(figure)
    assert fits(figure)


def test_confusion_counts_become_percent_of_the_true_class():
    figure = task_figures.confusion_matrix("set", np.array([[30, 10], [1, 999]]), ("a", "b"))
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "<1", "100"]


def test_masks_show_classes_errors_and_void():
    truth = np.zeros((24, 32), int)
    truth[:, 16:], truth[:6] = 1, -1
    prediction = np.zeros((24, 32), int)
    figure = task_figures.masks("set", [(IMAGE, truth, prediction)], NAMES)
    assert len(figure.axes) == 4
    assert legend(figure) == ["water", "forest", "wrong", "void"]  # road does not occur
    _, true, said, errors = map(shown, figure.axes)
    colours = task_figures.class_colours(3)
    np.testing.assert_allclose(true[10, 0], colours[0])
    np.testing.assert_allclose(true[10, 20], colours[1])
    np.testing.assert_allclose(said[10, 20], colours[0])
    np.testing.assert_allclose(errors[10, 20], to_rgb(task_figures.WRONG))
    assert errors[10, 0].std() < 1e-6  # grey
    greys = {tuple(np.round(x, 4)) for x in true[:6].reshape(-1, 3)}
    assert greys == {tuple(np.round(to_rgb(c), 4)) for c in (task_figures.VOID, task_figures.STRIPE)}
    assert "50.0 % wrong" in texts(figure)
    assert fits(figure)


def test_masks_of_nothing_and_of_sixty_classes():
    void = np.full((24, 32), -1)
    figure = task_figures.masks("set", [(IMAGE, void, np.zeros_like(void))], NAMES)
    assert "all void" in texts(figure)
    many = np.arange(24 * 32).reshape(24, 32) % 60
    names = [f"functional map {i}" for i in range(60)]
    figure = task_figures.masks("set", [(IMAGE, many, many)] * 2, names)
    assert len(legend(figure)) == 61
    assert len(figure.axes) == 8
    assert "0.0 % wrong" in texts(figure)
    assert fits(figure)


def test_colours_that_a_data_set_states_are_taken():
    truth = np.arange(24).repeat(32).reshape(24, 32) % 3
    stated = ("#102030", "#ff8000", "#00ff00")
    figure = task_figures.masks("set", [(IMAGE, truth, 2 - truth)], NAMES, stated)
    for ax, first in zip(figure.axes[1:3], (0, 2), strict=True):
        np.testing.assert_allclose(shown(ax)[0, 0], to_rgb(stated[first]))


def test_class_colours_differ():
    for count in (20, 60):
        colours = task_figures.class_colours(count)
        assert len(np.unique(colours.round(3), axis=0)) == count
    wrong = abs(task_figures.class_colours(20) - to_rgb(task_figures.WRONG)).max(axis=1)
    assert wrong.min() > 0.15


def outlines(ax):
    """{(colour, dashed): number of boxes}"""
    return {
        (mpl.colors.to_hex(c.get_edgecolor()[0]).upper(), c.get_linestyle()[0][1] is not None): len(c.get_paths())
        for c in ax.collections
        if len(c.get_paths())
    }


def test_boxes_tell_found_missed_right_and_false_apart():
    truth = np.array([[0, 5, 5, 6, 4, 0.3], [1, 20, 5, 6, 4, 0], [0, 20, 18, 6, 4, 0], [-1, 0, 0, 9, 9, 0]])
    predicted = np.array([[5, 5, 6, 4, 0.3], [5, 5, 6, 4, 0.3], [20, 5, 6, 4, 0], [20, 18, 6, 4, 0.0]])
    scores, classes = np.array([0.5, 0.9, 0.8, 0.7]), np.array([0, 0, 0, -1])
    row = (IMAGE, truth, predicted, scores, classes)
    figure = task_figures.boxes("set", [row], ("ship", "plane"))
    left, right = figure.axes
    # One of two detections of the same ship is right; a plane called ship is missed and false.
    assert outlines(left) == {(SKY, False): 1, (SKY, True): 2}
    assert outlines(right) == {(AMBER, False): 1, (AMBER, True): 2}
    assert {"1 found, 2 missed", "1 right, 2 false", "ship 0.90"} <= set(texts(figure))
    assert (right.get_xlim(), right.get_ylim()) == ((0, 32), (24, 0))
    assert fits(figure)
    figure = task_figures.boxes("set", [row], ("ship", "plane"), overlap=1.1)
    assert "0 found, 3 missed" in texts(figure)


def test_boxes_of_nothing_and_of_too_many_to_read():
    nothing = (IMAGE, np.zeros((0, 6)), np.zeros((0, 5)), np.zeros(0), np.zeros(0, int))
    crowd = np.tile([10.0, 10, 4, 4, 0], (task_figures.LEGIBLE + 1, 1))
    crowded = (IMAGE, np.zeros((0, 6)), crowd, np.full(len(crowd), 0.25), np.zeros(len(crowd), int))
    figure = task_figures.boxes("set", [nothing, crowded], ("ship",))
    assert {"0 found, 0 missed", "0 right, 41 false"} <= set(texts(figure))
    assert "0.25" not in texts(figure)
    assert len(figure.axes) == 4


def test_changes_show_the_four_outcomes():
    truth, prediction = np.zeros((2, 24, 32), int)
    truth[:, 16:], prediction[12:] = 1, 1
    truth[:4, :4] = -1
    figure = task_figures.changes("set", [(IMAGE, IMAGE, truth, prediction)])
    outcome = shown(figure.axes[3])
    for place, colour in (((20, 20), "#FFFFFF"), ((20, 0), ORANGE), ((8, 20), SKY), ((8, 8), "#202020")):
        np.testing.assert_allclose(outcome[place], to_rgb(colour))
    assert "IoU 0.33" in texts(figure)
    assert legend(figure)[-1] == "void"
    assert fits(figure)
    nothing = np.zeros_like(truth)
    figure = task_figures.changes("set", [(IMAGE, IMAGE, nothing, nothing)])
    assert "no change, none said" in texts(figure)
    assert "void" not in legend(figure)


def test_tracks_mark_switches_and_colour_by_the_true_identity():
    def row(x, number, date):
        return [0, x, 10, 4, 4, 0, number, date]

    truth = np.array([row(5 + 2 * t, 7, t) for t in range(4)] + [row(25, 8, t) for t in range(4)] + [[-1] * 8])
    # Track 7 is followed by 0, 0, 1, 1; track 8 is missed; 2 follows nothing.
    predicted = np.array([row(5 + 2 * t, t // 2, t) for t in range(4)] + [row(15, 2, 0)])
    figure = task_figures.tracks("set", [IMAGE] * 4, truth, predicted)
    left, right = figure.axes
    assert {"2 tracks, 8 positions, 4 dates", "1 identity switches, 4 positions missed, 1 false"} <= set(texts(figure))
    np.testing.assert_array_equal(right.lines[-1].get_xydata(), [[9, 10]])  # where 7 passes from 0 to 1
    tails = {tuple(line.get_xdata()): line.get_color() for line in right.lines[:-1] if line.get_marker() == "None"}
    own = left.lines[0].get_color()
    assert tails == {(5, 7): own, (9, 11): own, (15,): "#FFFFFF"}
    assert fits(figure)
    figure = task_figures.tracks("set", [IMAGE] * 4, truth, predicted, within=0.5)
    assert "1 identity switches, 4 positions missed, 1 false" in texts(figure)
    figure = task_figures.tracks("set", [IMAGE] * 4, truth, np.zeros((0, 8)))
    assert "0 identity switches, 8 positions missed, 0 false" in texts(figure)


def test_heights_leave_out_what_is_unknown():
    truth, valid = np.full((24, 32), 5.0), np.ones((24, 32), bool)
    valid[:12], truth[:12] = False, np.nan
    figure = task_figures.heights("set", [(IMAGE, truth, valid, np.full_like(truth, 8.0))])
    pictures = figure.axes[:4]
    assert np.isnan(shown(pictures[1])[:12]).all()
    assert np.isnan(shown(pictures[3])[:12]).all()
    np.testing.assert_allclose(shown(pictures[3])[12:], 3)
    assert {"RMSE 3.0 m", "height, m (grey: no data)", "error, m"} <= set(texts(figure))
    assert fits(figure)
    figure = task_figures.heights("set", [(IMAGE, truth, np.zeros_like(valid), truth)] * 2)
    assert texts(figure).count("no data") == 2


def test_height_errors_count_valid_pixels():
    truth = np.linspace(0, 20, 400).reshape(20, 20)
    valid = truth < 10
    figure = task_figures.height_errors("set", truth, valid, np.where(valid, truth + 2, 999))
    assert "set: bias +2.00 m, RMSE 2.00 m" in texts(figure)
    counts = figure.axes[0].collections[0].get_array()
    assert counts.sum() == pytest.approx(valid.sum(), abs=2)  # beyond the percentiles that end the axes
    assert fits(figure)


def test_class_scores_are_sorted_and_name_what_is_absent():
    figure = task_figures.class_scores("set", NAMES, "AP", np.array([0.2, np.nan, 0.9]))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["road", "water", "forest"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.90", "0.20", "not in the data"]
    assert fits(figure)
