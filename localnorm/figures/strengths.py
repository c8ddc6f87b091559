"""How far to trust one image: what the strength of a prior and the number of last fixed norms do to accuracy, on validation images."""

from collections.abc import Sequence
from itertools import zip_longest

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from localnorm.arms import NETWORKS
from localnorm.figures.style import GROUP_COLOURS, LEGIBLE, new_figure, sentence, shift
from localnorm.words import describe, enumerate_words

__all__ = ["caption", "plot_strengths"]

MARKERS = ("o", "s", "^", "D")
STYLES = {"clean": "--", "noisy": "-"}


def plot_strengths(tables: dict[str, pd.DataFrame], networks: Sequence[str]) -> Figure:
    """One row per experiment, one panel per network: accuracy against n0, one colour per number of fixed last layers.

    Args:
        tables: experiment's title -> its strengths, one row per run, n0 and number of last layers; means over seeds are drawn. A sentence
            says so where there are none.
        networks: those to draw, where an experiment has them.
    """
    tables = {title: _measured(table) for title, table in tables.items()}
    networks = [key for key in networks if any((table.network == key).any() for table in tables.values())]
    if not networks:  # a prior that is given needs no choice
        return sentence("No experiment had strengths to choose from.")
    figure, axes = new_figure(len(tables), len(networks), 1.6 * len(tables) + 0.5, sharey="row")
    for row, (title, table) in zip(axes, tables.items(), strict=True):
        means = _means(table)
        for axis, network in zip(row, networks, strict=True):
            if network not in set(means.network):
                axis.set_visible(False)
                continue
            _draw(axis, means[means.network == network], sorted(means.fixed_last.unique()))
            axis.set_title(f"{title}, {NETWORKS[network].label}", fontsize=LEGIBLE)
        lowest = 100 * means[means.network.isin(networks)][["clean", "noisy"]].min(axis=None)
        row[0].set(ylabel="accuracy (%)", ylim=(max(0, lowest - 8), 100))  # no more than the lines take: they lie close
    for column in axes.T:
        [axis for axis in column if axis.get_visible()][-1].set_xlabel("n0 (positions)")
    named = dict(enumerate(_numbers(tables)))
    marks = [
        Line2D([], [], color=GROUP_COLOURS[rank], marker=MARKERS[rank], markerfacecolor="none", markersize=5, label=f"{words} fixed")
        for rank, words in named.items()
    ]  # fmt: skip
    marks += [Line2D([], [], color="0.3", linestyle=style, label=part) for part, style in STYLES.items()]
    marks.append(Line2D([], [], color="0.3", linestyle="", marker="o", markersize=5, label="best under noise"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    return figure


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """Without what was not measured, and without "gated", whose n0 are of another scale."""
    return table[table.noisy.notna() & (table.statistics != "gated")]


def _means(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby(["network", "fixed_last", "prior"], as_index=False)[["clean", "noisy"]].mean()


def _draw(axis: Axes, means: pd.DataFrame, counts: list[float]) -> None:
    """The lines of one network, and a filled mark at the best n0 of each under noise."""
    for count, colour, marker in zip(counts, GROUP_COLOURS, MARKERS, strict=False):
        chosen = means[means.fixed_last == count]
        if chosen.empty:
            continue
        # lines of different numbers may coincide
        aside = shift(axis, 3.5 * (counts.index(count) - (len(counts) - 1) / 2))
        for part, style in STYLES.items():
            (line,) = axis.plot(
                chosen.prior, 100 * chosen[part], style, marker=marker, color=colour, linewidth=1, markersize=4.5, markerfacecolor="none"
            )  # fmt: skip
            line.set_transform(aside)
        best = chosen.noisy.argmax()
        line.set(markevery=[n for n in range(len(chosen)) if n != best])
        (filled,) = axis.plot(
            chosen.prior.iloc[best],
            100 * chosen.noisy.iloc[best],
            marker=marker,
            color=colour,
            markersize=4.5,
            linestyle="",
        )
        filled.set_transform(aside)
    least = means.prior[means.prior > 0].min()
    axis.set_xscale("symlog", linthresh=least, linscale=0.6)  # n0 = 0, the image alone, has a place on it
    values = sorted(means.prior.unique())
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()
    axis.margins(x=0.09)


def _numbers(tables: dict[str, pd.DataFrame]) -> list[str]:
    """By rank, how many last layers are fixed: "0", "1", "10 or 15" where experiments differ."""
    counts = [sorted(table.fixed_last.unique()) for table in tables.values()]
    ranks = [dict.fromkeys(row) for row in zip_longest(*counts)]
    return [" or ".join(f"{number:g}" for number in rank if number is not None) for rank in ranks]


def _numbers_by_title(tables: dict[str, pd.DataFrame]) -> str:
    """The same for a caption: "0 or 1", where experiments differ "0, 1 or 10 on CIFAR-10 and 0 on Stanford Cars"."""
    said = {}
    for title, table in tables.items():
        *others, last = (f"{count:g}" for count in sorted(table.fixed_last.unique()))
        said[title.split(" (")[0]] = f"{', '.join(others)} or {last}" if others else last
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return enumerate_words([f"{counts} on {title}" for title, counts in said.items()])


def caption(tables: dict[str, pd.DataFrame], networks: Sequence[str], abouts: Sequence[dict]) -> str:
    """The caption of `plot_strengths`.

    Args:
        tables, networks: as there.
        abouts: from `localnorm.tables.read_about`.
    """
    tables = {title: _measured(table[table.network.isin(networks)]) for title, table in tables.items()}
    tables = {title: table for title, table in tables.items() if len(table)}
    sources = ". ".join(describe(about) for about in abouts)
    if not tables:
        return f"No experiment had strengths to choose from. {sources}."
    lines = [
        line.sort_values("prior")
        for table in tables.values()
        for _, line in _means(table).groupby(["network", "fixed_last"])
    ]
    rising = sum(line.clean.iloc[-1] > line.clean.iloc[0] for line in lines)
    before = sum(line.noisy.argmax() < len(line) - 1 for line in lines)
    tried = pd.concat(tables.values())
    alone = sorted(set(tried.fixed_last) - set(tried.fixed_last[tried.prior == 0]))
    untried = f", and was not tried with {enumerate_words([f'{n:g}' for n in alone])} fixed" if alone else ""
    return (
        "How far to trust one image, on validation images: from the smallest strength n0 to the largest, accuracy on clean images "
        f"(dashed) rises in {rising} of {len(lines)} lines; under noises that are not scored (solid) it is best below the largest n0 in "
        f"{before} (filled mark). Colour: how many last layers keep training statistics ({_numbers_by_title(tables)}). "
        f"n0 = 0 is the image alone in the other layers{untried}. Marks at the same n0 stand side by side. Means over seeds. {sources}."
    )
