"""Figures of a compression: which experts stayed, and what is left of quality at which size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ringmoe_jax.evaluate.style import BLACK, GREY, ORANGE, SERIES, layout, styled, titled

APART = 0.025  # of the axis, between points of one size, so that their intervals can be told


@styled
def experts(
    title: str,
    importance: np.ndarray,
    before: np.ndarray,
    kept: np.ndarray,
    modalities: Sequence[str],
) -> Figure:
    """Importance of every expert by layer (rows) and number (columns), one panel a modality; those gone are struck.

    Args:
        title: router group and measure.
        importance: [L, M, E] >= 0, shares are taken within a layer and modality.
        before: [L, M, E] bool, who could be chosen before.
        kept: [L, M, E] bool, who still can.
        modalities: names along M.
    """
    layers = importance.shape[0]
    reach = [np.flatnonzero(before[:, m].any(axis=0)) for m in range(len(modalities))]
    figure, axes = layout(1.05 + 0.24 * layers, 1, len(modalities), sharey=True)
    total = np.where(before, importance, 0).sum(axis=-1, keepdims=True)
    share = np.where(before, importance, np.nan) / np.maximum(total, 1e-300)
    peak = float(np.nanmax(share))
    for m, (ax, columns) in enumerate(zip(axes[0], reach, strict=True)):
        shown = share[:, m][:, columns]
        image = ax.imshow(shown, cmap="cividis", vmin=0, vmax=peak, aspect="auto")
        for (y, x), value in np.ndenumerate(shown):
            if np.isnan(value):
                continue
            stays, dark = kept[y, m, columns[x]], value < 0.6 * peak
            if len(columns) <= 8:
                ax.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color="white" if dark else "black")
            if not stays:
                ax.plot([x - 0.42, x + 0.42], [y + 0.38, y - 0.38], color=ORANGE, linewidth=1.4)
        ax.set(xticks=range(len(columns)), xticklabels=columns, xlabel="expert", title=modalities[m])
        ax.set_yticks(range(layers), range(1, layers + 1))
        ax.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(layers - 1) + 0.5, minor=True)
        ax.grid(False)
        ax.grid(True, which="minor", color="white", linewidth=0.8)
        ax.set_axisbelow(False)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, format=lambda v, _: f"{100 * v:.0f} %")
    bar.outline.set_visible(False)
    handles = [Line2D([], [], color=ORANGE, linewidth=1.4, label="gone")] if (before & ~kept).any() else []
    return titled(figure, title, handles)


@styled
def front(title: str, panels: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Quality against size, one panel a score: hollow before distillation, filled after it, with 95 % intervals.

    Args:
        title: of the figure.
        panels: {score: points}, a point holds "method", "distilled" (bool), "parameters", and "value", "low", "high",
            which may be None. The first point of a panel is what the others were made from.
    """
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = layout(0.75 + 2.3 * lines, lines, columns)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    methods = list(dict.fromkeys(p["method"] for points in panels.values() for p in points[1:]))
    colours = dict(zip(methods, SERIES, strict=False))
    for ax, (name, points) in zip(axes.flat, panels.items(), strict=False):
        others = [point for point in points[1:] if point["value"] is not None]
        if points[0]["value"] is not None:
            ax.axhline(points[0]["value"], color=GREY, linewidth=0.8, linestyle=":")
            _point(ax, points[0]["parameters"], points[0], BLACK, "*", filled=True)
        places = _places(others)
        for point, x in zip(others, places, strict=True):
            colour, marker = colours[point["method"]]
            _point(ax, x, point, colour, marker, filled=point["distilled"])
        ax.set_title(name, fontsize=7.5)
        ax.set(xscale="log", xlabel="parameters")
        sizes = sorted({point["parameters"] for point in points})
        ax.set_xlim(sizes[0] / 1.35, sizes[-1] * 1.25)
        ax.set_xticks(_told_apart(sizes), [f"{size / 1e6:.3g} M" for size in _told_apart(sizes)])
        ax.minorticks_off()
    handles = [Line2D([], [], color=BLACK, marker="*", linestyle="", label="sub-model")]
    handles += [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, (c, m) in colours.items()]
    if any(point["distilled"] for points in panels.values() for point in points):
        hollow = Line2D([], [], color=GREY, marker="o", linestyle="", markerfacecolor="none", label="as compressed")
        handles += [hollow, Line2D([], [], color=GREY, marker="o", linestyle="", label="distilled")]
    return titled(figure, title, handles)


def _point(ax, x: float, point: Mapping, colour: str, marker: str, *, filled: bool) -> None:
    if point["low"] is not None:
        ax.vlines(x, point["low"], point["high"], color=colour, linewidth=1.1, alpha=0.55)
    size = 8 if marker == "*" else 5
    face = colour if filled else "white"
    ax.plot(x, point["value"], marker, color=colour, markerfacecolor=face, markersize=size)


def _places(points: Sequence[Mapping]) -> list[float]:
    """Where to draw points on a logarithmic axis: those of one size side by side."""
    sizes, places = [point["parameters"] for point in points], []
    apart = max(max(sizes, default=1) / min(sizes, default=1), 1.5) ** APART
    for i, point in enumerate(points):
        alike = [k for k, other in enumerate(points) if other["parameters"] == point["parameters"]]
        places.append(point["parameters"] * apart ** (alike.index(i) - (len(alike) - 1) / 2))
    return places


def _told_apart(sizes: Sequence[float]) -> list[float]:
    """Of sorted sizes those whose labels do not run into each other on a logarithmic axis."""
    least, told = (sizes[-1] / sizes[0]) ** 0.22, [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if told[-1] / size >= max(least, 1.02):
            told.append(size)
    return told[::-1]
