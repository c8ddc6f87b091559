"""The one figure that makes the point: what a noise does to an image, and under it what it does to three ways of normalising."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from localnorm import noise
from localnorm.data.dataset import Dataset
from localnorm.figures.style import STYLE, WIDTH, draw_arms, legend_below

__all__ = ["plot_teaser"]

ARMS = ("BN fixed", "BN-batch", "LN batch")


def plot_teaser(dataset: Dataset, curves: pd.DataFrame, noises: list[str], image: int = 0, seed: int = 0) -> Figure:
    """A column a noise of the named suite: a test image at the levels of the sweep, and accuracy against level.

    Args:
        dataset: see `localnorm.data.load`.
        curves: what `localnorm.stats.curves` gives for an experiment on this data set.
        noises: names in the suite "named", those of the sweep.
        image: its number in the test part.

    Raises:
        ValueError: the sweep holds no such noise.
    """
    named = curves[(curves.suite == "named") & curves.arm.isin(ARMS)]
    if missing := [name for name in noises if name not in set(named.noise)]:
        raise ValueError(
            f"the sweep has no {', '.join(missing)} of the named suite, only {', '.join(named.noise.unique())}"
        )
    pixels = dataset.images("test")[image][None].float() / 255  # (1, C, H, W)
    sns.set_theme(style="ticks", rc=STYLE)
    figure = plt.figure(figsize=(WIDTH, 3.4), layout="constrained")
    for column, part in zip(noises, figure.subfigures(1, len(noises), squeeze=False)[0], strict=True):
        _draw_noise(part, pixels, named[named.noise == column], column, seed)
    legend_below(figure, figure.axes[-1])
    return figure


def _draw_noise(part: plt.Figure, pixels: torch.Tensor, curves: pd.DataFrame, name: str, seed: int) -> None:
    about = noise.noises("named")[name]
    levels = sorted(curves.level.unique())
    axes = part.subplot_mosaic([[f"{level}" for level in levels], ["curve"] * len(levels)], height_ratios=[1, 2.6])
    for level in levels:
        noisy = noise.apply(pixels, name, level, noise.generator_for("named", name, level, 0, seed), "named")
        shown = noisy[0].movedim(0, -1).squeeze(-1).numpy()  # (H, W, 3), or (H, W) of a grey image
        axes[f"{level}"].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[f"{level}"].set_title(f"{level:g}", fontsize=9)
        axes[f"{level}"].axis("off")
    draw_arms(axes["curve"], curves, ARMS, "level", "accuracy")
    axes["curve"].set(ylim=(0, 1.02), xlabel=f"{about.label}: {about.unit}", ylabel="accuracy")
