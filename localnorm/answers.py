"""What one trained network answers to the test images, under every condition and kind of statistics.

Every network sees the same noisy images in the same order, whatever statistics it uses: the noise that is drawn depends only on its
kind, its level and the seed in the answers block. The predicted class of every image is kept, since McNemar's test needs single images.
`localnorm.scores` computes metrics from the answers.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from localnorm import paths
from localnorm.arms import STATISTICS
from localnorm.convert import convert_to_localnorm
from localnorm.data.augment import standardise
from localnorm.data.dataset import Dataset
from localnorm.layers import LocalNorm
from localnorm.machine import use_cpu
from localnorm.noise import draw
from localnorm.prediction import Predictor, majority_vote
from localnorm.settings import DOMAINS, AnswersConfig, conditions
from localnorm.training_statistics import estimate_statistics, learn_spread

__all__ = [
    "Answers",
    "answer",
    "calibration_error",
    "noisy_images",
    "predict_arguments",
    "save_answers",
    "store_statistics",
    "test_images",
    "training_batches",
    "training_range_of",
]

SPREAD_IMAGES = 512  # training images that say how they differ: known to a few percent

ECE_BINS = 15


# ------------------------------------------------------------------------------------------------- what a network is shown


def test_images(dataset: Dataset, config: AnswersConfig) -> tuple[Tensor, Tensor]:
    """The test images that a network is asked about, uint8 (N, C, H, W), and their labels (N,).

    They are in random order, since a batch in the order of the files could hold a single class.
    """
    labels = torch.as_tensor(dataset.labels("test"))
    most = None if config.images is None else max(config.images, config.clean_images or 0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))[:most]
    return torch.as_tensor(dataset.images("test"))[order], labels[order]


test_images.__test__ = False  # not a test


def noisy_images(
    images: Tensor,
    dataset: Dataset,
    suite: str,
    name: str,
    level: float,
    config: AnswersConfig,
    training_range: draw.Extrema,
) -> Tensor:
    """Standardised noisy images, as the network gets them.

    Args:
        images: (N, C, H, W) uint8, on the device that is to draw the noise.
        dataset: gives mean and standard deviation.
        suite, name, level: of the noise; level 0 draws none.
        config: domain, rescaling and seed of the noise.
        training_range: smallest and largest pixel (0 ... 255) of each channel of the training part, for the rescaling.

    Returns:
        (N, C, H, W) float32.
    """
    mean, std = (torch.tensor(values, device=images.device) for values in (dataset.mean, dataset.std))
    if level == 0:
        return standardise(images, mean, std)
    scale = DOMAINS[config.domain] if suite == "released" else None
    chunks, seen = [], None
    for number, chunk in enumerate(images.split(draw.CHUNK)):
        generator = draw.generator_for(suite, name, level, number, config.seed, images.device)
        if suite == "released":
            clean = chunk.float() / scale if scale else standardise(chunk, mean, std)
            noisy = draw.apply(clean, name, level, generator, suite)
            seen = draw.extrema(noisy, seen)
        else:
            noisy = standardise(draw.apply(chunk.float() / 255, name, level, generator, suite) * 255, mean, std)
        chunks.append(noisy)
    noisy = torch.cat(chunks)  # (N, C, H, W)
    if suite == "released" and config.rescale != "none":
        source = seen if config.rescale == "set" else draw.extrema(noisy, per_image=True)
        shift, unit = (0.0, scale) if scale else (mean, std)
        target = draw.Extrema(*((extreme - shift) / unit for extreme in training_range))
        noisy = draw.rescale(noisy, source, target)
    return standardise(noisy * scale, mean, std) if scale else noisy


def training_range_of(dataset: Dataset, device: torch.device | str = "cpu") -> draw.Extrema:
    """Smallest and largest pixel (0 ... 255) of each channel of the training part: (C,) each, on the device."""
    seen = None
    for chunk in dataset.images("train").split(4096):
        seen = draw.extrema(chunk, seen)
    return draw.Extrema(*(extreme.float().to(device) for extreme in seen))


def training_batches(dataset: Dataset, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Full batches of standardised training images, in the order of the prepared data, which is random."""
    mean, std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))
    for chunk in dataset.images("train").split(batch_size):
        if len(chunk) == batch_size:
            yield standardise(chunk.to(device), mean, std)


# --------------------------------------------------------------------------------------------- where its statistics come from


def predict_arguments(statistics: str, prior: float | None = None, fixed_last: int = 1) -> dict:
    """The arguments of `localnorm.predict` for a kind of statistics.

    "last_fixed" is like "prior" (n0 may be 0), except that the last layers keep the training statistics. A global pooling follows these
    layers, and the statistics of one small image would remove what the pooled features need to tell the classes apart.

    Args:
        statistics: a key of `localnorm.arms.STATISTICS`.
        prior: n0, in positions, of "prior", "gated" and "last_fixed".
        fixed_last: layers, of "last_fixed".
    """
    if statistics == "last_fixed":
        return {"mode": "prior", "prior": prior, "fixed_last": fixed_last}
    if statistics in ("prior", "gated"):
        return {"mode": statistics, "prior": prior}
    return {"mode": "batch" if statistics == "own" else statistics}  # a layer with statistics of its own has no choice


def store_statistics(model: torch.nn.Module, dataset: Dataset, config: AnswersConfig, network: str) -> torch.nn.Module:
    """Store in a network what the answers need of the training set: statistics, which BatchNorm stored in training, and their spread.

    Returns:
        The same network; for "gated", which BatchNorm has no place for, a copy of it with LocalNorm layers of one group that compute
        the same.
    """
    kinds = config.statistics_of(network)
    if any(STATISTICS[statistics].stored for statistics in kinds) and not all(
        layer.track_running_stats for layer in _localnorms(model)
    ):
        batches = training_batches(dataset, config.batch_size, next(model.parameters()).device)
        total = len(dataset.labels("train")) // config.batch_size
        estimate_statistics(model, tqdm(batches, "training statistics", total, file=sys.stderr, mininterval=0.5))
    if "gated" not in kinds or any(layer.knows_spread() for layer in _localnorms(model)):
        return model
    if any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        model = convert_to_localnorm(model, 1, track_running_stats=True)
    batches = training_batches(dataset, config.batch_size, next(model.parameters()).device)
    learn_spread(model, islice(batches, max(2, -(-SPREAD_IMAGES // config.batch_size))))
    return model


def _localnorms(model: torch.nn.Module) -> list[LocalNorm]:
    return [layer for layer in model.modules() if isinstance(layer, LocalNorm)]


def _arguments(
    model: torch.nn.Module, dataset: Dataset, config: AnswersConfig, network: str, strengths: dict[str, dict]
) -> dict[str, dict]:
    """statistics -> what `predict` is called with."""
    arguments = {}
    for statistics in config.statistics_of(network):
        if STATISTICS[statistics].chosen and statistics not in strengths:
            raise ValueError(
                f"statistics {statistics!r} need a strength; choose it with localnorm.strengths.measure_strengths and choose_strengths"
            )
        arguments[statistics] = predict_arguments(statistics, **strengths.get(statistics, {}))
    if "vote" in arguments:
        arguments["vote"]["return_members"] = True
    if "companions" in arguments:
        companions = next(training_batches(dataset, config.companions, next(model.parameters()).device), None)
        if companions is None:
            raise ValueError(
                f"companions={config.companions} needs as many training images, {dataset.title} has "
                f"{len(dataset.labels('train'))}; lower companions"
            )
        arguments["companions"]["companions"] = companions
    return arguments


# ------------------------------------------------------------------------------------------------------------- the answers


@dataclass(frozen=True)
class Answers:
    """What a network answered.

    Attributes:
        table: one row per (statistics, condition): statistics, suite, noise, level, prior (n0) and fixed_last (of the statistics that
            have them), images, right (answered rightly), nll (nats), brier, ece, and disagreement (of the members of a vote). Clean
            images are one condition.
        classes: (rows, N) int16, the class that each image got, row by row; -1 where an image was not asked about.
        labels: (N,) int16, the true classes.
    """

    table: pd.DataFrame
    classes: np.ndarray
    labels: np.ndarray


def answer(
    model: torch.nn.Module,
    dataset: Dataset,
    config: AnswersConfig,
    network: str,
    strengths: dict[str, dict] | None = None,
    description: str = "answers",
) -> Answers:
    """Ask a network about the test part under every condition and every kind of statistics.

    Under "vote" an image gets the class of the majority.

    Args:
        model: on the device that is to be used; a LocalNorm network gets training statistics where it has none and needs them.
        dataset: see `localnorm.data.load`.
        config: the settings.
        network: its key; it is asked under `config.statistics[network]`.
        strengths: statistics -> prior and fixed_last, from `localnorm.strengths.choose_strengths`, where it is asked under such.
        description: the progress bar's text.

    Raises:
        ValueError: the settings name no statistics for the network, a strength is missing, or there are fewer training images than
            companions.
    """
    model = store_statistics(model, dataset, config, network)
    arguments = _arguments(model, dataset, config, network, strengths or {})
    use_cpu(config.threads)
    device = next(model.parameters()).device
    images, labels = (each.to(device) for each in test_images(dataset, config))
    training_range = training_range_of(dataset, device)
    ask = {statistics: Predictor(model, batch_size=config.batch_size, **each) for statistics, each in arguments.items()}
    rows, classes = [], []
    for suite, noise, level in tqdm(
        conditions(config), desc=description, unit="condition", file=sys.stderr, mininterval=0.5
    ):
        shown = images[: config.images_at(level)]
        noisy = noisy_images(shown, dataset, suite, noise, level, config, training_range)
        for statistics in arguments:
            count = min(config.images_of(network, statistics) or len(noisy), len(noisy))
            logits = ask[statistics](noisy[:count]).float()
            scores, winner = _score(logits if statistics == "vote" else logits[None], labels[:count])
            row = {"statistics": statistics, "suite": suite, "noise": noise, "level": level}
            row |= {key: arguments[statistics].get(key) for key in ("prior", "fixed_last")}
            rows.append(row | scores)
            classes.append(np.full(len(images), -1, np.int16))
            classes[-1][:count] = winner.cpu().numpy()
    table = pd.DataFrame(rows).astype({"prior": float, "fixed_last": float})
    return Answers(table, np.stack(classes), labels.cpu().numpy().astype(np.int16))


def _score(logits: Tensor, labels: Tensor) -> tuple[dict[str, float], Tensor]:
    """The scores of a row, and the predicted class of each image (N,), from logits (members, N, num_classes) and labels (N,)."""
    members = logits.softmax(-1)
    probabilities = members.mean(0)  # (N, num_classes)
    winner = majority_vote(logits)
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    scores = {
        "images": len(labels),
        "right": int((winner == labels).sum()),
        "nll": -probabilities.gather(1, labels[:, None]).clamp_min(1e-12).log().double().mean().item(),
        "brier": (probabilities - truth).square().sum(1).double().mean().item(),
        "ece": calibration_error(probabilities, labels),
        "disagreement": (members.argmax(-1) != winner).double().mean().item(),
    }
    return scores, winner


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The expected calibration error: how far the confidence of predictions is from their accuracy.

    It is the sum over bins of (n_b / N) |accuracy_b - confidence_b|, with 15 bins of equal width for the confidence.

    Args:
        probabilities: (N, num_classes).
        labels: (N,).

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    confidence, chosen = probabilities.max(1)  # (N,), (N,)
    correct = (chosen == labels).double()
    bins = (confidence.double() * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap = torch.zeros(ECE_BINS, dtype=torch.double, device=bins.device).index_add_(0, bins, correct - confidence)
    return (gap.abs().sum() / len(labels)).item()


def save_answers(answers: Answers, folder: Path) -> None:
    """Write answers.csv (the table) and answers.npz (classes and labels) to `folder`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, classes=answers.classes, labels=answers.labels)
    paths.write(folder / "answers.npz", buffer.getvalue())
    paths.write_table(folder / "answers.csv", answers.table)
