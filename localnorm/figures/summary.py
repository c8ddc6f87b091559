"""Clean and noisy accuracy, in one number each."""

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import ARM_STYLES, new_figure

__all__ = ["plot_summary"]


def plot_summary(summary: pd.DataFrame) -> Figure:
    """Clean and noisy accuracy of every arm, with intervals."""
    figure, axes = new_figure(1, 2, 0.28 * len(summary) + 0.6, sharey=True)
    for axis, part in zip(axes.flat, ("clean", "noisy"), strict=True):
        for position, row in enumerate(summary.itertuples()):
            colour, marker, _ = ARM_STYLES[row.arm]
            centre, low, high = (getattr(row, name) for name in (part, f"{part}_low", f"{part}_high"))
            axis.plot([low, high], [position] * 2, color=colour)
            axis.plot(centre, position, marker=marker, color=colour)
        axis.set(title=f"{part} images", xlim=(0, 1), xlabel="accuracy")
    axes[0, 0].set_yticks(range(len(summary)), summary.arm)
    axes[0, 0].invert_yaxis()
    return figure
