"""The style of all figures: width, colours, fonts; how one is laid out, titled and saved.

Matplotlib's object interface only, so that nothing here touches a notebook's or a server's global state.
Colours are those of Okabe and Ito, told apart by readers with any colour vision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ringmoe_jax import files

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
    """Writes a PNG, 200 dots an inch, whole or not at all, and makes its folder."""
    path = Path(path)
    with files.replaced(path) as draft:
        figure.savefig(draft, dpi=200, format="png")
    return path


def layout(height: float, rows: int, columns: int, **options) -> tuple[Figure, np.ndarray]:
    """A figure as wide as a page, with its axes [rows, columns].

    Args:
        height: of the figure in inches.
        rows: of axes.
        columns: of axes.
        options: of `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def titled(figure: Figure, title: str, handles: Sequence[Artist] = ()) -> Figure:
    """The figure with its title, and a legend below in as many columns as the page is wide enough for."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, weight="bold")
    if handles:
        widest = max(len(handle.get_label()) for handle in handles)
        columns = int(np.clip(WIDTH / (0.45 + 0.058 * widest), 1, len(handles)))
        figure.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=columns,
            fontsize=7,
            handlelength=1.6,
            columnspacing=1.2,
        )
    return figure


def scale_bar(ax: Axes, ground: float) -> None:
    """Draws a bar of a round length, a fifth to a half of the picture, in its lower left corner.

    Args:
        ax: of a picture that fills it.
        ground: metres from its left to its right edge; nothing is drawn for 0, which stands for unknown.
    """
    if not ground:
        return
    power = 10.0 ** math.floor(math.log10(ground / 2))
    length = power * max(step for step in (1, 2, 5) if step * power <= ground / 2)
    number, unit = (length / 1000, "km") if length >= 1000 else (length, "m")
    edged = [withStroke(linewidth=2.6, foreground="black")]
    place = dict(transform=ax.transAxes, color="white", zorder=5, path_effects=edged)
    ax.plot([0.05, 0.05 + length / ground], [0.05, 0.05], linewidth=1.4, solid_capstyle="butt", **place)
    ax.text(0.05, 0.075, f"{number:g} {unit}", fontsize=6, ha="left", va="bottom", **place)
