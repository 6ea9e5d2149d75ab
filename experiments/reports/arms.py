"""Pictures that compare arms of an experiment, for example pre-trained and random encoders."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ringmoe_jax.evaluate.seeds import Ablation, ArmScores
from ringmoe_jax.evaluate.style import BLUE, GREY, SERIES, layout, styled, titled


@styled
def scores(title: str, results: Sequence[ArmScores]) -> Figure:
    """Scores with 95 % intervals: one panel a metric, one row an arm, the first arm on top.

    Args:
        title: data set and label.
        results: one an arm.
    """
    arms = list(dict.fromkeys(result.arm for result in results))
    metrics = list(dict.fromkeys(metric for result in results for metric in result.scores))
    columns = min(4, len(metrics))
    lines = -(-len(metrics) // columns)
    figure, axes = layout(0.35 + lines * (0.5 + 0.2 * len(arms)), lines, columns, sharey=True)
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for result in results:
            if metric in result.scores:
                y, score = arms.index(result.arm), result.scores[metric]
                colour, marker = SERIES[y % len(SERIES)]
                ax.hlines(y, score.low, score.high, color=colour, linewidth=1.5, alpha=0.6)
                ax.plot(score.value, y, marker, color=colour)
        ax.set_title(metric)
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.4, -0.6)
        ax.margins(x=0.12)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
    return titled(figure, title)


@styled
def labels(title: str, results: Sequence[ArmScores], metrics: Sequence[str] = ()) -> Figure:
    """Scores against the share of labels used in training, with 95 % intervals: one panel a metric, one line an arm.

    Args:
        title: data set and label.
        results: one an arm and share.
        metrics: that are shown; all by default.
    """
    arms = list(dict.fromkeys(result.arm for result in results))
    metrics = metrics or list(dict.fromkeys(metric for result in results for metric in result.scores))
    fractions = sorted({result.fraction for result in results})
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure, axes = layout(0.6 + 2.0 * lines, lines, columns)
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for k, arm in enumerate(arms):
            own = sorted((r for r in results if r.arm == arm and metric in r.scores), key=lambda r: r.fraction)
            chosen = [r.scores[metric] for r in own]
            # Arms stand a little apart, so that their intervals can be told.
            x = [r.fraction * 1.06 ** (k - (len(arms) - 1) / 2) for r in own]
            colour, marker = SERIES[k % len(SERIES)]
            ax.vlines(x, [s.low for s in chosen], [s.high for s in chosen], color=colour, linewidth=1.3, alpha=0.6)
            ax.plot(x, [s.value for s in chosen], marker=marker, color=colour, label=arm)
        ax.set(xscale="log", title=metric, xlabel="labels used", xlim=(fractions[0] / 1.8, fractions[-1] * 1.8))
        ax.set_xticks(fractions, [f"{100 * fraction:g} %" for fraction in fractions])
        ax.minorticks_off()
    return titled(figure, title, axes.flat[0].get_legend_handles_labels()[0])


@styled
def ablation(title: str, study: Ablation) -> Figure:
    """Arms of an ablation: one panel a metric, mean over seeds with its 95 % interval, and every seed as a stroke.

    Args:
        title: of the study.
        study: its arms.
    """
    arms = list(dict.fromkeys(arm for summaries in study.metrics.values() for arm in summaries))
    columns = min(2, len(study.metrics))
    lines = -(-len(study.metrics) // columns)
    figure, axes = layout(0.7 + lines * (0.55 + 0.16 * len(arms)), lines, columns, sharey=True)
    for ax in axes.flat[len(study.metrics) :]:
        ax.set_visible(False)
    for ax, (metric, summaries) in zip(axes.flat, study.metrics.items(), strict=False):
        for arm, summary in summaries.items():
            y, colour = arms.index(arm), GREY if arm == study.baseline else BLUE
            ax.plot(summary.values, [y] * len(summary.values), "|", color=colour, alpha=0.5)
            ax.hlines(y, summary.mean.low, summary.mean.high, color=colour, linewidth=1.3, alpha=0.6)
            ax.plot(summary.mean.value, y, "o", color=colour)
        if study.baseline in summaries:
            ax.axvline(summaries[study.baseline].mean.value, color=GREY, linewidth=0.8, linestyle=":")
        ax.set_title(metric, fontsize=7.5)
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
    keys = (dict(color=BLUE, marker="o", label="mean over seeds, 95 % interval"),)
    keys += (dict(color=GREY, marker="o", label=f"the same of the baseline, {study.baseline}"),)
    keys += (dict(color=BLUE, marker="|", linestyle="", label="one seed"),)
    return titled(figure, title, [Line2D([], [], **key) for key in keys])
