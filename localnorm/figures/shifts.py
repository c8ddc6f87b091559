"""How far noise moves the statistics of test batches."""

import pandas as pd
from matplotlib.figure import Figure

from localnorm import noise
from localnorm.figures.style import WIDTH, legend_below, new_figure, short

__all__ = ["plot_shifts"]


def plot_shifts(table: pd.DataFrame) -> Figure:
    """One row per noise, one dot per level, darker at higher ones, with its batches' range; the band is where clean batches lie.

    Args:
        table: of `localnorm.shifts.shifts`.
    """
    noises = table[table.level > 0].drop_duplicates(["suite", "noise"])
    figure, axes = new_figure(1, 1, 0.19 * len(noises) + 0.7, 0.7 * WIDTH)
    axis = axes[0, 0]
    clean = table[table.level == 0].iloc[0]
    axis.axvspan(clean.low, clean.high, color="#E69F00", alpha=0.35, linewidth=0, label="nine in ten clean batches")
    for position, row in enumerate(noises.itertuples()):
        levels = table[(table.suite == row.suite) & (table.noise == row.noise) & (table.level > 0)].sort_values("level")
        for step, level in enumerate(levels.itertuples(), 1):
            shade = str(0.75 * (1 - step / len(levels)))
            axis.plot([level.low, level.high], [position] * 2, color=shade)
            axis.plot(level.distance, position, marker="o", color=shade)
    labels = [f"{short(noise.noises(row.suite)[row.noise].label)} ({row.suite})" for row in noises.itertuples()]
    axis.set_yticks(range(len(noises)), labels)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="distance of a batch from the training statistics")
    legend_below(figure, axis)
    return figure
