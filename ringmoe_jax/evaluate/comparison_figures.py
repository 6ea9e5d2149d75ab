"""Figures that compare arms of an experiment on one task, for example pre-trained and random encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ringmoe_jax.evaluate.figures import SERIES, _figure, styled
from ringmoe_jax.evaluate.task_figures import titled


@styled
def scores(title: str, results: Sequence[Mapping]) -> Figure:
    """Scores with 95 % intervals: one panel a metric, one row an arm, the first arm on top.

    Args:
        title: data set and label.
        results: one an arm, with "arm" and "scores" {metric: {"value", "low", "high"}}.
    """
    arms = list(dict.fromkeys(result["arm"] for result in results))
    metrics = list(dict.fromkeys(metric for result in results for metric in result["scores"]))
    columns = min(4, len(metrics))
    lines = -(-len(metrics) // columns)
    figure, axes = _figure(0.35 + lines * (0.5 + 0.2 * len(arms)), lines, columns, sharey=True)
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for result in results:
            if metric in result["scores"]:
                y, score = arms.index(result["arm"]), result["scores"][metric]
                colour, marker = SERIES[y % len(SERIES)]
                ax.hlines(y, score["low"], score["high"], color=colour, linewidth=1.5, alpha=0.6)
                ax.plot(score["value"], y, marker, color=colour)
        ax.set_title(metric)
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.4, -0.6)
        ax.margins(x=0.12)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
    return titled(figure, title)


@styled
def labels(title: str, results: Sequence[Mapping]) -> Figure:
    """Scores against the share of labels used in training, with 95 % intervals: one panel a metric, one line an arm.

    Args:
        title: data set and label.
        results: one an arm and share, with "arm", "fraction" (more than 0, at most 1) and "scores" as of `scores`.
    """
    arms = list(dict.fromkeys(result["arm"] for result in results))
    metrics = list(dict.fromkeys(metric for result in results for metric in result["scores"]))
    fractions = sorted({result["fraction"] for result in results})
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure, axes = _figure(0.6 + 2.0 * lines, lines, columns)
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for k, arm in enumerate(arms):
            mine = [r for r in results if r["arm"] == arm and metric in r["scores"]]
            mine.sort(key=lambda result: result["fraction"])
            # Arms stand a little apart, so that their intervals can be told.
            x = [r["fraction"] * 1.06 ** (k - (len(arms) - 1) / 2) for r in mine]
            value, low, high = ([r["scores"][metric][key] for r in mine] for key in ("value", "low", "high"))
            colour, marker = SERIES[k % len(SERIES)]
            ax.vlines(x, low, high, color=colour, linewidth=1.3, alpha=0.6)
            ax.plot(x, value, marker=marker, color=colour, label=arm)
        ax.set(xscale="log", title=metric, xlabel="labels used", xlim=(fractions[0] / 1.8, fractions[-1] * 1.8))
        ax.set_xticks(fractions, [f"{100 * fraction:g} %" for fraction in fractions])
        ax.minorticks_off()
    return titled(figure, title, axes.flat[0].get_legend_handles_labels()[0])
