"""The sweep: one trained network under every noise, level and prediction mode.

Every network and every mode sees the same noisy images in the same order: the draws depend on the noise, its level and the
sweep's seed alone. One row of the table is one (mode, suite, noise, level); the class that each image got is kept beside it,
because McNemar's test and the size of a voting jury need single images.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from localnorm import noise, paths
from localnorm.data.augment import standardise
from localnorm.data.dataset import Dataset
from localnorm.predict import estimate_statistics, predict

__all__ = ["ARMS", "SweepConfig", "arm_label", "conditions", "load_predictions", "noisy_images", "save_sweep", "sweep"]

# (norm, mode) -> its name in every table and legend, in the order of the argument: failure, control, method, one image
ARMS = {
    ("batch", "fixed"): "BN fixed",
    ("batch", "batch"): "BN-batch",
    ("local", "batch"): "LN batch",
    ("local", "single"): "LN single",
    ("local", "vote"): "LN vote",
    ("batch", "prior"): "BN prior",
    ("local", "prior"): "LN prior",
    ("group", "batch"): "GN",
    ("instance", "batch"): "IN",
}
DOMAINS = ("standardised", "raw")
RESCALINGS = ("set", "image", "none")
ECE_BINS = 15


def arm_label(norm: str, mode: str) -> str:
    """The name of a (norm, mode) in tables and legends."""
    if (norm, mode) not in ARMS:
        raise ValueError(
            f"unknown arm ({norm}, {mode}); norm and mode are one of {', '.join(f'({n}, {m})' for n, m in ARMS)}"
        )
    return ARMS[norm, mode]


@dataclass(frozen=True)
class SweepConfig:
    """The settings of a sweep: a `sweep` block of params.yaml, checked.

    Args:
        noises: suite -> the names of its noises.
        modes: norm -> the modes in which its networks predict.
        batch_size: test images together in the modes that use a batch.
        domain: what the released suite is drawn on: "standardised" or "raw" pixels (0..255).
        rescale: what follows the released suite: map the range of the whole noisy "set", of each "image", or "none",
            to the training part's range.
        prior: n0 of the mode "prior", in positions of a feature map.
        seed: of the noise and of the order of the test images.
        images: so many test images at most; None is all.
        mode_images: mode -> so many test images at most in this mode (vote costs K forwards an image).
        max_levels: so many levels a noise at most, spread evenly, first and last among them; None is all.
        threads: of the CPU; None leaves torch's choice.

    Raises:
        ValueError: an unknown suite, noise, norm, mode, domain or rescaling.
    """

    noises: dict[str, list[str]]
    modes: dict[str, list[str]]
    batch_size: int
    domain: str = "standardised"
    rescale: str = "set"
    prior: float = 512
    seed: int = 0
    images: int | None = None
    mode_images: dict[str, int] = field(default_factory=dict)
    max_levels: int | None = None
    threads: int | None = None

    def __post_init__(self):
        for suite, names in self.noises.items():
            for name in names:
                noise.levels(name, suite)
        for norm, modes in self.modes.items():
            for mode in modes:
                arm_label(norm, mode)
        for name, value, choices in (("domain", self.domain, DOMAINS), ("rescale", self.rescale, RESCALINGS)):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {self.batch_size!r}")
        if self.max_levels is not None and self.max_levels < 2:
            raise ValueError(f"max_levels must be at least 2 (clean and noisy), got {self.max_levels}")

    @classmethod
    def from_params(cls, block: dict) -> "SweepConfig":
        """The `sweep` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        known = [item.name for item in fields(cls)]
        unknown, missing = sorted(set(block) - set(known)), sorted({"noises", "modes", "batch_size"} - set(block))
        if unknown:
            raise ValueError(f"unknown key {', '.join(unknown)} in a sweep block; it knows {', '.join(known)}")
        if missing:
            raise ValueError(f"a sweep block needs {', '.join(missing)}; it has {', '.join(block)}")
        return cls(**block)


def conditions(config: SweepConfig) -> list[tuple[str, str, float]]:
    """(suite, noise, level) of a sweep, in the order in which it runs."""
    return [
        (suite, name, float(level))
        for suite, names in config.noises.items()
        for name in names
        for level in _thin(noise.levels(name, suite), config.max_levels)
    ]


def _thin(levels: tuple[float, ...], most: int | None) -> list[float]:
    if most is None or len(levels) <= most:
        return list(levels)
    return [levels[round(index)] for index in np.linspace(0, len(levels) - 1, most)]


def noisy_images(
    images: Tensor,
    dataset: Dataset,
    suite: str,
    name: str,
    level: float,
    config: SweepConfig,
    training_range: noise.Extrema,
) -> Tensor:
    """Standardised noisy images, as the network gets them.

    Args:
        images: (N, C, H, W) uint8, on the device that is to draw the noise.
        dataset: gives mean and standard deviation.
        training_range: smallest and largest pixel (0..255) a channel of the training part, for the rescaling.

    Returns:
        (N, C, H, W) float32.
    """
    mean, std = (torch.tensor(values, device=images.device) for values in (dataset.mean, dataset.std))
    raw = suite == "released" and config.domain == "raw"
    chunks, seen = [], None
    for number, chunk in enumerate(images.split(noise.CHUNK)):
        generator = noise.generator_for(suite, name, level, number, config.seed, images.device)
        if suite == "released":
            clean = chunk.float() if raw else standardise(chunk, mean, std)
            noisy = noise.apply(clean, name, level, generator, suite)
            seen = noise.extrema(noisy, seen)
        else:
            noisy = standardise(noise.apply(chunk.float() / 255, name, level, generator, suite) * 255, mean, std)
        chunks.append(noisy)
    noisy = torch.cat(chunks)  # (N, C, H, W)
    if suite == "released" and config.rescale != "none" and level > 0:
        source = seen if config.rescale == "set" else noise.extrema(noisy, per_image=True)
        target = training_range if raw else noise.Extrema(*((extreme - mean) / std for extreme in training_range))
        noisy = noise.rescale(noisy, source, target)
    return standardise(noisy, mean, std) if raw else noisy


def _training_range(dataset: Dataset, device: torch.device) -> noise.Extrema:
    seen = None
    for chunk in dataset.images("train").split(4096):
        seen = noise.extrema(chunk, seen)
    return noise.Extrema(*(extreme.float().to(device) for extreme in seen))


def _training_batches(dataset: Dataset, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    mean, std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))
    for chunk in dataset.images("train").split(batch_size):
        if len(chunk) == batch_size:
            yield standardise(chunk.to(device), mean, std)


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error: sum over bins of (n_b / N) |accuracy_b - confidence_b|, 15 equal bins of the confidence.

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


def _score(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood (nats), Brier score and calibration error of (N, num_classes) probabilities."""
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return {
        "accuracy": (probabilities.argmax(1) == labels).double().mean().item(),
        "nll": -probabilities.gather(1, labels[:, None]).clamp_min(1e-12).log().double().mean().item(),
        "brier": (probabilities - truth).square().sum(1).double().mean().item(),
        "ece": calibration_error(probabilities, labels),
    }


def _predict_members(model, images: Tensor, mode: str, config: SweepConfig) -> Tensor:
    """Probabilities (members, N, num_classes); one member in every mode but vote."""
    more = {"prior": {"prior": config.prior}, "vote": {"return_members": True}}.get(mode, {})
    logits = predict(model, images, mode=mode, batch_size=config.batch_size, **more)
    return (logits if mode == "vote" else logits[None]).float().softmax(-1)


def sweep(
    model: torch.nn.Module, dataset: Dataset, config: SweepConfig, norm: str, description: str = "sweep"
) -> tuple[pd.DataFrame, np.ndarray]:
    """Predict the test part under every condition and mode.

    Args:
        model: on the device that is to be used.
        dataset: see `localnorm.data.load`.
        config: the settings.
        norm: the network's norm: its modes are `config.modes[norm]`.
        description: the progress bar's text.

    Returns:
        A table with mode, suite, noise, level, images, accuracy, nll, brier, ece, disagreement; and the predicted classes
        (rows, N) int16, row by row, -1 where an image was not scored. Accuracy in "vote" is the majority's.
    """
    if norm not in config.modes:
        raise ValueError(f"the sweep block names no modes for norm {norm!r}, only for {', '.join(config.modes)}")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = next(model.parameters()).device
    images, labels = test_images(dataset, config)
    images, labels = images.to(device), labels.to(device)
    training_range = _training_range(dataset, device)
    if norm == "local" and "prior" in config.modes[norm]:  # a BatchNorm network has stored its statistics in training
        estimate_statistics(model, _training_batches(dataset, config.batch_size, device))
    rows, classes = [], []
    clean: dict[tuple[str, str], tuple[dict, np.ndarray]] = {}  # level 0 is the same images for every noise
    for suite, name, level in tqdm(
        conditions(config), desc=description, unit="condition", file=sys.stderr, mininterval=0.5
    ):
        noisy = noisy_images(images, dataset, suite, name, level, config, training_range)
        for mode in config.modes[norm]:
            if level == 0 and mode in clean:
                scores, chosen = clean[mode]
            else:
                count = min(config.mode_images.get(mode, len(images)), len(images))
                members = _predict_members(model, noisy[:count], mode, config)  # (members, count, num_classes)
                votes = members.argmax(-1)  # (members, count)
                mean = members.mean(0)
                # a tie between classes goes to the one with the larger mean probability
                tally = torch.nn.functional.one_hot(votes, mean.shape[1]).sum(0) + mean / 2
                winner = tally.argmax(1)  # (count,)
                scores = {"images": count, **_score(mean, labels[:count])}
                scores["accuracy"] = (winner == labels[:count]).double().mean().item()
                scores["disagreement"] = (votes != winner).double().mean().item()
                chosen = np.full(len(images), -1, np.int16)
                chosen[:count] = winner.cpu().numpy()
                if level == 0:
                    clean[mode] = scores, chosen
            rows.append({"mode": mode, "suite": suite, "noise": name, "level": level, **scores})
            classes.append(chosen)
    return pd.DataFrame(rows), np.stack(classes)


def test_images(dataset: Dataset, config: SweepConfig) -> tuple[Tensor, Tensor]:
    """The test part in the sweep's own order: a batch in the order of the files would hold a single class."""
    labels = torch.as_tensor(dataset.labels("test"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))[: config.images]
    return torch.as_tensor(dataset.images("test"))[order], labels[order]


test_images.__test__ = False  # not a test


def save_sweep(table: pd.DataFrame, classes: np.ndarray, labels: Tensor, folder: Path) -> None:
    """Write sweep.csv and predictions.npz (classes (rows, N), labels (N,)) to `folder`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, classes=classes, labels=labels.cpu().numpy().astype(np.int16))
    paths.write(folder / "predictions.npz", buffer.getvalue())
    paths.write(folder / "sweep.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def load_predictions(folder: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """What `save_sweep` wrote: the table, the classes (rows, N) and the labels (N,)."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        return pd.read_csv(folder / "sweep.csv"), file["classes"], file["labels"]
