"""Clean accuracy against accuracy under noise: where each way of normalising stands, in one picture."""

from collections.abc import Iterable, Sequence
from math import isnan

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from localnorm.arms import ARMS, STATISTICS
from localnorm.figures.style import LEGIBLE, WIDTH, new_figure
from localnorm.scores import beside_reference
from localnorm.words import FEW_SEEDS, describe, seed_values, spread

__all__ = ["caption", "plot_clean_against_noisy"]

# which images an arm takes its statistics from -> the words above its marks
SEEN = {"training": "statistics of the training set", "batch": "of a batch of test images", "one": "of one test image"}


def plot_clean_against_noisy(summary: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """One panel per experiment, one point per arm with its intervals, or a dot per seed of few; the best corner is the upper right.

    An arm of fewer seeds than BN fixed has a hollow mark, see `localnorm.scores.beside_reference`.

    Args:
        summary: columns title, arm, metric, seeds, estimate, low, high, by_seed and change.
        arms: those to draw, where an experiment has them.

    Raises:
        ValueError: an experiment has none of the arms.
    """
    titles = list(dict.fromkeys(summary.title))
    summary = beside_reference(summary, ["title", "metric"], "estimate")
    figure, axes = new_figure(1, len(titles), 3.1, 0.92 * WIDTH)
    for axis, title in zip(axes.flat, titles, strict=True):
        rows = summary[(summary.title == title) & summary.arm.isin(arms)]
        value = rows.set_index(["arm", "metric"])
        if rows.empty:
            raise ValueError(
                f"{title} has none of the arms {', '.join(arms)}; it has {', '.join(summary.arm.unique())}"
            )
        for label in (arm for arm in arms if arm in set(rows.arm)):
            arm = ARMS[label]
            clean, noisy = (value.loc[(label, metric)] for metric in ("clean", "noisy"))
            x, y = 100 * clean.estimate, 100 * noisy.estimate
            axis.plot([100 * clean.low, 100 * clean.high], [y, y], color=arm.colour, linewidth=0.8)
            axis.plot([x, x], [100 * noisy.low, 100 * noisy.high], color=arm.colour, linewidth=0.8)
            if isnan(clean.low):
                pairs = [[100 * each for each in seed_values(row)] for row in (clean, noisy)]
                axis.scatter(*pairs, s=4, color=arm.colour, alpha=0.5, linewidth=0)
            face = "none" if clean.few else arm.colour
            axis.plot(
                x, y, marker=arm.marker, color=arm.colour, markerfacecolor=face, linestyle="", markersize=6, label=label
            )
        axis.annotate("upper right\nis best", (0.995, 0.985), (0.7, 0.88), xycoords="axes fraction", fontsize=LEGIBLE, color="0.35",
                      ha="center", va="center", arrowprops={"arrowstyle": "->", "color": "0.35"})  # fmt: skip
        axis.set(title=title.replace(", ", "\n", 1), xlabel="accuracy on clean images (%)")
        axis.grid(color="0.93", linewidth=0.6)
        axis.margins(0.12)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.22 * (high - low))  # room for the words in the corner
    axes[0, 0].set_ylabel("accuracy under noise (%)")
    _legend(figure, axes, arms)
    return figure


def _legend(figure: Figure, axes: np.ndarray, arms: Sequence[str]) -> None:
    """Below the panels, one column per kind of images that an arm takes its statistics from, under its name."""
    marks = {label: mark for axis in axes.flat for mark, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = {kind: [arm for arm in arms if arm in marks and kind == seen_by(arm)] for kind in SEEN}
    columns = {kind: labels for kind, labels in columns.items() if labels}
    longest = max(len(labels) for labels in columns.values())
    handles, names = [], []
    for kind, labels in columns.items():  # a legend is filled column by column
        empty = [Line2D([], [], linestyle="")] * (longest - len(labels))
        handles += [Line2D([], [], linestyle=""), *(marks[label] for label in labels), *empty]
        names += [SEEN[kind], *labels, *[""] * len(empty)]
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=len(columns), frameon=False, labelspacing=0.25, handletextpad=0.3
    )  # fmt: skip
    for text in legend.get_texts():
        if text.get_text() in SEEN.values():
            text.set(fontweight="bold", x=0)


def seen_by(label: str) -> str:
    """Which images an arm takes its statistics from: a key of SEEN."""
    arm = ARMS[label]
    if arm.statistics == "fixed":
        return "training"
    return "one" if STATISTICS[arm.statistics].one_image else "batch"


def caption(seeds: Iterable[int], abouts: Iterable[dict]) -> str:
    """The caption of `plot_clean_against_noisy`.

    Args:
        seeds: of the means that are drawn.
        abouts: from `localnorm.tables.read_about`.
    """
    return (
        "Clean against noisy accuracy: the farther up and to the right, the better. The legend says which images an arm sees beside its "
        "weights: BN fixed has the statistics of the training set alone, a batch is of one condition, and a prior mixes those of "
        "one image with the training set's; gated, unusual images count more; shrunk networks were trained under such mixtures. "
        f"Each mark is the mean over seeds and all noises, {spread(seeds)}; {FEW_SEEDS}. "
        + ". ".join(describe(about) for about in abouts)
        + "."
    )
