"""Figures of a run. Every function returns a `matplotlib.figure.Figure`; `save` writes a PNG.

Matplotlib's object interface only, so that nothing here touches a notebook's or a server's global state.
Colours are those of Okabe and Ito, told apart by readers with any colour vision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ringmoe_jax.evaluate.quicklook import Strip
from ringmoe_jax.evaluate.reconstruction import MODEL, TRIVIAL
from ringmoe_jax.evaluate.routing import GroupSummary

WIDTH = 7.2  # inches: the width of a page
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7A7A7A"
SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "^"), (SKY, "v"), (GREY, "P"))
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: draws in our style and leaves the caller's settings alone."""

    @functools.wraps(draw)
    def run(*arguments, **keywords) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*arguments, **keywords)
            figure.canvas.draw()  # fixes sizes while the style holds
            return figure

    return run


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG, 200 dots an inch, and makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    return path


def _figure(height: float, rows: int, columns: int, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


@styled
def reconstruction(label: str, caption: str, strips: Sequence[Strip]) -> Figure:
    """Tiles (rows) as input, visible part, reconstruction and both together (columns).

    Args:
        label: objective.
        caption: bands and unit, see `quicklook.view`.
        strips: painted tiles.
    """
    figure, axes = _figure(0.6 + 1.72 * len(strips), len(strips), 4)
    titles = ("input", "what the encoder saw", "reconstruction", "visible + reconstruction")
    for row, strip in zip(axes, strips, strict=True):
        for ax, image in zip(row, strip.images, strict=True):
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        low, high = strip.limits
        digits = max(0, 1 - int(np.floor(np.log10(high - low))))
        row[0].set_ylabel(f"tile {strip.index}\n{low:.{digits}f} to {high:.{digits}f}", color="#555555")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, loc="center", weight="normal")
    figure.suptitle(f"{label}: {caption}", x=0.01, ha="left", fontsize=9, weight="bold")
    return figure


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
    figure, axes = _figure(0.4 + 1.75 * rows, rows, columns, sharex=True)
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
    "drop_rate": "choices dropped",
    "entropy": "router entropy, nats",
    "gate": "mean gate of the chosen",
    "max_load": "busiest expert over mean",
}


@styled
def routers(group: str, series: Mapping[str, np.ndarray], modalities: Sequence[str]) -> Figure:
    """What the routers of a group did during training: one panel a measure, one line a modality.

    Args:
        group: name of the router group.
        series: one group of `routing.history`.
        modalities: names along M.
    """
    figure, axes = _figure(1.9, 1, len(ROUTER_PANELS), sharex=True)
    for ax, (name, title) in zip(axes[0], ROUTER_PANELS.items(), strict=True):
        for m, modality in enumerate(modalities):
            if np.isfinite(series[name][:, m]).any():
                colour, marker = SERIES[m % len(SERIES)]
                ax.plot(series["step"], series[name][:, m], color=colour, label=modality)
                ax.plot(series["step"][-1], series[name][-1, m], marker, color=colour)
        ax.set_title(title, fontsize=8, weight="normal")
        ax.set_xlabel("optimiser step")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.suptitle(f"{group} experts: routers during training", x=0.01, ha="left", fontsize=9, weight="bold")
    return figure


@styled
def experts(group: str, summary: GroupSummary, modalities: Sequence[str]) -> Figure:
    """Share of each modality's tokens that every expert got (columns), layer by layer (rows).

    Args:
        group: name of the router group.
        summary: see `routing.summarise`.
        modalities: names along M.
    """
    seen = [m for m in range(len(modalities)) if summary.tokens[m] > 0]
    layers = summary.load.shape[0]
    figure, axes = _figure(1.0 + 0.19 * layers, 1, len(seen), sharey=True)
    peak = np.nanmax(summary.load)
    for ax, m in zip(axes[0], seen, strict=True):
        columns = np.flatnonzero(np.isfinite(summary.load[:, m]).all(axis=0))
        share = summary.load[:, m][:, columns]
        image = ax.imshow(share, cmap="cividis", vmin=0, vmax=peak, aspect="auto")
        if len(columns) <= 8:
            for (y, x), value in np.ndenumerate(share):
                dark = value < 0.6 * peak
                text = f"{100 * value:.0f}"
                ax.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
        ax.set(xticks=range(len(columns)), xticklabels=columns, xlabel="expert", title=modalities[m])
        ax.set_yticks(range(layers), range(1, layers + 1))
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, format=lambda v, _: f"{100 * v:.0f} %")
    bar.set_label("share of the modality's tokens")
    bar.outline.set_visible(False)
    figure.suptitle(f"{group} experts: share of tokens, %", x=0.01, ha="left", fontsize=9, weight="bold")
    return figure


@styled
def probes(title: str, results: Sequence[Mapping]) -> Figure:
    """Probe scores with 95 % intervals: one panel a protocol, one row a set of sensors, one mark an encoder.

    Args:
        title: data set and label.
        results: of `experiments.evaluate`, with "protocol", "features", "encoder" and "scores", whose first is shown.
    """
    metric = next(iter(results[0]["scores"]))
    protocols, rows, encoders = (
        list(dict.fromkeys(result[key] for result in results)) for key in ("protocol", "features", "encoder")
    )
    height = 0.95 + len(rows) * (0.12 + 0.14 * len(encoders))
    figure, axes = _figure(height, 1, len(protocols), sharex=True, sharey=True)
    offsets = np.linspace(-0.32, 0.32, len(encoders)) if len(encoders) > 1 else [0.0]
    for ax, protocol in zip(axes[0], protocols, strict=True):
        for encoder, offset, (colour, marker) in zip(encoders, offsets, SERIES, strict=False):
            chosen = [r for r in results if (r["protocol"], r["encoder"]) == (protocol, encoder)]
            y = [rows.index(r["features"]) + offset for r in chosen]
            value, low, high = ([r["scores"][metric][key] for r in chosen] for key in ("value", "low", "high"))
            ax.hlines(y, low, high, color=colour, linewidth=1.3, alpha=0.6)
            ax.plot(value, y, marker, color=colour, label=encoder)
        ax.set(title=protocol, xlabel=metric)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        for edge in range(1, len(rows)):
            ax.axhline(edge - 0.5, color="#E6E6E6", linewidth=0.6)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, weight="bold")
    return figure


@styled
def comparisons(results: Sequence[Mapping]) -> Figure:
    """Masked loss of the model and of trivial predictors, with 95 % intervals, one panel an objective.

    Args:
        results: of `experiments.evaluate`: fields of `reconstruction.Comparison`, "dataset" and "objective".
    """
    columns = min(2, len(results))
    lines = -(-len(results) // columns)
    figure, axes = _figure(0.3 + 1.25 * lines, lines, columns, sharey=True)
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    names = (MODEL, *TRIVIAL)
    for ax, result in zip(axes.flat, results, strict=False):
        losses = result["losses"]
        for y, name in enumerate(names):
            colour = BLUE if name == MODEL else GREY
            ax.hlines(y, losses[name]["low"], losses[name]["high"], color=colour, linewidth=1.5, alpha=0.6)
            ax.plot(losses[name]["value"], y, "o" if name == MODEL else "s", color=colour)
        ax.axvline(losses[result["best"]]["value"], color=GREY, linewidth=0.8, linestyle=":")
        ax.set(title=f"{result['dataset']}, {result['objective']}", xlabel="masked loss (no unit), smaller is better")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
    return figure


@styled
def ablation(title: str, study: Mapping) -> Figure:
    """Arms of an ablation: one panel a metric, mean over seeds with its 95 % interval, and every seed as a dot.

    Args:
        title: of the study.
        study: of `experiments.ablate`: "baseline" and "metrics" {metric: {arm: fields of `seeds.Summary`}}.
    """
    panels = list(study["metrics"].items())
    arms = list(dict.fromkeys(arm for _, of in panels for arm in of))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _figure(0.5 + lines * (0.55 + 0.16 * len(arms)), lines, columns, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (metric, summaries) in zip(axes.flat, panels, strict=False):
        for arm, summary in summaries.items():
            y, colour = arms.index(arm), GREY if arm == study["baseline"] else BLUE
            ax.plot(summary["values"], [y] * len(summary["values"]), "|", color=colour, alpha=0.5)
            ax.hlines(y, summary["mean"]["low"], summary["mean"]["high"], color=colour, linewidth=1.3, alpha=0.6)
            ax.plot(summary["mean"]["value"], y, "o", color=colour)
        if study["baseline"] in summaries:
            ax.axvline(summaries[study["baseline"]]["mean"]["value"], color=GREY, linewidth=0.8, linestyle=":")
        ax.set_title(metric, fontsize=7.5)
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, weight="bold")
    return figure


@styled
def contact_sheet(rows: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Pictures side by side, one row a scene.

    Args:
        rows: {title: [h, w, 3] in 0..1}; the same titles in every row.
    """
    titles = list(rows[0])
    side = WIDTH / len(titles)
    figure, axes = _figure(0.2 + side * len(rows), len(rows), len(titles))
    for line, row in zip(axes, rows, strict=True):
        for ax, title in zip(line, titles, strict=True):
            ax.imshow(row[title], interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=6.5, weight="normal")
    return figure
