"""What makes a single test image work: clean and noisy accuracy of every way to give it statistics (claim C5)."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from localnorm.figures.style import ARM_STYLES, new_figure

__all__ = ["plot_one_image"]


def plot_one_image(summaries: dict[str, pd.DataFrame], references: Sequence[str], arms: Sequence[str]) -> Figure:
    """A panel an experiment, a row an arm: its accuracy under noise (filled) and on clean images (hollow), with intervals.

    Args:
        summaries: experiment's title -> what `localnorm.stats.summary` gives.
        references: arms to compare with, above the line; those whose statistics are no single image's.
        arms: those that look at one image; an experiment need not have all.

    Raises:
        ValueError: there are no experiments, or one has none of the arms.
    """
    if not summaries:
        raise ValueError("no experiment has results yet; run one first, e.g. dvc repro statistics@digits-small")
    for title, summary in summaries.items():
        if not set(arms) & set(summary.arm):
            raise ValueError(f"{title} has no results of {', '.join(arms)}; it has {', '.join(summary.arm)}")
    shown = [arm for arm in (*references, *arms) if any(arm in set(summary.arm) for summary in summaries.values())]
    figure, axes = new_figure(1, len(summaries), 0.2 * len(shown) + 0.9, sharey=True)
    for axis, (title, summary) in zip(axes.flat, summaries.items(), strict=True):
        rows = summary.set_index("arm")
        for height, arm in enumerate(shown):
            if arm not in rows.index:
                continue
            (colour, marker, _), row = ARM_STYLES[arm], 100 * rows.loc[arm].drop("seeds")
            for part, face in (("clean", "white"), ("noisy", colour)):
                low, high = row[f"{part}_low"], row[f"{part}_high"]
                axis.plot([low, high], [height] * 2, color=colour, linewidth=1)  # nothing of one seed
                axis.plot(
                    row[part], height, marker=marker, linestyle="", color=colour, markerfacecolor=face, markersize=5
                )
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
