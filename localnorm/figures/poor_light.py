"""One poorly lit image at a time: what each network answers, with its likeliest classes (claim C6)."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch import Tensor

from localnorm.arms import ARMS, STATISTICS, in_order
from localnorm.data.augment import standardise
from localnorm.figures.style import LEGIBLE, new_figure
from localnorm.noise import draw, levels
from localnorm.params import grid
from localnorm.prediction import Predictor
from localnorm.strengths import choose_strengths
from localnorm.tables import read_table
from localnorm.trained import Shown, Trained, class_title, load_published_networks, load_trained, published_pairs
from localnorm.words import describe, enumerate_words

__all__ = [
    "Choice",
    "caption",
    "choose",
    "chosen_strengths",
    "darken",
    "find_trained",
    "plot_poor_light",
    "top_classes",
]

ALONE = [
    label for label, arm in ARMS.items() if STATISTICS[arm.statistics].one_image and arm.statistics != "companions"
]
WITHOUT_BN = 0.8  # share of the light taken away where no BatchNorm network can fail
FIRST = 64  # test images among which those that are shown are looked for
TOP = 3
UNSEEN = 0.05  # a bar of less probability is hardly seen
PRINTED = (
    112  # pixels per side at most: 160 per inch, where photographs kept without loss would make a page of a megabyte
)
NAMES = 338  # points: what the names of the classes have across the page


# -------------------------------------------------------------------------------------------------- which networks and images


def find_trained(experiment: str, arms: Sequence[str], seed: int | None = None) -> Trained:
    """The networks that these arms need: those that come with the repository, or those that the pipeline trained here.

    Args:
        experiment: its name; empty for the first published pair, or for the digits where none is published.
        arms: labels; `Trained.can` says which of them the networks can be asked under.
        seed: of networks that were trained here; None takes the published ones where there are some, else seed 0.

    Raises:
        FileNotFoundError: nothing is published, and no network of the seed, or no strength that it chose, is on this machine.
    """
    pairs = published_pairs() if seed is None else []
    experiment = experiment or (pairs or ["digits-small"])[0]
    if experiment in pairs:
        return load_published_networks(experiment)
    networks = [network for network in grid(experiment)[0] if network in {"bn", *(ARMS[arm].network for arm in arms)}]
    of_networks = [arm for arm in arms if ARMS[arm].network in networks]
    return load_trained(experiment, chosen_strengths(experiment, of_networks, seed or 0), networks, seed or 0)


def chosen_strengths(experiment: str, arms: Sequence[str], seed: int) -> dict[str, dict]:
    """The strengths that each network chose on validation images: arm -> `prior` (n0 in positions) and `fixed_last` (layers).

    Args:
        experiment: its strengths are read.
        arms: labels; those whose network chose none are left out.
        seed: of the networks.

    Raises:
        FileNotFoundError: the experiment has no strengths yet.
    """
    table = read_table("strengths", experiment)
    strengths = {}
    for label in in_order(arms):
        arm = ARMS[label]
        chosen = choose_strengths(table[(table.network == arm.network) & (table.seed == seed)])
        if arm.statistics in chosen:
            strengths[label] = chosen[arm.statistics]
    return strengths


@dataclass(frozen=True)
class Choice:
    """What a figure shows, and by which rule.

    Attributes:
        level: share of the light taken away.
        images: their numbers among those that were offered.
        words: the rule and what it found, for a caption.
    """

    level: float
    images: list[int]
    words: str


def choose(trained: Trained, shown: Shown, count: int) -> Choice:
    """Choose the light in which BN fixed fails, and the first images that show it.

    Of the first FIRST test images, those count that BN fixed answers rightly in full light. The level is the smallest of the noise
    "brightness" at which it loses at least half of them, and the images are the first `count` that it loses there. No other arm has a
    part in the choice. Nobody knows the class of photographs: the answer in full light counts as the right one, and the first `count`
    are shown, lost or not.

    Args:
        trained: the networks. Where none of them is BatchNorm, the first images are shown at a fixed level.
        shown: the images that are offered.
        count: so many at most are chosen.
    """
    first = shown.take(slice(FIRST))
    everything = list(range(len(first.images)))[:count]
    if "bn" not in trained.models:
        return Choice(
            WITHOUT_BN,
            everything,
            f"the first {len(everything)} in full light and at {100 * (1 - WITHOUT_BN):.0f} % of the light",
        )
    ask = Predictor(trained.models["bn"], mode="fixed", batch_size=first.config.batch_size)
    in_full_light = ask(_darkened(trained, first.images, 0.0)).argmax(1)
    expected = in_full_light if first.labels is None else first.labels
    known = in_full_light == expected
    for level in levels("brightness", "named")[1:]:
        lost = known & (ask(_darkened(trained, first.images, level)).argmax(1) != expected)
        if failed := bool(known.any()) and int(2 * lost.sum()) >= int(known.sum()):
            break
    light = f"{100 * (1 - level):.0f} % of the light"
    least = f"{100 * (1 - level):.0f} % is the least light that was tried"
    brightest = f"{100 * (1 - level):.0f} % is the brightest light at which BN fixed"
    if first.labels is None:
        rule = f"{brightest} gives another answer to at least half of them" if failed else least
        return Choice(level, everything, f"photographs in full light and at {light}. {rule}")
    images = lost.nonzero().flatten().tolist()[:count]
    if not images:
        return Choice(
            level, everything, f"the first {len(everything)} test images in full light and at {light}. {least}"
        )
    rule = f"{brightest} loses at least half of the {int(known.sum())} images (of the first {len(known)}) that it knows"
    words = f"the first {len(images)} test images that BN fixed recognises in full light and not at {light}. {rule if failed else least}"
    return Choice(level, images, words)


# ---------------------------------------------------------------------------------------------------------------- the answers


def darken(images: Tensor, level: float) -> Tensor:
    """Images with the share `level` of their light taken away: uint8 (N, C, H, W) -> float32 in [0, 1]."""
    return draw.apply(images.float() / 255, "brightness", level, torch.Generator(), suite="named")


def _darkened(trained: Trained, images: Tensor, level: float) -> Tensor:
    """As the networks get them: (N, C, H, W), standardised."""
    return standardise(darken(images, level) * 255, torch.tensor(trained.mean), torch.tensor(trained.std))


def top_classes(trained: Trained, images: Tensor, levels: Sequence[float], arms: Sequence[str]) -> pd.DataFrame:
    """What networks answer to each image alone.

    Args:
        trained: the networks.
        images: uint8 (N, C, H, W).
        levels: shares of the light taken away.
        arms: labels of arms in which an image meets no other.

    Returns:
        One row per image, level, arm and rank (0 is the likeliest), with `label`, the class's number, and `probability`.

    Raises:
        ValueError: an arm that is unknown or needs more than one image.
    """
    if wrong := [arm for arm in arms if arm not in ALONE]:
        raise ValueError(f"{', '.join(wrong)} cannot answer for one image alone; choose of {', '.join(ALONE)}")
    rows = []
    for arm in arms:
        ask = Predictor(trained.models[ARMS[arm].network], **trained.arguments(arm))
        for level in levels:
            probabilities = ask(_darkened(trained, images, level)).softmax(1)  # (N, num_classes)
            best = probabilities.topk(min(TOP, len(trained.classes)), dim=1)
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
    """One row per image and level: the image that the networks get, printed with at most 112 pixels per side, then the likeliest
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
        0.68 * len(images) * len(levels) + 0.4,
        gridspec_kw={"width_ratios": [0.62, *[6 / len(arms)] * len(arms)]},
    )
    for number, ((image, level), answer) in enumerate(answers.groupby(["image", "level"], sort=True)):
        row = axes[number]
        shown = darken(images[image : image + 1], level)  # (1, C, H, W)
        if shown.shape[-1] > PRINTED:
            shown = torch.nn.functional.interpolate(shown, PRINTED, mode="bilinear", antialias=True)
        row[0].imshow(shown[0].movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="none")
        row[0].set(xticks=[], yticks=[])
        name = textwrap.fill(names[image], 10, break_long_words=True)
        row[0].set_ylabel(
            f"{name}\n{100 * (1 - level):.0f} % light", rotation=0, ha="right", va="center", fontsize=LEGIBLE
        )
        for axis, arm in zip(row[1:], arms, strict=True):
            true = None if labels is None else int(labels[image])
            _draw_bars(axis, answer[answer.arm == arm], classes, true, room=NAMES / len(arms))
            if number == 0:
                axis.set_title(arm)
    for axis in axes[-1, 1:]:
        axis.set_xlabel("probability")
        axis.tick_params(labelbottom=True)
    return figure


def caption(shown: str, trained: Trained, answers: pd.DataFrame, known: bool = True, about: dict | None = None) -> str:
    """The caption of `plot_poor_light`.

    Args:
        shown: which images, and how they were chosen: the words of a `Choice`.
        trained: the networks.
        answers: from `top_classes`.
        known: whether somebody knows the true classes.
        about: of the experiment, from `localnorm.tables.read_about`; None for published networks, which say it themselves.
    """
    arms = list(dict.fromkeys(answers.arm))
    n0 = ", ".join(f"{arm} {trained.strengths[arm]['prior']:g}" for arm in arms if arm in trained.strengths)
    highest = answers.groupby("arm", sort=False).probability.max()
    short = [f"{arm} ({100 * highest[arm]:.0f} % at most)" for arm in arms if highest[arm] < UNSEEN]
    return (
        f"Single images under poor light (claim C6) and the {answers['rank'].nunique()} likeliest classes of each arm, each image alone: "
        f"{shown}. {'The true class is bold, its bar in colour. ' if known else ''}"
        f"{f'Bars too short to be seen: {enumerate_words(short)}. ' if short else ''}"
        "Light is a factor on all pixels: a dark image that prints black is the one above it, dimmed. "
        f"Asked are {trained.origin}{f'; n0 in positions: {n0}' if n0 else ''}."
        + (f" {describe(about)}." if about else "")
    )


def _draw_bars(axis: Axes, answer: pd.DataFrame, classes: Sequence[str], true: int | None, room: float) -> None:
    arm = answer.arm.iloc[0]
    for row in answer.itertuples():
        right = true is None or row.label == true
        # pale, so that a name on it is read without an outline, whose paths made half a megabyte of the names of cars
        axis.barh(row.rank, row.probability, color=ARMS[arm].colour if right else "0.6", height=0.85, alpha=0.4)
        name = class_title(classes[row.label])
        weight = "bold" if row.label == true else "normal"
        font = FontProperties(size=LEGIBLE, weight=weight)
        letters = len(name)
        while letters > 1 and TextPath((0, 0), name, prop=font).get_extents().width > room:
            letters -= 1
            name = f"{name[:letters].rstrip()}…"
        text = axis.text(0.02, row.rank, name, va="center", fontproperties=font)
        text.set_in_layout(False)  # or long names would press the bars together
    axis.set(xlim=(0, 1), ylim=(len(answer) - 0.5, -0.5), yticks=[], xticks=[0, 0.5, 1])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(labelbottom=False)
