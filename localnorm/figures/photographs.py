"""Photographs under noise: what the levels look like, and what they do to the histograms."""

import textwrap

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure

from localnorm.figures.style import WIDTH, new_figure, short
from localnorm.noise import draw, noises

__all__ = [
    "histograms_caption",
    "noise_wall",
    "noises_caption",
    "noisy_photographs",
    "photograph",
    "plot_noises",
    "rgb_histograms",
]


def photograph(name: str, height: int) -> torch.Tensor:
    """One of scikit-learn's two photographs, "flower" or "china", as (1, 3, height, W) in [0, 1]."""
    from sklearn.datasets import load_sample_image

    if name not in ("flower", "china"):
        raise ValueError(f"unknown photograph {name!r}; choose one of flower, china")
    image = torch.tensor(load_sample_image(f"{name}.jpg")).movedim(-1, 0)[None] / 255  # (1, 3, H, W)
    size = height, round(image.shape[-1] * height / image.shape[-2])
    return torch.nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def _displayed(image: torch.Tensor) -> np.ndarray:
    return image[0].clamp(0, 1).movedim(0, -1).numpy()  # (H, W, 3)


def noisy_photographs(name: str, chosen: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """A photograph clean and under noises of the named suite: title -> (H, W, 3) in [0, 1]."""
    clean = photograph(name, height=128)  # 170 pixels per inch in the figure; noise does not compress
    images = {"clean": _displayed(clean)}
    for key, level in chosen.items():
        generator = draw.generator_for("named", key, level, 0, seed)
        noisy = draw.apply(clean, key, level, generator, suite="named")
        images[f"{noises('named')[key].label}\n{level:g}"] = _displayed(noisy)
    return images


def noise_wall(name: str, columns: int, size: int, seed: int) -> dict[str, list[tuple[str, np.ndarray]]]:
    """A photograph, cut to a square, under every noise of both suites, for `plot_noises`; MNIST's noises are for grey digits."""
    clean = photograph(name, height=size)
    left = (clean.shape[-1] - size) // 2
    clean = clean[..., left : left + size]
    wall = {}
    for suite in ("released", "named"):
        for key, known in noises(suite).items():
            if key.startswith("mnist"):
                continue
            chosen = np.linspace(0, len(known.levels) - 1, columns).round().astype(int)
            wall[f"{short(known.label)}\n({suite})"] = [
                (
                    f"{level:g}",
                    _displayed(draw.apply(clean, key, level, draw.generator_for(suite, key, level, 0, seed), suite)),
                )
                for level in (known.levels[index] for index in chosen)
            ]
    return wall


def rgb_histograms(images: dict[str, np.ndarray], bins: int = 48) -> Figure:
    """An image and its noisy versions above, the histogram of each colour channel below (claim C1).

    Args:
        images: title -> (H, W, 3) in [0, 1].
    """
    figure, axes = new_figure(2, len(images), 2.5, 0.88 * WIDTH)
    edges = np.linspace(0, 1, bins + 1)
    tallest = 0
    for column, (title, image) in enumerate(images.items()):
        axes[0, column].imshow(image, interpolation="none")
        axes[0, column].set(
            title="\n".join(textwrap.fill(line, 17) for line in title.split("\n")), xticks=[], yticks=[]
        )
        sns.despine(ax=axes[0, column], left=True, bottom=True)
        for channel, colour in enumerate(("#D55E00", "#009E73", "#0072B2")):
            density, _ = np.histogram(image[..., channel], edges, density=True)
            axes[1, column].stairs(
                density, edges, color=colour, label="RGB"[channel], linestyle=("-", "--", ":")[channel]
            )
            # black and white pile up at the ends: they are cut off rather than hiding the rest
            tallest = max(tallest, np.quantile(density[1:-1], 0.98))
        axes[1, column].set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="pixel value", yticks=[])
        axes[1, column].xaxis.set_major_formatter("{x:g}")
    for axis in axes[1]:
        axis.set_ylim(0, 1.25 * tallest)
    axes[1, 0].set_ylabel("density")
    axes[1, 0].legend(frameon=False, handlelength=1.5)
    return figure


def plot_noises(wall: dict[str, list[tuple[str, np.ndarray]]]) -> Figure:
    """One row per noise, rising levels from left to right.

    Args:
        wall: row title -> [(level as text, (H, W, 3) in [0, 1])], as many in every row.
    """
    columns = len(next(iter(wall.values())))
    figure, axes = new_figure(len(wall), columns, 0.8 * len(wall) + 0.2)
    for row, (title, pictures) in enumerate(wall.items()):
        for column, (level, image) in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(image, interpolation="none")
            axis.set(xticks=[], yticks=[])
            axis.set_title(level, fontsize=7, pad=2)
            sns.despine(ax=axis, left=True, bottom=True)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    return figure


def histograms_caption(name: str, seed: int) -> str:
    return (
        "Noise shifts the histograms of an image's colour channels (claim C1). One of scikit-learn's photographs "
        f"({name}.jpg), clean and under noises of the named suite, one draw each (seed {seed}); the number is the "
        "level. Bars at the ends are cut off."
    )


def noises_caption(name: str, size: int, seed: int) -> str:
    return (
        f"The noises of both suites at rising levels on one of scikit-learn's photographs ({name}.jpg, {size} by "
        f"{size} pixels), one draw each (seed {seed}). Released noises leave the range of pixel values and are cut to "
        "it for display."
    )
