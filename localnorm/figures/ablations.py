"""Number of groups, images a group, fine-tuning, test batch size and mixed batches: clean and noisy accuracy against each."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from localnorm.figures.estimates import clean_and_noisy
from localnorm.figures.style import ARM_STYLES, draw_arms, new_figure, sentence
from localnorm.stats import by_arm

__all__ = ["plot_ablations", "plot_batches"]

# what the table calls an ablation -> (title, what its values are); None where they are names, not numbers
ABLATIONS = {
    "groups at fixed batch": ("groups K,\nthe batch fixed", "K"),
    "groups at fixed group size": ("groups K, images\na group fixed", "K"),
    "fine-tuning epochs after conversion": ("fine-tuning after\nconversion", "epochs"),
    "images a group drawn in training": ("images a group,\ndrawn in training", None),
    "norm": ("other\nnorms", None),
}
# composition, part -> title
BATCHES = {
    ("uniform", "clean"): "clean",
    ("uniform", "noisy"): "one noise a batch",
    ("mixed", "clean"): "clean, among noisy",
    ("mixed", "noisy"): "noisy, mixed noises",
}


def plot_ablations(table: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure:
    """A column an ablation, clean accuracy above and noisy below, a line or points an arm with the interval over seeds.

    Args:
        table: columns ablation, value (text), seed, norm, mode, suite, noise, level and accuracy.
        arms: those to draw; None is all.

    Raises:
        ValueError: an ablation that is not known, or a value that is no number where it counts something.
    """
    if unknown := set(table.ablation) - set(ABLATIONS):
        raise ValueError(f"unknown ablation {', '.join(sorted(unknown))}; choose of {', '.join(ABLATIONS)}")
    table = table.assign(value=table.value.astype(str))
    counted = table[[ABLATIONS[name][1] is not None for name in table.ablation]]
    if (wrong := ~np.isfinite(pd.to_numeric(counted.value, errors="coerce").astype(float))).any():
        row = counted[wrong].iloc[0]
        raise ValueError(f"a value of the ablation {row.ablation!r} must be a finite number, got {row.value!r}")
    scores = by_arm(clean_and_noisy(table, ["ablation", "value"]), ["part", "ablation", "value"], "accuracy")
    shown = [name for name in ABLATIONS if name in set(table.ablation)]
    arms = _present(scores, arms)
    figure, axes = new_figure(2, len(shown), 3.4, sharey=True, sharex="col")
    for column, name in enumerate(shown):
        title, counted = ABLATIONS[name]
        order = list(dict.fromkeys(table[table.ablation == name].value))
        for row, part in enumerate(("clean", "noisy")):
            panel = scores[(scores.part == part) & (scores.ablation == name)]
            _draw_values(axes[row, column], panel, arms, order, numbers=counted is not None)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel(counted)
    for row, part in enumerate(("clean", "noisy")):
        axes[row, 0].set(ylim=(0, 1.03), ylabel=f"{part} accuracy")  # a marker at 1 is whole
    _legend(figure, axes)
    return figure


def _draw_values(axis: Axes, panel: pd.DataFrame, arms: list[str], order: list[str], numbers: bool) -> None:
    """Lines over numbers, points with bars over names."""
    if numbers:
        panel = panel.assign(value=panel.value.astype(float))
        draw_arms(axis, panel, arms, "value", "accuracy")
        _ticks_at(axis, panel.value)
        return
    present = {value: [arm for arm in arms if arm in set(rows.arm)] for value, rows in panel.groupby("value")}
    for arm in arms:
        rows = panel[panel.arm == arm]
        colour, marker, _ = ARM_STYLES[arm]
        # side by side, since intervals may overlap
        aside = [present[value].index(arm) - (len(present[value]) - 1) / 2 for value in rows.value]
        x = [order.index(value) + 0.14 * step for value, step in zip(rows.value, aside, strict=True)]
        axis.vlines(x, rows.low, rows.high, color=colour, linewidth=1)
        axis.plot(x, rows.accuracy, color=colour, marker=marker, linestyle="", label=arm if len(rows) else None)
    axis.set(xlim=(-0.6, len(order) - 0.4))
    axis.set_xticks(
        range(len(order)), [textwrap.fill(value, 8) for value in order], fontsize=6 if len(order) < 4 else 5
    )


def plot_batches(table: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure:
    """Accuracy against the size of a test batch: clean, a noise and level a batch, and a noise and level an image.

    Args:
        table: columns norm, mode, seed, composition, batch_size, suite, noise, level and accuracy.
            Without rows a sentence says so.
        arms: those to draw; None is all.
    """
    if table.empty:
        return sentence("This experiment has no study of test batches.")
    by = ["composition", "batch_size"]
    scores = by_arm(clean_and_noisy(table, by), ["part", *by], "accuracy")
    arms = _present(scores, arms)
    panels = [(scores[(scores.composition == c) & (scores.part == p)], title) for (c, p), title in BATCHES.items()]
    panels = [(panel, title) for panel, title in panels if len(panel)]
    figure, axes = new_figure(1, len(panels), 2.5, sharey=True)
    for axis, (panel, title) in zip(axes.flat, panels, strict=True):
        draw_arms(axis, panel, arms, "batch_size", "accuracy")
        _ticks_at(axis, panel.batch_size)
        axis.set(xlabel="images a test batch", title=title)
    axes[0, 0].set(ylabel="accuracy", ylim=(0, 1))
    _legend(figure, axes)
    return figure


def _present(scores: pd.DataFrame, arms: Sequence[str] | None) -> list[str]:
    return [arm for arm in ARM_STYLES if arm in set(scores.arm) and (arms is None or arm in arms)]


def _ticks_at(axis: Axes, values: pd.Series) -> None:
    """A tick at every value that was run, and no others; a power of two is a step, and a zero has its place."""
    ticks = sorted(set(values))
    if 0 in ticks:
        axis.set_xscale("symlog", base=2, linthresh=1)
    else:
        axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, axes: np.ndarray) -> None:
    """One for all panels, each arm once."""
    handles = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [arm for arm in ARM_STYLES if arm in handles]
    rows = -(-len(order) // 7)  # seven are as wide as the figure
    columns = -(-len(order) // rows)
    figure.legend([handles[arm] for arm in order], order, loc="outside lower center", ncols=columns, frameon=False)
