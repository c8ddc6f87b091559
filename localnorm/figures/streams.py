"""The test batch: how many images it needs, and what happens where its images do not share one condition."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from localnorm import scores
from localnorm.arms import arm_of, in_order
from localnorm.figures.style import draw_arms, figure_legend, new_figure, sentence
from localnorm.words import FEW_SEEDS, describe, enumerate_words, spread

__all__ = ["caption", "plot_streams", "ticks_at"]

# composition, metric -> title, and what a caption says of the panel
PANELS = {
    ("uniform", "clean"): ("clean", "batches of clean images"),
    ("uniform", "noisy"): ("one noise per batch", "batches of one noise"),
    ("mixed", "clean"): ("clean, among noisy", "the clean images of batches that also hold several noises"),
    ("mixed", "noisy"): ("noisy, mixed noises", "the noisy images of such batches"),
}


def plot_streams(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Accuracy against the size of a test batch: batches of one condition, and batches in which images of all conditions are mixed.

    Args:
        table: the experiment's streams. Without rows a sentence says so.
        arms: those to draw, where the table has them.
    """
    if table.empty:
        return sentence("This experiment has no study of test batches.")
    by = ["composition", "batch_size"]
    made = scores.beside_reference(scores.estimates(table, by), ["metric", *by], "accuracy")
    arms = [arm for arm in in_order(arms) if arm in set(made.arm)]
    panels = [(made[(made.composition == c) & (made.metric == m)], title) for (c, m), (title, _) in PANELS.items()]
    panels = [(panel, title) for panel, title in panels if len(panel)]
    figure, axes = new_figure(1, len(panels), 2.1, sharey=True)
    for axis, (panel, title) in zip(axes.flat, panels, strict=True):
        draw_arms(axis, panel, arms, "batch_size", "accuracy", scale=100)
        ticks_at(axis, panel.batch_size)
        axis.set(xlabel="images per test batch", title=title)
    axes[0, 0].set(ylabel="accuracy (%)", ylim=(0, 100))
    figure_legend(figure, axes, arms)
    return figure


def ticks_at(axis: Axes, values: pd.Series) -> None:
    """A tick at every value that was run, and no others; a power of two is a step, and a zero has its place."""
    ticks = sorted(set(values))
    if 0 in ticks:
        axis.set_xscale("symlog", base=2, linthresh=1)
    else:
        axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())


def caption(table: pd.DataFrame, arms: Sequence[str], about: dict) -> str:
    if table.empty:
        return "This experiment has no study of test batches."
    seeds = {
        arm_of(*key).label: rows.seed.nunique() for key, rows in table.groupby(["network", "statistics"], sort=False)
    }
    drawn = [arm for arm in in_order(arms) if arm in seeds]
    drawn_alone = "; there, LN drawn batch is LN drawn single" if "LN drawn batch" in drawn else ""
    few = f"; {FEW_SEEDS}" if min(seeds.values()) < seeds.get(scores.REFERENCE, 0) else ""
    return (
        "Statistics of the test batch need company of one kind: accuracy of the arms in the legend against the "
        f"number of images in a test batch. {_panels(table)}. A batch of one is the image alone{drawn_alone}. "
        "BN batch takes one statistic of the whole batch, LN batch one of each of its "
        "groups; with K images or fewer, each group holds one image. "
        f"Each point is the mean over seeds {spread(seeds[arm] for arm in drawn)}{few}; {int(table.images.max()):,} test images. "
        f"{describe(about)}."
    )


def _panels(table: pd.DataFrame) -> str:
    """What the panels show: "Panels in order: batches of clean images, batches of one noise"."""
    has = set(zip(table.composition, table.level.map(lambda level: "noisy" if level > 0 else "clean"), strict=True))
    return f"Panels in order: {enumerate_words([words for key, (_, words) in PANELS.items() if key in has])}"
