"""Show one image to two networks, one with BatchNorm and one with LocalNorm, and see what they answer.

`load_pair` finds networks and images, `look` asks, `plot_view` draws the answers, and `Explorer` adds menus and sliders. Images get
their noise as in the stage `answers`, so what you see here is what is counted there.
"""

import contextlib
import html
import io
import math
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from localnorm import arms, noise, paths
from localnorm.answers import noisy_images, training_range_of
from localnorm.data import load, prepare
from localnorm.machine import use_cpu
from localnorm.params import load_params
from localnorm.prediction import predict
from localnorm.settings import TrainConfig
from localnorm.train import fit
from localnorm.trained import (
    PAIR,
    Shown,
    Trained,
    class_title,
    load_published_networks,
    load_trained,
    published_pairs,
    show,
    with_statistics,
)

__all__ = ["Explorer", "Pair", "View", "available", "first_look", "load_pair", "look", "offered", "plot_view"]

TOP = 5  # classes in a bar chart
DIGITS = "digits-small"  # trained on the spot where nothing else is there
START = ("named", "contrast")  # a noise that shows the difference on every data set
# companions would need training images as well
STATISTICS = ("fixed", "batch", "single", "vote", "prior", "last_fixed")


@dataclass(frozen=True)
class Pair:
    """A BatchNorm and a LocalNorm network that were trained alike, and the images to show them.

    Attributes:
        trained: the networks.
        shown: the images: a test batch, or photographs, each of which is asked about alone.
        training_range: smallest and largest pixel of each channel of the training images.
    """

    trained: Trained
    shown: Shown
    training_range: noise.Extrema
    _seen: dict = field(
        default_factory=dict
    )  # condition, network and statistics -> probabilities: another image costs nothing

    @property
    def usual(self) -> dict[str, str]:
        """The statistics that each network uses if nobody chooses: BatchNorm those of training, LocalNorm those of the test images."""
        return {"bn": "fixed", "ln": "prior" if self.shown.labels is None else "batch"}


@dataclass(frozen=True)
class View:
    """What both networks answer to one image under one noise.

    Attributes:
        title: image, noise and level.
        clean, noisy: (C, H, W) pixels from 0 to 255. Noisy ones may lie outside, as the network gets them.
        known: whether the true class is known.
        expected: network -> the true class, or where nobody knows it, the network's own answer to the clean image.
        classes: the names of all classes.
        probabilities: network -> (num_classes,), for this image.
        statistics: network -> the statistics that it used.
        accuracy: network -> share of the pair's images to which it gives the expected answer under the same noise.
        images: the number of those images.
    """

    title: str
    clean: np.ndarray
    noisy: np.ndarray
    known: bool
    expected: dict[str, int]
    classes: tuple[str, ...]
    probabilities: dict[str, np.ndarray]
    statistics: dict[str, str]
    accuracy: dict[str, float]
    images: int


# ---------------------------------------------------------------------------------------------------------------- networks


def available(seed: int | None = None) -> list[str]:
    """The experiments whose networks are on this machine: first those that come with the repository, then those trained here.

    Args:
        seed: only pairs that the pipeline trained with this seed; None is all published ones, and of the others seed 0.
    """
    published = published_pairs() if seed is None else []
    here = [
        name
        for name in load_params()["experiments"]
        if (paths.prepared(name) / "dataset.json").is_file() and all(file.is_file() for file in _files(name, seed or 0))
    ]
    return list(dict.fromkeys(published + here))


def _files(experiment: str, seed: int) -> list[Path]:
    runs = [paths.run_name(experiment, network, seed) for network in PAIR]
    return [paths.model(experiment, run) for run in runs]


def load_pair(experiment: str = "", seed: int | None = None, folder: str = "") -> Pair:
    """Load two trained networks, and images to show them.

    For the digits no networks need be there: two are trained now, in seconds, and not kept.

    Args:
        experiment: one of `available()`; empty for the first of them, or for the digits where there is none.
        seed: of networks that the pipeline trained here; None takes the published ones where there are some, else seed 0.
        folder: photographs to show instead of test images, see `localnorm.trained.show`.

    Raises:
        FileNotFoundError: there are no networks of another experiment than the digits; names the command that makes them.
        ValueError: there is no image in the folder.
    """
    experiment = experiment or (available(seed) or [DIGITS])[0]
    if seed is None and experiment in published_pairs():
        return _pair(load_published_networks(experiment), folder)
    seed, block = seed or 0, load_params(experiment)
    if experiment in available(seed):
        return _pair(load_trained(experiment, _strengths(block), seed=seed), folder)
    if block["prepare"]["dataset"] == "digits":
        return _train_pair(experiment, seed, folder)
    targets = " ".join(f"train@{experiment}-{network}-{seed}" for network in PAIR)
    raise FileNotFoundError(
        f"no trained pair {experiment} of seed {seed} here (found: {', '.join(available(seed)) or 'none'}); "
        f"make it with `dvc repro {targets}`"
    )


def _train_pair(experiment: str, seed: int, folder: str) -> Pair:
    """Prepare the images and train two networks by the experiment's block of params.yaml, in memory."""
    block = load_params(experiment)
    with tempfile.TemporaryDirectory() as images:
        dataset = load(prepare(output=Path(images) / "prepared", **block["prepare"]))
        config = TrainConfig.from_params(block["train"])
        models = {network: fit(dataset, config, network, seed).model for network in PAIR}
        return _pair(with_statistics(experiment, dataset, models, _strengths(block), seed), folder)


def _strengths(block: dict) -> dict[str, dict]:
    """One n0 for all: the middle candidate of the answers block, where the stage `answers` lets each network choose its own."""
    candidates = block["answers"].get("prior", 512)
    prior = sorted(candidates)[len(candidates) // 2] if isinstance(candidates, list) else candidates
    chosen = [label for label, arm in arms.ARMS.items() if arms.STATISTICS[arm.statistics].chosen]
    return {label: {"prior": prior, "fixed_last": 1} for label in chosen}


def _pair(trained: Trained, folder: str) -> Pair:
    shown = show(trained, folder)
    use_cpu(shown.config.threads)
    channels = trained.shape[0]
    full = noise.Extrema(torch.zeros(channels), torch.full((channels,), 255.0))  # photographs have black and white
    return Pair(
        trained=trained,
        shown=shown if shown.labels is None else shown.take(slice(shown.config.batch_size)),
        training_range=training_range_of(trained.dataset) if trained.dataset else full,
    )


# ------------------------------------------------------------------------------------------------------------------ a look


def look(
    pair: Pair,
    image: int = 0,
    suite: str = "named",
    name: str = "gaussian",
    level: float = 0.0,
    statistics: dict[str, str] | None = None,
) -> View:
    """Ask both networks about one image under one noise.

    Args:
        pair: from `load_pair`.
        image: its number in `pair.shown`.
        suite, name, level: of the noise; level 0 is the clean image.
        statistics: "bn" or "ln" -> one of `offered`; where it is left out, `pair.usual`.

    Raises:
        ValueError: no such image, noise, level, network or statistics; names the valid ones.

    Example:
        >>> view = look(load_pair("digits-small"), 3, "named", "contrast", 0.7)  # doctest: +SKIP
        >>> view.accuracy  # doctest: +SKIP
        {'bn': 0.11, 'ln': 0.97}
    """
    trained, shown = pair.trained, pair.shown
    if not 0 <= image < len(shown.images):
        raise ValueError(f"image must be from 0 to {len(shown.images) - 1}, got {image}")
    statistics = pair.usual | (statistics or {})
    for network, each in statistics.items():
        arms.find("network", network, trained.models)
        arms.find("statistics", each, offered(pair, network))
    noise.levels(name, suite)  # before the clean image is shown under a noise that there is not
    about = noise.noises(suite)[name]
    condition = (suite, name, float(level)) if level else arms.CLEAN
    answers = {network: _answers(pair, network, each, condition) for network, each in statistics.items()}
    expected = {network: _expected(pair, network, each) for network, each in statistics.items()}
    mean, std = (torch.tensor(values)[:, None, None] for values in (trained.mean, trained.std))
    return View(
        title=f"{shown.names[image]}: " + (f"{about.label}, {about.unit} {level:g}" if level else "clean"),
        clean=shown.images[image].numpy(),
        noisy=(_noisy(pair, condition)[image] * std + mean).numpy(),
        known=shown.labels is not None,
        expected={network: int(each[image]) for network, each in expected.items()},
        classes=trained.classes,
        probabilities={network: each[image].numpy() for network, each in answers.items()},
        statistics=statistics,
        accuracy={n: (each.argmax(1) == expected[n]).double().mean().item() for n, each in answers.items()},
        images=len(shown.images),
    )


def offered(pair: Pair, network: str) -> dict[str, str]:
    """The statistics that a network can use here -> what they are, in words.

    A BatchNorm network has no groups that could vote, and photographs that come alone are no test batch.
    """
    labels = {arm.statistics: label for label, arm in arms.ARMS.items() if arm.network == network}
    return {
        key: f"{arms.STATISTICS[key].text} ({arms.STATISTICS[key].label})"
        for key in STATISTICS
        if key in labels
        and pair.trained.can(labels[key])
        and (pair.shown.labels is not None or arms.STATISTICS[key].one_image)
    }


def first_look(pair: Pair, suite: str = START[0], name: str = START[1]) -> tuple[int, float]:
    """An image and a level that show what the statistics do.

    The level is the one at which LocalNorm with the statistics of the test images is farthest ahead of BatchNorm with stored ones, both
    as in `pair.usual`, and the image is the first there to which only LocalNorm gives the expected answer. Where LocalNorm is ahead at
    no level, it is image 0 at the middle one.
    """
    levels = [float(level) for level in noise.levels(name, suite)]
    kept = {level: {n: _kept(pair, n, (suite, name, level)) for n in PAIR} for level in levels}
    ahead = {level: (each["ln"].double() - each["bn"].double()).mean().item() for level, each in kept.items()}
    level = max(ahead, key=ahead.get)
    if ahead[level] <= 0:
        return 0, levels[len(levels) // 2]
    return int((kept[level]["ln"] & ~kept[level]["bn"]).int().argmax()), level


def _kept(pair: Pair, network: str, condition: arms.Condition) -> Tensor:
    """(N,) whether a network as usual gives the expected answer to each image."""
    statistics = pair.usual[network]
    return _answers(pair, network, statistics, condition).argmax(1) == _expected(pair, network, statistics)


def _expected(pair: Pair, network: str, statistics: str) -> Tensor:
    """(N,) the true classes, or the network's own answers to the clean images."""
    if pair.shown.labels is not None:
        return pair.shown.labels
    return _answers(pair, network, statistics, arms.CLEAN).argmax(1)


def _noisy(pair: Pair, condition: arms.Condition) -> Tensor:
    """(N, C, H, W), standardised."""
    if condition not in pair._seen:
        shown = pair.shown
        pair._seen[condition] = noisy_images(shown.images, pair.trained, *condition, shown.config, pair.training_range)
    return pair._seen[condition]


def _answers(pair: Pair, network: str, statistics: str, condition: arms.Condition) -> Tensor:
    """(N, num_classes) of one network under one noise, kept so that it is asked once."""
    key = (network, statistics, condition)
    if key not in pair._seen:
        arguments = pair.trained.arguments(arms.arm_of(network, statistics).label)
        batch_size = pair.shown.config.batch_size
        logits = predict(pair.trained.models[network], _noisy(pair, condition), batch_size=batch_size, **arguments)
        pair._seen[key] = logits.float().softmax(-1)
    return pair._seen[key]


def plot_view(view: View) -> Figure:
    """Draw a view: the clean and the noisy image, their histograms, and the likeliest classes of both networks as bars."""
    # no rc_context: the first figure of a notebook makes matplotlib interactive, and leaving the context would take that back
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
    for axis in axes.values():
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
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
    probabilities, expected = view.probabilities[network], view.expected[network]
    order = probabilities.argsort()[::-1][:TOP]
    colour = arms.arm_of(network, view.statistics[network]).colour
    bars = axis.barh(range(len(order)), probabilities[order], color=colour, alpha=0.8)
    for bar, index in zip(bars, order, strict=True):
        if index == expected:
            bar.set_hatch("///")
            bar.set_edgecolor("white")
    mark = " (true)" if view.known else " (clean)"
    names = [textwrap.shorten(class_title(view.classes[i]), 30, placeholder=" ...") for i in order]
    names = [f"{name}{mark if i == expected else ''}" for i, name in zip(order, names, strict=True)]
    axis.set_yticks(range(len(order)), names)
    axis.invert_yaxis()
    words = ("right", "wrong") if view.known else ("as clean", "not as clean")
    verdict = words[0] if order[0] == expected else words[1]
    title = f"{_layer(network)}, {arms.STATISTICS[view.statistics[network]].label}: {verdict}"
    count = round(view.accuracy[network] * view.images)
    axis.set(xlim=(0, 1), title=f"{title} ({count} of {view.images} {words[0]})")


# ------------------------------------------------------------------------------------------------------------------ sliders


class Explorer(widgets.VBox):
    """Menus and sliders for experiment, image, noise, level and the statistics of each network; they begin at `first_look`.

    Args:
        pair: to begin with.
        seed, folder: with which `load_pair` loads the networks of another experiment that is chosen.

    Attributes:
        picture: the drawn PNG.
        controls: name -> menu or slider, for tests and scripts.
    """

    def __init__(self, pair: Pair, seed: int | None = None, folder: str = ""):
        super().__init__()
        self.pair, self._load = pair, partial(load_pair, seed=seed, folder=folder)
        self.picture, self.message = widgets.Image(format="png"), widgets.HTML()
        self.controls = _controls(pair, available(seed))
        for name, control in self.controls.items():
            change = {"experiment": self._change_experiment, "noise": self._change_noise}.get(name, self._show)
            control.observe(change, "value")
        left, right = (widgets.VBox(list(self.controls.values())[part]) for part in (slice(3), slice(3, None)))
        self.children = [widgets.HBox([left, right]), self.message, self.picture]
        self._show()

    def _show(self, _=None) -> None:
        given = {name: control.value for name, control in self.controls.items()}
        statistics = {network: given[network] for network in PAIR}
        try:
            self.picture.value = _png(look(self.pair, given["image"], *given["noise"], given["level"], statistics))
            self.message.value = ""
        except ValueError as error:
            self.message.value = f"<pre>{html.escape(str(error))}</pre>"

    def _change_experiment(self, change) -> None:
        self.message.value = "loading ..."
        try:
            self.pair = self._load(change["new"])
        except (ValueError, FileNotFoundError) as error:
            self.message.value = f"<pre>{html.escape(str(error))}</pre>"
            return
        with self._at_once():
            self.controls["image"].value, self.controls["image"].max = 0, len(self.pair.shown.images) - 1
            for network in PAIR:
                self.controls[network].options = _menu(self.pair, network)
                self.controls[network].value = self.pair.usual[network]
        self._show()

    def _change_noise(self, change) -> None:
        level, levels = self.controls["level"], _levels(change["new"])
        share = level.index / max(1, len(level.options) - 1)
        with self._at_once():
            level.options = levels  # sets the value to the first
            level.index = math.floor(share * (len(levels) - 1))  # as far along the new scale as on the old
        self._show()

    @contextlib.contextmanager
    def _at_once(self) -> Iterator[None]:
        """Controls that change together are one question."""
        others = [control for name, control in self.controls.items() if name not in ("experiment", "noise")]
        for control in others:
            control.unobserve(self._show, "value")
        try:
            yield
        finally:
            for control in others:
                control.observe(self._show, "value")


def _controls(pair: Pair, experiments: list[str]) -> dict[str, widgets.Widget]:
    image, level = first_look(pair)
    experiment = pair.trained.experiment
    noises = [
        (f"{suite}: {about.label.split(' (released')[0]}", (suite, name))
        for suite in ("named", "released")
        for name, about in noise.noises(suite).items()
        if not name.startswith("mnist")
    ]
    wide = {"style": {"description_width": "9em"}, "layout": {"width": "35em"}}
    late = wide | {"continuous_update": False}  # a drag is one question, not fifty
    names = list(dict.fromkeys([experiment, *experiments]))
    return {
        "experiment": widgets.Dropdown(options=names, value=experiment, description="experiment", **wide),
        "image": widgets.IntSlider(image, max=len(pair.shown.images) - 1, description="image", **late),
        "noise": widgets.Dropdown(options=noises, value=START, description="noise", **wide),
        "level": widgets.SelectionSlider(options=_levels(START), value=level, description="level", **late),
    } | {
        network: widgets.Dropdown(
            options=_menu(pair, network), value=pair.usual[network], description=f"{_layer(network)} uses", **wide
        )
        for network in PAIR
    }


def _menu(pair: Pair, network: str) -> list[tuple[str, str]]:
    return [(text, key) for key, text in offered(pair, network).items()]


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
