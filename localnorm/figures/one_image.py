"""What makes a single test image work: clean against noisy accuracy of every way to give it statistics (claim C5)."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import ARM_STYLES, new_figure

__all__ = ["plot_one_image"]

NAMES_BELOW = 0.35  # inches a row of the legend
COLUMNS = 5


def plot_one_image(summaries: dict[str, pd.DataFrame], references: Sequence[str], arms: Sequence[str]) -> Figure:
    """A panel an experiment: accuracy under noise against accuracy on clean images, a mark an arm with its intervals.

    Args:
        summaries: experiment's title -> what `localnorm.stats.summary` gives.
        references: arms to compare with, drawn hollow; those whose statistics are no single image's.
        arms: those that look at one image; an experiment need not have all.

    Raises:
        ValueError: there are no experiments, or one has none of the arms.
    """
    if not summaries:
        raise ValueError("no experiment has results yet; run one first, e.g. dvc repro statistics@digits-small")
    figure, axes = new_figure(1, len(summaries), 2.3 + 2 * NAMES_BELOW)
    shown = {}
    for axis, (title, summary) in zip(axes.flat, summaries.items(), strict=True):
        rows = summary.set_index("arm")
        if not set(arms) & set(rows.index):
            raise ValueError(f"{title} has no results of {', '.join(arms)}; it has {', '.join(rows.index)}")
        for arm in (*references, *arms):
            if arm not in rows.index:
                continue
            (colour, marker, _), row = ARM_STYLES[arm], 100 * rows.loc[arm].drop("seeds")
            axis.plot(
                [row.clean_low, row.clean_high], [row.noisy] * 2, color=colour, linewidth=0.8
            )  # nothing of one seed
            axis.plot([row.clean] * 2, [row.noisy_low, row.noisy_high], color=colour, linewidth=0.8)
            face = "white" if arm in references else colour
            size = 7 if arm in references else 6
            (shown[arm],) = axis.plot(
                row.clean, row.noisy, marker, color=colour, markerfacecolor=face, markersize=size, alpha=0.9
            )
        top = 100 * rows.noisy.max()
        axis.set(title=title, xlim=(-4, 104), ylim=(-0.04 * top, 1.12 * top), xlabel="clean accuracy (%)")
    axes[0, 0].set_ylabel("accuracy under noise (%)")
    names = [arm for arm in (*references, *arms) if arm in shown]
    figure.legend(
        [shown[arm] for arm in names],
        names,
        loc="outside lower center",
        ncols=COLUMNS,
        frameon=False,
        handletextpad=0.2,
    )
    return figure
