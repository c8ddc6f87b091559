"""Answers to test batches as a stream may bring them: of other sizes than in training, and with images of several conditions."""

import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from localnorm import paths
from localnorm.answers import noisy_images, predict_arguments, store_statistics, test_images, training_range_of
from localnorm.arms import CLEAN
from localnorm.data.dataset import Dataset
from localnorm.machine import use_cpu
from localnorm.prediction import Predictor
from localnorm.settings import AnswersConfig, conditions_of

__all__ = ["answer_streams", "save_streams"]

COLUMNS = ["statistics", "composition", "batch_size", "suite", "noise", "level", "images", "right"]
COMPOSITIONS = ("uniform", "mixed")
ALONE = (
    "fixed",
    "single",
    "prior",
    "gated",
)  # statistics that no batch moves: an image has one answer, whatever its company


def answer_streams(
    model: torch.nn.Module,
    dataset: Dataset,
    config: AnswersConfig,
    network: str,
    strengths: dict[str, dict] | None = None,
    description: str = "streams",
) -> pd.DataFrame:
    """Ask a network about test batches of several sizes and compositions, to see how much the other images of a batch matter.

    Each image is asked about under each condition (clean, and those of `config.streams`) and in batches of each size, twice: among images
    of its own condition ("uniform"), and among images of all conditions in turn ("mixed"). Rows for the statistics in ALONE, which look at
    one image, are added for the same images if the network is asked under them.

    Args:
        model: on the device that is to be used.
        dataset: see `localnorm.data.load`.
        config: the settings; `streams` holds sizes, conditions and the number of images.
        network: its key.
        strengths: statistics -> prior and fixed_last, from `localnorm.strengths.choose_strengths`.
        description: the progress bar's text.

    Returns:
        One row per (statistics, composition, size, condition) with the columns COLUMNS; without sizes that the test images cannot fill.
        Empty if `config.streams` is None or the network is asked under none of these statistics.
    """
    alone = [statistics for statistics in ALONE if statistics in config.statistics_of(network)]
    in_batches = "batch" in config.statistics_of(network)
    if config.streams is None or not (alone or in_batches):
        return pd.DataFrame(columns=COLUMNS)
    use_cpu(config.threads)
    model = store_statistics(model, dataset, config, network)
    device = next(model.parameters()).device
    images, labels = (each[: config.streams["images"]].to(device) for each in test_images(dataset, config))
    studied = [CLEAN, *conditions_of(config.streams["conditions"])]
    training_range = training_range_of(dataset, device)
    noisy = torch.stack([noisy_images(images, dataset, *each, config, training_range) for each in studied])
    of_image = {
        statistics: _right(
            Predictor(
                model,
                batch_size=config.batch_size,
                **predict_arguments(statistics, **(strengths or {}).get(statistics, {})),
            ),
            noisy,
            labels,
            mixed=False,
        )
        for statistics in alone
    }
    rows = []
    sizes = [size for size in config.streams["sizes"] if size <= len(images)]
    for size in tqdm(sizes, desc=description, unit="size", file=sys.stderr, mininterval=0.5):
        ask = Predictor(model, "batch", batch_size=size) if in_batches else None
        for composition in COMPOSITIONS:
            found = dict(of_image)
            if ask and (size > 1 or composition == "uniform"):  # one image is its own company
                in_batch = _right(ask, noisy, labels, mixed=composition == "mixed")
            if ask:
                found["batch"] = in_batch
            for statistics, right in found.items():
                for condition, hits in zip(studied, right, strict=True):
                    rows.append((statistics, composition, size, *condition, len(images), int(hits.sum())))
    return pd.DataFrame(rows, columns=COLUMNS)


def _right(ask: Predictor, noisy: Tensor, labels: Tensor, mixed: bool) -> Tensor:
    """Whether each image is answered rightly under each condition: images (M, N, C, H, W) and labels (N,) -> (M, N)."""
    count = len(noisy)
    position = torch.arange(len(labels))
    right = torch.zeros(count, len(labels), dtype=torch.bool)
    for turn in range(count):
        # the condition of each image in this pass; over all passes every image meets every condition once
        which = (position * mixed + turn) % count  # (N,)
        right[which, position] = (ask(noisy[which, position]).argmax(1) == labels).cpu()
    return right


def save_streams(table: pd.DataFrame, folder: Path) -> None:
    """Write streams.csv, the table of `answer_streams`, to `folder`."""
    paths.write_table(folder / "streams.csv", table)
