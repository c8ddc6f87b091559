"""What longer training changes: the same networks on the same images, trained for more and more epochs."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.arms import METRICS, in_order
from localnorm.figures.streams import ticks_at
from localnorm.figures.style import draw_arms, figure_legend, new_figure
from localnorm.words import describe, enumerate_words, seed_count, spread

__all__ = ["caption", "plot_length"]


def plot_length(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Accuracy of each arm against the epochs of training, on clean images and under noise.

    Args:
        table: from `localnorm.tables.read_lengths`.
        arms: those to draw, where the table has them.
    """
    arms = [arm for arm in in_order(arms) if arm in set(table.arm)]
    figure, axes = new_figure(1, 2, 2.5, sharey=True)
    for axis, metric in zip(axes.flat, ("clean", "noisy"), strict=True):
        draw_arms(axis, table[table.metric == metric], arms, "epochs", "estimate")
        ticks_at(axis, table.epochs)
        axis.set(xlabel="epochs of training", title=METRICS[metric].label)
    axes[0, 0].set(ylabel="accuracy", ylim=(0, 1))
    figure_legend(figure, axes, arms)
    return figure


def caption(table: pd.DataFrame, abouts: Mapping[int, dict], arms: Sequence[str]) -> str:
    """The caption of `plot_length`.

    Args:
        table, abouts: from `localnorm.tables.read_lengths`.
    """
    seeds = enumerate_words([f"{epochs} epochs {seed_count(about['seeds'])}" for epochs, about in abouts.items()])
    drawn = [arm for arm in in_order(arms) if arm in set(table.arm)]
    *_, longest = abouts.values()
    behind = [about["train_accuracy"]["BN"] - about["train_accuracy"]["LN"] for about in abouts.values()]
    return (
        f"Longer training: accuracy of {enumerate_words(drawn)} against the epochs of "
        f"training. On its training images LN is {enumerate_words([f'{100 * gap:.1f}' for gap in behind])} points behind BN at the end. "
        f"Means {spread(about['seeds'] for about in abouts.values())}: {seeds}. Other settings are the same. {describe(longest)}."
    )
