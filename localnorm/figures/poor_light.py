"""One poorly lit image at a time: what each network answers, with its five likeliest classes (claim C6)."""

import re
import textwrap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from localnorm import paths
from localnorm.answers import predict_arguments, training_batches
from localnorm.arms import ARMS, NETWORKS, STATISTICS, in_order
from localnorm.data.archives import read, scan
from localnorm.data.augment import standardise
from localnorm.data.dataset import Dataset
from localnorm.data.images import IMAGE_SUFFIXES, to_pixels
from localnorm.figures.style import new_figure
from localnorm.models import load_model
from localnorm.noise import draw
from localnorm.prediction import Predictor, estimate_statistics
from localnorm.strengths import choose_strengths
from localnorm.tables import read_table
from localnorm.words import describe

__all__ = ["caption", "chosen_strengths", "darken", "folder_images", "plot_poor_light", "top_classes"]

ALONE = [
    label for label, arm in ARMS.items() if STATISTICS[arm.statistics].one_image and arm.statistics != "companions"
]
STATISTICS_BATCHES = 64  # of training images: enough for a figure of a few images, where the answers take all
TOP = 5
PRINTED = (
    112  # pixels per side at most: 160 per inch, where photographs kept without loss would make a page of a megabyte
)
LETTERS = 105  # of class names across the page


def folder_images(folder: str | Path, dataset: Dataset) -> tuple[list[str], Tensor]:
    """A user's own photographs, made like the images of a data set.

    Args:
        folder: or an archive; every image in it is taken, in the order of names.
        dataset: the data set that the networks were trained on.

    Returns:
        The files' names and uint8 (N, C, H, W).

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    folder = Path(folder).expanduser()
    entries = scan(folder) if folder.exists() else []
    entries = [entry for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)]
    if not entries:
        raise ValueError(f"no images in {str(folder)!r}; give a folder with files in {', '.join(IMAGE_SUFFIXES)}")
    channels, side, _ = dataset.shape
    pixels = {e.name: torch.tensor(to_pixels(data, e.name, side, channels)) for e, data in read(entries)}
    names = sorted(pixels)
    return names, torch.stack([pixels[name] for name in names])


def darken(images: Tensor, level: float) -> Tensor:
    """Images with the share `level` of their light taken away: uint8 (N, C, H, W) -> float32 in [0, 1]."""
    return draw.apply(images.float() / 255, "brightness", level, torch.Generator(), suite="named")


def chosen_strengths(experiment: str, arms: Sequence[str], seed: int) -> dict[str, dict]:
    """The strengths that each network chose on validation images: arm -> `prior` (n0 in positions) and `fixed_last` (layers).

    Args:
        experiment: its strengths are read.
        arms: labels; those without a strength are left out.
        seed: of the networks.

    Raises:
        FileNotFoundError: the experiment has no strengths yet.
    """
    table = read_table("strengths", experiment)
    chosen = {}
    for label in in_order(arms):
        arm = ARMS[label]
        if STATISTICS[arm.statistics].chosen:
            of_network = table[(table.network == arm.network) & (table.seed == seed)]
            chosen[label] = choose_strengths(of_network)[arm.statistics]
    return chosen


def top_classes(
    experiment: str,
    dataset: Dataset,
    images: Tensor,
    levels: Sequence[float],
    arms: Sequence[str],
    batch_size: int,
    strengths: dict[str, dict],
    seed: int,
) -> pd.DataFrame:
    """What the networks of one seed answer to each image alone.

    Args:
        experiment: its trained networks are asked.
        dataset: what they were trained on.
        images: uint8 (N, C, H, W).
        levels: shares of the light taken away.
        arms: labels of arms in which an image meets no other.
        batch_size: of the training images that give a LocalNorm network its stored statistics.
        strengths: from `chosen_strengths`.
        seed: of the networks.

    Returns:
        One row per image, level, arm and rank (0 is the likeliest), with `label`, the class's number, and `probability`.

    Raises:
        ValueError: an arm that is unknown or needs more than one image.
        FileNotFoundError: the experiment has no trained network of the seed.
    """
    if wrong := [arm for arm in arms if arm not in ALONE]:
        raise ValueError(f"{', '.join(wrong)} cannot answer for one image alone; choose of {', '.join(ALONE)}")
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    rows, models = [], {}
    for arm in arms:
        network, statistics = ARMS[arm].network, ARMS[arm].statistics
        if network not in models:
            models[network] = load_model(paths.model(experiment, paths.run_name(experiment, network, seed)))
            asked = [ARMS[each].statistics for each in arms if ARMS[each].network == network]
            if NETWORKS[network].has_groups and any(STATISTICS[each].stored for each in asked):
                batches = islice(training_batches(dataset, batch_size), STATISTICS_BATCHES)
                estimate_statistics(models[network], batches)
        ask = Predictor(models[network], **predict_arguments(statistics, **strengths.get(arm, {})))
        for level in levels:
            standardised = standardise(darken(images, level) * 255, mean, std)
            probabilities = ask(standardised).softmax(1)  # (N, num_classes)
            best = probabilities.topk(min(TOP, dataset.num_classes), dim=1)
            rows += [
                {"image": image, "level": level, "arm": arm, "rank": rank, "label": label, "probability": probability}
                for image, answer in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
                for rank, (label, probability) in enumerate(zip(*answer, strict=True))
            ]
    return pd.DataFrame(rows)


def plot_poor_light(
    images: Tensor,
    names: Sequence[str],
    answers: pd.DataFrame,
    classes: Sequence[str],
    labels: Sequence[int] | None = None,
) -> Figure:
    """One row per image and level: the image that the networks get, printed with at most 112 pixels per side, then the five likeliest
    classes of each arm as bars.

    Args:
        images: uint8 (N, C, H, W).
        names: one title per image.
        answers: from `top_classes`.
        classes: their names in label order.
        labels: (N,) the true classes, whose bars are coloured; None where nobody knows them.
    """
    arms, levels = list(dict.fromkeys(answers.arm)), list(dict.fromkeys(answers.level))
    figure, axes = new_figure(
        len(images) * len(levels),
        1 + len(arms),
        0.82 * len(images) * len(levels) + 0.3,
        gridspec_kw={"width_ratios": [0.8, *[1.2] * len(arms)]},
    )
    for number, ((image, level), answer) in enumerate(answers.groupby(["image", "level"], sort=True)):
        row = axes[number]
        shown = darken(images[image : image + 1], level)  # (1, C, H, W)
        if shown.shape[-1] > PRINTED:
            shown = torch.nn.functional.interpolate(shown, PRINTED, mode="bilinear", antialias=True)
        row[0].imshow(shown[0].movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="none")
        row[0].set(xticks=[], yticks=[])
        name = textwrap.fill(names[image], 14, break_long_words=True)
        row[0].set_ylabel(f"{name}\n{100 * (1 - level):.0f} % light", rotation=0, ha="right", va="center", fontsize=6)
        for axis, arm in zip(row[1:], arms, strict=True):
            true = None if labels is None else int(labels[image])
            _draw_bars(axis, answer[answer.arm == arm], classes, true, longest=min(30, LETTERS // len(arms)))
            if number == 0:
                axis.set_title(arm)
    for axis in axes[-1, 1:]:
        axis.set_xlabel("probability")
        axis.tick_params(labelbottom=True)
    return figure


def caption(count: int, strengths: dict[str, dict], seed: int, about: dict, own: bool = False) -> str:
    """The caption of `plot_poor_light`.

    Args:
        count: of the images.
        strengths: from `chosen_strengths`.
        seed: of the networks.
        about: from `localnorm.tables.read_about`.
        own: the images are photographs of the user's own.
    """
    which = "photographs of the user's own" if own else f"the first {count} of the test images, true class coloured"
    n0 = ", ".join(f"{arm} {chosen['prior']:g}" for arm, chosen in strengths.items())
    return (
        f"Single images under poor light (claim C6) and the five likeliest classes of each arm: {which}. Networks of "
        f"seed {seed}, each image alone{f'; n0 in positions: {n0}' if n0 else ''}. {describe(about)}."
    )


def _draw_bars(axis: Axes, answer: pd.DataFrame, classes: Sequence[str], true: int | None, longest: int) -> None:
    arm = answer.arm.iloc[0]
    for row in answer.itertuples():
        right = true is None or row.label == true
        # pale, so that a name on it is read without an outline, whose paths made half a megabyte of the names of cars
        axis.barh(row.rank, row.probability, color=ARMS[arm].colour if right else "0.6", height=0.85, alpha=0.4)
        name = re.sub(r"^\d+ (?=\D)", "", classes[row.label])  # some data sets number their classes
        name = name if len(name) <= longest else f"{name[: longest - 1]}…"
        weight = "bold" if row.label == true else "normal"
        text = axis.text(0.02, row.rank, name, va="center", fontsize=5.2, fontweight=weight)
        text.set_in_layout(False)  # or long names would press the bars together
    axis.set(xlim=(0, 1), ylim=(len(answer) - 0.5, -0.5), yticks=[], xticks=[0, 0.5, 1])
    axis.tick_params(labelbottom=False)
