"""Curves of a training, from its logged records: losses, routers, signs of a collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ringmoe_jax.evaluate.style import BLUE, GREY, ORANGE, SERIES, layout, styled, titled


@styled
def losses(records: Sequence[Mapping[str, float]]) -> Figure:
    """Training and validation loss by step: the total, then one panel an objective.

    Args:
        records: see `ringmoe_jax.training.metrics.read`.
    """
    names = list(dict.fromkeys(key for record in records for key in record if key.split("/")[0] == "loss"))
    names.sort(key=lambda name: (name != "loss", name))
    columns = min(3, max(1, len(names)))
    rows = -(-max(1, len(names)) // columns)
    figure, axes = layout(0.4 + 1.75 * rows, rows, columns, sharex=True)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, names, strict=False):
        for prefix, legend, style in (
            ("", "training", dict(color=BLUE)),
            ("validation/", "validation", dict(color=ORANGE, marker="o", linestyle="--")),
        ):
            points = [(record["step"], record[prefix + name]) for record in records if prefix + name in record]
            if points:
                ax.plot(*zip(*points, strict=True), label=legend, **style)
        ax.set_title("total" if name == "loss" else name.removeprefix("loss/"))
    for ax in axes[:, 0]:
        ax.set_ylabel("loss (no unit)")
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    for ax in axes.flat[max(0, len(names) - columns) : len(names)]:
        ax.tick_params(labelbottom=True)
    axes[0, 0].legend()
    return figure


ROUTER_PANELS = {
    "drop_rate": "share of the choices\nthat are dropped",
    "entropy": "entropy of the\nrouter, nats",
    "gate": "mean gate of the\nchosen experts",
    "max_load": "load of the busiest\nexpert / the mean",
}


@styled
def routers(group: str, series: Mapping[str, np.ndarray], modalities: Sequence[str]) -> Figure:
    """What the routers of a group did during training: one panel a measure, one line a modality.

    Args:
        group: name of the router group.
        series: one group of `routing.history`.
        modalities: names along M.
    """
    figure, axes = layout(2.1, 1, len(ROUTER_PANELS), sharex=True)
    panels = dict(zip(ROUTER_PANELS, axes[0], strict=True))
    for name, ax in panels.items():
        for m, modality in enumerate(modalities):
            if np.isfinite(series[name][:, m]).any():
                colour, marker = SERIES[m % len(SERIES)]
                ax.plot(series["step"], series[name][:, m], color=colour, label=modality)
                ax.plot(series["step"][-1], series[name][-1, m], marker, color=colour)
        ax.set_title(ROUTER_PANELS[name], fontsize=8, weight="normal")
        ax.set_xlabel("optimiser step")
    columns = [column[np.isfinite(column)] for column in series["most_entropy"].T]
    for most in {round(column.max(), 9) for column in columns if column.size}:
        panels["entropy"].axhline(most, color=GREY, linewidth=0.9, linestyle=":", label="no expert preferred")
    legend = dict(zip(*reversed(panels["entropy"].get_legend_handles_labels()), strict=True))
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=len(legend))
    return titled(figure, f"{group} experts: routers during training")


COLLAPSE_PANELS = {"teacher_entropy": "entropy\nof one target", "usage": "entropy of\nthe mean target"}


@styled
def collapse(records: Sequence[Mapping[str, float]], terms: Mapping[str, tuple[str, str]]) -> Figure:
    """Signs of a collapse by step: a row a measure, a column a level, a line a stream.

    Args:
        records: see `ringmoe_jax.training.metrics.read`.
        terms: {label of a `self_distillation` objective: (stream, level)}; all were logged.
    """
    streams, levels = (list(dict.fromkeys(of[i] for of in terms.values())) for i in (0, 1))
    figure, axes = layout(
        0.75 + 1.5 * len(COLLAPSE_PANELS), len(COLLAPSE_PANELS), len(levels), sharex=True, sharey=True
    )
    for label, (stream, level) in terms.items():
        colour, marker = SERIES[streams.index(stream) % len(SERIES)]
        for line, name in zip(axes, COLLAPSE_PANELS, strict=True):
            key = f"{label}/{name}"
            points = [(record["step"], record[key]) for record in records if key in record]
            line[levels.index(level)].plot(*zip(*points, strict=True), color=colour, label=stream)
            line[levels.index(level)].plot(*points[-1], marker, color=colour)
    for ax, level in zip(axes[0], levels, strict=True):
        ax.set_title(f"{level} level")
    for ax in axes[-1]:
        ax.set_xlabel("optimiser step")
    for line, text in zip(axes, COLLAPSE_PANELS.values(), strict=True):
        line[0].set_ylabel(f"{text} / ln K")
        line[0].set_ylim(-0.03, 1.06)
    handles = {h.get_label(): h for ax in axes.flat for h in ax.get_lines() if not h.get_label().startswith("_")}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    return figure
