"""One image at a time on trained networks as they are: what each way to correct their stored statistics gives, ours and those of others."""

import pandas as pd
from matplotlib.figure import Figure

from localnorm.figures.style import legend_below, new_figure
from localnorm.networks import NETWORKS
from localnorm.settings import CONTROLS

__all__ = ["caption", "plot_controls"]

LOOKS = {  # colour, marker, line
    "fixed": ("#000000", "o", "none"),
    "prior": ("#D55E00", "X", "-"),
    "gated": ("#CC79A7", "D", "-."),
    "images": ("#0072B2", "s", "--"),
    "chance": ("#009E73", "^", ":"),
}
SHOWN = 0.12  # of accuracy, below the best: strengths that cost more clean accuracy would shrink all that matters


def plot_controls(table: pd.DataFrame) -> Figure:
    """Clean against noisy accuracy, a column per network: above on validation images for each strength, below on test images.

    Args:
        table: of the stage `controls`.
    """
    networks = list(dict.fromkeys(table.network))
    figure, axes = new_figure(2, len(networks), 4.0, sharex=True, sharey="row")
    for row, part in zip(axes, ("validation", "test"), strict=True):
        rows = table[table.part == part]
        for axis, network in zip(row, networks, strict=True):
            for control, points in rows[rows.network == network].groupby("control", sort=False):
                colour, marker, line = LOOKS[control]
                points = points.sort_values("strength")
                style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1}
                axis.plot(
                    100 * points.clean,
                    100 * points.noisy,
                    line,
                    markerfacecolor="none",
                    label=CONTROLS[control],
                    **style,
                )
                if part == "validation":
                    chosen = points[points.chosen]
                    axis.plot(100 * chosen.clean, 100 * chosen.noisy, "none", **style)
            axis.grid(color="0.93", linewidth=0.6)
        near = rows[rows.clean > rows.clean.max() - SHOWN]
        row[0].set(
            ylim=(100 * near.noisy.min() - 2, 100 * near.noisy.max() + 2), ylabel=f"under noise (%),\n{part} images"
        )
    near = table[table.clean > table.clean.max() - SHOWN]
    axes[0, 0].set_xlim(100 * near.clean.min() - 1, 100 * near.clean.max() + 1)
    for top, bottom, network in zip(*axes, networks, strict=True):
        top.set_title(NETWORKS[network].label)
        bottom.set_xlabel("clean (%)")
    legend_below(figure, axes[0, networks.index("bn") if "bn" in networks else 0], columns=3)
    return figure


def caption(table: pd.DataFrame, about: str) -> str:
    """The caption of `plot_controls`.

    Args:
        table: of the stage `controls`.
        about: the experiment in a few words.
    """
    return (
        "One image at a time on trained networks as they are, whose stored statistics are corrected by those of the image: a prior by "
        "positions, a gated prior, which moves ordinary images less, and on BN a prior by images (Schneider et al.) and what is beyond "
        "chance (NOTE's formula). Validation panels: one point per strength, under noises that are not scored; a filled one has "
        "the best mean and is chosen. Test panels: the chosen ones, under the noises that are scored. Farther up and to the "
        f"right is better. Strengths that cost more than {100 * SHOWN:.0f} points on clean images lie outside. {about}; one seed."
    )
