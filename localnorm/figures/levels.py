"""Accuracy against the level of a few noises, for all published data sets: what the choice of statistics does where it matters most."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm import noise
from localnorm.arms import in_order
from localnorm.figures.style import LEGIBLE, draw_arms, figure_legend, new_figure, short
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
REFERENCES = ("LN batch", "BN fixed")  # of LN prior: test images in batches, and the training set alone


def plot_levels(curves: Mapping[str, pd.DataFrame], arms: Sequence[str]) -> Figure:
    """One row per data set, one panel per noise, one line per arm.

    Args:
        curves: title of the data set -> what `localnorm.scores.curves` gives.
        arms: those to draw, where a table has them.
    """
    figure, axes = new_figure(len(curves), len(NOISES), 1.5 * len(curves) + 0.6, sharey=True)
    for number, (row, (title, table)) in enumerate(zip(axes, curves.items(), strict=True)):
        for axis, (suite, name) in zip(row, NOISES, strict=True):
            known = noise.noises(suite)[name]
            panel = table[(table.suite == suite) & (table.noise == name)]
            draw_arms(axis, panel, in_order(arms), "level", "accuracy", scale=100)
            axis.set(ylim=(0, 100))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_visible(len(panel) > 0)
            if number == 0:
                heading = short(known.label) + (" (released)" if suite == "released" else "")
                axis.set_title(textwrap.fill(heading, 15), fontsize=LEGIBLE)
            if number == len(axes) - 1:
                axis.set_xlabel(textwrap.fill(known.unit, 15), fontsize=LEGIBLE)
        row[0].set_ylabel(f"{title}\naccuracy (%)", fontsize=LEGIBLE)
    figure_legend(figure, axes, in_order(arms))
    return figure


def caption(curves: Mapping[str, pd.DataFrame], arms: Sequence[str], abouts: Iterable[dict]) -> str:
    """The caption of `plot_levels`.

    Args:
        curves, arms: as there.
        abouts: from `localnorm.tables.read_about`.
    """
    seeds = [count for table in curves.values() for count in table.seeds]
    shown = {title: _accuracies(table, arms) for title, table in curves.items()}
    worst = [row.idxmin() for table in shown.values() for _, row in table.iterrows()]
    last, times = Counter(worst).most_common(1)[0]
    return (
        f"Accuracy against the level of {len(NOISES)} noises. {last} is the least accurate at {times} of {len(worst)} levels. "
        f"{_company(shown)}One line per arm ({enumerate_words(in_order(arms))}), the mean over seeds {spread(seeds)}. "
        + " ".join(f"{describe(about)}." for about in abouts)
    )


def _accuracies(curves: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """One row per noise that is drawn and level above 0, one column per arm."""
    drawn = curves[[key in NOISES for key in zip(curves.suite, curves.noise, strict=True)]]
    drawn = drawn[(drawn.level > 0) & drawn.arm.isin(arms)]
    return drawn.pivot(index=["suite", "noise", "level"], columns="arm", values="accuracy")


def _company(shown: Mapping[str, pd.DataFrame]) -> str:
    """Whether LN prior lies nearer to LN batch or to BN fixed, and how near to both: a sentence, or none where one is not drawn.

    Args:
        shown: title of the data set -> what `_accuracies` gives.
    """
    tables = {title: table for title, table in shown.items() if {"LN prior", *REFERENCES} <= set(table)}
    said = []
    for title, table in tables.items():
        apart = {arm: 100 * (table["LN prior"] - table[arm]).abs().mean() for arm in REFERENCES}
        near, far = sorted(REFERENCES, key=apart.__getitem__)
        said.append(
            f"nearer to {near} on {title} ({apart[near]:.1f} points apart on average, {apart[far]:.1f} from {far})"
        )
    return f"LN prior is {enumerate_words(said)}. " if said else ""
