"""Show one test image to two networks, one with BatchNorm and one with LocalNorm, and see what they answer.

`look` asks the networks, `plot_view` draws their answers, and `explorer` adds menus and sliders. Images get their noise as in the stage
`answers`, so what you see here is what is counted there.
"""

import io
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from localnorm import arms, noise, paths
from localnorm.answers import (
    noisy_images,
    predict_arguments,
    test_images,
    training_range_of,
)
from localnorm.data import Dataset, load, prepare
from localnorm.data.augment import standardise
from localnorm.machine import use_cpu
from localnorm.models import load_model
from localnorm.params import load_params
from localnorm.prediction import estimate_statistics, predict
from localnorm.settings import AnswersConfig, TrainConfig
from localnorm.train import fit

__all__ = [
    "Pair",
    "View",
    "available",
    "explorer",
    "first_look",
    "load_pair",
    "look",
    "offered",
    "plot_view",
    "train_pair",
]

TRAINING_IMAGES = 512  # enough for stored statistics to a few percent, and seconds on a CPU
TOP = 5  # classes in a bar chart

PAIR = ("bn", "ln")
USUAL = {"bn": "fixed", "ln": "batch"}  # statistics
STATISTICS = (
    "fixed",
    "batch",
    "single",
    "vote",
    "prior",
    "last_fixed",
)  # companions would need training images as well
START = ("named", "contrast")  # a noise that shows the difference on every data set


@dataclass(frozen=True)
class Pair:
    """A BatchNorm and a LocalNorm network that were trained alike, and the test images to show them.

    Attributes:
        name: experiment and seed, for titles.
        dataset: title, classes, mean and standard deviation.
        networks: "bn" and "ln" -> network.
        config: the experiment's answers block of params.yaml.
        images, labels: (B, C, H, W) uint8 and (B,), the first test batch.
        training_range: smallest and largest pixel of each channel of the training images.
        training_images: (N, C, H, W) uint8, from which a LocalNorm network gets its stored statistics.
    """

    name: str
    dataset: Dataset
    networks: dict[str, torch.nn.Module]
    config: AnswersConfig
    images: Tensor
    labels: Tensor
    training_range: noise.Extrema
    training_images: Tensor
    _seen: dict = field(
        default_factory=dict
    )  # condition, network and statistics -> probabilities: another image costs nothing


@dataclass(frozen=True)
class View:
    """What both networks answer to one image under one noise.

    Attributes:
        title: noise and level.
        clean, noisy: (C, H, W) pixels from 0 to 255. Noisy ones may lie outside, as the network gets them.
        label: the true class.
        classes: the names of all classes.
        probabilities: network -> (num_classes,), for this image.
        statistics: network -> the statistics that it used.
        accuracy: network -> share of the pair's test images that it gets right under the same noise.
        images: the number of those test images.
    """

    title: str
    clean: np.ndarray
    noisy: np.ndarray
    label: int
    classes: tuple[str, ...]
    probabilities: dict[str, np.ndarray]
    statistics: dict[str, str]
    accuracy: dict[str, float]
    images: int


def available(seed: int = 0) -> list[str]:
    """The experiments of params.yaml whose images and trained networks are on this machine."""
    return [
        name
        for name in load_params()["experiments"]
        if (paths.prepared(name) / "dataset.json").is_file() and all(file.is_file() for file in _files(name, seed))
    ]


def _files(experiment: str, seed: int) -> list[Path]:
    runs = [paths.run_name(experiment, network, seed) for network in PAIR]
    return [paths.model(experiment, run) for run in runs]


def load_pair(experiment: str, seed: int = 0) -> Pair:
    """Load the two networks that the pipeline trained. For the digits none need be there: two are trained now, and not kept.

    Raises:
        FileNotFoundError: images or networks of another experiment are missing; names the command that makes them.
    """
    block = load_params(experiment)
    if experiment not in available(seed):
        if block["prepare"]["dataset"] == "digits":
            return train_pair(experiment, seed)
        targets = " ".join(f"train@{experiment}-{network}-{seed}" for network in PAIR)
        raise FileNotFoundError(
            f"no trained pair {experiment} of seed {seed} here (found: {', '.join(available(seed)) or 'none'}); "
            f"make it with `dvc repro {targets}`"
        )
    networks = [load_model(file).eval() for file in _files(experiment, seed)]
    return _pair(experiment, seed, load(paths.prepared(experiment)), *networks)


def train_pair(experiment: str = "digits-small", seed: int = 0) -> Pair:
    """Prepare the images and train two networks by the experiment's block of params.yaml, in memory: seconds for the digits."""
    block = load_params(experiment)
    with tempfile.TemporaryDirectory() as folder:
        dataset = load(prepare(output=Path(folder) / "prepared", **block["prepare"]))
        config = TrainConfig.from_params(block["train"])
        networks = [fit(dataset, config, network, seed).model.eval() for network in PAIR]
        return _pair(experiment, seed, dataset, *networks)


def _pair(experiment: str, seed: int, dataset: Dataset, bn: torch.nn.Module, ln: torch.nn.Module) -> Pair:
    config = AnswersConfig.from_params(load_params(experiment)["answers"])
    use_cpu(config.threads)
    images, labels = test_images(dataset, config)
    return Pair(
        name=f"{experiment}, seed {seed}",
        dataset=dataset,
        networks={"bn": bn, "ln": ln},
        config=config,
        images=images[: config.batch_size],
        labels=labels[: config.batch_size],
        training_range=training_range_of(dataset),
        training_images=dataset.images("train")[:TRAINING_IMAGES].clone(),
    )


# ------------------------------------------------------------------------------------------------------------------- a look


def look(
    pair: Pair,
    image: int = 0,
    suite: str = "named",
    name: str = "gaussian",
    level: float = 0.0,
    statistics: dict[str, str] | None = None,
) -> View:
    """Ask both networks about one test image under one noise.

    Args:
        pair: from `load_pair`.
        image: its number in `pair.images`.
        suite, name, level: of the noise; level 0 is the clean image.
        statistics: "bn" or "ln" -> one of `offered`; "fixed" for BatchNorm and "batch" for LocalNorm where it is left out.

    Raises:
        ValueError: no such image, noise, level, network or statistics; names the valid ones.

    Example:
        >>> view = look(load_pair("digits-small"), 3, "named", "contrast", 0.7)  # doctest: +SKIP
        >>> view.accuracy  # doctest: +SKIP
        {'bn': 0.11, 'ln': 0.97}
    """
    if not 0 <= image < len(pair.images):
        raise ValueError(f"image must be from 0 to {len(pair.images) - 1}, got {image}")
    statistics = USUAL | (statistics or {})
    for network, each in statistics.items():
        arms.find("network", network, pair.networks)
        arms.find("statistics", each, offered(network))
    key = (suite, name, float(level))
    if key not in pair._seen:
        pair._seen[key] = noisy_images(pair.images, pair.dataset, suite, name, level, pair.config, pair.training_range)
    noisy = pair._seen[key]  # (B, C, H, W), standardised
    probabilities = {network: _probabilities(pair, network, each, key, noisy) for network, each in statistics.items()}
    mean, std = (torch.tensor(values)[:, None, None] for values in (pair.dataset.mean, pair.dataset.std))
    about = noise.noises(suite)[name]
    return View(
        title=f"{about.label}, {about.unit} {level:g}",
        clean=pair.images[image].numpy(),
        noisy=(noisy[image] * std + mean).numpy(),
        label=int(pair.labels[image]),
        classes=pair.dataset.classes,
        probabilities={network: each[image].numpy() for network, each in probabilities.items()},
        statistics=statistics,
        accuracy={n: (each.argmax(1) == pair.labels).double().mean().item() for n, each in probabilities.items()},
        images=len(pair.images),
    )


def offered(network: str) -> dict[str, str]:
    """The statistics that a network can use here -> what they are, in words: a BatchNorm network has no groups that could vote."""
    has = {arm.statistics for arm in arms.ARMS.values() if arm.network == network}
    return {key: f"{arms.STATISTICS[key].text} ({arms.STATISTICS[key].label})" for key in STATISTICS if key in has}


def first_look(pair: Pair, suite: str = START[0], name: str = START[1]) -> tuple[int, float]:
    """An image and a level that show what the statistics do.

    The level is the one at which LocalNorm with the statistics of the test batch (LN batch) is farthest ahead of BatchNorm with stored ones
    (BN fixed), and the image is the first there that only LN batch gets right; image 0 where there is none.
    """
    ahead = {}
    for level in noise.levels(name, suite):
        accuracy = look(pair, 0, suite, name, level).accuracy
        ahead[float(level)] = accuracy["ln"] - accuracy["bn"]
    level = max(ahead, key=ahead.get)
    right = {n: pair._seen[n, s, (suite, name, level)].argmax(1) == pair.labels for n, s in USUAL.items()}
    return int((right["ln"] & ~right["bn"]).int().argmax()), level


def _prior(candidates: float | list[float]) -> float:
    """One n0 of an answers block: the middle one, where each network would choose its own by validation images."""
    return sorted(candidates)[len(candidates) // 2] if isinstance(candidates, list) else candidates


def _probabilities(pair: Pair, network: str, statistics: str, key: tuple, noisy: Tensor) -> Tensor:
    """(B, num_classes) of one network under one noise, kept so that it is asked once."""
    if (network, statistics, key) not in pair._seen:
        model = pair.networks[network]
        if network == "ln" and arms.STATISTICS[statistics].stored and "stored" not in pair._seen:
            mean, std = (torch.tensor(values) for values in (pair.dataset.mean, pair.dataset.std))
            # a tail would be a batch with worse statistics than the others
            batches = pair.training_images.split(pair.config.batch_size)
            estimate_statistics(model, [standardise(b, mean, std) for b in batches if len(b) == len(batches[0])])
            pair._seen["stored"] = True
        arguments = predict_arguments(statistics, _prior(pair.config.prior))
        logits = predict(model, noisy, batch_size=pair.config.batch_size, **arguments)
        pair._seen[network, statistics, key] = logits.float().softmax(-1)
    return pair._seen[network, statistics, key]


def plot_view(view: View) -> Figure:
    """Draw a view: the clean and the noisy image, their histograms, and the likeliest classes of both networks as bars."""
    with plt.rc_context({"axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplot_mosaic(
            [["clean", "histogram", "bn"], ["noisy", "histogram", "ln"]],
            figsize=(10, 4.4),
            width_ratios=[1, 1.9, 1.9],
            layout="constrained",
        )
        figure.suptitle(view.title, fontsize=11)
        for name in ("clean", "noisy"):
            pixels = getattr(view, name).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)  # (H, W, C)
            axes[name].imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes[name].set(title=name, xticks=[], yticks=[])
        _draw_histogram(axes["histogram"], view)
        for network in PAIR:
            _draw_bars(axes[network], view, network)
        return figure


def _draw_histogram(axis: Axes, view: View) -> None:
    channels = len(view.clean)
    colours = ("C3", "C2", "C0") if channels == 3 else ("0.2",)
    low, high = min(0.0, float(view.noisy.min())), max(255.0, float(view.noisy.max()))
    bins = np.linspace(low, high, 27)
    for channel, colour in zip(range(channels), colours, strict=True):
        axis.hist(view.clean[channel].ravel(), bins, histtype="step", color=colour, linestyle=":", density=True)
        axis.hist(view.noisy[channel].ravel(), bins, color=colour, alpha=0.35, density=True)
    for image, style in ((view.clean, ":"), (view.noisy, "-")):
        axis.axvline(image.mean(), color="black", linestyle=style)
    axis.set(title="pixels: clean dotted, noisy filled;\nlines at their means", xlabel="pixel value", yticks=[])


def _draw_bars(axis: Axes, view: View, network: str) -> None:
    probabilities = view.probabilities[network]
    order = probabilities.argsort()[::-1][:TOP]
    colour = arms.arm_of(network, USUAL[network]).colour
    bars = axis.barh(range(len(order)), probabilities[order], color=colour, alpha=0.8)
    for bar, index in zip(bars, order, strict=True):
        if index == view.label:
            bar.set_hatch("///")
            bar.set_edgecolor("white")
    names = [f"{view.classes[i]}{' (true)' if i == view.label else ''}" for i in order]
    axis.set_yticks(range(len(order)), [name if len(name) < 30 else f"{name[:27]}..." for name in names])
    axis.invert_yaxis()
    verdict = "right" if order[0] == view.label else "wrong"
    title = f"{_layer(network)}, {arms.STATISTICS[view.statistics[network]].label}: {verdict}"
    axis.set(xlim=(0, 1), title=f"{title}; {view.accuracy[network]:.0%} of {view.images} images")


# ------------------------------------------------------------------------------------------------------------------ sliders


def explorer(experiment: str = "digits-small", seed: int = 0) -> widgets.Widget:
    """Menus and sliders for experiment, image, noise, level and the statistics of each network; they begin at `first_look`.

    Returns:
        A widget. Its `.picture` holds the drawn PNG and its `.controls` the controls by name, for tests and scripts.
    """
    names = list(dict.fromkeys([experiment, *available(seed)]))
    pairs = {experiment: load_pair(experiment, seed)}
    image, level = first_look(pairs[experiment])
    choices = [
        (f"{suite}: {about.label.split(' (released')[0]}", (suite, name))
        for suite in ("named", "released")
        for name, about in noise.noises(suite).items()
        if not name.startswith("mnist")
    ]
    wide = {"style": {"description_width": "9em"}, "layout": {"width": "35em"}}
    controls = {
        "experiment": widgets.Dropdown(options=names, value=experiment, description="experiment", **wide),
        "image": widgets.IntSlider(image, max=len(pairs[experiment].images) - 1, description="image", **wide),
        "noise": widgets.Dropdown(options=choices, value=START, description="noise", **wide),
        "level": widgets.SelectionSlider(options=_levels(START), value=level, description="level", **wide),
    }
    for network in PAIR:
        menu = [(text, key) for key, text in offered(network).items()]
        controls[network] = widgets.Dropdown(
            options=menu, value=USUAL[network], description=f"{_layer(network)} uses", **wide
        )
    controls["image"].continuous_update = controls["level"].continuous_update = (
        False  # a drag is one question, not fifty
    )
    picture = widgets.Image(format="png")
    message = widgets.HTML()

    def show(_=None) -> None:
        given = {name: control.value for name, control in controls.items()}
        try:
            if given["experiment"] not in pairs:
                message.value = "loading ..."
                pairs[given["experiment"]] = load_pair(given["experiment"], seed)
            pair = pairs[given["experiment"]]
            controls["image"].max = len(pair.images) - 1
            picture.value = _png(
                look(
                    pair,
                    min(given["image"], len(pair.images) - 1),
                    *given["noise"],
                    given["level"],
                    {network: given[network] for network in PAIR},
                )
            )
            message.value = ""
        except (ValueError, FileNotFoundError) as error:
            message.value = f"<pre>{error}</pre>"

    def change_noise(change) -> None:
        controls["level"].unobserve(show, "value")
        share = controls["level"].index / max(1, len(controls["level"].options) - 1)
        levels = _levels(change["new"])
        controls["level"].options = levels  # sets the value to the first
        controls["level"].index = math.floor(share * (len(levels) - 1))  # as far along the new scale as on the old
        controls["level"].observe(show, "value")
        show()

    for name, control in controls.items():
        control.observe(change_noise if name == "noise" else show, "value")
    show()
    box = widgets.VBox(
        [
            widgets.HBox([widgets.VBox(list(controls.values())[:3]), widgets.VBox(list(controls.values())[3:])]),
            message,
            picture,
        ]
    )
    box.controls, box.picture = controls, picture
    return box


def _layer(network: str) -> str:
    return arms.LAYERS[arms.NETWORKS[network].layer]


def _levels(choice: tuple[str, str]) -> list[tuple[str, float]]:
    suite, name = choice
    return [(f"{level:g}", float(level)) for level in noise.levels(name, suite)]


def _png(view: View) -> bytes:
    figure = plot_view(view)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)  # a slider would otherwise leave a hundred of them open
    return buffer.getvalue()
