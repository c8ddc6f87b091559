"""Number of groups, images a group, fine-tuning, test batch size and mixed batches: clean and noisy accuracy against each."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from localnorm.figures.estimates import by_arm, clean_and_noisy
from localnorm.figures.style import ARM_STYLES, draw_arms, legend_below, new_figure

__all__ = ["plot_ablations", "plot_batches"]

# what the table calls an ablation -> (title, what its values are)
ABLATIONS = {
    "groups at fixed batch": ("groups K, the batch fixed", "K"),
    "groups at fixed group size": ("groups K, images a group fixed", "K"),
    "fine-tuning epochs after conversion": ("fine-tuning after conversion", "epochs"),
}
# composition -> (part, title)
COMPOSITIONS = (
    ("uniform", "clean", "clean"),
    ("uniform", "noisy", "one noise a batch"),
    ("mixed", "noisy", "mixed noises"),
)


def plot_ablations(table: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure:
    """A column an ablation, clean accuracy above and noisy below, a line an arm with a band for the interval over seeds.

    Args:
        table: columns ablation, value, seed, norm, mode, suite, noise, level and accuracy.
        arms: those to draw; None is all.

    Raises:
        ValueError: an ablation that is not known.
    """
    if unknown := set(table.ablation) - set(ABLATIONS):
        raise ValueError(f"unknown ablation {', '.join(sorted(unknown))}; choose of {', '.join(ABLATIONS)}")
    scores = by_arm(clean_and_noisy(table, ["ablation", "value"]), ["part", "ablation", "value"], "accuracy")
    shown = [name for name in ABLATIONS if name in set(table.ablation)]
    arms = _present(scores, arms)
    figure, axes = new_figure(2, len(shown), 3.9, sharey="row", sharex="col")
    for column, name in enumerate(shown):
        for axis, part in zip(axes[:, column], ("clean", "noisy"), strict=True):
            panel = scores[(scores.part == part) & (scores.ablation == name)]
            draw_arms(axis, panel, arms, "value", "accuracy")
            _powers_of_two(axis, panel.value, zero=name.startswith("fine-tuning"))
        axes[0, column].set_title(ABLATIONS[name][0])
        axes[1, column].set_xlabel(ABLATIONS[name][1])
    for axis, part in zip(axes[:, 0], ("clean", "noisy"), strict=True):
        axis.set_ylabel(f"{part} accuracy")
    _legend(figure, axes)
    return figure


def plot_batches(table: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure:
    """Accuracy against the size of a test batch: clean, a noise and level a batch, and a noise and level an image.

    Args:
        table: columns norm, mode, seed, composition, batch_size, suite, noise, level and accuracy.
        arms: those to draw; None is all.
    """
    by = ["composition", "batch_size"]
    scores = by_arm(clean_and_noisy(table, by), ["part", *by], "accuracy")
    arms = _present(scores, arms)
    panels = [(scores[(scores.composition == c) & (scores.part == p)], title) for c, p, title in COMPOSITIONS]
    panels = [(panel, title) for panel, title in panels if len(panel)]
    figure, axes = new_figure(1, len(panels), 2.5, sharey=True)
    for axis, (panel, title) in zip(axes.flat, panels, strict=True):
        draw_arms(axis, panel, arms, "batch_size", "accuracy")
        _powers_of_two(axis, panel.batch_size)
        axis.set(xlabel="images a test batch", title=title)
    axes[0, 0].set(ylabel="accuracy", ylim=(0, 1))
    _legend(figure, axes)
    return figure


def _present(scores: pd.DataFrame, arms: Sequence[str] | None) -> list[str]:
    return [arm for arm in ARM_STYLES if arm in set(scores.arm) and (arms is None or arm in arms)]


def _powers_of_two(axis: Axes, values: pd.Series, zero: bool = False) -> None:
    """A tick at every value that was run, and no others; a scale that has a zero where epochs do."""
    if zero:
        axis.set_xscale("symlog", base=2, linthresh=1)
    else:
        axis.set_xscale("log", base=2)
    ticks = sorted(set(values))
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, axes) -> None:
    """Of the panel that shows most arms."""
    legend_below(figure, max(axes.flat, key=lambda axis: len(axis.get_lines())))
