"""Figures of a compression show what they were given."""

import numpy as np
import pytest

from experiments.reports import compression_figures as figures


def test_experts_that_went_are_struck_out():
    importance = np.array([[[6.0, 3, 1, 0]], [[1, 1, 1, 1]]])  # two layers, one modality, four experts
    before = np.ones((2, 1, 4), bool)
    before[0, 0, 3] = False
    kept = before & np.array([[[1, 0, 0, 1]], [[1, 1, 1, 1]]], bool)
    figure = figures.experts("collaborative", importance, before, kept, ["optical"])
    axes = figure.axes[0]
    assert [tuple(np.mean(line.get_data(), axis=1)) for line in axes.lines] == [(1, 0), (2, 0)]
    assert [text.get_text() for text in axes.texts] == ["60", "30", "10", "25", "25", "25", "25"]
    assert figure.legends[0].get_texts()[0].get_text() == "gone"
    assert not figures.experts("whole", importance, before, before, ["optical"]).legends


def point(method, parameters, value, distilled=False):
    bounds = {"low": None, "high": None} if value is None else {"low": value - 0.1, "high": value + 0.1}
    return {"method": method, "parameters": parameters, "distilled": distilled, "value": value} | bounds


def test_a_front_tells_points_of_one_size_apart():
    whole, pruned = point("submodel", 4e6, 0.9), point("prune", 2e6, 0.8)
    merged = [point("sum", 1e6, 0.5), point("sum", 1e6, 0.6, True), point("mean", 1e6, 0.7)]
    figure = figures.front("front", {"accuracy": [whole, pruned, *merged], "gain": [whole, pruned, *merged]})
    axes = figure.axes[0]
    drawn = [(line.get_xdata()[0], line.get_markerfacecolor()) for line in axes.lines if line.get_marker() != "None"]
    x = [where for where, _ in drawn]
    assert x[:2] == [4e6, 2e6]
    assert x[3] == pytest.approx(1e6)
    assert x[2] < x[3] < x[4]
    assert [face == "white" for _, face in drawn] == [False, True, True, False, True]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1 M", "2 M", "4 M"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "sub-model",
        "prune",
        "sum",
        "mean",
        "as compressed",
        "distilled",
    }


def test_a_score_that_is_not_defined_is_left_out():
    undefined = [point("submodel", 4e6, None), point("sum", 1e6, None)]
    known = [point("submodel", 4e6, 0.9), point("sum", 1e6, 0.5)]
    figure = figures.front("front", {"gain": undefined, "accuracy": known})
    assert not figure.axes[0].lines
