"""One image at a time: what each training gives in clean accuracy, and what in accuracy under noise, as n0 runs from nothing to all."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localnorm.arms import NETWORKS
from localnorm.evaluators import study_means
from localnorm.figures.style import new_figure
from localnorm.words import enumerate_words, seed_count

__all__ = ["caption", "plot_front"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F00", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHOWN = 0.13  # of clean accuracy below the best: the image alone fails on networks that never met it


def plot_front(table: pd.DataFrame) -> Figure:
    """One panel per kind of training, in each one line per variant and one point per n0; farther up and to the right is better.

    Args:
        table: of `localnorm.study`; means over seeds are drawn, and networks with BatchNorm, trained as usual, in every panel.
    """
    means = study_means(table)
    good = means[_near_the_best(means)]
    named = set(good.variant)  # what lies outside altogether has no line to be named
    panels = means[means.network != "bn"].groupby(means.network.map(_panel), sort=False)
    columns = 2 if len(panels) > 1 else 1
    rows = max(1, -(-len(panels) // columns))
    figure, axes = new_figure(rows, columns, 3.1 * rows, sharex=True, sharey=True)
    for axis, (title, of_panel) in zip(axes.flat, panels, strict=False):
        _draw(axis, means[means.network == "bn"], ("black",), named)
        _draw(axis, of_panel, COLOURS, named)
        axis.set_title(title if len(panels) > 1 else "")  # one panel has nothing to be told from
        axis.grid(color="0.93", linewidth=0.6)
        axis.tick_params(labelbottom=True)
        axis.legend(loc="upper left", frameon=False, fontsize=7, labelspacing=0.25, handlelength=1.6, borderaxespad=0)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    low, high = 100 * good.noisy.min(), 100 * good.noisy.max()
    most = panels.variant.nunique().max() if len(panels) else 0
    axes[0, 0].set(xlim=(100 * good.clean.min() - 1, 100 * good.clean.max() + 1))
    axes[0, 0].set(ylim=(low - 2, high + 2 + (high - low) * (0.1 + 0.09 * most)))  # room for the names
    for row in axes:
        row[0].set_ylabel("accuracy under noise (%)")
    for axis in axes[-1]:
        axis.set_xlabel("accuracy on clean images (%)")
    return figure


def _near_the_best(means: pd.DataFrame) -> pd.Series:
    """Which rows have a clean accuracy that is shown."""
    return means.clean > means.clean.max() - SHOWN


def _panel(network: str) -> str:
    about = NETWORKS[network]
    if about.training == "shrunk":
        return f"{about.layer}: each image shrunk towards its {'batch' if about.layer == 'BN' else 'group'}"
    return "LN: statistics of groups" if about.has_groups else "weights that are learned"


def _draw(axis: Axes, points: pd.DataFrame, colours: tuple[str, ...], named: set[str]) -> None:
    """The variants of a panel: a line for mode "prior", a dotted one with filled marks for "gated", or a point."""
    for number, (variant, of_variant) in enumerate(points.groupby("variant", sort=False)):
        colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
        look = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1}
        for statistics, line in of_variant.groupby("statistics", sort=False):
            line = line.sort_values("prior")
            gated = statistics == "gated"
            look |= {"linestyle": ":" if gated else "--" if colour == "black" else "-"}
            look |= {
                "markerfacecolor": colour if gated else "none",
                "label": variant if variant in named and not gated else None,
            }
            axis.plot(100 * line.clean, 100 * line.noisy, **look)


def caption(table: pd.DataFrame, about: str) -> str:
    """The caption of `plot_front`.

    Args:
        table: of `localnorm.study`.
        about: the experiment, its epochs and noises in a few words.
    """
    has_gate = (table.statistics == "gated").any()
    shrunk = (
        "Shrunk: trained with statistics of images shrunk towards their group's by an n0 drawn for each step, or as said; plain: the "
        "group's alone; distilled: each batch plain too, which the shrunk one imitates. LN, groups of 16: trained with such groups; drawn: "
        "with sizes drawn for each step. "
    )
    rates = "The rate: of learning, half or twice that of the main networks. "
    means = study_means(table)
    outside = [name for name in dict.fromkeys(means.variant) if name not in set(means.variant[_near_the_best(means)])]
    said = {shrunk: table.network.str.endswith("shrunk"), rates: table.variant.str.endswith("rate")}
    return (
        "One image at a time: accuracy on clean images against accuracy under noises that are not scored, on validation images. A line "
        "is a training under mode prior, a point on it an n0 at test time, larger and larger from the left, where the image alone counts"
        f"{'; dotted, with filled marks: under mode gated' if has_gate else ''}. "
        f"{''.join(text for text, rows in said.items() if rows.any())}"
        f"What costs more than {100 * SHOWN:.0f} points on clean images lies outside"
        f"{f', and so all of {enumerate_words(outside)}' if outside else ''}. Farther up and to the right is better. {about}; "
        f"{seed_count(table.seed.nunique())}."
    )
