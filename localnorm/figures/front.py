"""One image at a time: what each training gives in clean accuracy, and what in accuracy under noise, as n0 runs from nothing to all."""

import pandas as pd
from matplotlib.figure import Figure

from localnorm.arms import arm_of
from localnorm.evaluators import study_means
from localnorm.figures.style import new_figure

__all__ = ["caption", "plot_front"]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")


def plot_front(table: pd.DataFrame) -> Figure:
    """One line per variant of a study, one point per n0; farther up and to the right is better.

    Args:
        table: of `localnorm.study`; means over seeds are drawn. One colour per network, one marker and line per variant of it.
    """
    figure, axes = new_figure(1, 1, 4.2)
    axis = axes[0, 0]
    means = study_means(table)
    for _, family in means.groupby("network", sort=False):
        for number, (variant, points) in enumerate(family.groupby("variant", sort=False)):
            points = points.sort_values("prior")
            axis.plot(
                100 * points.clean, 100 * points.noisy, LINES[number % len(LINES)], marker=MARKERS[number % len(MARKERS)],
                color=arm_of(points.network.iloc[0], "prior").colour, markersize=4, linewidth=1, markerfacecolor="none", label=variant,
            )  # fmt: skip
    good = means[means.clean > means.clean.max() - 0.25]  # the image alone fails on networks that never met it
    left, right = 100 * good.clean.min(), 100 * good.clean.max()
    low, high = 100 * good.noisy.min(), 100 * good.noisy.max()
    axis.set(xlim=(left - 1, right + 1), ylim=(low - 2, high + 2))
    axis.set(xlabel="accuracy on clean images (%)", ylabel="accuracy under noise (%)")
    axis.grid(color="0.93", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def caption(table: pd.DataFrame, about: str) -> str:
    """The caption of `plot_front`.

    Args:
        table: of `localnorm.study`.
        about: the experiment, its epochs and noises in a few words.
    """
    seeds = table.seed.nunique()
    return (
        "One image at a time: accuracy on clean images against accuracy under noises that are not scored, on validation images. A line "
        "is a training (K8: LocalNorm with 8 groups; drawn: group sizes drawn for each step; shrunk: statistics of images shrunk towards "
        "their group's by an n0 drawn for each step), a point on it an n0 at test time, rising from the image alone. Farther up and to the "
        f"right is better. {about}; {seeds} seed{'s' if seeds > 1 else ''}."
    )
