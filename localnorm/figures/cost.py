"""What LocalNorm costs against BatchNorm, as ratios with their quartiles (claims C7 and C8)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localnorm.arms import ARMS
from localnorm.figures.style import LEGIBLE, new_figure
from localnorm.words import enumerate_words

__all__ = ["caption", "plot_cost"]

COLOUR = ARMS["LN batch"].colour
# measure -> the words above its panel. A vote costs one prediction per group: the supplement's table has it, its scale would hide the rest
MEASURES = {
    "step": "training step:\ntime",
    "memory": "training step:\nmemory",
    "single": "images alone:\nsingle",
    "prior": "images alone:\nprior",
    "gated": "images alone:\ngated",
}
LAYOUTS = {"contiguous": "NCHW", "channels_last": "channels last"}
ONE_IMAGE = ("single", "prior", "gated")


def plot_cost(costs: pd.DataFrame) -> Figure:
    """LocalNorm over BatchNorm: one line of panels per device, one panel per measure, one row per network and memory layout.

    Hollow marks are a step in bfloat16, or one image by itself; filled ones float32, or several images. A tick is the bound of a row.

    Args:
        costs: what `python -m localnorm.cost` writes; rows of single layers are left out.

    Raises:
        ValueError: there is no network in it.
    """
    costs = costs[(costs.subject != "layer") & costs.measure.isin(list(MEASURES))]
    if costs.empty:
        raise ValueError("the cost table has no networks; write it with python -m localnorm.cost")
    costs = costs.assign(row=costs.subject + ",\n" + costs.layout.replace(LAYOUTS), images=_images(costs))
    costs = costs.assign(hollow=(costs.dtype != "float32") | (costs.measure.isin(ONE_IMAGE) & (costs.images == 1)))
    shown = [measure for measure in MEASURES if measure in set(costs.measure)]
    devices = {device: costs[costs.device == device] for device in costs.device.unique()}
    counts = [of_device.row.nunique() for of_device in devices.values()]
    height = 0.34 * sum(counts) + 0.45 * len(devices) + 0.4
    figure, axes = new_figure(len(devices), len(shown), height, sharey="row", height_ratios=[n + 0.5 for n in counts])
    for line, (device, of_device) in zip(axes, devices.items(), strict=True):
        rows = list(dict.fromkeys(of_device.row))
        for axis, measure in zip(line, shown, strict=True):
            _draw(axis, of_device[of_device.measure == measure], rows)
        line[0].set_yticks(range(len(rows)), rows, fontsize=LEGIBLE)
        line[0].set_ylim(len(rows) - 0.5, -0.5)
        if len(devices) > 1:
            line[0].set_ylabel("CPU" if device == "cpu" else device.removeprefix("NVIDIA ").partition(" ")[0])
    for axis, measure in zip(axes[0], shown, strict=True):
        axis.set_title(MEASURES[measure])
    for axis in axes[-1]:
        axis.set_xlabel("LN / BN")
    return figure


def _images(costs: pd.DataFrame) -> pd.Series:
    """How many images each was measured with: of 32x3x224x224, 32."""
    return costs["shape"].str.partition("x")[0].astype(int)


def _draw(axis: Axes, costs: pd.DataFrame, rows: list[str]) -> None:
    if costs.empty:
        axis.set_axis_off()
        return
    axis.axvline(1, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)))
    axis.grid(axis="x", color="0.93", linewidth=0.6)
    for cost in costs.itertuples():
        row = rows.index(cost.row)
        height = row + (0.17 if cost.hollow else -0.17)  # two settings of a row, one above the other
        axis.plot([cost.lower_quartile, cost.upper_quartile], [height] * 2, color=COLOUR, linewidth=1)
        axis.plot(
            cost.ratio,
            height,
            marker="o",
            markersize=4,
            color=COLOUR,
            markerfacecolor="white" if cost.hollow else COLOUR,
        )
        axis.plot([cost.bound] * 2, [row - 0.4, row + 0.4], color="0.4", linewidth=1)  # nothing where a claim has none
    largest, smallest = costs.upper_quartile.max(), min(1, costs.lower_quartile.min())
    margin = 0.08 * (largest - smallest) + 0.03
    axis.set_xlim(smallest - margin, largest + margin)


def caption(costs: pd.DataFrame) -> str:
    networks = costs[costs.subject != "layer"]
    shapes = networks[networks.measure == "step"].drop_duplicates("subject")
    batches = ", ".join(f"{row.subject} on {row.shape}" for row in shapes.itertuples())
    several = enumerate_words(
        [str(each) for each in sorted({*_images(networks[networks.measure.isin(ONE_IMAGE)])} - {1})]
    )
    devices = costs.drop_duplicates("device").itertuples()
    measured = "; ".join(f"{row.machine}, {row.threads} threads, {row.device}, torch {row.torch}" for row in devices)
    return (
        "What LocalNorm costs over BatchNorm (claims C7 and C8), which for images alone is BatchNorm in evaluation: the median ratio of "
        f"runs in turn, with its quartiles. Training steps of {batches}: filled in float32, hollow in bfloat16. Images alone, each by its "
        f"own statistics, in float32: filled {several} images (by device) in one call, hollow one. Dashed: equal cost; upright tick: "
        f"the bound that a claim is judged by. NCHW with interleaved groups, channels last with contiguous ones. {measured}."
    )
