"""Training curves and box plots, and what all figures share: colours and PNG files.

Figures are built without pyplot, to leave its global state to the user's notebook.
"""

import logging
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontManager, fontManager
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from ..utils.files import write_files
from .planes import EAST_ASIAN

# The palette of Okabe and Ito, which is safe for colour-blind readers; its orange and sky blue also
# stand out from every grey of an image.
REFERENCE_COLOUR, PREDICTION_COLOUR = "#E69F00", "#56B4E9"
LOSS_COLOUR, DICE_COLOUR, RATE_COLOUR = "#D55E00", "#0072B2", "#555555"

# Fonts for Chinese names of cases, of which Matplotlib's own font has no character.
CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Microsoft YaHei", "SimHei", "PingFang SC"),
)

BOX_PLOT_SIDES = (0.16, 0.98)  # page.css has the first for the names below
LEAST_SPAN = 0.01  # of a box plot, as a share of its values: ticks then differ in few digits

PLOTTED_COLUMNS = ("epoch", "learning_rate", "train_loss", "val_dice")


def plot_progress(history: pd.DataFrame, path: str | Path) -> None:
    """Writes the training curves as a PNG: loss, validation Dice (if any), learning rate.

    Args:
        history: a row per epoch, see `progress_figure`.
        path: of the PNG.

    Raises:
        DataError: the file cannot be written.
        ValueError: the table has no rows, or not these columns.
    """
    write_files({Path(path): figure_png(progress_figure(history))})


def progress_figure(history: pd.DataFrame, labelled: bool = True) -> Figure:
    """Draws the training curves, with a star at the best validation Dice.

    Args:
        history: a row per epoch, with `PLOTTED_COLUMNS`; `val_dice` is NaN without a validation.
        labelled: whether to write what the curves are.

    Raises:
        ValueError: the table has no rows, or not these columns.
    """
    if not set(PLOTTED_COLUMNS) <= set(history.columns) or history.empty:
        raise ValueError(
            f"a history of {len(history)} rows with {', '.join(map(str, history.columns))}, "
            f"expected one row at least, with {', '.join(sorted(PLOTTED_COLUMNS))}"
        )
    validated = history[history["val_dice"].notna()]
    heights = [3, 3, 1.6] if len(validated) else [3, 1.6]
    figure = Figure(figsize=(8, 1.1 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_loss(panels[0], history)
    _draw_rate(panels[-1], history)
    for panel in panels:
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    if len(validated):
        best = validated.loc[validated["val_dice"].idxmax()]
        _draw_dice(panels[1], validated, best)
        for panel in panels:
            panel.axvline(best["epoch"], color="0.6", linestyle=":", zorder=0)
    if not labelled:
        for panel in panels:
            panel.set(xlabel="", ylabel="")
            if legend := panel.get_legend():
                legend.remove()
    figure.align_ylabels()
    return figure


def _draw_curve(panel: Axes, history: pd.DataFrame, column: str, colour: str, label: str) -> None:
    # The points of a short curve are marked; a single point would otherwise be invisible.
    markers = {"marker": "o", "markersize": 3.5} if len(history) <= 30 else {}
    panel.plot(history["epoch"], history[column], color=colour, **markers)
    panel.set_ylabel(label)


def _draw_loss(panel: Axes, history: pd.DataFrame) -> None:
    _draw_curve(panel, history, "train_loss", LOSS_COLOUR, "training loss")
    positive = history["train_loss"][history["train_loss"] > 0]
    if len(positive) and positive.max() > 4 * positive.min():
        # A Dice loss ends at a few hundredths; on a linear axis its further fall is invisible.
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(_plain_number)
        panel.yaxis.set_minor_locator(NullLocator())


def _draw_dice(panel: Axes, validated: pd.DataFrame, best: pd.Series) -> None:
    _draw_curve(panel, validated, "val_dice", DICE_COLOUR, "validation Dice")
    panel.plot(
        best["epoch"],
        best["val_dice"],
        linestyle="none",
        marker="*",
        markersize=13,
        markerfacecolor=REFERENCE_COLOUR,
        markeredgecolor="black",
        label=f"best: {best['val_dice']:.4f} in epoch {best['epoch']:.0f}",
    )
    panel.legend(loc="lower right", edgecolor="none", framealpha=1)


def _draw_rate(panel: Axes, history: pd.DataFrame) -> None:
    _draw_curve(panel, history, "learning_rate", RATE_COLOUR, "learning rate")
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(_plain_number)
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))


def _plain_number(value: float, _: int) -> str:
    return f"{value:.5g}".replace("e+0", "e").replace("-", "−")


def box_plot_figure(groups: list[list[float]]) -> Figure:
    """Draws a box plot per group of values, with a dot for every case; without their names.

    The groups share the width between `BOX_PLOT_SIDES`, shares of the figure's width.
    """
    figure = Figure(figsize=(3.4, 2.3))
    left, right = BOX_PLOT_SIDES
    panel = figure.add_axes((left, 0.04, right - left, 0.92))
    line = {"color": DICE_COLOUR}
    panel.boxplot(
        groups,
        widths=0.55,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#DCEBF5", "edgecolor": DICE_COLOUR},
        medianprops={**line, "linewidth": 2},
        whiskerprops=line,
        capprops=line,
    )
    dot = {"markersize": 3.6, "alpha": 0.75, "markeredgecolor": "white", "markeredgewidth": 0.4}
    for position, values in enumerate(groups, 1):
        # Dots are spread sideways, in an order independent of their values, so that few overlap.
        offsets = 0.18 * np.sin(2.4 * np.arange(len(values)))
        panel.plot(position + offsets, values, "o", color=LOSS_COLOUR, **dot)
    panel.set_xlim(0.5, len(groups) + 0.5)
    panel.set_xticks([])
    low, high = panel.get_ylim()
    largest = max(abs(low), abs(high))
    missing = max(0, LEAST_SPAN * largest - (high - low))
    panel.set_ylim(low - missing / 2, high + missing / 2)
    plain = ScalarFormatter(useOffset=False)
    panel.yaxis.set_major_formatter(plain if largest < 1e5 else _plain_number)
    panel.tick_params("y", labelsize=8, pad=2)
    panel.grid(axis="y", color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def add_line_legend(
    figure: Figure,
    lines: list[tuple[str, str, float]],
    corner: tuple[float, float],
    fontsize: float,
) -> None:
    """Adds a legend of lines, side by side.

    Args:
        figure: the figure to change.
        lines: label, colour and width in points of each.
        corner: upper right corner of the legend, in shares of the figure.
        fontsize: of the labels.
    """
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                label=label,
                color=colour,
                linewidth=width_pt,
                path_effects=[_edge(width_pt)],
            )
            for label, colour, width_pt in lines
        ],
        loc="upper right",
        bbox_to_anchor=corner,
        borderaxespad=0,
        ncols=len(lines),
        fontsize=fontsize,
        frameon=False,
    )


def _edge(width_pt: float) -> withStroke:
    """A dark edge of a line, whose colour alone is hard to see on white."""
    return withStroke(linewidth=width_pt + 1.2, foreground="black")


def figure_png(figure: Figure) -> bytes:
    """Returns a figure as a PNG."""
    png = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box stands there
        for text in figure.findobj(Text):
            if max(text.get_text(), default="") >= EAST_ASIAN:
                text.set_fontfamily([*text.get_fontfamily(), *_chinese_fonts()])
        figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


@cache
def _chinese_fonts() -> list[str]:
    """Those of `CHINESE_FONTS` that are installed."""
    # Some have no weight "normal", which Matplotlib would log at each start.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    if not any(font.name in CHINESE_FONTS for font in fontManager.ttflist):
        # Matplotlib keeps the list of its first start: one may have been installed since.
        fontManager.ttflist += [f for f in FontManager().ttflist if f.name in CHINESE_FONTS]
    installed = {font.name for font in fontManager.ttflist}
    return [name for name in CHINESE_FONTS if name in installed]
