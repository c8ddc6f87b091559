"""Accuracy against the level of a few noises, for all published data sets: what the choice of statistics does where it matters most."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm import noise
from localnorm.arms import in_order
from localnorm.figures.style import draw_arms, figure_legend, new_figure, short
from localnorm.words import describe, enumerate_words, spread

__all__ = ["NOISES", "caption", "plot_levels"]

# (suite, noise): what a camera does in poor light, what light itself does, and what the original names first
NOISES = (
    ("named", "gaussian"),
    ("named", "poisson"),
    ("named", "brightness"),
    ("named", "contrast"),
    ("named", "bernoulli"),
    ("released", "gaussian_pos"),
)


def plot_levels(curves: Mapping[str, pd.DataFrame], arms: Sequence[str]) -> Figure:
    """One row per data set, one panel per noise, one line per arm.

    Args:
        curves: title of the data set -> what `localnorm.scores.curves` gives.
        arms: those to draw, where a table has them.
    """
    figure, axes = new_figure(len(curves), len(NOISES), 1.5 * len(curves) + 0.5, sharey=True)
    for number, (row, (title, table)) in enumerate(zip(axes, curves.items(), strict=True)):
        for axis, (suite, name) in zip(row, NOISES, strict=True):
            known = noise.noises(suite)[name]
            panel = table[(table.suite == suite) & (table.noise == name)]
            draw_arms(axis, panel, in_order(arms), "level", "accuracy")
            axis.set(ylim=(0, 1))
            axis.set_visible(len(panel) > 0)
            if number == 0:
                heading = short(known.label) + (" (released)" if suite == "released" else "")
                axis.set_title(textwrap.fill(heading, 18), fontsize=6.5)
            if number == len(axes) - 1:
                axis.set_xlabel(textwrap.fill(known.unit, 17), fontsize=6)
        row[0].set_ylabel(f"{title}\naccuracy", fontsize=7)
    figure_legend(figure, axes, in_order(arms))
    return figure


def caption(curves: Mapping[str, pd.DataFrame], arms: Sequence[str], abouts: Iterable[dict]) -> str:
    """The caption of `plot_levels`.

    Args:
        curves, arms: as there.
        abouts: from `localnorm.tables.read_about`.
    """
    seeds = [count for table in curves.values() for count in table.seeds]
    return (
        "Accuracy against the level of six noises. Where noise moves the statistics, those of the test batch keep a network right, with "
        "BatchNorm as with LocalNorm. A prior on one image follows them on large images, and fixed statistics on small ones. "
        f"One line per arm ({enumerate_words(in_order(arms))}), the mean over seeds {spread(seeds)}. "
        + " ".join(f"{describe(about)}." for about in abouts)
    )
