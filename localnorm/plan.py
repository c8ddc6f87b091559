"""What a full run has to do on this machine, how long that takes and how much disk: said before it starts.

Speed is measured: a few training steps and forwards of each experiment's network, on random images. The rest is counting.
"""

import json
import math
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from localnorm import arms, paths
from localnorm.machine import device_name, use_cpu
from localnorm.models import make_model
from localnorm.params import grid, load_params
from localnorm.settings import AblationConfig, AnswersConfig, StudyConfig, TrainConfig, candidates
from localnorm.settings.ablations import variants
from localnorm.settings.answers import conditions, conditions_of
from localnorm.train import make_fabric

__all__ = ["Part", "Speed", "describe_plan", "make_plan", "measure"]

LONG = 2.0  # seconds: of a step that takes longer, one is enough


@dataclass(frozen=True)
class Speed:
    """What a network does on this machine, alone on its cores.

    Attributes:
        step: seconds of a training step.
        forward: seconds per image that is answered.
        parameters: of the network, in numbers.
    """

    step: float
    forward: float
    parameters: int


@dataclass(frozen=True)
class Part:
    """A part of the work.

    Attributes:
        experiment: a name in params.yaml.
        what: "runs", "ablations" or "study".
        networks: that are to be trained and asked.
        training, answering: seconds of one of them, on average.
        bytes: of disk in all, with DVC's copy.
    """

    experiment: str
    what: str
    networks: int
    training: float
    answering: float
    bytes: int


def measure(config: TrainConfig, shape: tuple[int, int, int], num_classes: int) -> Speed:
    """Time a training step and a forward of BatchNorm's network, from which LocalNorm's differ little.

    Args:
        config: an experiment's train block.
        shape: (C, H, W) of its images.
        num_classes: of its data set.
    """
    fabric = make_fabric(config.precision)
    threads = torch.get_num_threads()
    use_cpu(config.threads)
    network = make_model(
        config.model, "bn", num_classes=num_classes, in_channels=shape[0], image_size=shape[-1], eps=config.eps
    )
    parameters = sum(each.numel() for each in network.parameters())
    network = network.to(memory_format=torch.channels_last)
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), 1e-6, momentum=0.9))
    images = torch.randn(config.batch_size, *shape, device=fabric.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(config.batch_size, dtype=torch.long, device=fabric.device)

    def step() -> None:
        fabric.backward(cross_entropy(model(images).float(), labels))
        optimizer.step()
        optimizer.zero_grad()

    def forward() -> Tensor:
        with torch.inference_mode():
            return network.eval()(images)

    try:
        return Speed(_seconds(step), _seconds(forward) / config.batch_size, parameters)
    finally:
        torch.set_num_threads(threads)


def _seconds(function) -> float:
    """Of a call: the second and third where they are quick, for the first prepares."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
        if taken[0] > LONG:
            break
    return min(taken)


def make_plan(runs: Mapping[str, int], late: Collection[str]) -> list[Part]:
    """The parts of the work that DVC would do.

    Args:
        runs: experiment -> how many networks it would train or ask.
        late: names of the other stages that it would run: "ablations@cifar10-resnet32".

    Returns:
        One part per experiment and kind of work. An experiment that has neither prepared images nor results has none: nobody knows
        how many images there are.
    """
    parts = []
    for experiment, count in runs.items():
        others = [what for what in ("ablations", "study") if f"{what}@{experiment}" in late]
        data = _data(experiment)
        if data and (count or others):
            block = load_params(experiment)
            train = TrainConfig.from_params(block["train"])
            speed = measure(train, data["shape"], data["classes"])
            parts += _parts(experiment, block, count, others, data["counts"], data["shape"], speed)
    return parts


def _data(experiment: str) -> dict | None:
    """Shape, classes and counts of an experiment's images: of the prepared ones, or of those that its committed results tell of."""
    prepared = paths.prepared(experiment) / "dataset.json"
    if prepared.is_file():
        about = json.loads(prepared.read_text(encoding="utf-8"))
        return {"shape": tuple(about["shape"]), "classes": len(about["classes"]), "counts": about["counts"]}
    results = paths.results(experiment) / "about.json"
    if results.is_file():
        about = json.loads(results.read_text(encoding="utf-8"))
        return {"shape": tuple(about["shape"]), "classes": about["num_classes"], "counts": about["counts"]}
    return None


def _parts(
    experiment: str, block: dict, runs: int, others: list[str], counts: dict, shape: tuple, speed: Speed
) -> list[Part]:
    train, asked = TrainConfig.from_params(block["train"]), AnswersConfig.from_params(block["answers"])
    pixels = sum(counts.values()) * shape[0] * shape[1] * shape[2]
    saved = 8 * speed.parameters  # four bytes, and DVC's copy

    def training(config: TrainConfig) -> float:
        return (
            config.epochs * (counts["train"] // config.batch_size) * config.batch_size * speed.step / train.batch_size
        )

    parts = []
    if runs:
        answered = sum(_images(asked, network, train, counts) for network in grid(experiment)[0]) / len(
            grid(experiment)[0]
        )
        parts.append(
            Part(experiment, "runs", runs, training(train), answered * speed.forward, runs * saved + 2 * pixels)
        )
    if "ablations" in others:
        config = AblationConfig.from_params(block["ablations"])
        planned = variants(config, train)
        mean = sum(training(each.fine_tuning or each.train) for each in planned) / len(planned)
        few = AnswersConfig(
            config.noises, {}, asked.batch_size, asked.domain, asked.rescale, max_levels=config.max_levels
        )
        images = sum(counts["test"] if level == 0 else config.images for *_, level in conditions(few))
        parts.append(
            Part(experiment, "ablations", len(planned) * len(config.seeds), mean, 2 * images * speed.forward, 0)
        )
    if "study" in others:
        config = StudyConfig.from_params(block["study"])
        mean = sum(training(config.train_of(name, train)) for name in config.variants) / len(config.variants)
        images = (1 + len(conditions_of(config.noises))) * config.images * len(config.prior)
        parts.append(
            Part(experiment, "study", len(config.variants) * len(config.seeds), mean, images * speed.forward, 0)
        )
    return parts


def _images(asked: AnswersConfig, network: str, train: TrainConfig, counts: dict) -> int:
    """How many forwards of one image the answers of a network take, about."""
    forwards = {"vote": train.num_groups, "companions": 1 + asked.companions}
    total = 0
    for statistics in asked.statistics_of(network):
        most = asked.images_of(network, statistics) or counts["test"]
        for *_, level in conditions(asked):
            images = min(asked.images_at(level) or counts["test"], most, counts["test"])
            total += images * forwards.get(statistics, 1)
    if any(arms.STATISTICS[each].chosen for each in asked.statistics_of(network)):
        strengths = len(candidates(asked.prior)) + ("gated" in asked.statistics_of(network)) * len(
            candidates(asked.gated)
        )
        validation = min(asked.images or counts["validation"], counts["validation"])
        total += strengths * validation * (1 + sum(map(len, asked.prior_noises.values())))
        total += counts["train"] if arms.NETWORKS[network].has_groups else 0  # its stored statistics
    if asked.streams:
        total += (
            2
            * len(asked.streams["sizes"])
            * asked.streams["images"]
            * (1 + len(conditions_of(asked.streams["conditions"])))
        )
    return total


def describe_plan(experiments: Collection[str], parts: list[Part], jobs: int) -> str:
    """The plan in a few lines: what runs, how long, how much disk.

    Args:
        experiments: that `make_plan` was asked about.
        parts: from `make_plan`.
        jobs: networks that are trained side by side.
    """
    device = make_fabric().device
    side_by_side = min(jobs, os.cpu_count() or 1) if device.type == "cpu" else 1  # of a GPU, each gets its share

    def seconds(part: Part) -> float:
        """Runs go side by side; ablations and a study are one stage, whose networks follow one another."""
        turns = math.ceil(part.networks / side_by_side) if part.what == "runs" else part.networks
        return turns * (part.training + part.answering)

    width = max(map(len, experiments))
    lines = [f"To do, measured on this machine ({device_name(device)}, {jobs} side by side):"]
    for part in parts:
        networks = f"{part.networks} network{'s' if part.networks > 1 else ''}"
        lines.append(f"  {part.experiment:{width}}  {part.what:9}  {networks:>12}  {duration(seconds(part)):>8}")
    if unknown := [name for name in experiments if _data(name) is None]:
        lines.append(f"  {', '.join(unknown)}: not known before the images are prepared")
    total = sum(map(seconds, parts))
    size = sum(part.bytes for part in parts) / 1e9
    lines.append(
        f"In all about {duration(total)}, and {size:.1f} GB of disk. Tables, figures and paper take minutes more."
    )
    if device.type == "cpu":
        lines.append("On a machine with a GPU training and answers run there, many times faster; the rest needs none.")
    return "\n".join([*lines, "Ctrl-C stops it at any time, and the same command goes on from there."])


def duration(seconds: float) -> str:
    """ "40 s", "25 min", "3.5 h", "2.1 days".

    Example:
        >>> duration(40), duration(1500), duration(12600), duration(181440)
        ('40 s', '25 min', '3.5 h', '2.1 days')
    """
    for limit, unit, size, digits in ((90, "s", 1, 0), (5400, "min", 60, 0), (129_600, "h", 3600, 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} days"
