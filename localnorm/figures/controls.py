"""One image at a time on a BatchNorm network as it is: what each way to correct its stored statistics gives, ours and those of others."""

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import new_figure
from localnorm.settings import CONTROLS

__all__ = ["caption", "plot_controls"]

LOOKS = {  # colour, marker, line
    "fixed": ("#000000", "o", "none"),
    "positions": ("#D55E00", "X", "-"),
    "images": ("#0072B2", "s", "--"),
    "chance": ("#009E73", "^", ":"),
    "unusual": ("#CC79A7", "D", "-."),
}
SHOWN = 0.3  # of accuracy, below the best: an image's own statistics alone fail, and would shrink all that matters


def plot_controls(table: pd.DataFrame) -> Figure:
    """Clean against noisy accuracy: on the left on validation images for each strength, on the right on test images with the chosen one.

    Args:
        table: of the stage `controls`.
    """
    figure, axes = new_figure(1, 2, 3.0)
    for axis, part in zip(axes[0], ("validation", "test"), strict=True):
        rows = table[table.part == part]
        for control, points in rows.groupby("control", sort=False):
            colour, marker, line = LOOKS[control]
            points = points.sort_values("strength")
            axis.plot(
                100 * points.clean, 100 * points.noisy, line, color=colour, marker=marker, markersize=5, linewidth=1,
                markerfacecolor="none", label=CONTROLS[control][0],
            )  # fmt: skip
            if part == "validation":
                chosen = points[points.chosen]
                axis.plot(100 * chosen.clean, 100 * chosen.noisy, "none", color=colour, marker=marker, markersize=5)
        near = rows[(rows.clean > rows.clean.max() - SHOWN) & (rows.noisy > rows.noisy.max() - SHOWN)]
        axis.set(
            xlim=(100 * near.clean.min() - 1, 100 * near.clean.max() + 1),
            ylim=(100 * near.noisy.min() - 2, 100 * near.noisy.max() + 2),
            xlabel="accuracy on clean images (%)",
            title=f"{part} images",
        )
        axis.grid(color="0.93", linewidth=0.6)
    axes[0, 0].set_ylabel("accuracy under noise (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def caption(table: pd.DataFrame, about: str) -> str:
    """The caption of `plot_controls`.

    Args:
        table: of the stage `controls`.
        about: the experiment in a few words.
    """
    return (
        "One image at a time on one BatchNorm network, whose stored statistics are corrected by those of the image: a prior by positions, "
        "a prior by images (Schneider et al.), what is beyond chance (NOTE's formula), a prior by positions where the image is unusual. "
        "Left: one point per strength on validation images, under noises that are not scored; a filled one has the best mean and is "
        "chosen. Right: the chosen ones on test images, under the noises that are scored. Farther up and to the right is better. "
        f"{about}; one seed."
    )
