"""The primary comparisons as a forest plot: differences of two arms with their intervals and thresholds."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.arms import METRICS
from localnorm.comparisons import HOLDS, PRIMARY, UNDECIDED, verdict
from localnorm.figures.style import draw_seeds, new_figure
from localnorm.words import describe, spread

__all__ = ["caption", "plot_forest"]

COLOURS = {HOLDS: "#00664d", UNDECIDED: "#777777"}  # and what does not hold in this one:
AGAINST = "#a03000"


def plot_forest(comparisons: pd.DataFrame) -> Figure:
    """One row per primary comparison, one panel per experiment: the difference in points, its interval, and the threshold as a tick.

    A filled mark is decided, a hollow one is not; what was not run says so.

    Args:
        comparisons: columns title and those of `localnorm.comparisons.COLUMNS`.
    """
    titles = list(dict.fromkeys(comparisons.title))
    figure, axes = new_figure(1, len(titles), 0.27 * len(PRIMARY) + 0.8, sharey=True)
    for axis, title in zip(axes.flat, titles, strict=True):
        table = comparisons[(comparisons.title == title) & (comparisons.primary != "")]
        axis.axvline(0, color="0.7", linewidth=0.8)
        for height, row in enumerate(table.itertuples()):
            if not row.seeds:
                axis.text(
                    0.02, height, "not run", transform=axis.get_yaxis_transform(), va="center", fontsize=6, color="0.4"
                )
                continue
            word = verdict(row)
            colour = COLOURS.get(word, AGAINST)
            axis.plot([100 * row.low, 100 * row.high], [height] * 2, color=colour, linewidth=1.2)
            draw_seeds(axis, row, colour, y=height, scale=100)
            face = "white" if word == UNDECIDED else colour
            axis.plot(100 * row.estimate, height, marker="o", color=colour, markerfacecolor=face, markersize=5)
            axis.plot([100 * row.threshold] * 2, [height - 0.3, height + 0.3], color="0.3", linewidth=0.8)
        axis.set(title=title, xlabel="difference (points)")
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xticks([-50, -10, -5, 0, 5, 10, 20], ["-50", "-10", "-5", "0", "5", "10", "20"])
        axis.minorticks_off()
    labels = [f"{row.primary}  {row.first} - {row.second}, {METRICS[row.metric].label}" for row in PRIMARY]
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def caption(abouts: Sequence[dict]) -> str:
    return (
        "The primary comparisons, written down before anything was scored. Each is the difference of two arms in "
        f"points, the mean over seeds {spread(about['seeds'] for about in abouts)}; the tick is the threshold that the "
        "claim needs to pass. "
        "Green holds and red does not hold here, after Holm's correction; a hollow mark is undecided. The axis is "
        "linear between -10 and 10 points and logarithmic beyond. "
        + ". ".join(describe(about) for about in abouts)
        + "."
    )
