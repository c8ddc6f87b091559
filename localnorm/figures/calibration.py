"""Calibration of every arm, and how far the members of a vote disagree, as noise grows."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localnorm import noise
from localnorm.figures.style import draw_arms, legend_below, new_figure, short
from localnorm.stats import by_arm

__all__ = ["plot_calibration"]

VOTE = "LN vote"
# a suite has at most six noises
NOISE_STYLES = (
    ("#000000", "o"),
    ("#0072B2", "s"),
    ("#E69F00", "D"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#D55E00", "X"),
)


def plot_calibration(sweep: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Expected calibration error against level, a panel a noise; then a panel a suite with the vote's disagreement.

    Args:
        sweep: the tidy table of an experiment. Without rows of the vote there are no panels of its disagreement.
        arms: those whose calibration is drawn.
    """
    errors = by_arm(sweep, ["suite", "noise", "level"], "ece")
    split = by_arm(sweep, ["suite", "noise", "level"], "disagreement")
    split = split[split.arm == VOTE]
    panels, suites = list(errors.groupby(["suite", "noise"], sort=False)), list(split.groupby("suite", sort=False))
    count = len(panels) + len(suites)
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, 1.7 * rows + 0.6)
    top = 1.05 * errors[errors.arm.isin(arms)].high.fillna(errors.ece).max()
    for axis, ((suite, name), panel) in zip(axes.flat, panels, strict=False):
        known = noise.noises(suite)[name]
        draw_arms(axis, panel, arms, "level", "ece")
        axis.set_title(textwrap.fill(f"{short(known.label)} ({suite})", 24), fontsize=7)
        axis.set(ylim=(0, top), xlabel=known.unit, ylabel="ECE" if axis in axes[:, 0] else None)
        axis.xaxis.label.set_fontsize(6.5)
    for axis, (suite, panel) in zip(axes.flat[len(panels) :], suites, strict=False):
        _draw_disagreement(axis, suite, panel, 1.8 * split.disagreement.max())
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    legend_below(figure, axes[0, 0])
    return figure


def _draw_disagreement(axis: Axes, suite: str, table: pd.DataFrame, top: float) -> None:
    for (name, rows), (colour, marker) in zip(table.groupby("noise", sort=False), NOISE_STYLES, strict=False):
        rows = rows.sort_values("level")
        label = short(noise.noises(suite)[name].label).replace("Multiplicative", "Mult.").replace("Additive", "Add.")
        axis.plot(
            rows.level / rows.level.max(), rows.disagreement, color=colour, marker=marker, label=label, linewidth=1
        )
    axis.set(xlabel="level / highest level", ylabel="disagreement", ylim=(0, top))
    axis.xaxis.label.set_fontsize(6.5)
    axis.set_title(f"Vote ({suite})", fontsize=7)
    axis.legend(fontsize=5, frameon=False, handlelength=1.6, labelspacing=0.2, borderaxespad=0)
