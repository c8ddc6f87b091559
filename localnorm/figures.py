"""Tables and images to figures, in one style: a colour and a marker an arm, vector PDF and PNG, the same bytes every time.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; line styles and markers keep the arms apart in grey too.
"""

import io
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from localnorm import noise, paths
from localnorm.evaluate import ARMS

__all__ = [
    "ARM_STYLES",
    "noise_wall",
    "noisy_photographs",
    "photograph",
    "plot_accuracy",
    "plot_noises",
    "plot_summary",
    "rgb_histograms",
    "save",
]

WIDTH = 6.75  # inches: a full text width; a column is half of it

# arm -> (colour, marker, line style); BatchNorm dashed, LocalNorm solid, one image alone dotted
ARM_STYLES = {
    "BN fixed": ("#000000", "o", (0, (4, 1.5))),
    "BN-batch": ("#E69F00", "s", (0, (4, 1.5))),
    "LN batch": ("#0072B2", "D", "-"),
    "LN single": ("#CC79A7", "v", (0, (1, 1))),
    "LN vote": ("#009E73", "^", (0, (1, 1))),
    "BN prior": ("#D55E00", "X", (0, (3, 1, 1, 1))),
    "LN prior": ("#56B4E9", "P", (0, (3, 1, 1, 1))),
    "GN": ("#999999", "<", "-"),
    "IN": ("#666666", ">", "-"),
}
assert set(ARM_STYLES) == set(ARMS.values())

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 170,
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _new(rows: int, columns: int, height: float, **options) -> tuple[Figure, np.ndarray]:
    sns.set_theme(style="ticks", rc=STYLE)
    return plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, layout="constrained", **options)


def save(figure: Figure, name: str) -> None:
    """Write paper/figures/<name>.pdf and .png; unchanged input gives unchanged bytes."""
    for suffix, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        paths.write(paths.paper() / "figures" / f"{name}.{suffix}", buffer.getvalue())


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


def noisy_photographs(name: str, noises: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """A photograph clean and under noises of the named suite: title -> (H, W, 3) in [0, 1]."""
    clean = photograph(name, height=213)
    images = {"clean": _displayed(clean)}
    for key, level in noises.items():
        generator = noise.generator_for("named", key, level, 0, seed)
        noisy = noise.apply(clean, key, level, generator, suite="named")
        images[f"{noise.noises('named')[key].label}\n{level:g}"] = _displayed(noisy)
    return images


def noise_wall(name: str, columns: int, size: int, seed: int) -> dict[str, list[tuple[str, np.ndarray]]]:
    """A photograph, cut to a square, under every noise of both suites, for `plot_noises`; MNIST's noises are for grey digits."""
    clean = photograph(name, height=size)
    left = (clean.shape[-1] - size) // 2
    clean = clean[..., left : left + size]
    wall = {}
    for suite in ("released", "named"):
        for key, known in noise.noises(suite).items():
            if key.startswith("mnist"):
                continue
            chosen = np.linspace(0, len(known.levels) - 1, columns).round().astype(int)
            wall[f"{_short(known.label)}\n({suite})"] = [
                (
                    f"{level:g}",
                    _displayed(noise.apply(clean, key, level, noise.generator_for(suite, key, level, 0, seed), suite)),
                )
                for level in (known.levels[index] for index in chosen)
            ]
    return wall


def rgb_histograms(images: dict[str, np.ndarray], bins: int = 48) -> Figure:
    """An image and its noisy versions above, the histogram of each colour channel below (claim C1).

    Args:
        images: title -> (H, W, 3) in [0, 1].
    """
    figure, axes = _new(2, len(images), 2.6)
    edges = np.linspace(0, 1, bins + 1)
    tallest = 0
    for column, (title, image) in enumerate(images.items()):
        axes[0, column].imshow(image, interpolation="none")
        axes[0, column].set(title=title, xticks=[], yticks=[])
        sns.despine(ax=axes[0, column], left=True, bottom=True)
        for channel, colour in enumerate(("#D55E00", "#009E73", "#0072B2")):
            density, _ = np.histogram(image[..., channel], edges, density=True)
            axes[1, column].stairs(
                density, edges, color=colour, label="RGB"[channel], linestyle=("-", "--", ":")[channel]
            )
            # black and white pile up at the ends: they are cut off rather than hiding the rest
            tallest = max(tallest, np.quantile(density[1:-1], 0.98))
        axes[1, column].set(xlim=(0, 1), xlabel="pixel value", yticks=[])
    for axis in axes[1]:
        axis.set_ylim(0, 1.25 * tallest)
    axes[1, 0].set_ylabel("density")
    axes[1, 0].legend(frameon=False, handlelength=1.5)
    return figure


def plot_noises(wall: dict[str, list[tuple[str, np.ndarray]]]) -> Figure:
    """A row a noise, rising levels from left to right.

    Args:
        wall: row title -> [(level as text, (H, W, 3) in [0, 1])], as many in every row.
    """
    columns = len(next(iter(wall.values())))
    figure, axes = _new(len(wall), columns, 0.8 * len(wall) + 0.2)
    for row, (title, pictures) in enumerate(wall.items()):
        for column, (level, image) in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(image, interpolation="none")
            axis.set(xticks=[], yticks=[])
            axis.set_title(level, fontsize=7, pad=2)
            sns.despine(ax=axis, left=True, bottom=True)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    return figure


def plot_accuracy(curves: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure:
    """Accuracy against level: a panel a noise, a line an arm, a band for the interval over seeds.

    Args:
        curves: what `localnorm.stats.curves` gives.
        arms: those to draw; None is all, in the order of `ARMS`.
    """
    arms = [arm for arm in ARM_STYLES if arm in set(curves.arm) and (arms is None or arm in arms)]
    panels = list(curves.groupby(["suite", "noise"], sort=False))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _new(rows, columns, 1.7 * rows + 0.4, sharey=True)
    for axis, ((suite, name), panel) in zip(axes.flat, panels, strict=False):
        known = noise.noises(suite)[name]
        for arm in arms:
            colour, marker, line = ARM_STYLES[arm]
            data = panel[panel.arm == arm].sort_values("level")
            above = 2.5 if line != "-" else 2  # arms may coincide: a dashed line over a solid one shows both
            axis.plot(data.level, data.accuracy, color=colour, marker=marker, linestyle=line, label=arm, zorder=above)
            axis.fill_between(data.level, data.low, data.high, color=colour, alpha=0.2, linewidth=0)
        axis.set_title(textwrap.fill(f"{_short(known.label)} ({suite})", 24), fontsize=7)
        axis.set(ylim=(0, 1), xlabel=known.unit)
        axis.xaxis.label.set_fontsize(6.5)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), frameon=False)
    return figure


def _short(label: str) -> str:
    return label.split(" (released")[0]


def plot_summary(summary: pd.DataFrame) -> Figure:
    """Clean and noisy accuracy of every arm, with intervals."""
    figure, axes = _new(1, 2, 0.28 * len(summary) + 0.6, sharey=True)
    for axis, part in zip(axes.flat, ("clean", "noisy"), strict=True):
        for position, row in enumerate(summary.itertuples()):
            colour, marker, _ = ARM_STYLES[row.arm]
            centre, low, high = (getattr(row, name) for name in (part, f"{part}_low", f"{part}_high"))
            axis.plot([low, high], [position] * 2, color=colour)
            axis.plot(centre, position, marker=marker, color=colour)
        axis.set(title=f"{part} images", xlim=(0, 1), xlabel="accuracy")
    axes[0, 0].set_yticks(range(len(summary)), summary.arm)
    axes[0, 0].invert_yaxis()
    return figure
