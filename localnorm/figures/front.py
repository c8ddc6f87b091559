"""One image at a time: what each training gives in clean accuracy, and what in accuracy under noise, as n0 runs from nothing to all."""

import pandas as pd
from matplotlib.figure import Figure

from localnorm.arms import arm_of
from localnorm.figures.style import new_figure

__all__ = ["at_equal_clean", "caption", "plot_front"]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
MARGIN = 0.01  # of clean accuracy


def plot_front(table: pd.DataFrame) -> Figure:
    """One line per variant of a study, one point per n0; farther up and to the right is better.

    Args:
        table: of `localnorm.study`; means over seeds are drawn. One colour per network, one marker and line per variant of it.
    """
    figure, axes = new_figure(1, 1, 4.2)
    axis = axes[0, 0]
    means = _means(table)
    for _, family in means.groupby("network", sort=False):
        for number, (variant, points) in enumerate(family.groupby("variant", sort=False)):
            points = points.sort_values("prior")
            axis.plot(
                100 * points.clean, 100 * points.noisy, LINES[number % len(LINES)], marker=MARKERS[number % len(MARKERS)],
                color=arm_of(points.network.iloc[0], "prior").colour, markersize=4, linewidth=1, markerfacecolor="none", label=variant,
            )  # fmt: skip
    good = means[means.clean > means.clean.max() - 0.25]  # the image alone fails on networks that never met it
    left, right = 100 * good.clean.min(), 100 * good.clean.max()
    low, high = 100 * good.noisy.min(), 100 * good.noisy.max()
    axis.set(xlim=(left - 1, right + 1), ylim=(low - 2, high + 2))
    axis.set(xlabel="accuracy on clean images (%)", ylabel="accuracy under noise (%)")
    axis.grid(color="0.93", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def at_equal_clean(table: pd.DataFrame, reference: str = "BN", margin: float = MARGIN) -> pd.DataFrame:
    """The best that each variant has under noise while its clean accuracy is within a margin of a reference's with fixed statistics.

    Args:
        table: of `localnorm.study`.
        reference: a variant; its clean accuracy under the largest n0 is the measure.
        margin: as a share; 0.01 is a point.

    Returns:
        One row per variant, with prior, clean and noisy, means over seeds; all empty where no n0 keeps the clean accuracy.

    Raises:
        ValueError: the table has no such variant.
    """
    means = _means(table)
    own = means[means.variant == reference]
    if own.empty:
        raise ValueError(f"no variant {reference!r} in the study; it has {', '.join(means.variant.unique())}")
    enough = own.loc[own.prior.idxmax(), "clean"] - margin
    kept = means[means.clean >= enough]
    best = kept.loc[kept.groupby("variant", sort=False).noisy.idxmax()].set_index("variant")
    return best.reindex(means.variant.unique())[["network", "prior", "clean", "noisy"]]


def caption(table: pd.DataFrame, about: str) -> str:
    """The caption of `plot_front`.

    Args:
        table: of `localnorm.study`.
        about: the experiment, its epochs and noises in a few words.
    """
    seeds = table.seed.nunique()
    return (
        "One image at a time: accuracy on clean images against accuracy under noises that are not scored, on validation images. A line "
        "is a training, a point on it an n0; along it, from the image alone, the training set's statistics count for more. Farther up "
        f"and to the right is better. {about}; {seeds} seed{'s' if seeds > 1 else ''}."
    )


def _means(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby(["network", "variant", "prior"], sort=False, as_index=False)[["clean", "noisy"]].mean()
