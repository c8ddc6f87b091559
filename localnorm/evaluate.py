"""The sweep: one trained network under every noise, level and prediction mode.

Every network and every mode sees the same noisy images in the same order: the draws depend on the noise, its level and the
sweep's seed alone. One row of the table is one (mode, suite, noise, level); the class that each image got is kept beside it,
because McNemar's test and the size of a voting jury need single images.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from localnorm import noise, paths
from localnorm.data.augment import standardise
from localnorm.data.dataset import Dataset
from localnorm.layers import LocalNorm
from localnorm.machine import use_cpu
from localnorm.params import from_block
from localnorm.prediction import estimate_statistics, majority_vote, predict

__all__ = [
    "ARMS",
    "STORED",
    "BatchStudy",
    "SweepConfig",
    "arm_label",
    "choices",
    "choose",
    "conditions",
    "load_predictions",
    "noisy_images",
    "predict_arguments",
    "save_sweep",
    "sweep",
    "sweep_batches",
    "training_batches",
    "training_range_of",
]

# (norm, mode) -> its name in every table and legend, in the order of the argument: failure, control, method, one image
ARMS = {
    ("batch", "fixed"): "BN fixed",
    ("batch", "batch"): "BN-batch",
    ("local", "batch"): "LN batch",
    ("local", "single"): "LN single",
    ("local", "vote"): "LN vote",
    ("local", "companions"): "LN companions",
    ("batch", "single"): "BN single",
    ("batch", "companions"): "BN companions",
    ("batch", "prior"): "BN prior",
    ("local", "prior"): "LN prior",
    ("batch", "last_fixed"): "BN last fixed",
    ("local", "last_fixed"): "LN last fixed",
    ("drawn", "batch"): "LN drawn batch",
    ("drawn", "single"): "LN drawn single",
    ("drawn", "vote"): "LN drawn vote",
    ("drawn", "companions"): "LN drawn companions",
    ("drawn", "prior"): "LN drawn prior",
    ("drawn", "last_fixed"): "LN drawn last fixed",
    ("ghost", "batch"): "GBN batch",
    ("ghost", "single"): "GBN single",
    ("group", "batch"): "GN",
    ("instance", "batch"): "IN",
}
CHOSEN = ("prior", "last_fixed")  # the modes with strengths that are chosen on validation images
STORED = {"fixed", "prior", "last_fixed"}  # the modes that need training statistics
Condition = tuple[str, str, float]  # suite, noise, level
CLEAN: Condition = ("clean", "clean", 0.0)
# what the released suite is drawn on -> what a pixel of 0 ... 255 is divided by
DOMAINS = {"standardised": None, "raw": 1.0, "unit": 255.0}
RESCALINGS = ("set", "image", "none")
ECE_BINS = 15


def arm_label(norm: str, mode: str) -> str:
    """The name of a (norm, mode) in tables and legends."""
    if (norm, mode) not in ARMS:
        raise ValueError(
            f"unknown arm ({norm}, {mode}); norm and mode are one of {', '.join(f'({n}, {m})' for n, m in ARMS)}"
        )
    return ARMS[norm, mode]


def predict_arguments(mode: str, prior: float | None = None, fixed_last: int = 1) -> dict:
    """What `localnorm.prediction.predict` is called with in a sweep's mode.

    "last_fixed" is "prior" (n0 = 0 among them) but for the last norm layers, which keep the training statistics: a global pooling
    follows them, and statistics of one small image take away there what the pooling would have told the classes apart by.

    Args:
        prior: n0, in positions, of the modes "prior" and "last_fixed".
        fixed_last: norm layers, of the mode "last_fixed".
    """
    if mode == "last_fixed":
        return {"mode": "prior", "prior": prior, "fixed_last": fixed_last}
    return {"mode": mode, "prior": prior} if mode == "prior" else {"mode": mode}


class BatchStudy(TypedDict):
    """What `sweep_batches` varies: sizes of a test batch, conditions (suite -> {noise: level}), and so many test images."""

    sizes: list[int]
    conditions: dict[str, dict[str, float]]
    images: int


@dataclass(frozen=True)
class SweepConfig:
    """The settings of a sweep: a `sweep` block of params.yaml, checked.

    Args:
        noises: suite -> the names of its noises.
        modes: norm -> the modes in which its networks predict.
        batch_size: test images together in the modes that use a batch.
        domain: what the released suite is drawn on: "standardised" pixels, "raw" ones (0 ... 255) or "unit" ones (0 ... 1).
        rescale: what follows the released suite: map the range of the whole noisy "set", of each "image", or "none",
            to the training part's range.
        prior: n0 of the mode "prior", in positions of a feature map; or several, of which each network takes the one that is best
            on validation images (see `choices`).
        fixed_last: norm layers at the end that keep the training statistics in the mode "last_fixed"; of several each network takes
            the one that is best on validation images, together with its n0.
        prior_noises: suite -> {noise: level}, the noises of these choices; none that is scored.
        companions: S - 1 training images that join an image in the mode "companions".
        batches: the study of test batches, see `BatchStudy`; None leaves it out.
        seed: of the noise and of the order of the test images.
        images: so many test images at most; None is all.
        clean_images: so many without noise, instead of `images`: a clean accuracy is one condition, and differs by little.
        mode_images: mode, or arm (a value of `ARMS`), which comes first -> so many test images at most in it (vote costs K forwards
            an image).
        max_levels: so many levels a noise at most, spread evenly, first and last among them; None is all.
        threads: of the CPU; None leaves torch's choice.

    Raises:
        ValueError: an unknown suite, noise, norm, mode, arm, domain or rescaling, a level out of range, a noise that leaves no image in
            the domain, or a prior that would be chosen on a noise that is scored.
    """

    noises: dict[str, list[str]]
    modes: dict[str, list[str]]
    batch_size: int
    domain: str = "standardised"
    rescale: str = "set"
    prior: float | list[float] = 512
    fixed_last: list[int] = field(default_factory=lambda: [1])
    prior_noises: dict[str, dict[str, float]] = field(default_factory=dict)
    companions: int = 15
    batches: BatchStudy | None = None
    seed: int = 0
    images: int | None = None
    clean_images: int | None = None
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
        known = [*dict.fromkeys(mode for _, mode in ARMS), *ARMS.values()]
        if unknown := [name for name in self.mode_images if name not in known]:
            raise ValueError(f"mode_images: unknown mode or arm {unknown[0]!r}; choose of {', '.join(known)}")
        counts = {
            name: getattr(self, name) for name in ("batch_size", "companions", "images", "clean_images", "threads")
        }
        counts |= {f"mode_images {mode}": count for mode, count in self.mode_images.items()}
        for name, count in counts.items():
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
        for strength in self.prior if isinstance(self.prior, list) else [self.prior]:
            if not strength >= 0:
                raise ValueError(f"prior must be a number of positions of at least 0, got {strength!r}")
        if self.max_levels is not None and self.max_levels < 2:
            raise ValueError(f"max_levels must be at least 2 (clean and noisy), got {self.max_levels}")
        for suite, name, _ in _named_conditions(self.prior_noises):
            if name in self.noises.get(suite, ()):
                raise ValueError(
                    f"prior_noises: {name} ({suite}) is scored, and a prior chosen on it would be flattered; take another"
                )
        if not self.fixed_last or min(self.fixed_last) < 1:
            raise ValueError(f"fixed_last must be numbers of layers of at least 1, got {self.fixed_last}")
        if isinstance(self.prior, list) and not (self.prior and self.prior_noises):
            raise ValueError(f"a choice of prior {self.prior} needs at least one value, and prior_noises to choose by")
        if self.batches is not None:
            _check_batches(self.batches)
        asked = [
            *self.noises.get("released", ()),
            *self.prior_noises.get("released", ()),
            *(self.batches["conditions"].get("released", ()) if self.batches else ()),
        ]
        if "mnist_background" in asked and self.domain != "unit":
            raise ValueError(
                "mnist_background draws pixels that are 0 anew, up to about 1, and sets all others to 1: in the domain "
                f"{self.domain!r} no image is left; set domain: unit"
            )

    @classmethod
    def from_params(cls, block: dict) -> "SweepConfig":
        """The `sweep` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "sweep", block)


def _named_conditions(levels: dict[str, dict[str, float]]) -> list[Condition]:
    """suite -> {noise: level} as a list, each level checked."""
    for suite, names in levels.items():
        for name, level in names.items():
            noise.check(name, level, suite)
    return [(suite, name, float(level)) for suite, names in levels.items() for name, level in names.items()]


def _check_batches(block: BatchStudy) -> None:
    if set(block) != set(BatchStudy.__annotations__):
        known = ", ".join(BatchStudy.__annotations__)
        raise ValueError(f"batches must have exactly {known}; it has {', '.join(block) or 'nothing'}")
    if not block["sizes"] or not all(isinstance(size, int) and 1 <= size <= block["images"] for size in block["sizes"]):
        raise ValueError(
            f"batches: sizes must be whole numbers from 1 to images={block['images']}, got {block['sizes']}"
        )
    if not _named_conditions(block["conditions"]):
        raise ValueError("batches: conditions must name at least one noise, e.g. {named: {gaussian: 0.2}}")


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
    if level == 0:
        return standardise(images, mean, std)
    scale = DOMAINS[config.domain] if suite == "released" else None
    chunks, seen = [], None
    for number, chunk in enumerate(images.split(noise.CHUNK)):
        generator = noise.generator_for(suite, name, level, number, config.seed, images.device)
        if suite == "released":
            clean = chunk.float() / scale if scale else standardise(chunk, mean, std)
            noisy = noise.apply(clean, name, level, generator, suite)
            seen = noise.extrema(noisy, seen)
        else:
            noisy = standardise(noise.apply(chunk.float() / 255, name, level, generator, suite) * 255, mean, std)
        chunks.append(noisy)
    noisy = torch.cat(chunks)  # (N, C, H, W)
    if suite == "released" and config.rescale != "none":
        source = seen if config.rescale == "set" else noise.extrema(noisy, per_image=True)
        shift, unit = (0.0, scale) if scale else (mean, std)
        target = noise.Extrema(*((extreme - shift) / unit for extreme in training_range))
        noisy = noise.rescale(noisy, source, target)
    return standardise(noisy * scale, mean, std) if scale else noisy


def training_range_of(dataset: Dataset, device: torch.device | str = "cpu") -> noise.Extrema:
    """Smallest and largest pixel (0 ... 255) of each channel of the training part: (C,) each, on the device."""
    seen = None
    for chunk in dataset.images("train").split(4096):
        seen = noise.extrema(chunk, seen)
    return noise.Extrema(*(extreme.float().to(device) for extreme in seen))


def training_batches(dataset: Dataset, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Whole batches of standardised training images, in the order of the rows, which is random."""
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


def _predict_members(model, images: Tensor, mode: str, config: SweepConfig, options: dict) -> Tensor:
    """Logits (members, N, num_classes); one member in every mode but vote."""
    logits = predict(model, images, batch_size=config.batch_size, **options[mode])
    return (logits if mode == "vote" else logits[None]).float()


def _store_statistics(model, dataset: Dataset, config: SweepConfig, norm: str) -> None:
    """Training statistics for a LocalNorm network where a mode asks for them; a BatchNorm network stored its own in training."""
    norms = [layer for layer in model.modules() if isinstance(layer, LocalNorm)]
    if not STORED.intersection(config.modes[norm]) or all(layer.track_running_stats for layer in norms):
        return
    batches = training_batches(dataset, config.batch_size, next(model.parameters()).device)
    total = len(dataset.labels("train")) // config.batch_size
    estimate_statistics(model, tqdm(batches, "training statistics", total, file=sys.stderr, mininterval=0.5))


def _mode_options(model, dataset: Dataset, config: SweepConfig, norm: str, choice: pd.DataFrame) -> dict[str, dict]:
    """mode -> what `predict` is called with."""
    modes = config.modes[norm]
    options = {mode: predict_arguments(mode, **(choose(choice, mode) if mode in CHOSEN else {})) for mode in modes}
    if "vote" in modes:
        options["vote"]["return_members"] = True
    if "companions" in modes:
        batches = training_batches(dataset, config.companions, next(model.parameters()).device)
        companions = next(batches, None)
        if companions is None:
            raise ValueError(
                f"companions={config.companions} needs as many training images, {dataset.title} has "
                f"{len(dataset.labels('train'))}; lower companions"
            )
        options["companions"]["companions"] = companions
    return options


def choices(model: torch.nn.Module, dataset: Dataset, config: SweepConfig, norm: str) -> pd.DataFrame:
    """Accuracy on validation images, from which each network takes its strengths for one image (see `choose`).

    No test image and no noise that is scored has a say. A LocalNorm network has its training statistics from then on.

    Returns:
        A row an n0 and number of last layers that are fixed, of the modes of `norm` that need them: prior, fixed_last, clean, and noisy
        (the mean over `config.prior_noises`). The accuracies are empty where nothing is left to choose.
    """
    _set_up(config, norm)
    modes, candidates = config.modes[norm], sorted(config.prior) if isinstance(config.prior, list) else [config.prior]
    grid = [(prior, 0) for prior in candidates] if "prior" in modes else []
    if "last_fixed" in modes:
        grid += [(prior, count) for count in sorted(config.fixed_last) for prior in dict.fromkeys([0, *candidates])]
    _store_statistics(model, dataset, config, norm)
    table = pd.DataFrame(grid, columns=["prior", "fixed_last"]).assign(clean=np.nan, noisy=np.nan)
    if table.empty or not config.prior_noises:
        return table
    device = next(model.parameters()).device
    training_range = training_range_of(dataset, device)
    labels = torch.as_tensor(dataset.labels("validation"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))[: config.images]
    images, labels = torch.as_tensor(dataset.images("validation"))[order].to(device), labels[order].to(device)
    accuracy = {}
    for condition in [CLEAN, *_named_conditions(config.prior_noises)]:
        pixels = noisy_images(images, dataset, *condition, config, training_range)
        accuracy[condition] = [
            _accuracy_of(
                predict(model, pixels, "prior", prior=prior, fixed_last=count, batch_size=config.batch_size), labels
            )
            for prior, count in grid
        ]
    table["clean"] = accuracy.pop(CLEAN)
    table["noisy"] = np.mean(list(accuracy.values()), axis=0)
    return table


def _accuracy_of(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def choose(table: pd.DataFrame, mode: str) -> dict:
    """The row of `choices` that a mode takes: the best mean of clean and noisy; of equal ones the first, with the fewest layers fixed.

    Returns:
        prior and fixed_last, as `predict_arguments` takes them.
    """
    rows = table[(table.fixed_last > 0) == (mode == "last_fixed")]
    if rows.noisy.isna().all():  # not measured: the first is the only one, or the one to take unseen
        best = rows.iloc[-1] if mode == "last_fixed" else rows.iloc[0]
    else:
        best = rows.loc[(rows.clean + rows.noisy).idxmax()]
    return {"prior": float(best.prior), "fixed_last": int(best.fixed_last)}


def sweep(
    model: torch.nn.Module,
    dataset: Dataset,
    config: SweepConfig,
    norm: str,
    description: str = "sweep",
    choice: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Predict the test part under every condition and mode.

    Args:
        model: on the device that is to be used.
        dataset: see `localnorm.data.load`.
        config: the settings.
        norm: the network's norm: its modes are `config.modes[norm]`.
        description: the progress bar's text.
        choice: what `choices` gave for this network; measured here if None.

    Returns:
        A table with mode, suite, noise, level, prior (n0) and fixed_last (of the modes that have them), images, accuracy, nll, brier,
        ece, disagreement; and the predicted classes (rows, N) int16, row by row, -1 where an image was not scored. Accuracy in "vote"
        is the majority's.
    """
    images, labels, training_range = _begin(model, dataset, config, norm)
    choice = choices(model, dataset, config, norm) if choice is None else choice
    _store_statistics(model, dataset, config, norm)
    options = _mode_options(model, dataset, config, norm, choice)
    most = config.mode_images | {
        mode: config.mode_images[label] for mode in options if (label := arm_label(norm, mode)) in config.mode_images
    }
    rows, classes = [], []
    clean: dict[str, tuple[dict, np.ndarray]] = {}  # level 0 is the same images for every noise
    for suite, name, level in tqdm(
        conditions(config), desc=description, unit="condition", file=sys.stderr, mininterval=0.5
    ):
        if level > 0 or not clean:
            noisy = noisy_images(images[: _most(config, level)], dataset, suite, name, level, config, training_range)
        for mode in config.modes[norm]:
            if level == 0 and mode in clean:
                scores, chosen = clean[mode]
            else:
                count = min(most.get(mode, len(noisy)), len(noisy))
                logits = _predict_members(model, noisy[:count], mode, config, options)  # (members, count, num_classes)
                members = logits.softmax(-1)
                winner = majority_vote(logits)  # (count,)
                scores = {"images": count, **_score(members.mean(0), labels[:count])}
                scores["accuracy"] = (winner == labels[:count]).double().mean().item()
                scores["disagreement"] = (members.argmax(-1) != winner).double().mean().item()
                chosen = np.full(len(images), -1, np.int16)
                chosen[:count] = winner.cpu().numpy()
                if level == 0:
                    clean[mode] = scores, chosen
            strengths = {key: options[mode].get(key) for key in ("prior", "fixed_last")}
            rows.append({"mode": mode, "suite": suite, "noise": name, "level": level, **strengths, **scores})
            classes.append(chosen)
    return pd.DataFrame(rows).astype({"prior": float, "fixed_last": float}), np.stack(classes)


def _most(config: SweepConfig, level: float) -> int | None:
    """The most test images of a condition."""
    return config.clean_images if level == 0 and config.clean_images else config.images


def sweep_batches(
    model: torch.nn.Module, dataset: Dataset, config: SweepConfig, norm: str, description: str = "batches"
) -> pd.DataFrame:
    """What the size and the company of a test batch do, where statistics come from it (the mode "batch").

    Each image is predicted under each condition (clean, and those of `config.batches`), in batches of each size, twice: among images
    of its own condition ("uniform"), and among images of all of them in turn ("mixed"). The images are the same. Beside it stand the
    same images with training statistics (the mode "fixed", where the norm has it), which no batch moves.

    Returns:
        A table with mode, composition, batch_size, suite, noise, level, images, accuracy; empty where `config.batches` is None or the
        norm has neither mode.
    """
    columns = ["mode", "composition", "batch_size", "suite", "noise", "level", "images", "accuracy"]
    modes = [mode for mode in ("fixed", "batch") if mode in config.modes.get(norm, ())]
    if config.batches is None or not modes:
        return pd.DataFrame(columns=columns)
    images, labels, training_range = _begin(model, dataset, config, norm)
    images, labels = images[: config.batches["images"]], labels[: config.batches["images"]]
    studied = [CLEAN, *_named_conditions(config.batches["conditions"])]
    noisy = torch.stack(
        [noisy_images(images, dataset, *each, config, training_range) for each in studied]
    )  # (M, N, C, H, W)
    position = torch.arange(len(images))

    def answers(mode: str, composition: str, size: int) -> Tensor:
        """(M, N) whether each image was classified right under each condition."""
        right = torch.zeros(len(studied), len(images), dtype=torch.bool)
        for turn in range(len(studied)):
            # the condition of each image in this pass; over all passes every image meets every condition once
            which = (position * (composition == "mixed") + turn) % len(studied)  # (N,)
            chosen = predict(model, noisy[which, position], mode, batch_size=size).argmax(1)
            right[which, position] = (chosen == labels).cpu()
        return right

    alone = answers("fixed", "uniform", config.batch_size) if "fixed" in modes else None
    rows = []
    for size in tqdm(config.batches["sizes"], desc=description, unit="size", file=sys.stderr, mininterval=0.5):
        for composition in ("uniform", "mixed"):
            for mode in modes:
                right = alone if mode == "fixed" else answers(mode, composition, size)
                for (suite, name, level), hits in zip(studied, right, strict=True):
                    rows.append((mode, composition, size, suite, name, level, len(images), hits.double().mean().item()))
    return pd.DataFrame(rows, columns=columns)


def _set_up(config: SweepConfig, norm: str) -> None:
    if norm not in config.modes:
        raise ValueError(f"the sweep block names no modes for norm {norm!r}, only for {', '.join(config.modes)}")
    use_cpu(config.threads)


def _begin(model, dataset: Dataset, config: SweepConfig, norm: str) -> tuple[Tensor, Tensor, noise.Extrema]:
    """Test images and labels on the network's device, and the range of the training part."""
    _set_up(config, norm)
    device = next(model.parameters()).device
    images, labels = test_images(dataset, config)
    return images.to(device), labels.to(device), training_range_of(dataset, device)


def test_images(dataset: Dataset, config: SweepConfig) -> tuple[Tensor, Tensor]:
    """The test part in the sweep's own order: a batch in the order of the files would hold a single class."""
    labels = torch.as_tensor(dataset.labels("test"))
    most = None if config.images is None else max(config.images, config.clean_images or 0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))[:most]
    return torch.as_tensor(dataset.images("test"))[order], labels[order]


test_images.__test__ = False  # not a test


def save_sweep(
    table: pd.DataFrame,
    classes: np.ndarray,
    batches: pd.DataFrame,
    choice: pd.DataFrame,
    labels: Tensor,
    folder: Path,
) -> None:
    """Write sweep.csv, batches.csv, choice.csv and predictions.npz (classes (rows, N), labels (N,)) to `folder`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, classes=classes, labels=labels.cpu().numpy().astype(np.int16))
    paths.write(folder / "predictions.npz", buffer.getvalue())
    for name, rows in (("sweep", table), ("batches", batches), ("choice", choice)):
        paths.write(folder / f"{name}.csv", rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def load_predictions(folder: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """What `save_sweep` wrote: the table, the classes (rows, N) and the labels (N,)."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        return pd.read_csv(folder / "sweep.csv"), file["classes"], file["labels"]
