"""Clean and noisy accuracy for every way to normalise a single test image (claim C5)."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from localnorm.arms import ARMS
from localnorm.figures.style import draw_seeds, new_figure
from localnorm.words import describe, enumerate_words, spread

__all__ = ["caption", "plot_one_image"]


def plot_one_image(summary: pd.DataFrame, references: Sequence[str], arms: Sequence[str]) -> Figure:
    """One panel per experiment, one row per arm: its accuracy under noise (filled) and on clean images (hollow), each
    with its interval, or a dot per seed of few.

    Args:
        summary: columns title, arm, metric, estimate, low and high.
        references: arms to compare with, above the line; those whose statistics are no single image's.
        arms: those that look at one image; an experiment need not have all.

    Raises:
        ValueError: an experiment has none of the arms.
    """
    titles = list(dict.fromkeys(summary.title))
    for title in titles:
        if not set(arms) & set(summary.arm[summary.title == title]):
            has = dict.fromkeys(summary.arm[summary.title == title])
            raise ValueError(f"{title} has no results of {', '.join(arms)}; it has {', '.join(has)}")
    shown = [arm for arm in (*references, *arms) if arm in set(summary.arm)]
    figure, axes = new_figure(1, len(titles), 0.2 * len(shown) + 0.9, sharey=True)
    for axis, title in zip(axes.flat, titles, strict=True):
        rows = summary[summary.title == title].set_index(["arm", "metric"])
        for height, label in enumerate(shown):
            arm = ARMS[label]
            # a hollow mark is larger, and so seen around a filled one at the same place
            for metric, face, size in (("clean", "white", 6.5), ("noisy", arm.colour, 4)):
                if (label, metric) in rows.index:
                    row = rows.loc[(label, metric)]
                    axis.plot([100 * row.low, 100 * row.high], [height] * 2, color=arm.colour, linewidth=1)
                    draw_seeds(axis, row, arm.colour, y=height, scale=100)
                    axis.plot(
                        100 * row.estimate, height, marker="o", linestyle="", color=arm.colour, markerfacecolor=face, markersize=size
                    )  # fmt: skip
        axis.axhline(sum(arm in shown for arm in references) - 0.5, color="0.7", linewidth=0.6)
        axis.grid(axis="x", color="0.9", linewidth=0.6)
        axis.set(title=title, xlim=(-4, 104), xticks=range(0, 101, 25), xlabel="accuracy (%)")
    axes[0, 0].set_yticks(range(len(shown)), shown)
    axes[0, 0].set_ylim(len(shown) - 0.5, -0.5)
    marks = [
        Line2D([], [], marker="o", color="0.3", markerfacecolor=face, linestyle="", label=label, markersize=5)
        for label, face in (("clean", "white"), ("under noise", "0.3"))
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, handletextpad=0.2)
    return figure


def caption(summary: pd.DataFrame, references: Sequence[str], abouts: Sequence[dict]) -> str:
    above = [arm for arm in references if arm in set(summary.arm)]
    return (
        "One test image at a time: accuracy under noise (filled) and on clean images (hollow) of every way to give "
        f"it statistics, and above the line, for comparison, of {enumerate_words(above)}. Each mark is the mean over seeds "
        f"{spread(summary.seeds)}. The strength of a prior, and in last fixed the number of layers, were chosen on validation "
        "images under noises that are not scored. An arm of fewer images scored the first of "
        "them, which moves its accuracy by several points. " + ". ".join(describe(about) for about in abouts) + "."
    )
