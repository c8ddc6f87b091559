"""One style for all figures, and how a figure is written. The colour, marker and line of each arm stand in `localnorm.arms`."""

import io
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import FancyArrowPatch
from matplotlib.transforms import ScaledTranslation, Transform

from localnorm import noise, paths
from localnorm.arms import ARMS
from localnorm.words import seed_values

__all__ = ["COLUMN", "LEGIBLE", "WIDTH", "draw_arms", "draw_seeds", "fit_column", "new_figure", "save"]

WIDTH = 6.55  # inches: the text of a page of the paper, so that a figure of this width is printed with letters as large as drawn
COLUMN = 3.35  # inches: a column of a page with two
LEGIBLE = 7  # points: the smallest letters of a printed figure

# groups of a batch, in drawings: a colour and, for grey, a hatch each
GROUP_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
GROUP_HATCHES = ("", "////", "....", "xxxx")

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 170,
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def new_figure(rows: int, columns: int, height: float, width: float = WIDTH, **options) -> tuple[Figure, np.ndarray]:
    sns.set_theme(style="ticks", rc=STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)


def save(figure: Figure, name: str, caption: str, *, column: bool = False) -> None:
    """Write paper/figures/<name>.pdf, .png and .txt, the caption; unchanged input gives unchanged bytes.

    Args:
        name: "teaser", or with its experiment "digits-small/accuracy".
        caption: plain text: what to see, and the source, so that the figure can be cited as it is.
        column: also write <name>-column.pdf, as wide as a column of a page with two; the figure has that form afterwards.
    """
    folder = paths.paper() / "figures"
    paths.write(folder / f"{name}.pdf", _drawn(figure, "pdf"))
    paths.write(folder / f"{name}.png", _drawn(figure, "png"))
    if column:
        fit_column(figure)
        paths.write(folder / f"{name}-column.pdf", _drawn(figure, "pdf"))
    paths.write(folder / f"{name}.txt", " ".join(caption.split()) + "\n")


def _drawn(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"pdf": {"CreationDate": None, "Producer": None}, "png": {"Software": None}}[suffix]
    # tight: an axis label that is wider than its panel would be cut at the figure's edge
    figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches="tight", pad_inches=0.02)
    return buffer.getvalue()


def fit_column(figure: Figure) -> None:
    """Lay a figure out anew, as wide as a column: half as many panels side by side, the rest below them; letters keep their size."""
    panels = [axis for axis in figure.axes if axis.get_subplotspec()]
    grid = panels[0].get_subplotspec().get_gridspec()
    rows, side_by_side = grid.nrows, max(1, grid.ncols // 2)
    parts = -(-grid.ncols // side_by_side)
    ratios = list(grid.get_height_ratios()) * parts
    new = figure.add_gridspec(rows * parts, side_by_side, height_ratios=ratios)
    first = {axis.get_subplotspec().rowspan.start: axis for axis in panels if axis.get_subplotspec().colspan.start == 0}
    for axis in panels:
        old = axis.get_subplotspec()
        row, column = old.rowspan.start, old.colspan.start
        axis.set_subplotspec(new[column // side_by_side * rows + row, column % side_by_side])
        labels = [label.get_text() for label in axis.get_yticklabels()]
        if any("  " in label for label in labels):  # two spaces stand between the parts of a long one
            axis.set_yticks(axis.get_yticks(), [label.replace("  ", "\n") for label in labels])
        if column and column % side_by_side == 0:  # it shared the values and words of the panel on its left
            axis.tick_params(labelleft=True)
            axis.set_ylabel(axis.get_ylabel() or first[row].get_ylabel())
    height = figure.get_figheight() * parts if parts > 1 else min(figure.get_figheight(), COLUMN)
    figure.set_size_inches(COLUMN, height)
    for legend in list(figure.legends):
        _narrow(figure, legend)


def _narrow(figure: Figure, legend: Legend) -> None:
    """Give a legend as many columns as have room."""
    entries = [
        (mark, text) for mark, text in zip(legend.legend_handles, legend.get_texts(), strict=True) if text.get_text()
    ]
    marks, before = zip(*entries, strict=True)
    has_titles = any(
        text.get_fontweight() == "bold" for text in before
    )  # each column has one: they go below one another
    for columns in (1,) if has_titles else range(len(before), 0, -1):
        narrower = figure.legend(
            marks, [text.get_text() for text in before], loc="outside lower center", ncols=columns, frameon=False,
            columnspacing=1.2, handletextpad=0.4, labelspacing=0.3,
        )  # fmt: skip
        for text, old in zip(narrower.get_texts(), before, strict=True):
            text.set(fontweight=old.get_fontweight(), x=old.get_position()[0])
        figure.draw_without_rendering()
        if columns == 1 or narrower.get_window_extent().width <= COLUMN * figure.dpi:
            break
        narrower.remove()
    legend.remove()


def sentence(text: str) -> Figure:
    """A figure that only shows a sentence, for a stage that has nothing to draw."""
    figure, axes = new_figure(1, 1, 0.5)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, text, ha="center", va="center")
    return figure


def draw_arms(axis: Axes, table: pd.DataFrame, arms: Sequence[str], x: str, y: str, scale: float = 1) -> None:
    """One line per arm, `y` against `x`, in the arm's colour, marker and line style.

    A band goes from `low` to `high`; where few seeds have none, each is a small dot, see `draw_seeds`. Rows with the column `few` have
    hollow marks, see `localnorm.scores.beside_reference`.

    Args:
        scale: of the values, 100 for percent.
    """
    for label in arms:
        rows = table[table.arm == label].sort_values(x)
        if len(rows):
            arm = ARMS[label]
            above = 2.5 if arm.line != "-" else 2  # arms may coincide: a dashed line over a solid one shows both
            face = "white" if "few" in rows and rows.few.any() else arm.colour
            axis.plot(
                rows[x], scale * rows[y], color=arm.colour, marker=arm.marker, markerfacecolor=face, linestyle=arm.line, label=label,
                zorder=above,
            )  # fmt: skip
            axis.fill_between(rows[x], scale * rows.low, scale * rows.high, color=arm.colour, alpha=0.2, linewidth=0)
            for row in rows.itertuples():
                draw_seeds(axis, row, arm.colour, x=getattr(row, x), scale=scale)


def draw_seeds(axis: Axes, row, colour: str, x: float | None = None, y: float | None = None, scale: float = 1) -> None:
    """A small dot for each seed of a row that has too few of them for an interval, along the line at `x` or at height `y`.

    Args:
        row: with the attributes low and by_seed; one with an interval gets no dots.
        scale: of the values, 100 for percent.
    """
    values = [] if np.isfinite(row.low) else [scale * value for value in seed_values(row)]
    if len(values) > 1:
        places = (values, [y] * len(values)) if x is None else ([x] * len(values), values)
        axis.scatter(*places, s=4, color=colour, alpha=0.5, linewidth=0, zorder=1.5)


def legend_below(figure: Figure, axis: Axes, columns: int | None = None) -> None:
    """One legend for all panels, of what `axis` shows."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or min(len(labels), 7), frameon=False)


def figure_legend(figure: Figure, axes: np.ndarray, arms: Sequence[str]) -> None:
    """One legend below all panels, each arm once, in the order of `arms`."""
    handles: dict[str, object] = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [arm for arm in arms if arm in handles]
    rows = -(-len(order) // 7)  # seven are as wide as the figure
    columns = -(-len(order) // max(rows, 1))
    figure.legend([handles[arm] for arm in order], order, loc="outside lower center", ncols=columns or 1, frameon=False)


def shift(axis: Axes, points: float) -> Transform:
    """Where something is drawn that stands `points` to the right of its values, so that marks which coincide are seen side by side."""
    return axis.transData + ScaledTranslation(points / 72, 0, axis.figure.dpi_scale_trans)


def arrow(start: tuple[float, float], end: tuple[float, float]) -> FancyArrowPatch:
    """The arrow of drawings, from point to point."""
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=6, linewidth=0.8, color="0.3", shrinkA=0, shrinkB=0
    )


def name_noise(axis: Axes, suite: str, name: str) -> None:
    """Title and x label of one of four panels side by side: the noise, and what its level is."""
    known = noise.noises(suite)[name]
    axis.set_title(textwrap.fill(f"{short(known.label)} ({suite})", 24), fontsize=LEGIBLE)
    axis.set_xlabel(textwrap.fill(known.unit, 26), fontsize=LEGIBLE)


def short(label: str) -> str:
    """A noise's label without its remark on the released name."""
    return label.split(" (released")[0]
