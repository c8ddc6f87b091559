"""Number of groups, images per group, fine-tuning, other layers: clean and noisy accuracy against each."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localnorm import scores
from localnorm.arms import ARMS, NETWORKS, in_order
from localnorm.figures.streams import ticks_at
from localnorm.figures.style import LEGIBLE, draw_arms, draw_seeds, figure_legend, new_figure
from localnorm.words import describe, enumerate_words, seed_count, spread

__all__ = ["caption", "plot_ablations"]

# what the table calls an ablation -> (title, what its values are); None where they are names, not numbers
ABLATIONS = {
    "groups at fixed batch": ("groups K,\nthe batch fixed", "K"),
    "groups at fixed group size": ("groups K, images\nper group fixed", "K"),
    "fine-tuning epochs after conversion": ("fine-tuning after\nconversion", "epochs"),
    "images per group drawn in training": ("images per group,\ndrawn in training", None),
    "network": ("other\nlayers", None),
}


def plot_ablations(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """One column per ablation, clean accuracy above and noisy below, lines or points per arm with the interval over seeds, or a dot per
    seed of few.

    Args:
        table: the experiment's ablations.
        arms: those to draw, where the table has them.

    Raises:
        ValueError: an ablation that is not known, or a value that is no number where it counts something.
    """
    if unknown := set(table.ablation) - set(ABLATIONS):
        raise ValueError(f"unknown ablation {', '.join(sorted(unknown))}; choose one of {', '.join(ABLATIONS)}")
    counted = table[[ABLATIONS[name][1] is not None for name in table.ablation]]
    if (wrong := ~np.isfinite(pd.to_numeric(counted.value, errors="coerce").astype(float))).any():
        row = counted[wrong].iloc[0]
        raise ValueError(f"a value of the ablation {row.ablation!r} must be a finite number, got {row.value!r}")
    made = scores.estimates(table, ["ablation", "value"])
    shown = [name for name in ABLATIONS if name in set(table.ablation)]
    arms = [arm for arm in in_order(arms) if arm in set(made.arm)]
    figure, axes = new_figure(2, len(shown), 3.4, sharey=True, sharex="col")
    for column, name in enumerate(shown):
        title, counts = ABLATIONS[name]
        order = list(dict.fromkeys(table[table.ablation == name].value))
        for row, metric in enumerate(("clean", "noisy")):
            panel = made[(made.metric == metric) & (made.ablation == name)]
            _draw_values(axes[row, column], panel, arms, order, numbers=counts is not None)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel(counts)
    for row, metric in enumerate(("clean", "noisy")):
        axes[row, 0].set(ylim=(0, 103), ylabel=f"{metric} accuracy (%)")  # a marker at 100 is whole
    figure_legend(figure, axes, arms)
    return figure


def _draw_values(axis: Axes, panel: pd.DataFrame, arms: list[str], order: list[str], numbers: bool) -> None:
    """Lines over numbers, points with bars over names."""
    if numbers:
        panel = panel.assign(value=panel.value.astype(float))
        draw_arms(axis, panel, arms, "value", "accuracy", scale=100)
        ticks_at(axis, panel.value)
        return
    present = {value: [arm for arm in arms if arm in set(rows.arm)] for value, rows in panel.groupby("value")}
    for label in arms:
        rows, arm = panel[panel.arm == label], ARMS[label]
        # side by side, since intervals may overlap
        aside = [present[value].index(label) - (len(present[value]) - 1) / 2 for value in rows.value]
        x = [order.index(value) + 0.14 * step for value, step in zip(rows.value, aside, strict=True)]
        axis.vlines(x, 100 * rows.low, 100 * rows.high, color=arm.colour, linewidth=1)
        for place, row in zip(x, rows.itertuples(), strict=True):
            draw_seeds(axis, row, arm.colour, x=place, scale=100)
        axis.plot(
            x, 100 * rows.accuracy, color=arm.colour, marker=arm.marker, linestyle="", label=label if len(rows) else None
        )  # fmt: skip
    axis.set(xlim=(-0.6, len(order) - 0.4))
    names = [textwrap.fill(NETWORKS[value].label if value in NETWORKS else value, 8) for value in order]
    axis.set_xticks(range(len(order)), names, fontsize=LEGIBLE if len(order) < 4 else 6)


def caption(table: pd.DataFrame, settings: dict, about: dict) -> str:
    """The caption of `plot_ablations`.

    Args:
        settings: those of the training that differ from the experiment's own, from params.yaml; empty where none do.
    """
    noises = table[table.level > 0][["suite", "noise"]].drop_duplicates()
    differ = [
        f"{name} {value}" for name, value in (settings | settings.get("augment", {})).items() if name != "augment"
    ]
    trained = f"trained with {', '.join(differ)} and otherwise " if differ else ""
    return (
        "What the number of groups does, and what else: one setting varies per column. With the batch fixed, more "
        "groups K leave fewer images per group; fine-tuning follows the exchange of a trained BatchNorm network's "
        f"layers. A line that is flat above guessing says that the setting does not matter. Each point is the mean over seeds "
        f"{spread(table.groupby('ablation').seed.nunique())}; noisy is the mean over {len(noises)} "
        f"noise{'s' * (len(noises) > 1)}. Networks {trained}like the experiment's: {_seeds(table)}, "
        f"{int(table[table.level > 0].images.max()):,} test images under noise, {trained_on(table)}. "
        f"{describe(about)}."
    )


def _seeds(table: pd.DataFrame) -> str:
    """Over how many seeds the means are; where that differs, each number with its ablations."""
    counts = table.groupby("ablation", sort=False).seed.nunique()
    if counts.nunique() == 1:
        return seed_count(int(counts.iloc[0]))
    said = [
        f"{seed_count(int(n))} ({', '.join(counts.index[counts == n])})" for n in sorted(counts.unique(), reverse=True)
    ]
    return enumerate_words(said)


def trained_on(table: pd.DataFrame) -> str:
    """Where and how long the networks of a table of ablations were trained: "4 networks on CPU (x86_64), bf16-mixed; 21 minutes".

    A network that no time is known of is counted: "time known of 5 of 18 networks: 3 minutes".
    """
    networks = table.drop_duplicates(["ablation", "value", "seed"])
    kinds = (networks.device + ", " + networks.precision).value_counts(sort=False)
    where = enumerate_words([f"{count} network{'s' * (count > 1)} on {kind}" for kind, count in kinds.items()])
    timed = int(networks.train_seconds.notna().sum()) if "train_seconds" in networks else 0
    if not timed:
        return f"{where}; no time was kept"
    minutes = f"{networks.train_seconds.sum() / 60:.1f} minutes"
    return (
        f"{where}; {minutes}"
        if timed == len(networks)
        else f"{where}; time known of {timed} of {len(networks)} networks: {minutes}"
    )
