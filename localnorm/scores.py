"""Compute accuracies from answers. This is the only place that defines what "clean" and "noisy" mean.

A metric (`localnorm.arms.METRICS`) is a weighted mean of the accuracies under several conditions. Each noise has the same weight, and each
of its levels above 0 has the same share of it: see `weights`. Tables, comparisons, ablations and figures all use these functions.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from localnorm import stats
from localnorm.arms import ARMS, METRICS, STATISTICS, Condition, arm_of, find, in_order

__all__ = [
    "REFERENCE",
    "Answers",
    "beside_reference",
    "changes",
    "commonest",
    "curves",
    "estimates",
    "mixed_stream",
    "per_image",
    "per_seed",
    "read_answers",
    "score",
    "summarise",
    "weights",
]

CONDITION = ["suite", "noise", "level"]
REFERENCE = "BN fixed"  # usual practice, which other arms are set against


@dataclass(frozen=True)
class Answers:
    """What one network answered to every test image, under every condition and kind of statistics.

    Args:
        network: a key of `localnorm.arms.NETWORKS`.
        seed: of its training.
        table: one row per statistics and condition, with the number of images and of right answers.
        classes: (rows, N) the predicted class, -1 where an image was not scored.
        labels: (N,) the true class.
    """

    network: str
    seed: int
    table: pd.DataFrame
    classes: np.ndarray
    labels: np.ndarray

    def conditions(self, statistics: str) -> list[Condition]:
        """The conditions that were scored under these statistics, in the order of the table."""
        rows = self.table[self.table.statistics == statistics]
        return list(rows[CONDITION].itertuples(index=False, name=None))

    def right(self, statistics: str) -> np.ndarray:
        """(conditions, N): 1 where the image was answered rightly, 0 where not, nan where it was not scored."""
        classes = self.classes[(self.table.statistics == statistics).to_numpy()]
        return np.where(classes < 0, np.nan, classes == self.labels)


def read_answers(folder: Path, network: str, seed: int) -> Answers:
    """The answers that the stage of that name wrote to a run's folder.

    Raises:
        FileNotFoundError: the stage did not run.
        ValueError: table and classes do not belong together.
    """
    table = pd.read_csv(folder / "answers.csv")
    with np.load(folder / "answers.npz", allow_pickle=False) as file:
        classes, labels = file["classes"], file["labels"]
    scored = classes >= 0
    right = (scored & (classes == labels)).sum(1) if classes.shape == (len(table), len(labels)) else None
    if right is None or (right != table.right).any() or (scored.sum(1) != table.images).any():
        raise ValueError(
            f"{folder.name}: answers.csv and answers.npz must be of one run, and they differ in the number of right answers; "
            "run the stage again"
        )
    return Answers(network, seed, table, classes, labels)


def score(answers: Iterable[Answers]) -> pd.DataFrame:
    """All answers of an experiment as one tidy table.

    Returns:
        One row per arm, seed and condition: arm, seed, suite, noise, level, prior (n0), fixed_last, images, right, nll, brier, ece and
        disagreement. Accuracy is right / images.
    """
    tables = []
    for each in answers:
        labels = {key: arm_of(each.network, key).label for key in each.table.statistics.unique()}
        table = each.table.rename(columns={"statistics": "arm"}).assign(seed=each.seed)
        tables.append(table.assign(arm=table.arm.map(labels)))
    table = pd.concat(tables, ignore_index=True)
    order = {label: place for place, label in enumerate(in_order(table.arm))}
    table = table.sort_values(
        ["arm", "seed"], key=lambda column: column.map(order) if column.name == "arm" else column, kind="stable"
    )
    first = ["arm", "seed", *CONDITION]
    return table[[*first, *(column for column in table if column not in first)]].reset_index(drop=True)


def weights(conditions: Sequence[Condition], metric: str) -> np.ndarray:
    """How much each condition counts in a metric: every noise the same, and within a noise every level above 0 the same.

    Args:
        conditions: (suite, noise, level) of what was scored, each once.
        metric: a key of `localnorm.arms.METRICS`.

    Returns:
        (conditions,) that sum to 1, or all 0 where none of them belongs to the metric.

    Example:
        >>> scored = [("clean", "clean", 0), ("named", "gaussian", 0.1), ("named", "gaussian", 0.2), ("named", "contrast", 0.5)]
        >>> weights(scored, "noisy").tolist()
        [0.0, 0.25, 0.25, 0.5]
    """
    metric = find("metric", metric, METRICS)
    levels = Counter((suite, noise) for suite, noise, level in conditions if metric.covers(suite, noise, level))
    return np.array(
        [
            1 / (len(levels) * levels[suite, noise]) if metric.covers(suite, noise, level) else 0.0
            for suite, noise, level in conditions
        ]
    )


def per_seed(
    table: pd.DataFrame, metric: str, by: Sequence[str] = ("arm", "seed"), value: str = "accuracy"
) -> pd.Series:
    """A metric for every group of rows: by default for each arm and seed.

    Args:
        table: columns suite, noise, level, those of `by`, and images and right (or the column `value`).
        metric: a key of `localnorm.arms.METRICS`.
        by: the columns whose combinations each get a value.
        value: "accuracy", or another column to average in the same way.

    Returns:
        One value per combination, in the order of the table; those without a condition of the metric are left out.
    """
    made = {}
    table = table.reset_index(drop=True)  # rows that were put together may share their numbers
    values = table.right / table.images if value == "accuracy" else table[value]
    for key, rows in table.groupby(list(by), sort=False):
        weight = weights(list(rows[CONDITION].itertuples(index=False, name=None)), metric)
        if weight.any():
            # exact: BLAS adds in another order on another processor
            made[key] = math.fsum(weight * values.loc[rows.index])
    index = (
        pd.MultiIndex.from_tuples(made, names=list(by))
        if made
        else pd.MultiIndex.from_arrays([[]] * len(by), names=list(by))
    )
    return pd.Series(list(made.values()), index, dtype=float, name=metric)


def per_image(answers: Answers, statistics: str, metric: str) -> np.ndarray:
    """What each test image contributes to a metric of one network, (N,); nan if it was not scored under all conditions of the metric."""
    weight = weights(answers.conditions(statistics), metric)
    if not weight.any():
        return np.full(len(answers.labels), np.nan)
    return (weight[:, None] * answers.right(statistics))[weight > 0].sum(0)


def summarise(table: pd.DataFrame, answers: Mapping[tuple[str, int], Answers]) -> pd.DataFrame:
    """Every metric of every arm, with its interval.

    Args:
        table: what `score` gives.
        answers: (network, seed) -> the answers that it was made from.

    Returns:
        One row per arm and metric: arm, metric, seeds, images (that every condition scored), estimate, low, high, by_seed.
    """
    rows = []
    of_arm = {arm.label: arm for arm in (arm_of(*key) for key in _arms_in(answers))}
    for metric in METRICS:
        values = per_seed(table, metric)
        for label in in_order(values.index.get_level_values("arm")):
            arm, found = of_arm[label], values[label]
            images = np.stack([per_image(answers[arm.network, seed], arm.statistics, metric) for seed in found.index])
            images = images[:, ~np.isnan(images).any(0)]
            over = stats.interval(found, stats.image_spread(images))
            bounds = np.clip([over.low, over.high], 0, 1)  # a share is, and Student's t does not know it
            rows.append((label, metric, len(found), images.shape[1], over.estimate, *bounds, stats.by_seed(found)))
    return pd.DataFrame(rows, columns=["arm", "metric", "seeds", "images", "estimate", "low", "high", "by_seed"])


def _arms_in(answers: Mapping[tuple[str, int], Answers]) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys((network, key) for (network, _), each in answers.items() for key in each.table.statistics)
    )


def estimates(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str] = ("clean", "noisy")) -> pd.DataFrame:
    """Metrics of a table of networks and statistics: one row per arm, metric and combination of `by`, with its interval over seeds.

    Args:
        table: columns network, statistics, seed, suite, noise, level, images, right, and those of `by`.

    Returns:
        arm, metric, the columns of `by`, seeds, accuracy, low, high, change (see `changes`) and by_seed.
    """
    arms = {key: arm_of(*key).label for key in set(zip(table.network, table.statistics, strict=True))}
    table = table.assign(arm=[arms[key] for key in zip(table.network, table.statistics, strict=True)])
    rows = []
    for metric in metrics:
        whole = per_seed(table, metric, ["arm", *by, "seed"])
        change = changes(whole)
        for key, values in whole.groupby(level=["arm", *by], sort=False):
            found = stats.interval(values)
            bounds = np.clip([found.low, found.high], 0, 1)
            rows.append(
                (key[0], metric, *key[1:], len(values), found.estimate, *bounds, change[key], stats.by_seed(values))
            )
    columns = ["arm", "metric", *by, "seeds", "accuracy", "low", "high", "change", "by_seed"]
    return pd.DataFrame(rows, columns=columns)


def changes(values: pd.Series) -> pd.Series:
    """How far each arm lies from REFERENCE: the mean of paired differences over the seeds that both have; nan where there are none.

    Means of arms with different seeds cannot be set side by side, since seeds differ by more than arms; these can.

    Args:
        values: by arm and seed, and by what else they are to be compared within, see `per_seed`.
    """
    arms = values.unstack("arm")
    arms = arms.sub(arms.get(REFERENCE, np.nan), axis=0).stack(future_stack=True)
    return arms.groupby(level=[name for name in values.index.names if name != "seed"], sort=False).mean()


def beside_reference(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Means that can be drawn beside each other: one of fewer seeds than REFERENCE's becomes REFERENCE's plus the arm's `change`.

    Args:
        table: columns arm, seeds, `value`, low, high, change and by_seed, and those of `by`.
        by: what is drawn together.

    Returns:
        The same rows with the column `few`: whether a mean was moved. Those have no interval and no seeds.
    """
    reference = table[table.arm == REFERENCE].set_index(list(by))[["seeds", value]].add_suffix("_of_reference")
    table = table.join(reference, on=list(by))
    few = (table.seeds < table.seeds_of_reference) & table.change.notna()
    table[value] = table[value].mask(few, table[f"{value}_of_reference"] + table.change)
    table[["low", "high"]] = table[["low", "high"]].mask(few)
    table["by_seed"] = table.by_seed.mask(few, "")
    return table.drop(columns=reference.columns).assign(few=few)


def mixed_stream(table: pd.DataFrame) -> pd.DataFrame:
    """Where each arm stands on a stream of mixed conditions: arms of one image one by one, others in the largest batches.

    Args:
        table: of the study of test batches.

    Returns:
        Rows of `estimates`, one per arm and metric.
    """
    made = estimates(table[table.composition == "mixed"], ["batch_size"])
    # a batch of one image has that image's statistics
    alone = made[(made.batch_size == 1) & made.arm.str.endswith(" batch")]
    alone = alone.assign(arm=alone.arm.str.replace(" batch", " single"))
    made = pd.concat([made, alone[alone.arm.isin(ARMS)]]).drop_duplicates(["arm", "metric", "batch_size"])
    one_image = made.arm.map(lambda arm: STATISTICS[ARMS[arm].statistics].one_image)
    size = np.where(one_image, made.batch_size.min(), made.batch_size.max())
    return made[made.batch_size == size].drop(columns="batch_size").reset_index(drop=True)


def curves(table: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """Accuracy (or another column) against the level of each noise, which begins on clean images.

    Returns:
        One row per arm, suite, noise and level, level 0 among them: arm, suite, noise, level, seeds, `value`, low and high over seeds,
        by_seed.
    """
    table = table.assign(value=table.right / table.images if value == "accuracy" else table[value])
    rows = []
    noises = list(table.loc[table.level > 0, ["suite", "noise"]].drop_duplicates().itertuples(index=False, name=None))
    for arm in in_order(table.arm):
        of_arm = table[table.arm == arm]
        clean = of_arm[of_arm.level == 0]
        for suite, noise in noises:
            noisy = of_arm[(of_arm.suite == suite) & (of_arm.noise == noise)]
            if noisy.empty:
                continue
            for level, at_level in pd.concat([clean, noisy]).groupby("level"):
                found = stats.interval(at_level.value)
                bounds = np.clip(
                    [found.low, found.high], 0, 1 if value in ("accuracy", "ece", "disagreement") else None
                )
                seeds = stats.by_seed(at_level.value)
                rows.append((arm, suite, noise, level, len(at_level), found.estimate, *bounds, seeds))
    return pd.DataFrame(rows, columns=["arm", *CONDITION, "seeds", value, "low", "high", "by_seed"])


def commonest(answers: Answers, statistics: str) -> float:
    """The share of the commonest class among all answers; near 1 if the network gives almost every image the same class."""
    given = answers.classes[(answers.table.statistics == statistics).to_numpy()]
    counts = np.unique(given[given >= 0], return_counts=True)[1]
    return float(counts.max() / counts.sum())
