"""What statistics of the test batch bring BatchNorm under noise, and what they cost it on clean images (claim C2)."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import ARM_STYLES, COLUMN, new_figure

__all__ = ["plot_fixed_against_batch"]


def plot_fixed_against_batch(summaries: dict[str, pd.DataFrame], arms: Sequence[str]) -> Figure:
    """Two rows an experiment, clean and noisy, with the difference of the second arm to the first in points.

    Args:
        summaries: experiment's title -> what `localnorm.stats.summary` gives.
        arms: those to draw; the difference is that of the first two.

    Raises:
        ValueError: there are no experiments, or one lacks an arm.
    """
    if not summaries:
        raise ValueError("no experiment has results yet; run one first, e.g. dvc repro statistics@digits-small")
    figure, axes = new_figure(1, 1, 0.7 * len(summaries) + 0.9, width=COLUMN)
    axis, labels = axes[0, 0], []
    for number, (title, summary) in enumerate(summaries.items()):
        rows = summary.set_index("arm")
        if missing := [arm for arm in arms if arm not in rows.index]:
            raise ValueError(f"{title} has no results of {', '.join(missing)}; it has {', '.join(rows.index)}")
        for part, offset in (("clean", 0.0), ("noisy", 0.42)):
            height = number + offset
            labels.append((height, "\n".join(textwrap.wrap(f"{title}, {part}", 30))))
            start, end = (100 * rows.loc[arm, part] for arm in arms[:2])
            right = 100 * rows.loc[list(arms), [part, f"{part}_high"]].max(axis=None)  # one seed has no interval
            axis.text(right + 3, height, f"{end - start:+.1f}", va="center", fontsize=7)
            for place, arm in enumerate(arms):  # side by side, since intervals may overlap
                colour, marker, _ = ARM_STYLES[arm]
                y = height + 0.14 * (place - (len(arms) - 1) / 2)
                low, high = (100 * rows.loc[arm, f"{part}_{bound}"] for bound in ("low", "high"))
                axis.plot([low, high], [y, y], color=colour, linewidth=1)
                axis.plot(100 * rows.loc[arm, part], y, marker=marker, color=colour, linestyle="", markersize=4)
    axis.set_yticks(*zip(*labels, strict=True))
    axis.set(xlim=(0, 112), ylim=(len(summaries) - 0.25, -0.35), xlabel="accuracy (%)", xticks=range(0, 101, 25))
    for arm in arms:
        colour, marker, _ = ARM_STYLES[arm]
        axis.plot([], [], marker=marker, color=colour, linestyle="", label=arm, markersize=4)
    figure.legend(loc="outside lower center", ncols=len(arms), frameon=False, handletextpad=0.2)
    return figure
