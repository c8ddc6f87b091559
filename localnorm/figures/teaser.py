"""Clean accuracy against accuracy under noise: where each way of normalising stands, in one picture."""

from collections.abc import Sequence
from math import isnan

import pandas as pd
from matplotlib.figure import Figure

from localnorm.arms import ARMS
from localnorm.figures.style import figure_legend, new_figure
from localnorm.words import describe, seed_values, spread

__all__ = ["caption", "plot_clean_against_noisy"]


def plot_clean_against_noisy(summary: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """One panel per experiment, one point per arm with its intervals, or a dot per seed of few; the best corner is the upper right.

    Args:
        summary: columns title, arm, metric, estimate, low and high.
        arms: those to draw, where an experiment has them.

    Raises:
        ValueError: an experiment has none of the arms.
    """
    titles = list(dict.fromkeys(summary.title))
    figure, axes = new_figure(1, len(titles), 2.9)
    for axis, title in zip(axes.flat, titles, strict=True):
        rows = summary[(summary.title == title) & summary.arm.isin(arms)]
        value = rows.set_index(["arm", "metric"])
        if rows.empty:
            raise ValueError(
                f"{title} has none of the arms {', '.join(arms)}; it has {', '.join(summary.arm.unique())}"
            )
        for label in (arm for arm in arms if arm in set(rows.arm)):
            arm = ARMS[label]
            clean, noisy = (value.loc[(label, metric)] for metric in ("clean", "noisy"))
            x, y = 100 * clean.estimate, 100 * noisy.estimate
            axis.plot([100 * clean.low, 100 * clean.high], [y, y], color=arm.colour, linewidth=0.8)
            axis.plot([x, x], [100 * noisy.low, 100 * noisy.high], color=arm.colour, linewidth=0.8)
            if isnan(clean.low):
                pairs = [[100 * each for each in seed_values(row)] for row in (clean, noisy)]
                axis.scatter(*pairs, s=4, color=arm.colour, alpha=0.5, linewidth=0)
            axis.plot(x, y, marker=arm.marker, color=arm.colour, linestyle="", markersize=6, label=label)
        axis.annotate("better", (0.99, 0.98), (0.84, 0.86), xycoords="axes fraction", fontsize=7, color="0.35",
                      ha="center", va="center", arrowprops={"arrowstyle": "->", "color": "0.35"})  # fmt: skip
        axis.set(title=title, xlabel="accuracy on clean images (%)")
        axis.grid(color="0.93", linewidth=0.6)
        axis.margins(0.12)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.18 * (high - low))  # room for the word in the corner
    axes[0, 0].set_ylabel("accuracy under noise (%)")
    figure_legend(figure, axes, arms)
    return figure


def caption(abouts: Sequence[dict]) -> str:
    return (
        "Clean against noisy accuracy: the farther up and to the right, the better. BN fixed keeps the statistics of the training "
        "set. BN batch and LN batch take those of a batch of test images of one condition. The other arms see one image at a time. "
        f"Each mark is the mean over seeds and all noises, {spread(about['seeds'] for about in abouts)}. "
        + ". ".join(describe(about) for about in abouts)
        + "."
    )
