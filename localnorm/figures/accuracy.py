"""Accuracy against level."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm import noise
from localnorm.figures.style import ARM_STYLES, draw_arms, legend_below, new_figure, short

__all__ = ["plot_accuracy"]


def plot_accuracy(curves: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure:
    """Accuracy against level: a panel a noise, a line an arm, a band for the interval over seeds.

    Args:
        curves: what `localnorm.stats.curves` gives.
        arms: those to draw; None is all, in the order of `ARMS`.
    """
    arms = [arm for arm in ARM_STYLES if arm in set(curves.arm) and (arms is None or arm in arms)]
    panels = list(curves.groupby(["suite", "noise"], sort=False))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, 1.7 * rows + 0.4, sharey=True)
    for axis, ((suite, name), panel) in zip(axes.flat, panels, strict=False):
        known = noise.noises(suite)[name]
        draw_arms(axis, panel, arms, "level", "accuracy")
        axis.set_title(textwrap.fill(f"{short(known.label)} ({suite})", 24), fontsize=7)
        axis.set(ylim=(0, 1), xlabel=known.unit)
        axis.xaxis.label.set_fontsize(6.5)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    legend_below(figure, axes[0, 0])
    return figure
