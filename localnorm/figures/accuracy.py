"""Accuracy against level."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import draw_arms, legend_below, name_noise, new_figure
from localnorm.words import describe, enumerate_words, spread

__all__ = ["caption", "plot_accuracy"]


def plot_accuracy(curves: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Accuracy against level: one panel per noise, one line per arm, with a band for the interval, or dots for few seeds.

    Args:
        curves: what `localnorm.scores.curves` gives.
        arms: those to draw, where the table has them.
    """
    panels = list(curves.groupby(["suite", "noise"], sort=False))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, 1.7 * rows + 0.4, sharey=True)
    for axis, ((suite, name), panel) in zip(axes.flat, panels, strict=False):
        draw_arms(axis, panel, arms, "level", "accuracy", scale=100)
        name_noise(axis, suite, name)
        axis.set_ylim(0, 100)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    legend_below(figure, axes[0, 0])
    return figure


def caption(curves: pd.DataFrame, arms: Sequence[str], about: dict) -> str:
    drawn = [arm for arm in arms if arm in set(curves.arm)]
    return (
        "Accuracy falls with rising noise; how fast depends on where the statistics come from. One panel per noise, "
        f"one line per arm ({enumerate_words(drawn)}), the mean over seeds {spread(curves.seeds)}. {describe(about)}."
    )
