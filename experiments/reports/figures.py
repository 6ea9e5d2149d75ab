"""Pictures of an evaluation: tiles, probes, losses, experts, locations. Every function returns a `Figure`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ringmoe_jax.evaluate.locations import NONE, Row
from ringmoe_jax.evaluate.quicklook import HIDDEN, NOT_VALID, Strip
from ringmoe_jax.evaluate.reconstruction import MODEL, TRIVIAL
from ringmoe_jax.evaluate.routing import GroupSummary
from ringmoe_jax.evaluate.style import BLUE, GREY, RANKED, SERIES, SIGNED, WIDTH, layout, scale_bar, styled, titled
from ringmoe_jax.run.evaluation import ComparisonRow, LocationRow, ProbeRow


@styled
def reconstruction(title: str, strips: Sequence[Strip], ground: float = 0.0) -> Figure:
    """Tiles (rows) as input, visible part, reconstruction and both together (columns).

    Args:
        title: data set, objective, bands and unit, see `quicklook.view`.
        strips: painted tiles.
        ground: metres across a tile, 0 where unknown.
    """
    figure, axes = layout(0.85 + 1.72 * len(strips), len(strips), 4)
    heads = ("input", "what the encoder saw", "reconstruction", "visible + reconstruction")
    for row, strip in zip(axes, strips, strict=True):
        for ax, image in zip(row, strip.images, strict=True):
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set(visible=True, color="#CCCCCC", linewidth=0.5)
        scale_bar(row[0], ground)
        low, high = strip.limits
        digits = max(0, 1 - int(np.floor(np.log10(high - low))))
        black, white = (f"{value:.{digits}f}".replace("-", "\u2212") for value in (low, high))
        row[0].set_ylabel(f"tile {strip.index}\nblack {black}\nwhite {white}", color="#555555", fontsize=7)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, loc="center", weight="normal")
    keys = ((HIDDEN, "hidden from the encoder"), (NOT_VALID, "not observed"))
    handles = [Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=label) for colour, label in keys]
    return titled(figure, title, handles)


@styled
def comparisons(rows: Sequence[ComparisonRow]) -> Figure:
    """Masked loss of the model and of trivial predictors, with 95 % intervals, one panel an objective."""
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = layout(0.3 + 1.25 * lines, lines, columns, sharey=True)
    for ax in axes.flat[len(rows) :]:
        ax.set_visible(False)
    names = (MODEL, *TRIVIAL)
    for ax, row in zip(axes.flat, rows, strict=False):
        for y, name in enumerate(names):
            loss, colour = row.losses[name], BLUE if name == MODEL else GREY
            ax.hlines(y, loss.low, loss.high, color=colour, linewidth=1.5, alpha=0.6)
            ax.plot(loss.value, y, "o" if name == MODEL else "s", color=colour)
        ax.axvline(row.losses[row.best].value, color=GREY, linewidth=0.8, linestyle=":")
        ax.set(title=f"{row.dataset}, {row.objective}", xlabel="masked loss (no unit), smaller is better")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
    return figure


@styled
def probes(title: str, results: Sequence[ProbeRow]) -> Figure:
    """Probe scores with 95 % intervals: one panel a protocol, one row a set of sensors, one mark an encoder.

    Args:
        title: data set and label.
        results: of one label.
    """
    protocols, rows, encoders = (
        list(dict.fromkeys(getattr(result, key) for result in results)) for key in ("protocol", "shown", "encoder")
    )
    height = 0.95 + len(rows) * (0.12 + 0.14 * len(encoders))
    figure, axes = layout(height, 1, len(protocols), sharex=True, sharey=True)
    offsets = np.linspace(-0.32, 0.32, len(encoders)) if len(encoders) > 1 else [0.0]
    for ax, protocol in zip(axes[0], protocols, strict=True):
        for encoder, offset, (colour, marker) in zip(encoders, offsets, SERIES, strict=False):
            chosen = [r for r in results if (r.protocol, r.encoder) == (protocol, encoder)]
            y, scores = [rows.index(r.shown) + offset for r in chosen], [r.score for r in chosen]
            ax.hlines(y, [s.low for s in scores], [s.high for s in scores], color=colour, linewidth=1.3, alpha=0.6)
            ax.plot([s.value for s in scores], y, marker, color=colour, label=encoder)
        ax.set(title=protocol, xlabel=results[0].metric)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        for edge in range(1, len(rows)):
            ax.axhline(edge - 0.5, color="#E6E6E6", linewidth=0.6)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return titled(figure, title)


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
    figure, axes = layout(1.0 + 0.19 * layers, 1, len(seen), sharey=True)
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
    return titled(figure, f"{group} experts: share of tokens, %")


@styled
def locations(title: str, captions: Mapping[str, str], rows: Sequence[Row], ground: float = 0.0) -> Figure:
    """Places (rows): an image of every sensor, principal components of the fused features, and prototypes (columns).

    Args:
        title: data set.
        captions: {sensor: bands and unit}, see `quicklook.view`.
        rows: painted places.
        ground: metres across a place, 0 where unknown.
    """
    mapped = any(row.ranks is not None for row in rows)
    heads = captions | {"fused features": "3 components as RGB"}
    heads |= {"geo-context prototypes": "by use in their region"} if mapped else {}
    side = WIDTH / (len(heads) + 0.35)
    titles = [f"{name}\n{textwrap.fill(text, int(17 * side))}" for name, text in heads.items()]
    lines = max(text.count("\n") for text in titles)
    figure, axes = layout(0.5 + 0.15 * lines + 0.25 * mapped + (side + 0.12) * len(rows), len(rows), len(titles))
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
        scale_bar(line[len(captions)], ground)  # of the fused features, which show every place
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
    return titled(figure, title)


def _ranked(ranks: np.ndarray | None) -> np.ndarray | None:
    """[h, w] ranks as colours; white where there is no prototype."""
    if ranks is None or (ranks == NONE).all():
        return None
    table = [mpl.colors.to_rgb(colour) for colour in (*RANKED, GREY, "#FFFFFF")]
    return np.asarray(table)[np.where(ranks == NONE, -1, np.minimum(ranks, len(RANKED)))]


@styled
def similarity(row: LocationRow) -> Figure:
    """Cosines of frames, with lines between places; frames of one place are neighbours."""
    labels, places, count = row.labels, row.places, len(row.labels)
    size = float(np.clip(150 / count, 3.5, 7))
    figure, axes = layout(min(1.6 + 0.42 * count, 6.4), 1, 1)
    ax = axes[0, 0]
    image = ax.imshow(row.similarity, cmap=SIGNED, vmin=-1, vmax=1, interpolation="nearest")
    if count <= 16:
        for (y, x), value in np.ndenumerate(row.similarity):
            colour = "white" if abs(value) > 0.75 else "black"
            ax.text(
                x, y, f"{value:.2f}".replace("-", "\u2212"), ha="center", va="center", fontsize=size - 1.5, color=colour
            )
    starts = [i for i in range(count) if i == 0 or places[i] != places[i - 1]]
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        ax.text(
            (start + end - 1) / 2, -0.8, f"tile {places[start]}", ha="center", va="bottom", fontsize=7, color="#333333"
        )
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
    return titled(figure, row.dataset)


@styled
def atlas(title: str, experts: Sequence[Sequence[np.ndarray]], columns: int = 2) -> Figure:
    """Tiles that every expert got the largest share of, the largest first; experts side by side in `columns`.

    Args:
        title: of the figure.
        experts: [h, w, 3] images in 0..1, the same number of each.
        columns: of experts.
    """
    each = len(experts[0])
    lines = -(-len(experts) // columns)
    side = WIDTH / (columns * each + 1)
    figure, axes = layout(0.4 + (side + 0.08) * lines, lines, columns * each)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    for number, images in enumerate(experts):
        line, first = number // columns, each * (number % columns)
        for ax, image in zip(axes[line, first : first + each], images, strict=True):
            ax.imshow(image, interpolation="nearest")
        axes[line, first].set_ylabel(f"{number}", rotation=0, labelpad=8, va="center")
    return titled(figure, title)


@styled
def contact_sheet(rows: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Pictures side by side, one row a scene.

    Args:
        rows: {title: [h, w, 3] in 0..1}; the same titles in every row.
    """
    titles = list(rows[0])
    side = WIDTH / len(titles)
    figure, axes = layout(0.2 + side * len(rows), len(rows), len(titles))
    for line, row in zip(axes, rows, strict=True):
        for ax, title in zip(line, titles, strict=True):
            ax.imshow(row[title], interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=6.5, weight="normal")
    return figure
