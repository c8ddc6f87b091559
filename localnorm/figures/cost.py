"""What LocalNorm costs against BatchNorm, as ratios with their quartiles (claims C7 and C8)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localnorm.arms import ARMS
from localnorm.figures.style import new_figure

__all__ = ["caption", "plot_cost"]

# measure -> (title, colour, marker)
MEASURES = {
    "step": ("training step: time", ARMS["LN batch"].colour, ARMS["LN batch"].marker),
    "memory": ("training step: memory", ARMS["LN batch"].colour, ARMS["LN batch"].marker),
    "single": ("images alone: single", ARMS["LN single"].colour, ARMS["LN single"].marker),
    "vote": ("images alone: vote", ARMS["LN vote"].colour, ARMS["LN vote"].marker),
}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.8}  # a label on a line is read all the same
LAYOUTS = {"contiguous": "NCHW", "channels_last": "channels last"}


def plot_cost(costs: pd.DataFrame) -> Figure:
    """LocalNorm over BatchNorm: one line of panels per device, one panel per measure, one row per network and setting.

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
    shown = [measure for measure in MEASURES if measure in set(costs.measure)]
    devices = {device: costs[costs.device == device] for device in costs.device.unique()}
    counts = [of_device.row.nunique() for of_device in devices.values()]
    height = 0.36 * sum(counts) + 0.7 * len(devices)
    figure, axes = new_figure(len(devices), len(shown), height, sharey="row", height_ratios=[n + 1 for n in counts])
    for line, (device, of_device) in zip(axes, devices.items(), strict=True):
        rows = list(dict.fromkeys(of_device.row))
        for axis, measure in zip(line, shown, strict=True):
            _draw(axis, of_device[of_device.measure == measure], rows, measure)
        line[0].set_yticks(range(len(rows)), rows, fontsize=6)
        line[0].set_ylim(len(rows) - 0.5, -0.7)
        if len(devices) > 1:
            line[0].set_ylabel("CPU" if device == "cpu" else device)
    for axis, measure in zip(axes[0], shown, strict=True):
        axis.set_title(MEASURES[measure][0], fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("LN / BN")
    return figure


def _draw(axis: Axes, costs: pd.DataFrame, rows: list[str], measure: str) -> None:
    if costs.empty:
        axis.set_axis_off()
        return
    _, colour, marker = MEASURES[measure]
    axis.axvline(1, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)))
    for bound in costs.bound.dropna().unique():
        axis.axvline(bound, color="0.6", linewidth=0.8)
    for cost in costs.itertuples():
        height = rows.index(cost.row)
        axis.plot([cost.lower_quartile, cost.upper_quartile], [height] * 2, color=colour)
        axis.plot(cost.ratio, height, marker=marker, color=colour)
        axis.annotate(
            f"{cost.ratio:.2f}", (cost.ratio, height - 0.2), ha="center", va="bottom", fontsize=6, bbox=BEHIND
        )
    largest, smallest = costs.upper_quartile.max(), min(1, costs.lower_quartile.min())
    margin = 0.12 * (largest - smallest) + 0.05
    axis.set_xlim(smallest - margin, largest + margin)


def caption(costs: pd.DataFrame) -> str:
    networks = costs[costs.subject != "layer"]
    shapes = networks[networks.measure == "step"].drop_duplicates("subject")
    batches = ", ".join(f"{row.subject} on {row.shape}" for row in shapes.itertuples())
    alone = networks[networks.measure.isin(["single", "vote"])]["shape"].str.partition("x")[0].unique()
    devices = costs.drop_duplicates("device").itertuples()
    measured = "; ".join(f"{row.machine}, {row.threads} threads, {row.device}, torch {row.torch}" for row in devices)
    return (
        "What LocalNorm costs over BatchNorm (claims C7 and C8): the median ratio of runs in turn, with its "
        f"quartiles. Training steps of {batches}; predictions of {' or '.join(alone)} images, each normalised alone: "
        "single under one group's affine, vote under every group's. Solid grey: the bound that a claim is judged by, "
        f"and for a vote its forwards. {measured}."
    )
