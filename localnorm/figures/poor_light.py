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

from localnorm import noise, paths
from localnorm.data.archives import IMAGE_SUFFIXES, read, scan
from localnorm.data.augment import standardise
from localnorm.data.dataset import Dataset
from localnorm.data.prepare import to_pixels
from localnorm.evaluate import ARMS, CHOSEN, STORED, predict_arguments, training_batches
from localnorm.figures.style import ARM_STYLES, new_figure
from localnorm.models import load_model
from localnorm.prediction import estimate_statistics, predict
from localnorm.stats import label_arms
from localnorm.tables import read_table

__all__ = ["chosen_strengths", "darken", "folder_images", "plot_poor_light", "top_classes"]

ONE_IMAGE = ("fixed", "single", "vote", "prior", "last_fixed")  # modes in which an image meets no other
STATISTICS_BATCHES = 64  # of training images: enough for a figure of a few images, where the sweep takes all
TOP = 5
PRINTED = 112  # pixels a side at most: 160 an inch, where photographs kept without loss would make a page of a megabyte
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
    return noise.apply(images.float() / 255, "brightness", level, torch.Generator(), suite="named")


def chosen_strengths(experiment: str, seed: int) -> dict[str, dict]:
    """arm -> what the sweep of a network chose for it on validation images, `prior` (n0 in positions) and `fixed_last` (layers).

    Raises:
        FileNotFoundError: the experiment has no sweep yet.
    """
    sweep = label_arms(read_table("sweep", experiment).query("seed == @seed"))
    chosen = sweep[sweep["mode"].isin(CHOSEN)].groupby("arm", observed=True).first()
    # a sweep from before there was a choice of layers has no such column
    layers = chosen.fixed_last if "fixed_last" in chosen else pd.Series(0, chosen.index)
    return {
        arm: {"prior": prior, "fixed_last": int(count)}
        for arm, prior, count in zip(chosen.index, chosen.prior, layers.fillna(0), strict=True)
    }


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
        arms: names of arms in which an image meets no other.
        batch_size: of the training images that give a LocalNorm network its stored statistics.
        strengths: what `chosen_strengths` gives.
        seed: of the networks.

    Returns:
        A row an image, level, arm and rank (0 is the likeliest), with `label`, the class's number, and `probability`.

    Raises:
        ValueError: an arm that is unknown or needs more than one image.
        FileNotFoundError: the experiment has no trained network of the seed.
    """
    keys = {label: key for key, label in ARMS.items() if key[1] in ONE_IMAGE}
    if wrong := [arm for arm in arms if arm not in keys]:
        raise ValueError(f"{', '.join(wrong)} cannot answer for one image alone; choose of {', '.join(keys)}")
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    rows, networks = [], {}
    for arm in arms:
        norm, mode = keys[arm]
        if norm not in networks:
            networks[norm] = load_model(paths.model(experiment, paths.run_name(experiment, norm, seed)))
            if norm != "batch" and any(keys[each][0] == norm and keys[each][1] in STORED for each in arms):
                batches = islice(training_batches(dataset, batch_size), STATISTICS_BATCHES)
                estimate_statistics(networks[norm], batches)
        arguments = predict_arguments(mode, **strengths.get(arm, {}))
        for level in levels:
            standardised = standardise(darken(images, level) * 255, mean, std)
            probabilities = predict(networks[norm], standardised, **arguments).softmax(1)  # (N, num_classes)
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
    """A row an image and level: the image that the networks get, printed with at most 112 pixels a side, then each arm's five likeliest
    classes as bars.

    Args:
        images: uint8 (N, C, H, W).
        names: a title an image.
        answers: what `top_classes` gives.
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


def _draw_bars(axis: Axes, answer: pd.DataFrame, classes: Sequence[str], true: int | None, longest: int) -> None:
    arm = answer.arm.iloc[0]
    for row in answer.itertuples():
        right = true is None or row.label == true
        # pale, so that a name on it is read without an outline, whose paths made half a megabyte of the names of cars
        axis.barh(row.rank, row.probability, color=ARM_STYLES[arm][0] if right else "0.6", height=0.85, alpha=0.4)
        name = re.sub(r"^\d+ (?=\D)", "", classes[row.label])  # some data sets number their classes
        name = name if len(name) <= longest else f"{name[: longest - 1]}…"
        weight = "bold" if row.label == true else "normal"
        text = axis.text(0.02, row.rank, name, va="center", fontsize=5.2, fontweight=weight)
        text.set_in_layout(False)  # or long names would press the bars together
    axis.set(xlim=(0, 1), ylim=(len(answer) - 0.5, -0.5), yticks=[], xticks=[0, 0.5, 1])
    axis.tick_params(labelbottom=False)
