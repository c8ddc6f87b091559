"""One style for all figures: a colour, marker and line an arm, and how a figure is written.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; line styles and markers keep the arms apart in grey too.
"""

import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from localnorm import paths

__all__ = ["ARM_STYLES", "COLUMN", "WIDTH", "new_figure", "save"]

WIDTH = 6.75  # inches: a full text width
COLUMN = 3.375  # inches: a column of two

# arm -> (colour, marker, line style); BatchNorm dashed, LocalNorm solid, one image alone dotted; (3, 1, 0) is a star of three points
ARM_STYLES = {
    "BN fixed": ("#000000", "o", (0, (4, 1.5))),
    "BN-batch": ("#E69F00", "s", (0, (4, 1.5))),
    "LN batch": ("#0072B2", "D", "-"),
    "LN single": ("#CC79A7", "v", (0, (1, 1))),
    "LN vote": ("#009E73", "^", (0, (1, 1))),
    "LN companions": ("#6A3D9A", "*", (0, (5, 1, 1, 1, 1, 1))),
    "BN single": ("#882255", "d", (0, (1, 1))),
    "BN companions": ("#C71585", (5, 1, 180), (0, (5, 1, 1, 1, 1, 1))),
    "BN prior": ("#D55E00", "X", (0, (3, 1, 1, 1))),
    "LN prior": ("#56B4E9", "P", (0, (3, 1, 1, 1))),
    "BN last fixed": ("#8C6D31", "p", (0, (2, 1))),
    "LN last fixed": ("#1B4F3A", "h", (0, (2, 1))),
    "LN drawn batch": ("#7FB800", "8", "-"),
    "LN drawn single": ("#B8002A", "H", (0, (1, 1))),
    "LN drawn vote": ("#5B8C00", (3, 1, 0), (0, (6, 1, 1, 1))),
    "LN drawn companions": ("#9A86C4", (4, 1, 0), (0, (6, 1, 1, 1))),
    "LN drawn prior": ("#0B3C6F", (6, 1, 0), (0, (6, 1, 1, 1))),
    "LN drawn last fixed": ("#6FA287", (8, 1, 0), (0, (6, 1, 1, 1))),
    "GBN batch": ("#4D8FAC", (4, 0, 45), (0, (3, 1))),
    "GBN single": ("#C9A0C9", (3, 0, 180), (0, (1, 1))),
    "GN": ("#999999", "<", "-"),
    "IN": ("#666666", ">", "-"),
}

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


def save(figure: Figure, name: str, caption: str) -> None:
    """Write paper/figures/<name>.pdf, .png and .txt, the caption; unchanged input gives unchanged bytes.

    Args:
        caption: plain text: what is drawn, n, seeds and source, so that the figure can be cited as it is.
    """
    folder = paths.paper() / "figures"
    for suffix, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        # tight: an axis label that is wider than its panel would be cut at the figure's edge
        figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches="tight", pad_inches=0.02)
        paths.write(folder / f"{name}.{suffix}", buffer.getvalue())
    paths.write(folder / f"{name}.txt", " ".join(caption.split()) + "\n")


def sentence(text: str) -> Figure:
    """A figure of words, where there is nothing to draw and the pipeline is to go on."""
    figure, axes = new_figure(1, 1, 0.5)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, text, ha="center", va="center")
    return figure


def draw_arms(axis: Axes, table: pd.DataFrame, arms: Sequence[str], x: str, y: str) -> None:
    """A line an arm, `y` against `x`, with a band from `low` to `high`, in the arm's colour, marker and line style."""
    for arm in arms:
        rows = table[table.arm == arm].sort_values(x)
        if len(rows):
            colour, marker, line = ARM_STYLES[arm]
            above = 2.5 if line != "-" else 2  # arms may coincide: a dashed line over a solid one shows both
            axis.plot(rows[x], rows[y], color=colour, marker=marker, linestyle=line, label=arm, zorder=above)
            axis.fill_between(rows[x], rows.low, rows.high, color=colour, alpha=0.2, linewidth=0)


def legend_below(figure: Figure, axis: Axes, columns: int | None = None) -> None:
    """One legend for all panels, of what `axis` shows."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or min(len(labels), 7), frameon=False)


def arrow(start: tuple[float, float], end: tuple[float, float]) -> FancyArrowPatch:
    """The arrow of drawings, from point to point."""
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=6, linewidth=0.8, color="0.3", shrinkA=0, shrinkB=0
    )


def short(label: str) -> str:
    """A noise's label without its remark on the released name."""
    return label.split(" (released")[0]
