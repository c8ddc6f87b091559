"""How far noise moves the statistics that a normalisation layer takes from a test batch (claim C1), before any network sees it.

Clean batches differ from the training set too, and small batches differ more. So noisy batches are compared with clean batches of the same
size, and not with zero.
"""

import sys

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from localnorm import paths
from localnorm.answers import noisy_images, test_images, training_range_of
from localnorm.data.dataset import Dataset
from localnorm.settings import AnswersConfig, conditions

__all__ = ["shifts", "write_shifts"]

DRAWS = 1_000  # test batches
TAIL = 0.05  # of the batches, on either side


def shifts(dataset: Dataset, config: AnswersConfig) -> pd.DataFrame:
    r"""The distance of test batches' statistics from the training part's, clean and under every noise and level.

    .. math:: d = \sqrt{\tfrac{1}{C} \sum_c \left( m_c^2 + (s_c - 1)^2 \right)}

    with :math:`m_c` and :math:`s_c` the mean and standard deviation of channel c over a batch of images that were standardised by
    the training part's, so in its deviations. It is the 2-Wasserstein distance of Gaussians with these moments, averaged over
    channels (Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982).

    The 1,000 batches of `config.batch_size` are drawn at random from the test images that networks are asked about. They are the same for
    every condition.

    Returns:
        One row per condition, clean first: suite, noise, level, images, batch_size, distance (the median batch's), low and high (between
        which nine in ten batches lie).
    """
    images, _ = test_images(dataset, config)
    training_range = training_range_of(dataset)
    size = min(config.batch_size, len(images))
    rng = np.random.default_rng(config.seed)
    drawn = torch.as_tensor(np.stack([rng.permutation(len(images))[:size] for _ in range(DRAWS)]))  # (DRAWS, size)
    rows = []
    for condition in tqdm(conditions(config), desc="shifts", unit="condition", file=sys.stderr, mininterval=0.5):
        distances = _distances(noisy_images(images, dataset, *condition, config, training_range), drawn)
        low, middle, high = np.quantile(distances, (TAIL, 0.5, 1 - TAIL))
        rows.append((*condition, len(images), size, middle, low, high))
    return pd.DataFrame(rows, columns=["suite", "noise", "level", "images", "batch_size", "distance", "low", "high"])


def _distances(pixels: Tensor, drawn: Tensor) -> np.ndarray:
    """(N, C, H, W) standardised images and (DRAWS, size) batches of them -> (DRAWS,) distances, see `shifts`."""
    first = pixels.mean((2, 3), dtype=torch.double)  # (N, C)
    second = torch.stack([image.double().square().mean((1, 2)) for image in pixels])  # (N, C)
    mean, square = first[drawn].mean(1), second[drawn].mean(1)  # (DRAWS, C)
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return (mean.square() + (deviation - 1).square()).mean(1).sqrt().numpy()


def write_shifts(table: pd.DataFrame, experiment: str) -> None:
    """Write data/results/<experiment>/shifts.csv."""
    paths.write_table(paths.results(experiment) / "shifts.csv", table)
