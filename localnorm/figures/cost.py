"""What LocalNorm costs against BatchNorm, as ratios with their quartiles (claims C7 and C8)."""

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import ARM_STYLES, new_figure

__all__ = ["plot_cost"]

# measure -> (title, colour, marker)
MEASURES = {
    "step": ("training step: time", *ARM_STYLES["LN batch"][:2]),
    "memory": ("training step: memory", *ARM_STYLES["LN batch"][:2]),
    "single": ("one image: single", *ARM_STYLES["LN single"][:2]),
    "vote": ("one image: vote", *ARM_STYLES["LN vote"][:2]),
}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
LAYOUTS = {"contiguous": "NCHW", "channels_last": "channels last"}


def plot_cost(costs: pd.DataFrame) -> Figure:
    """A panel a measure and a row a network, number format, memory layout and assignment to groups: LocalNorm over BatchNorm.

    Args:
        costs: what `python -m localnorm.cost` writes; rows of single layers are left out.

    Raises:
        ValueError: there is no network in it.
    """
    costs = costs[costs.subject != "layer"]
    if costs.empty:
        raise ValueError("the cost table has no networks; write it with python -m localnorm.cost")
    names = costs.subject + ", " + costs.dtype.replace(DTYPES) + "\n"
    costs = costs.assign(row=names + costs.layout.replace(LAYOUTS) + ", " + costs.assignment)
    rows = list(dict.fromkeys(costs.row))
    shown = [measure for measure in MEASURES if measure in set(costs.measure)]
    figure, axes = new_figure(1, len(shown), 0.36 * len(rows) + 0.7, sharey=True)
    for axis, measure in zip(axes.flat, shown, strict=True):
        title, colour, marker = MEASURES[measure]
        axis.axvline(1, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)))
        for cost in costs[costs.measure == measure].itertuples():
            height = rows.index(cost.row)
            axis.plot([cost.lower_quartile, cost.upper_quartile], [height] * 2, color=colour)
            axis.plot(cost.ratio, height, marker=marker, color=colour)
            axis.annotate(f"{cost.ratio:.2f}", (cost.ratio, height - 0.2), ha="center", va="bottom", fontsize=6)
        largest = costs[costs.measure == measure].upper_quartile.max()
        smallest = min(1, costs[costs.measure == measure].lower_quartile.min())
        margin = 0.12 * (largest - smallest) + 0.05
        axis.set(xlim=(smallest - margin, largest + margin), xlabel="LN / BN")
        axis.set_title(title, fontsize=7)
    axes[0, 0].set_yticks(range(len(rows)), rows, fontsize=6)
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.7)
    return figure
