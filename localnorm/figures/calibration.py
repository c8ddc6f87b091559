"""Calibration of every arm, and how far the members of a vote disagree, as noise grows."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from localnorm import noise, scores
from localnorm.figures.style import LEGIBLE, draw_arms, legend_below, name_noise, new_figure
from localnorm.words import describe, spread

__all__ = ["caption", "plot_calibration"]

VOTE = "LN vote"
SUITE_COLOURS = dict(zip(noise.SUITES, ("#000000", "#0072B2", "#E69F00"), strict=True))


def plot_calibration(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Expected calibration error against level, one panel per noise; then one panel with the vote's disagreement, one line per noise.

    Args:
        table: the scores of an experiment. Without the arm LN vote there is no panel of its disagreement.
        arms: those whose calibration is drawn.
    """
    errors = scores.curves(table[table.arm.isin(arms)], "ece")
    split = table[table.arm == VOTE]
    panels = list(errors.groupby(["suite", "noise"], sort=False))
    count = len(panels) + (len(split) > 0)
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, 1.7 * rows + 0.6)
    top = 1.05 * errors.high.fillna(table[table.arm.isin(arms)].ece.max()).max()  # few seeds are drawn themselves
    for axis, ((suite, name), panel) in zip(axes.flat, panels, strict=False):
        draw_arms(axis, panel, arms, "level", "ece")
        name_noise(axis, suite, name)
        axis.set(ylim=(0, top), ylabel="ECE" if axis in axes[:, 0] else None)
    if len(split):
        _draw_disagreement(axes.flat[len(panels)], scores.curves(split, "disagreement"))
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    legend_below(figure, axes[0, 0])
    return figure


def _draw_disagreement(axis: Axes, table: pd.DataFrame) -> None:
    for (suite, _), rows in table.groupby(["suite", "noise"], sort=False):
        axis.plot(rows.level / rows.level.max(), rows.disagreement, color=SUITE_COLOURS[suite], linewidth=0.8)
    # a vote that always agrees lies on zero, and must be seen there
    axis.set(
        xlabel="level / highest level", ylabel="disagreement", ylim=(-0.02, max(0.5, 1.3 * table.disagreement.max()))
    )
    axis.xaxis.label.set_fontsize(LEGIBLE)
    axis.set_title("Disagreement of the vote", fontsize=LEGIBLE)
    marks = [Line2D([], [], color=SUITE_COLOURS[suite], label=suite) for suite in table.suite.unique()]
    axis.legend(handles=marks, fontsize=LEGIBLE, frameon=False, handlelength=1.6, labelspacing=0.2, borderaxespad=0)


def caption(table: pd.DataFrame, about: dict) -> str:
    vote = about["images_of_arm"].get(VOTE)
    disagreement = (
        f"; last, the disagreement of the members of {VOTE} on {vote:,} images, one line per noise" if vote else ""
    )
    return (
        "A network that fails should say so: the expected calibration error (15 bins of the confidence) against the "
        f"level of each noise, the mean over seeds {spread([about['seeds']])}{disagreement}. {describe(about)}."
    )
