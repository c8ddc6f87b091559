"""How far to trust one image: what the strength of a prior and the number of last fixed norms do to accuracy, on validation images."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import GROUP_COLOURS, new_figure, sentence

__all__ = ["plot_strengths"]

NORMS = {"batch": "BN", "local": "LN", "drawn": "LN drawn"}
MARKERS = ("o", "s", "^", "D")


def plot_strengths(tables: dict[str, pd.DataFrame], norms: Sequence[str] = tuple(NORMS)) -> Figure:
    """A row an experiment, a panel a norm: accuracy against n0, a colour a number of fixed last norms, clean dashed and noisy solid.

    Args:
        tables: experiment's title -> its choice.csv, a row a run, n0 and number of last norms: means over seeds are drawn. A sentence
            says so where there are none.
        norms: those to draw, where an experiment has them.
    """
    norms = [norm for norm in norms if any((table.norm == norm).any() for table in tables.values())]
    if not norms:  # a prior that is given needs no choice
        return sentence("No sweep of this run had strengths to choose from.")
    figure, axes = new_figure(len(tables), len(norms), 1.9 * len(tables) + 0.5, sharey="row")
    lines, named = (
        {},
        {},
    )  # rank of a number among an experiment's -> its lines, and the numbers, in the order of the experiments
    for row, (title, table) in zip(axes, tables.items(), strict=True):
        means = table.groupby(["norm", "fixed_last", "prior"], as_index=False)[["clean", "noisy"]].mean()
        for axis, norm in zip(row, norms, strict=True):
            if norm not in set(means.norm):
                axis.set_visible(False)
                continue
            counts = sorted(means.fixed_last.unique())
            for count, colour, marker in zip(counts, GROUP_COLOURS, MARKERS, strict=False):
                chosen = means[(means.norm == norm) & (means.fixed_last == count)]
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
            axis.set(title=f"{title}, {NORMS[norm]}", xlabel="n0 (positions)")
        lowest = 100 * means[means.norm.isin(norms)][["clean", "noisy"]].min(axis=None)
        row[0].set(ylabel="accuracy (%)", ylim=(max(0, lowest - 5), 104))  # no more than the lines take: they lie close
    labels = [f"{', '.join(f'{n:g}' for n in named[rank])} fixed, {part}" for rank, part in lines]
    figure.legend(lines.values(), labels, loc="outside lower center", ncols=len(named), frameon=False)
    return figure
