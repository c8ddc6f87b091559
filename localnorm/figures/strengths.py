"""How far to trust one image: what the strength of a prior and the number of last fixed norms do to accuracy, on validation images."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.arms import NETWORKS
from localnorm.figures.style import GROUP_COLOURS, new_figure, sentence
from localnorm.words import describe

__all__ = ["caption", "plot_strengths"]

MARKERS = ("o", "s", "^", "D")


def plot_strengths(tables: dict[str, pd.DataFrame], networks: Sequence[str]) -> Figure:
    """One row per experiment, one panel per network: accuracy against n0, one colour per number of fixed last layers.

    Args:
        tables: experiment's title -> its strengths, one row per run, n0 and number of last layers; means over seeds are drawn. A sentence
            says so where there are none.
        networks: those to draw, where an experiment has them.
    """
    tables = {title: table.dropna(subset="noisy") for title, table in tables.items()}
    networks = [key for key in networks if any((table.network == key).any() for table in tables.values())]
    if not networks:  # a prior that is given needs no choice
        return sentence("No experiment had strengths to choose from.")
    figure, axes = new_figure(len(tables), len(networks), 1.9 * len(tables) + 0.5, sharey="row")
    lines, named = (
        {},
        {},
    )  # rank of a number among an experiment's -> its lines, and the numbers, in the order of the experiments
    for row, (title, table) in zip(axes, tables.items(), strict=True):
        means = table.groupby(["network", "fixed_last", "prior"], as_index=False)[["clean", "noisy"]].mean()
        for axis, network in zip(row, networks, strict=True):
            if network not in set(means.network):
                axis.set_visible(False)
                continue
            counts = sorted(means.fixed_last.unique())
            for count, colour, marker in zip(counts, GROUP_COLOURS, MARKERS, strict=False):
                chosen = means[(means.network == network) & (means.fixed_last == count)]
                for part, style in (("clean", "--"), ("noisy", "-")):
                    # hollow, the fewest fixed the largest: lines of different numbers may coincide
                    (line,) = axis.plot(
                        chosen.prior, 100 * chosen[part], style, marker=marker, color=colour, linewidth=1.1,
                        markerfacecolor="none", markersize=7 - 1.5 * counts.index(count),
                    )  # fmt: skip
                    lines[counts.index(count), part] = line
                    named.setdefault(counts.index(count), {})[count] = None
            least = means.prior[means.prior > 0].min()
            axis.set_xscale("symlog", linthresh=least, linscale=0.5)  # n0 = 0, the image alone, has a place on it
            values = sorted(means.prior.unique())
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
            axis.set(title=f"{title}, {NETWORKS[network].label}", xlabel="n0 (positions)")
        lowest = 100 * means[means.network.isin(networks)][["clean", "noisy"]].min(axis=None)
        row[0].set(ylabel="accuracy (%)", ylim=(max(0, lowest - 5), 104))  # no more than the lines take: they lie close
    labels = [f"{', '.join(f'{n:g}' for n in named[rank])} fixed, {part}" for rank, part in lines]
    figure.legend(lines.values(), labels, loc="outside lower center", ncols=len(named), frameon=False)
    return figure


def caption(abouts: Sequence[dict]) -> str:
    return (
        "How far to trust one image: clean accuracy (dashed) rises with the strength n0 of the prior, accuracy under noises that are "
        "not scored (solid) has its best in between. Single validation images, means over seeds; colours: so many layers at the end "
        "keep the training statistics (of two numbers, the upper row has the first). n0 = 0 is the image alone. "
        + ". ".join(describe(about) for about in abouts)
        + "."
    )
