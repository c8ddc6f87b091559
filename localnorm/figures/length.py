"""What longer training changes: the same networks on the same images, trained for more and more epochs."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localnorm.arms import ARMS, METRICS, in_order
from localnorm.figures.streams import ticks_at
from localnorm.figures.style import WIDTH, figure_legend, new_figure, shift
from localnorm.words import describe, enumerate_words, seed_values, spread

__all__ = ["caption", "plot_length"]


def plot_length(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Accuracy of each arm against the epochs of training, on clean images and under noise.

    Args:
        table: from `localnorm.tables.read_lengths`.
        arms: those to draw, where the table has them.
    """
    arms = [arm for arm in in_order(arms) if arm in set(table.arm)]
    figure, axes = new_figure(1, 2, 2.3, 0.88 * WIDTH)
    for axis, metric in zip(axes.flat, ("clean", "noisy"), strict=True):
        for number, label in enumerate(arms):
            rows = table[(table.metric == metric) & (table.arm == label)].sort_values("epochs")
            aside = 3 * (number - (len(arms) - 1) / 2)  # points: the intervals of arms overlap
            _draw_arm(axis, rows, label, aside)
        ticks_at(axis, table.epochs)
        axis.margins(x=0.15)
        axis.set(xlabel="epochs of training", title=METRICS[metric].label)
    axes[0, 0].set(ylabel="accuracy (%)")
    figure_legend(figure, axes, arms)
    return figure


def _draw_arm(axis: Axes, rows: pd.DataFrame, label: str, aside: float) -> None:
    """A line with its intervals, or a dot per seed of few, a few points beside its epochs."""
    arm = ARMS[label]
    drawn = axis.plot(
        rows.epochs, 100 * rows.estimate, color=arm.colour, marker=arm.marker, linestyle=arm.line, label=label
    )
    for row in rows.itertuples():
        drawn += axis.plot([row.epochs] * 2, [100 * row.low, 100 * row.high], color=arm.colour, linewidth=1.1)
        if isnan(row.low):
            seeds = [100 * value for value in seed_values(row)]
            drawn += axis.plot([row.epochs] * len(seeds), seeds, ".", color=arm.colour, markersize=2, alpha=0.5)
    for line in drawn:
        line.set_transform(shift(axis, aside))


def caption(table: pd.DataFrame, abouts: Mapping[int, dict], arms: Sequence[str]) -> str:
    """The caption of `plot_length`.

    Args:
        table, abouts: from `localnorm.tables.read_lengths`.
    """
    drawn = [arm for arm in in_order(arms) if arm in set(table.arm)]
    rows = table[table.arm.isin(drawn)]
    means = "; ".join(f"{epochs} epochs: {_mean(rows.seeds[rows.epochs == epochs])}" for epochs in abouts)
    *_, longest = abouts.values()
    behind = [about["train_accuracy"]["BN"] - about["train_accuracy"]["LN"] for about in abouts.values()]
    return (
        f"Longer training on {longest['title']}: accuracy of {enumerate_words(drawn)} against the epochs. {means}. On its training images "
        f"LN is {enumerate_words([f'{100 * gap:.1f}' for gap in behind])} points behind BN at the end. Marks at the same epochs stand "
        f"side by side, and each panel has its own range of accuracies. Other settings are the same. {describe(longest)}."
    )


def _mean(seeds: Iterable[int]) -> str:
    """What a mark is: "mean of 6 seeds with its 95 % interval"; where arms differ, "mean of 2 or 4 seeds ..."."""
    counts = sorted(set(seeds))
    if counts == [1]:
        return "one seed"
    return f"mean of {' or '.join(map(str, counts))} seeds {spread(counts)}"
