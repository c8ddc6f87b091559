"""Statistics over seeds and over test images: intervals, paired tests, corrections. Pure functions of numbers.

The unit of replication is the seed. All seeds of an experiment share the test images and the noise that is drawn on them. So the scatter
over seeds shows what training again would change, and says nothing about other test images. That uncertainty is added to it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # its stats, a second to load, come with the first call: captions and figures read no more than ENOUGH_SEEDS

__all__ = [
    "CONFIDENCE",
    "ENOUGH_SEEDS",
    "Interval",
    "beyond_clean",
    "by_seed",
    "holm",
    "image_spread",
    "interval",
    "mcnemar",
    "ratio_interval",
    "sign_flip",
]

CONFIDENCE = 0.95
# Fewer have no interval, and tables and figures show each of them instead. Student's t makes the half interval of two seeds nine
# deviations and of three 2.5, wider than the values themselves lie apart; of four it is 1.6.
ENOUGH_SEEDS = 4
RESAMPLES = 9_999


class Interval(NamedTuple):
    """A mean, its 95 % interval, and the p-value of a test that the mean is a given value; nan where there is only one value."""

    estimate: float
    low: float
    high: float
    p: float


def interval(values: Iterable[float], over_images: float = 0.0, null: float = 0.0) -> Interval:
    r"""The mean over seeds with its 95 % interval: Student's t, widened by what the test images leave open.

    .. math:: \bar v \pm t_f \sqrt{s^2 / n + o^2}, \qquad f = (n - 1) \left(1 + \frac{o^2}{s^2 / n}\right)^2

    with the deviation s of the n values and the standard error o of the mean over test images. The degrees of freedom f are n - 1
    where images leave nothing open, and grow with what they add, which is known from many images. The p is the two-sided one of the
    same t.

    Args:
        values: one per seed.
        over_images: o, see `image_spread`; nan where it is not known, which counts as 0.
        null: the value that the p is about.

    Returns:
        The interval of fewer than ENOUGH_SEEDS values is nan: show the values themselves, see `by_seed`. The p is nan of one value alone,
        which has no scatter to judge by.

    Source: Satterthwaite, An approximate distribution of estimates of variance components, Biometrics 1946.

    Example:
        >>> round(interval([0.1, 0.2, 0.3, 0.4]).low, 3), round(interval([0.1, 0.2, 0.3, 0.4], over_images=0.1).low, 3)
        (0.045, 0.008)
        >>> interval([0.1, 0.3]).low
        nan
    """
    values = np.asarray(list(values), float)
    estimate = float(values.mean())
    if len(values) < 2:
        return Interval(estimate, np.nan, np.nan, np.nan)
    seeds = values.var(ddof=1) / len(values)
    images = 0.0 if np.isnan(over_images) else over_images**2
    error = float(np.sqrt(seeds + images))
    if error < 1e-12:
        half, p = 0.0, float(abs(estimate - null) < 1e-12)
    else:
        freedom = (len(values) - 1) * ((seeds + images) / seeds) ** 2 if seeds else np.inf
        half = error * scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
        p = 2 * scipy.stats.t.sf(abs(estimate - null) / error, freedom)
    half = half if len(values) >= ENOUGH_SEEDS else np.nan
    return Interval(estimate, float(estimate - half), float(estimate + half), float(p))


def by_seed(values: Iterable[float]) -> str:
    """The values of a mean in the order of the seeds, as tables keep them beside it: "0.86 0.874"."""
    return " ".join(f"{value:.6g}" for value in values)


def image_spread(values: np.ndarray) -> float:
    """The standard error of a mean over test images, averaged over seeds first.

    Args:
        values: (seeds, images), what each image adds to the mean, 0 or 1 for right and wrong.

    Example:
        >>> round(image_spread(np.array([[0.0, 1.0, 0.0, 1.0]])), 3)
        0.289
    """
    means = np.asarray(values, float).mean(0)
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else np.nan


def sign_flip(differences: Iterable[float], seed: int = 0) -> float:
    """The two-sided p-value of a sign-flip test that paired differences have mean zero.

    All patterns of signs are tried if there are few, and otherwise 9,999 random ones.

    Returns:
        At least 2 / 2^n for n differences; 1 where all are zero; nan for fewer than two.

    Raises:
        ValueError: a difference that is not finite.
    """
    differences = np.asarray(list(differences), float)
    if not np.isfinite(differences).all():
        raise ValueError(f"differences must be finite, got {differences}; leave out pairs that lack a value")
    if len(differences) < 2:
        return np.nan
    result = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, alternative="two-sided", rng=seed
    )
    return float(result.pvalue)


def holm(pvalues: Iterable[float], family: int | None = None) -> np.ndarray:
    """Holm's step-down adjustment: p_(i) (m - i + 1), made to rise, at most 1. Source: Holm, Scand. J. Stat. 1979.

    Args:
        pvalues: those that were computed.
        family: m, the tests that were planned, where some of them have no p; None is as many as there are.

    Example:
        >>> holm([0.01, 0.04]).tolist(), holm([0.01], family=3).tolist()
        ([0.02, 0.04], [0.03])
    """
    pvalues = np.asarray(list(pvalues), float)
    family = len(pvalues) if family is None else family
    order = pvalues.argsort()
    raised = np.maximum.accumulate(pvalues[order] * np.arange(family, family - len(pvalues), -1)).clip(max=1)
    adjusted = np.empty_like(raised)
    adjusted[order] = raised
    return adjusted


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Exact McNemar test of two classifiers on the same images.

    Args:
        first, second: (N,) bool, whether each classifier was right.

    Returns:
        Images that only the first got right, that only the second did, and the two-sided p that both are as likely.
    """
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if only_first + only_second == 0:
        return 0, 0, 1.0
    return only_first, only_second, float(scipy.stats.binomtest(only_first, only_first + only_second).pvalue)


def ratio_interval(first: Iterable[float], second: Iterable[float]) -> tuple[float, float, float]:
    """A ratio of means over paired seeds with its 95 % interval: r = mean(a) / mean(b), and r exp(i).

    i is the interval of a / mean(a) - b / mean(b), which is how log r changes from seed to seed. It is a ratio of means and not a mean of
    ratios, since the ratio of a single seed with two right images would outweigh all others.

    Source: the variance of a ratio by linearisation; Cochran, Sampling Techniques, 1977, chapter 6.
    """
    first, second = (np.asarray(list(values), float) for values in (first, second))
    ratio = float(first.mean() / second.mean())
    if ratio == 0:
        return 0.0, 0.0, 0.0
    around = interval(first / first.mean() - second / second.mean())
    return ratio, float(ratio * np.exp(around.low)), float(ratio * np.exp(around.high))


def beyond_clean(shifts: pd.DataFrame) -> pd.Series:
    """Whether a noise visibly moves the statistics of test batches: 19 of 20 noisy batches lie farther out than 19 of 20 clean ones.

    Args:
        shifts: the table of `localnorm.shifts.shifts`.

    Returns:
        One value per noisy row, under its index.
    """
    clean = shifts[shifts.level == 0].iloc[0]
    return shifts[shifts.level > 0].low > clean.high
