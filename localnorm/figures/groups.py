"""How LocalNorm splits a batch: the groups that the layer itself forms, drawn."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from localnorm.figures.style import GROUP_COLOURS, GROUP_HATCHES, LEGIBLE, WIDTH, arrow, new_figure
from localnorm.layers import ASSIGNMENTS, LocalNorm2d

__all__ = ["caption", "group_of_each_image", "plot_groups"]

MARGIN = 1.75  # images wide


def group_of_each_image(batch_size: int, num_groups: int, assignment: str) -> list[int]:
    """The group that a LocalNorm layer assigns to each image of a batch, found by giving each group a bias of its own.

    Example:
        >>> group_of_each_image(6, 3, "contiguous"), group_of_each_image(6, 3, "interleaved")
        ([0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2])
    """
    layer = LocalNorm2d(1, num_groups, assignment=assignment)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(num_groups)[:, None])
        answer = layer(torch.randn(batch_size, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    return answer[:, 0, 0, 0].round().int().tolist()


def plot_groups(batch_size: int, num_groups: int) -> Figure:
    """Draw one panel per assignment: the batch above, the groups with their statistics and affines below.

    Args:
        batch_size: B.
        num_groups: K; at most as many as there are colours, and a divisor of B.

    Raises:
        ValueError: K does not divide B, or there are no colours for K groups.
    """
    if batch_size % num_groups or num_groups > len(GROUP_COLOURS):
        raise ValueError(
            f"a drawing needs num_groups up to {len(GROUP_COLOURS)} that divides batch_size, got "
            f"num_groups={num_groups}, batch_size={batch_size}"
        )
    margins = [MARGIN, *[0.1] * (len(ASSIGNMENTS) - 1)]  # the names of the rows stand left of the first panel
    ratios = [batch_size + 0.1 + margin for margin in margins]
    figure, axes = new_figure(1, len(ASSIGNMENTS), 2.2, 0.88 * WIDTH, gridspec_kw={"width_ratios": ratios})
    for axis, margin, assignment in zip(axes.flat, margins, reversed(ASSIGNMENTS), strict=True):
        axis.set(xlim=(-margin, batch_size + 0.1), ylim=(-3.4, 1.9), aspect="equal")
        axis.axis("off")
        axis.set_title(f"{assignment} groups", pad=2, x=(margin + batch_size / 2) / (margin + batch_size + 0.1))
        _draw(axis, group_of_each_image(batch_size, num_groups, assignment), num_groups)
    rows = {1.4: f"batch\n$B={batch_size}$", -0.5: f"groups\n$K={num_groups}$", -1.72: "statistics\nof a group"}
    for height, text in (rows | {-2.92: "affine\nof a group"}).items():
        axes[0, 0].text(-0.15, height, text, ha="right", va="center", fontsize=7.5)
    return figure


def _draw(axis: Axes, groups: list[int], num_groups: int) -> None:
    size = len(groups) // num_groups
    width = len(groups) / num_groups  # of a group's column
    for image, group in enumerate(groups):
        axis.add_patch(_image(image + 0.1, 1.0, group))
        axis.text(image + 0.5, 1.4, str(image), ha="center", va="center", bbox=_plate())
        place = (group + 0.5) * width + (groups[:image].count(group) - size / 2) * 0.9
        axis.add_patch(_image(place + 0.05, -0.9, group))
        axis.text(place + 0.45, -0.5, str(image), ha="center", va="center", bbox=_plate())
        axis.add_patch(arrow((image + 0.5, 0.95), (place + 0.45, -0.05)))
    for group in range(num_groups):
        left, centre = group * width + 0.06, (group + 0.5) * width
        for bottom, text in (
            (-2.1, rf"$\mu_{group},\ \sigma^2_{group}$"),
            (-3.3, rf"$\gamma_{group},\ \beta_{group}$"),
        ):
            box = FancyBboxPatch((left, bottom), width - 0.12, 0.75, boxstyle="round,pad=0,rounding_size=0.12")
            box.set(facecolor="white", edgecolor=GROUP_COLOURS[group], linewidth=1.4)
            axis.add_patch(box)
            axis.text(centre, bottom + 0.37, text, ha="center", va="center", fontsize=LEGIBLE / 0.7)
        axis.add_patch(arrow((centre, -0.95), (centre, -1.32)))
        axis.add_patch(arrow((centre, -2.12), (centre, -2.52)))


def _image(x: float, y: float, group: int) -> Rectangle:
    colour, hatch = GROUP_COLOURS[group], GROUP_HATCHES[group]
    return Rectangle((x, y), 0.8, 0.8, facecolor=colour, edgecolor="white", hatch=hatch, linewidth=0)


def _plate() -> dict:
    return {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}


def caption(batch_size: int, num_groups: int) -> str:
    return (
        f"How LocalNorm splits a batch of B = {batch_size} images into K = {num_groups} groups. The mean and the "
        f"variance of a channel run over the {batch_size // num_groups} images of a group and all positions, and each "
        "group has its own gamma and beta. Contiguous: consecutive images, as in the released experiments. "
        "Interleaved: image i in group i mod K."
    )
