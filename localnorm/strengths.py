"""Choose for each network how much the statistics of a single image count, by accuracy on validation images.

Two numbers are chosen, called strengths, for each kind of statistics that has them: n0, the number of positions that the training
statistics count for, and how many of the last layers keep the training statistics. Test images are not used.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from localnorm import paths
from localnorm.answers import noisy_images, predict_arguments, store_statistics, training_range_of
from localnorm.arms import CLEAN, STATISTICS
from localnorm.data.dataset import Dataset
from localnorm.machine import use_cpu
from localnorm.prediction import Predictor
from localnorm.settings import AnswersConfig, candidates, conditions_of

__all__ = ["choose_strengths", "measure_on_validation", "measure_strengths", "save_strengths"]


def measure_strengths(model: torch.nn.Module, dataset: Dataset, config: AnswersConfig, network: str) -> pd.DataFrame:
    """Accuracy on validation images for every candidate of n0 and of the number of last layers.

    A LocalNorm network has its training statistics from then on.

    Args:
        model: on the device that is to be used.
        dataset: the part "validation" is used, and "train" for statistics.
        config: `prior`, `gated` and `fixed_last` are the candidates, `prior_noises` the noises; none of them is scored.
        network: its key.

    Returns:
        One row per kind of statistics and pair of candidates: statistics, prior, fixed_last, clean, and noisy (the plain mean over
        `prior_noises`). The accuracies are empty where there is nothing to choose by, and there is no row where nothing is to be chosen.
    """
    kinds = config.statistics_of(network)
    use_cpu(config.threads)
    priors = candidates(config.prior)
    last = [(prior, count) for count in sorted(config.fixed_last) for prior in dict.fromkeys([0, *priors])]
    offered = {
        "prior": [(prior, 0) for prior in priors],
        "gated": [(prior, 0) for prior in candidates(config.gated)],
        "last_fixed": last,
    }
    grid = [(kind, *pair) for kind, pairs in offered.items() if kind in kinds for pair in pairs]
    model = store_statistics(model, dataset, config, network)
    table = pd.DataFrame(grid, columns=["statistics", "prior", "fixed_last"])
    if table.empty or not config.prior_noises:
        return table.assign(clean=np.nan, noisy=np.nan)
    return table.assign(**measure_on_validation(model, dataset, config, grid))


def measure_on_validation(
    model: torch.nn.Module, dataset: Dataset, config: AnswersConfig, asked: list[tuple[str, float, int]]
) -> dict[str, list[float]]:
    """Accuracy on `config.images` validation images in several ways: "clean", and "noisy", the plain mean over `config.prior_noises`.

    Args:
        model: with the training statistics that the ways need.
        asked: statistics, n0 and number of last layers of each way, as `localnorm.answers.predict_arguments` takes them.
    """
    device = next(model.parameters()).device
    labels = torch.as_tensor(dataset.labels("validation"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))[: config.images]
    images, labels = torch.as_tensor(dataset.images("validation"))[order].to(device), labels[order].to(device)
    training_range = training_range_of(dataset, device)
    ask = [Predictor(model, batch_size=config.batch_size, **predict_arguments(*each)) for each in asked]
    accuracy = {}
    for condition in [CLEAN, *conditions_of(config.prior_noises)]:
        pixels = noisy_images(images, dataset, *condition, config, training_range)
        accuracy[condition] = [(each(pixels).argmax(1) == labels).double().mean().item() for each in ask]
    return {"clean": accuracy.pop(CLEAN), "noisy": np.mean(list(accuracy.values()), axis=0)}


def choose_strengths(table: pd.DataFrame) -> dict[str, dict]:
    """Choose the strengths for each kind of statistics: those with the best mean of clean and noisy accuracy on validation images.

    Of equally good candidates the first is taken, with the fewest fixed layers. If nothing was measured, "prior" and "gated" take the first
    n0, and "last_fixed" the last n0 and number of layers.

    Args:
        table: from `measure_strengths`.

    Returns:
        statistics -> prior and fixed_last, as `localnorm.answers.predict_arguments` takes them, for the statistics that have candidates.
    """
    chosen = {}
    for statistics in (key for key, each in STATISTICS.items() if each.chosen):
        rows = table[table.statistics == statistics]
        if rows.empty:
            continue
        if rows.noisy.isna().all():
            best = rows.iloc[-1] if statistics == "last_fixed" else rows.iloc[0]
        else:
            best = rows.loc[(rows.clean + rows.noisy).idxmax()]
        chosen[statistics] = {"prior": float(best.prior), "fixed_last": int(best.fixed_last)}
    return chosen


def save_strengths(table: pd.DataFrame, folder: Path) -> None:
    """Write strengths.csv, the table of `measure_strengths`, to `folder`."""
    paths.write_table(folder / "strengths.csv", table)
