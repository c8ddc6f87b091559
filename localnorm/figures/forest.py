"""The primary comparisons as a forest plot: differences of two arms with their intervals and thresholds."""

from collections.abc import Sequence
from math import isnan

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from localnorm.arms import METRICS
from localnorm.comparisons import FAILS, HOLDS, PRIMARY, UNDECIDED, verdict
from localnorm.figures.style import LEGIBLE, draw_seeds, new_figure
from localnorm.words import describe, spread

__all__ = ["caption", "plot_forest"]

# verdict -> colour, marker, its face
LOOKS = {
    HOLDS: ("#00664d", "^", "#00664d"),
    FAILS: ("#a03000", "v", "#a03000"),
    UNDECIDED: ("#777777", "o", "white"),
    "": ("#777777", ".", "#777777"),
}
NONE = "no verdict (too few seeds)"
WIDEST = 35  # points on either side: what lies beyond is an arrow at the edge and a number


def plot_forest(comparisons: pd.DataFrame) -> Figure:
    """One row per primary comparison, one panel per experiment: the difference in points, its interval, and the threshold as a tick.

    Shape, filling and colour of a mark are its verdict. An arrow at the edge stands for what lies beyond it, a mark with its number or an
    end of an interval. What was not tested says so.

    Args:
        comparisons: columns title and those of `localnorm.comparisons.COLUMNS`.
    """
    titles = list(dict.fromkeys(comparisons.title))
    figure, axes = new_figure(1, len(titles), 0.27 * len(PRIMARY) + 1.0, sharey=True, sharex=True)
    shown = comparisons[comparisons.primary != ""]
    limits = _limits(comparisons)
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.axvline(0, color="0.7", linewidth=0.8)
        rows = {(row.primary, row.metric): row for row in shown[shown.title == title].itertuples()}
        for height, comparison in enumerate(PRIMARY):
            _draw_row(axis, rows.get((comparison.primary, comparison.metric)), height, limits)
        axis.set(title=title, xlabel="difference (points)", xlim=limits)
    labels = [f"{row.primary} {METRICS[row.metric].label}:  {row.first} − {row.second}" for row in PRIMARY]
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    marks = [
        Line2D(
            [], [], linestyle="", marker=marker, color=colour, markerfacecolor=face, label=word or NONE, markersize=6
        )
        for word, (colour, marker, face) in LOOKS.items()
        if word or any(row.seeds and not verdict(row) for row in shown.itertuples())
    ]
    marks.append(Line2D([], [], linestyle="", marker="|", color="0.3", markersize=9, label="threshold"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, handletextpad=0.2)
    return figure


def _drawn(comparisons: pd.DataFrame) -> pd.DataFrame:
    """All that stands on an axis, in points."""
    primary = comparisons[comparisons.primary != ""]
    return 100 * primary[["estimate", "low", "high", "threshold"]].dropna(how="all")


def _limits(comparisons: pd.DataFrame) -> tuple[float, float]:
    """The range of an axis that holds all marks and intervals, and no more than WIDEST points on either side."""
    drawn = _drawn(comparisons)
    return max(-WIDEST, min(-5, drawn.min(axis=None) - 2)), min(WIDEST, max(5, drawn.max(axis=None) + 2))


def _draw_row(axis: Axes, row, height: int, limits: tuple[float, float]) -> None:
    if row is None or not row.seeds:
        axis.text(
            0.02,
            height,
            "claimed of large images alone" if row is None else "not tested here",
            transform=axis.get_yaxis_transform(),
            va="center",
            fontsize=LEGIBLE,
            color="0.4",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the line at zero
        )
        return
    colour, marker, face = LOOKS[verdict(row)]
    low, high, estimate = 100 * row.low, 100 * row.high, 100 * row.estimate
    axis.plot([low, high], [height] * 2, color=colour, linewidth=1.2)
    draw_seeds(axis, row, colour, y=height, scale=100)
    axis.plot([100 * row.threshold] * 2, [height - 0.3, height + 0.3], color="0.3", linewidth=0.8)
    axis.plot(estimate, height, marker=marker, color=colour, markerfacecolor=face, markersize=6, linestyle="")
    for edge, arrow, side in ((limits[0], "<", 1), (limits[1], ">", -1)):
        outside = side * estimate < side * edge
        if outside or side * (low if side > 0 else high) < side * edge:
            axis.plot(
                edge, height, marker=arrow, color=colour, markerfacecolor=face, markersize=6, clip_on=False, linestyle=""
            )  # fmt: skip
        if outside:
            half = "" if isnan(row.low) else f" ± {(high - low) / 2:.1f}"
            axis.annotate(
                f"{estimate:+.1f}{half}".replace("-", "\N{MINUS SIGN}"), (edge, height), (8 * side, 0), textcoords="offset points",
                ha="left" if side > 0 else "right", va="center", fontsize=LEGIBLE, color=colour,
            )  # fmt: skip


def caption(comparisons: pd.DataFrame, abouts: Sequence[dict]) -> str:
    beyond = ""
    if (_drawn(comparisons).abs() > WIDEST).any(axis=None):
        beyond = (
            "An arrow at the edge stands beside the number of a difference that lies beyond the axis, or for the end of an interval "
            "that does. "
        )
    return (
        "The primary comparisons. Each is the difference of two arms in "
        f"points, the mean over seeds {spread(about['seeds'] for about in abouts)}; the tick is the threshold that the "
        f"claim needs to pass. The verdicts are after Holm's correction. {beyond}"
        + ". ".join(describe(about) for about in abouts)
        + "."
    )
