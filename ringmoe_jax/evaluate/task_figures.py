"""Figures of downstream tasks, in the style of `ringmoe_jax.evaluate.style`: every function returns a `Figure`.

Images are [H, W, 3] float in 0..1, see `ringmoe_jax.evaluate.quicklook`. One of `rows` is one sample, in one line of
pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy.optimize import linear_sum_assignment

from ringmoe_jax.evaluate.metrics.boxes import corners, rotated_iou
from ringmoe_jax.evaluate.quicklook import Image
from ringmoe_jax.evaluate.style import (
    AMBER,
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    RANKED,
    SIGNED,
    SKY,
    WIDTH,
    layout,
    scale_bar,
    styled,
    titled,
)

# After those of Okabe and Ito: muted colours of Paul Tol's and three of our choice, for up to 20 classes.
MORE = "#44AA99 #882255 #999933 #332288 #CC6677 #661100 #DDCC77 #117733 #B8B8F0 #A0522D #FFB3C6 #C8E6A0".split()
CLASSES = (*RANKED, *MORE)
SHADE = LinearSegmentedColormap.from_list("shade", ("#FFFFFF", BLUE))
WRONG = "#E6003C"  # red, no class's colour
VOID = "#C4C4C4"  # no class, no height: nobody knows
STRIPE = "#A0A0A0"
OUTCOMES = {
    "changed, found (TP)": "#FFFFFF",
    "false alarm (FP)": ORANGE,
    "missed (FN)": SKY,
    "unchanged (TN)": "#202020",
}
TAILS = tuple(colour for colour in CLASSES if colour not in (BLACK, "#332288", "#661100"))  # bright enough
TINT = 0.35  # opacity of boxes without a partner
LEGIBLE = 40  # boxes of an image whose scores can be read
EDGED = (withStroke(linewidth=1.8, foreground="black"),)
VOID_KEY = Patch(facecolor=VOID, edgecolor=STRIPE, hatch="/////", label="void")


@styled
def confusion_matrix(title: str, matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusion matrix: the share of each true class (rows) by predicted class (columns), in % where C <= 20.

    Args:
        title: data set and label.
        matrix: [C, C] counts, truth by prediction. A class without truth is a grey row.
        names: of the classes.
    """
    count, numbered = len(names), len(names) <= 20
    total = matrix.sum(axis=1)
    share = np.divide(matrix, total[:, None], out=np.full(matrix.shape, np.nan), where=total[:, None] > 0)
    size = float(np.clip(190 / count, 4.2, 8))
    text = max(map(len, names)) * size * 0.6 / 72  # inches of the longest name
    side = min(0.3 + 0.55 * count, max(2.0, WIDTH - text - (1.1 if numbered else 2.0)))
    upright = text > 0.9 * side / count
    figure, axes = layout(side + (text if upright else 0.15) + 0.75, 1, 1)
    ax = axes[0, 0]
    ax.set_facecolor("#EEEEEE")
    ax.set_anchor("W")
    image = ax.imshow(share, cmap=SHADE, vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks(range(count), names, rotation=90 if upright else 0, fontsize=size)
    ax.set_yticks(range(count), names, fontsize=size)
    ax.set(xlabel="predicted", ylabel="true")
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(count), [f"{int(n):,}".replace(",", "\u202f") for n in total], fontsize=size)
    right.set_ylabel("count of the true class", fontsize=7, color="#555555")
    for part in (ax, right):
        part.tick_params(length=0)
        part.grid(False)
        part.spines[:].set_visible(False)
    if numbered:
        for (y, x), value in np.ndenumerate(share):
            if matrix[y, x]:
                number = f"{100 * value:.0f}" if value >= 0.005 else "<1"
                colour = "white" if value > 0.55 else "#333333"
                ax.text(x, y, number, ha="center", va="center", fontsize=min(size, 7.5), color=colour)
        return titled(figure, f"{title}, % of the true class")
    bar = figure.colorbar(image, ax=ax, fraction=0.03, pad=0.02, format=lambda v, _: f"{100 * v:.0f} %")
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return titled(figure, title)


@styled
def masks(
    title: str,
    rows: Sequence[tuple[Image, np.ndarray, np.ndarray]],
    names: Sequence[str],
    colours: Sequence[str] = (),
    ground: float = 0.0,
) -> Figure:
    """Image, true classes, predicted classes and where they differ, with the classes that occur as legend.

    Args:
        title: data set and label.
        rows: image, truth [H, W] int and prediction [H, W] int; -1 is void, drawn hatched, and not scored.
        names: of the classes.
        colours: see `class_colours`.
        ground: metres from the left to the right edge of an image, 0 where unknown.
    """
    colours = class_colours(len(names), colours)
    figure, axes = _pictures(("image", "truth", "prediction", "errors"), [row[0] for row in rows], ground)
    for line, (image, truth, prediction) in zip(axes, rows, strict=True):
        unknown = truth < 0
        wrong = (truth != prediction) & ~unknown
        errors = 0.55 + 0.4 * np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
        errors[wrong] = to_rgb(WRONG)
        line[0].imshow(image, interpolation="nearest")
        line[1].imshow(_hatched(colours[truth], unknown), interpolation="nearest")
        line[2].imshow(_hatched(colours[prediction], prediction < 0), interpolation="nearest")
        line[3].imshow(_hatched(errors, unknown), interpolation="nearest")
        line[3].set_xlabel("all void" if unknown.all() else f"{100 * wrong[~unknown].mean():.1f} % wrong")
    seen = np.unique(np.concatenate([of.ravel() for _, *both in rows for of in both]))
    handles = [Patch(color=colours[c], label=names[c]) for c in seen if c >= 0]
    return titled(figure, title, [*handles, Patch(color=WRONG, label="wrong"), *[VOID_KEY] * (-1 in seen)])


@styled
def boxes(
    title: str,
    rows: Sequence[tuple[Image, np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    names: Sequence[str],
    overlap: float = 0.5,
    ground: float = 0.0,
) -> Figure:
    """True and predicted boxes side by side; those without a partner (missed, false) are dashed and tinted.

    In order of score, a detection finds the free true box of its class that it overlaps most. Scores are written
    where there are `LEGIBLE` boxes or fewer.

    Args:
        title: data set and label.
        rows: image, truth [m, 6] (class, x, y, width, height in pixels, angle in radians), and detections: boxes
            [n, 5], scores [n] and classes [n]. Rows of class -1 are not used.
        names: of the classes.
        overlap: least IoU of partners.
        ground: metres from the left to the right edge of an image, 0 where unknown.
    """
    figure, axes = _pictures(("truth", "prediction"), [row[0] for row in rows], ground)
    for (left, right), (image, truth, rectangles, scores, classes) in zip(axes, rows, strict=True):
        truth, used = truth[truth[:, 0] >= 0], classes >= 0
        rectangles, scores, classes = rectangles[used], scores[used], classes[used]
        found, true = _partners(truth, rectangles, scores, classes, overlap)
        _backdrop(left, image)
        _backdrop(right, image)
        _outline(left, truth[:, 1:], found, SKY)
        _outline(right, rectangles, true, AMBER)
        if len(scores) <= LEGIBLE:
            for rectangle, score, kind in zip(rectangles, scores, classes, strict=True):
                text = f"{score:.2f}" if len(names) == 1 else f"{names[int(kind)]} {score:.2f}"
                corner = np.clip(corners(rectangle[None])[0].min(axis=0), 0, image.shape[1::-1])
                right.text(*corner, text, color="white", fontsize=4.5, va="bottom", clip_on=True, path_effects=EDGED)
        left.set_xlabel(f"{found.sum()} found, {(~found).sum()} missed")
        right.set_xlabel(f"{true.sum()} right, {(~true).sum()} false")
    keys = ((SKY, ("true, found", "true, missed")), (AMBER, ("predicted, right", "predicted, false")))
    handles = [
        Patch(facecolor=(colour, TINT * alone), edgecolor=colour, linestyle="--" if alone else "-", label=label)
        for colour, both in keys
        for alone, label in enumerate(both)
    ]
    return titled(figure, title, handles)


@styled
def changes(title: str, rows: Sequence[tuple[Image, Image, np.ndarray, np.ndarray]], ground: float = 0.0) -> Figure:
    """Image before and after, true change, and the prediction coloured by its outcome.

    Args:
        title: data set and label.
        rows: before, after, truth [H, W] and prediction [H, W]: 0 unchanged, 1 changed, in the truth also -1 for void.
        ground: metres from the left to the right edge of an image, 0 where unknown.
    """
    colours = np.array([to_rgb(colour) for colour in OUTCOMES.values()])
    figure, axes = _pictures(("before", "after", "true change", "prediction"), [row[0] for row in rows], ground)
    for line, (before, after, truth, prediction) in zip(axes, rows, strict=True):
        void, true, said = truth < 0, truth > 0, prediction > 0
        outcome = np.where(true, np.where(said, 0, 2), np.where(said, 1, 3))
        pictures = before, after, _hatched(colours[np.where(true, 0, 3)], void), _hatched(colours[outcome], void)
        for ax, picture in zip(line, pictures, strict=True):
            ax.imshow(picture, interpolation="nearest")
        hits, alarms, missed = ((outcome == k)[~void].sum() for k in range(3))
        either = hits + alarms + missed
        line[3].set_xlabel(f"IoU {hits / either:.2f}" if either else "no change, none said")
    handles = [Patch(facecolor=c, edgecolor="#999999", linewidth=0.5, label=name) for name, c in OUTCOMES.items()]
    return titled(figure, title, [*handles, *[VOID_KEY] * any((row[2] < 0).any() for row in rows)])


@styled
def tracks(
    title: str,
    frames: Sequence[Image],
    truth: np.ndarray,
    predicted: np.ndarray,
    within: float = 5.0,
    ground: float = 0.0,
) -> Figure:
    """The last frame with the tails of true and of predicted tracks; a predicted one has its true one's colour.

    Args:
        title: data set.
        frames: T images.
        truth: [m, 8], columns class, x, y, width, height, angle, track and date; rows of class -1 are not used.
        predicted: [n, 8], likewise.
        within: largest distance of centres of the same object, in pixels.
        ground: metres from the left to the right edge of an image, 0 where unknown.
    """
    truth, predicted = truth[truth[:, 0] >= 0], predicted[predicted[:, 0] >= 0]
    owner, switches, missed, false = _followed(truth, predicted, within)
    colours = {number: TAILS[i % len(TAILS)] for i, number in enumerate(np.unique(truth[:, 6]))}
    figure, axes = _pictures(("truth", "prediction"), frames[-1:], ground)
    for ax, rows, owned in zip(axes[0], (truth, predicted), ({n: n for n in colours}, owner), strict=True):
        _backdrop(ax, frames[-1])
        for number in np.unique(rows[:, 6]):
            tail = rows[rows[:, 6] == number]
            tail = tail[np.argsort(tail[:, 7])]
            colour = colours.get(owned.get(number), "#FFFFFF")
            ax.plot(*tail[:, 1:3].T, color=colour, linewidth=1.1, path_effects=EDGED)
            if tail[-1, 7] == len(frames) - 1:
                ax.plot(*tail[-1, 1:3], "o", color=colour, markersize=2.6, markeredgecolor="black", markeredgewidth=0.3)
    ring = dict(marker="o", linestyle="", color="none", markeredgecolor=WRONG, markersize=6, markeredgewidth=1.1)
    axes[0, 1].plot(*switches.T, **ring)
    axes[0, 0].set_xlabel(f"{len(colours)} tracks, {len(truth)} positions, {len(frames)} dates")
    axes[0, 1].set_xlabel(f"{len(switches)} identity switches, {missed} positions missed, {false} false")
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=3, label="tail and last position"),
        Line2D([], [], **ring, label="identity switch"),
        Line2D([], [], color="#FFFFFF", linewidth=1.1, path_effects=EDGED, label="follows no true track"),
    ]
    return titled(figure, title, handles)


@styled
def heights(
    title: str, rows: Sequence[tuple[Image, np.ndarray, np.ndarray, np.ndarray]], ground: float = 0.0
) -> Figure:
    """Image, true height, predicted height and error in metres; grey where the truth is unknown.

    Args:
        title: data set.
        rows: image, truth [H, W] metres, where it is known [H, W] bool, prediction [H, W] metres.
        ground: metres from the left to the right edge of an image, 0 where unknown.
    """
    known = np.concatenate([truth[valid] for _, truth, valid, _ in rows])
    error = np.concatenate([(prediction - truth)[valid] for _, truth, valid, prediction in rows])
    low, high = np.percentile(known, (1, 99)) if known.size else (0.0, 1.0)
    worst = max(1.0, np.percentile(abs(error), 98)) if error.size else 1.0
    scale = dict(cmap="cividis", vmin=min(0.0, low), vmax=max(high, low + 1), interpolation="nearest")
    heads = ("image", "true height", "predicted height", "prediction \u2212 truth")
    figure, axes = _pictures(heads, [row[0] for row in rows], ground, below=0.5)
    for line, (image, truth, valid, prediction) in zip(axes, rows, strict=True):
        for ax in line[1:]:
            ax.set_facecolor(VOID)
        line[0].imshow(image, interpolation="nearest")
        line[1].imshow(np.where(valid, truth, np.nan), **scale)
        line[2].imshow(prediction, **scale)
        errors = np.where(valid, prediction - truth, np.nan)
        line[3].imshow(errors, cmap=SIGNED, vmin=-worst, vmax=worst, interpolation="nearest")
        here = errors[valid]
        line[3].set_xlabel(f"RMSE {np.sqrt(np.mean(here**2)):.1f} m" if here.size else "no data")
    inch = len(heads) / WIDTH * image.shape[1] / image.shape[0]  # in heights of the last line's pictures
    for ax, label in zip(axes[-1, 1:], ("height, m (grey: no data)", "height, m", "error, m"), strict=True):
        place = ax.inset_axes((0.05, -0.3 * inch, 0.9, 0.07 * inch))
        bar = figure.colorbar(ax.images[0], cax=place, orientation="horizontal")
        bar.set_label(label, fontsize=7)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    return titled(figure, title)


@styled
def height_errors(title: str, truth: np.ndarray, valid: np.ndarray, prediction: np.ndarray) -> Figure:
    """Predicted against true height as a histogram, and quartiles of the error by true height.

    Args:
        title: data set.
        truth: metres, any shape.
        valid: bool, where the truth is known; at least one pixel.
        prediction: metres.
    """
    truth, prediction = truth[valid], prediction[valid]
    ends = np.percentile([truth, prediction], (0.1, 99.9), axis=1)
    low, high = min(0.0, ends[0].min()), max(1.0, ends[1].max())
    figure, (axes,) = layout(3.2, 1, 2)
    span = [(low, high), (low, high)]
    *_, image = axes[0].hist2d(truth, prediction, bins=60, range=span, cmap="cividis", norm=LogNorm())
    axes[0].plot(span[0], span[0], color=ORANGE, linewidth=1, label="prediction = truth")
    axes[0].set(xlabel="true height, m", ylabel="predicted height, m", box_aspect=1)
    bar = figure.colorbar(image, ax=axes[0], fraction=0.046, pad=0.03)
    bar.set_label("pixels")
    bar.outline.set_visible(False)
    error, edges = prediction - truth, np.linspace(low, high, 16)
    place = np.digitize(truth, edges[1:-1])
    filled = [k for k in range(len(edges) - 1) if (place == k).any()]
    quartiles = np.array([np.percentile(error[place == k], (25, 50, 75)) for k in filled]).T
    middle = (edges[:-1] + edges[1:])[filled] / 2
    axes[1].fill_between(middle, quartiles[0], quartiles[2], color=BLUE, alpha=0.25, linewidth=0, label="middle half")
    axes[1].plot(middle, quartiles[1], color=BLUE, marker="o", markersize=3, label="median")
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    axes[1].set(xlabel="true height, m", ylabel="prediction \u2212 truth, m", xlim=(low, high), box_aspect=1)
    rmse = np.sqrt(np.mean(error**2))
    handles = [handle for ax in axes for handle in ax.get_legend_handles_labels()[0]]
    return titled(figure, f"{title}: bias {error.mean():+.2f} m, RMSE {rmse:.2f} m", handles)


@styled
def class_scores(title: str, names: Sequence[str], metric: str, values: np.ndarray) -> Figure:
    """One score of every class, the best on top; classes without a score last.

    Args:
        title: data set and label.
        names: C classes.
        metric: what the score is.
        values: [C] in 0..1, NaN where the class does not occur.
    """
    order = np.argsort(-np.where(np.isfinite(values), values, -1), kind="stable")
    figure, axes = layout(0.75 + 0.15 * len(names), 1, 1)
    ax = axes[0, 0]
    place = np.arange(len(names))
    ax.hlines(place, 0, values[order], color=BLUE, linewidth=1.3, alpha=0.35)
    ax.plot(values[order], place, "o", color=BLUE)
    for y, value in zip(place, values[order], strict=True):
        known = np.isfinite(value)
        text = f"{value:.2f}" if known else "not in the data"
        ax.text(value + 0.012 if known else 0.005, y, text, va="center", fontsize=7, color="#555555")
    ax.set_yticks(place, [names[i] for i in order], fontsize=7)
    ax.set(xlim=(0, 1.05), ylim=(len(names) - 0.4, -0.6), xlabel=metric)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    return titled(figure, title)


def class_colours(count: int, stated: Sequence[str] = ()) -> np.ndarray:
    """[count, 3] colours in 0..1: the data set's where it states them, else `CLASSES` up to 20, a rainbow beyond.

    Args:
        count: of classes.
        stated: "#rrggbb" of every class, or none.
    """
    if stated:
        return np.array([to_rgb(colour) for colour in stated])
    if count <= len(CLASSES):
        return np.array([to_rgb(colour) for colour in CLASSES[:count]]).reshape(-1, 3)
    return colormaps["turbo"](np.linspace(0, 1, count))[:, :3]


def _pictures(
    heads: Sequence[str], images: Sequence[Image], ground: float, below: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """A figure of bare axes: one column a head, and one line an image, as high as it asks for, with a scale bar.

    Args:
        heads: titles of the columns.
        images: one of each line.
        ground: metres across, 0 where unknown.
        below: inches for colour bars.
    """
    side = (WIDTH - 0.1) / len(heads)
    heights = [max(0.35, side * image.shape[0] / image.shape[1]) + 0.2 for image in images]
    options = {"gridspec_kw": {"height_ratios": heights}}
    figure, axes = layout(sum(heights) + 0.75 + below, len(images), len(heads), **options)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0.01, hspace=0.01)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.xaxis.label.set(fontsize=7, color="#555555")
        ax.grid(False)
        ax.spines[:].set(visible=True, color="#CCCCCC", linewidth=0.5)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, loc="center", weight="normal", fontsize=8)
    for ax in axes[:, 0]:
        scale_bar(ax, ground)
    return figure, axes


def _hatched(picture: np.ndarray, void: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] with grey stripes where `void` [H, W], about 40 across the image."""
    row, column = np.indices(void.shape)
    period = max(4, void.shape[1] // 40)
    stripe = (row + column) % period < max(1, period // 4)
    return np.where(void[..., None], np.where(stripe[..., None], to_rgb(STRIPE), to_rgb(VOID)), picture)


def _partners(
    truth: np.ndarray, rectangles: np.ndarray, scores: np.ndarray, classes: np.ndarray, overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which true boxes are found, [m] bool, and which detections are right, [n] bool."""
    alike = rotated_iou(rectangles, truth[:, 1:]) * (classes[:, None] == truth[:, 0])
    found, right = np.zeros(len(truth), bool), np.zeros(len(scores), bool)
    for i in np.argsort(-scores, kind="stable"):
        free = np.where(found, 0, alike[i])
        if free.max(initial=0) >= overlap:
            found[free.argmax()] = right[i] = True
    return found, right


def _backdrop(ax: Axes, image: Image) -> None:
    """The image in the coordinates of boxes: 0 at its left and upper edges; what lies outside is cut off."""
    height, width = image.shape[:2]
    ax.imshow(image, interpolation="nearest", extent=(0, width, height, 0))
    ax.set(xlim=(0, width), ylim=(height, 0))


def _outline(ax: Axes, rectangles: np.ndarray, paired: np.ndarray, colour: str) -> None:
    """Outlines of boxes [n, 5]; those that are not `paired` [n] are dashed and tinted."""
    for some, style in ((paired, dict(facecolors="none")), (~paired, dict(facecolors=(colour, TINT), linestyles="--"))):
        ax.add_collection(PolyCollection(corners(rectangles[some]), edgecolors=colour, linewidths=0.9, **style))


def _followed(
    truth: np.ndarray, predicted: np.ndarray, within: float
) -> tuple[dict[float, float], np.ndarray, int, int]:
    """Who follows whom: positions of each date are matched for the least sum of distances.

    Returns:
        {predicted track: the true track that it follows most}, [k, 2] x and y where a true track passes to another
        predicted one, and numbers of true and predicted positions without a partner.
    """
    votes, last, switches, matched = {}, {}, [], 0
    for date in np.unique(truth[:, 7]):
        true, said = truth[truth[:, 7] == date], predicted[predicted[:, 7] == date]
        apart = np.hypot(*(true[:, None, 1:3] - said[:, 1:3]).transpose(2, 0, 1))
        near = (apart <= within) & (true[:, :1] == said[:, 0])
        i, j = linear_sum_assignment(np.where(near, apart - 2 * within, 0))
        for mine, other in zip(true[i[near[i, j]]], said[j[near[i, j]]], strict=True):
            number, of = float(mine[6]), float(other[6])
            votes.setdefault(of, Counter())[number] += 1
            if last.get(number, of) != of:
                switches.append(mine[1:3])
            last[number] = of
            matched += 1
    owner = {of: counts.most_common(1)[0][0] for of, counts in votes.items()}
    return owner, np.array(switches).reshape(-1, 2), len(truth) - matched, len(predicted) - matched
