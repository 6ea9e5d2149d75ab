"""Figures of a run. Every function returns a `matplotlib.figure.Figure`; `save` writes a PNG.

Matplotlib's object interface only, so that nothing here touches a notebook's or a server's global state.
Colours are those of Okabe and Ito, told apart by readers with any colour vision.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ringmoe_jax.evaluate.locations import NONE, Row
from ringmoe_jax.evaluate.quicklook import Strip
from ringmoe_jax.evaluate.reconstruction import MODEL, TRIVIAL
from ringmoe_jax.evaluate.routing import GroupSummary

WIDTH = 7.2  # inches: the width of a page
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7A7A7A"
YELLOW, AMBER, BLACK = "#F0E442", "#E69F00", "#000000"
RANKED = (BLUE, AMBER, GREEN, PURPLE, SKY, ORANGE, YELLOW, BLACK)  # areas on a map; the rest is grey
SIGNED = LinearSegmentedColormap.from_list("signed", (ORANGE, "#FFFFFF", BLUE))
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


@styled
def locations(title: str, captions: Mapping[str, str], rows: Sequence[Row]) -> Figure:
    """Places (rows): an image of every sensor, principal components of the fused features, and prototypes (columns).

    Args:
        title: data set.
        captions: {sensor: bands and unit}, see `quicklook.view`.
        rows: painted places.
    """
    mapped = any(row.ranks is not None for row in rows)
    heads = captions | {"fused features": "3 components as RGB"}
    heads |= {"geo-context prototypes": "by use in their region"} if mapped else {}
    side = WIDTH / (len(heads) + 0.35)
    titles = [f"{name}\n{textwrap.fill(text, int(17 * side))}" for name, text in heads.items()]
    lines = max(text.count("\n") for text in titles)
    figure, axes = _figure(0.5 + 0.15 * lines + 0.25 * mapped + (side + 0.12) * len(rows), len(rows), len(titles))
    for line, row in zip(axes, rows, strict=True):
        cells = [row.images.get(name, (None, "not observed")) for name in captions] + [(row.components, "")]
        cells += [(_ranked(row.ranks), row.note)] * mapped
        for ax, (image, label) in zip(line, cells, strict=True):
            if image is not None:
                ax.imshow(image, interpolation="nearest")
            ax.set(xticks=[], yticks=[], box_aspect=1)
            ax.set_xlabel(label, fontsize=7, labelpad=2, color="#555555")
            ax.grid(False)
            ax.spines[:].set(visible=True, color="#CCCCCC", linewidth=0.5)
        line[0].set_ylabel(row.name, color="#555555", fontsize=7)
    for ax, text in zip(axes[0], titles, strict=True):
        ax.set_title(text, loc="center", weight="normal", fontsize=7)
    if mapped:
        most = max((int(row.ranks.max()) for row in rows if row.ranks is not None), default=NONE)
        names = [str(i + 1) for i in range(min(most + 1, len(RANKED)))] + ["rarer"] * (most >= len(RANKED))
        handles = [Patch(color=colour, label=name) for colour, name in zip((*RANKED, GREY), names, strict=False)]
        if handles:
            figure.legend(
                handles=handles,
                title="prototypes of a region, from most to least used",
                title_fontsize=7,
                fontsize=7,
                loc="outside lower center",
                ncols=len(handles),
            )
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, weight="bold")
    return figure


def _ranked(ranks: np.ndarray | None) -> np.ndarray | None:
    """[h, w] ranks as colours; white where there is no prototype."""
    if ranks is None or (ranks == NONE).all():
        return None
    table = [mpl.colors.to_rgb(colour) for colour in (*RANKED, GREY, "#FFFFFF")]
    return np.asarray(table)[np.where(ranks == NONE, -1, np.minimum(ranks, len(RANKED)))]


@styled
def similarity(title: str, matrix: np.ndarray, labels: Sequence[str], places: Sequence[str]) -> Figure:
    """Cosines of frames, with lines between places.

    Args:
        title: data set.
        matrix: [F, F] in -1..1.
        labels: of the frames.
        places: of the frames; those of one place are neighbours.
    """
    count = len(labels)
    size = float(np.clip(150 / count, 3.5, 7))
    figure, axes = _figure(min(1.6 + 0.42 * count, 6.4), 1, 1)
    ax = axes[0, 0]
    image = ax.imshow(matrix, cmap=SIGNED, vmin=-1, vmax=1, interpolation="nearest")
    if count <= 16:
        for (y, x), value in np.ndenumerate(matrix):
            colour = "white" if abs(value) > 0.75 else "black"
            ax.text(
                x, y, f"{value:.2f}".replace("-", "\u2212"), ha="center", va="center", fontsize=size - 1.5, color=colour
            )
    starts = [i for i in range(count) if i == 0 or places[i] != places[i - 1]]
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        ax.text((start + end - 1) / 2, -0.8, places[start], ha="center", va="bottom", fontsize=7, color="#333333")
        if start:
            ax.axhline(start - 0.5, color="#333333", linewidth=0.8)
            ax.axvline(start - 0.5, color="#333333", linewidth=0.8)
    ax.set_yticks(range(count), labels, fontsize=size)
    ax.set_xticks(range(count), labels, fontsize=size, rotation=90)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, fraction=0.03, pad=0.02)
    bar.set_label("cosine of centred features")
    bar.outline.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, weight="bold")
    return figure


COLLAPSE_PANELS = {"teacher_entropy": "entropy\nof one target", "usage": "entropy of\nthe mean target"}


@styled
def collapse(records: Sequence[Mapping[str, float]], terms: Mapping[str, tuple[str, str]]) -> Figure:
    """Signs of a collapse by step: a row a measure, a column a level, a line a stream.

    Args:
        records: see `ringmoe_jax.training.metrics.read`.
        terms: {label of a `self_distillation` objective: (stream, level)}; all were logged.
    """
    streams, levels = (list(dict.fromkeys(of[i] for of in terms.values())) for i in (0, 1))
    figure, axes = _figure(
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
