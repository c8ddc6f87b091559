"""Clean accuracy against accuracy under noise: where each way of normalising stands, in one picture."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.arms import ARMS
from localnorm.figures.style import figure_legend, new_figure
from localnorm.words import describe

__all__ = ["caption", "plot_clean_against_noisy"]


def plot_clean_against_noisy(summary: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """One panel per experiment, one point per arm with its intervals; the best corner is the upper right.

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
        wide = rows.pivot(index="arm", columns="metric", values=["estimate", "low", "high"])
        if wide.empty:
            raise ValueError(
                f"{title} has none of the arms {', '.join(arms)}; it has {', '.join(summary.arm.unique())}"
            )
        for label in (arm for arm in arms if arm in wide.index):
            x, y = (100 * wide.loc[label, ("estimate", metric)] for metric in ("clean", "noisy"))
            (left, right), (low, high) = (
                [100 * wide.loc[label, (bound, metric)] for bound in ("low", "high")] for metric in ("clean", "noisy")
            )
            arm = ARMS[label]
            axis.plot([left, right], [y, y], color=arm.colour, linewidth=0.8)
            axis.plot([x, x], [low, high], color=arm.colour, linewidth=0.8)
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
        "Means over seeds and all noises, with 95 % intervals. " + ". ".join(describe(about) for about in abouts) + "."
    )
