"""What the results say beyond differences of two arms: the largest ratio, McNemar's test, costs, and what a study of trainings gives."""

import json

import numpy as np
import pandas as pd

from localnorm import paths, scores, stats
from localnorm.arms import ARMS
from localnorm.comparisons import MARGIN, evaluate
from localnorm.gather import Runs

__all__ = [
    "at_best_mean",
    "at_equal_clean",
    "cost_summary",
    "largest_ratio",
    "mcnemar_table",
    "study_means",
    "with_fixed_statistics",
    "write",
]

CONDITION = ["suite", "noise", "level"]


def largest_ratio(
    table: pd.DataFrame, num_classes: int, first: str = "LN batch", second: str = "BN fixed"
) -> dict | None:
    """Claim C3's "up to three times": the condition where mean accuracy of `first` is the largest multiple of that of `second`.

    Only conditions where `second` has at least twice the accuracy of guessing count: below that a ratio says how bad luck was.
    The condition is picked on the same data, so the ratio is the best case and not what to expect of a new noise.

    Args:
        table: what `localnorm.scores.score` gives.
        num_classes: guessing is right once in so many.

    Returns:
        suite, noise, level, seeds, first_accuracy, second_accuracy, control_accuracy (of BN batch), ratio, low and high; None if no
        condition counts.
    """
    table = table.assign(accuracy=table.right / table.images)
    wide = table[table.level > 0].pivot_table(index=[*CONDITION, "seed"], columns="arm", values="accuracy")
    if not {first, second} <= set(wide):
        return None
    pairs = wide[[first, second]].dropna()
    means = pairs.groupby(CONDITION).mean()
    means = means[means[second] >= 2 / num_classes]
    if means.empty:
        return None
    best = (means[first] / means[second]).idxmax()
    at_best = pairs.loc[best]
    ratio, low, high = stats.ratio_interval(at_best[first], at_best[second])
    control = wide.loc[best, "BN batch"].mean() if "BN batch" in wide else np.nan
    return {
        **dict(zip(CONDITION, best, strict=True)),
        "seeds": len(at_best),
        "first_accuracy": means.loc[best, first],
        "second_accuracy": means.loc[best, second],
        "control_accuracy": control,
        "ratio": ratio,
        "low": low,
        "high": high,
    }


def mcnemar_table(runs: Runs, first: str = "LN batch", second: str = "BN batch") -> pd.DataFrame:
    """McNemar's test of two arms, image by image, with Holm's correction over the conditions of a seed.

    Returns:
        One row per seed and condition: seed, suite, noise, level, images, only_first and only_second (images that one arm alone got
        right), p and p_holm. No rows without both arms.
    """
    one, two = ARMS[first], ARMS[second]
    rows = []
    for seed in sorted({seed for _, seed in runs.answers}):
        if (one.network, seed) not in runs.answers or (two.network, seed) not in runs.answers:
            continue
        sides = [runs.answers[arm.network, seed] for arm in (one, two)]
        right = [
            dict(zip(each.conditions(arm.statistics), each.right(arm.statistics), strict=True))
            for each, arm in zip(sides, (one, two), strict=True)
        ]
        family = []
        for condition in right[0].keys() & right[1].keys():
            a, b = right[0][condition], right[1][condition]
            scored = ~np.isnan(a) & ~np.isnan(b)
            counts = stats.mcnemar(a[scored] == 1, b[scored] == 1)
            family.append((seed, *condition, int(scored.sum()), *counts))
        family.sort()
        adjusted = stats.holm(row[-1] for row in family)
        rows += [(*row, p) for row, p in zip(family, adjusted, strict=True)]
    return pd.DataFrame(rows, columns=["seed", *CONDITION, "images", "only_first", "only_second", "p", "p_holm"])


# claim -> what the cost table calls the measures that it speaks of
COSTS = {"C7": ("step", "memory"), "C8": ("single", "prior", "gated", "vote")}


def cost_summary(costs: pd.DataFrame) -> pd.DataFrame:
    """Claims C7 and C8: per device, network and measure, in how many settings LocalNorm keeps its bound against BatchNorm.

    A setting is within its bound if the upper quartile of the ratio is, and beyond it if the lower quartile is.

    Returns:
        claim, device, subject, measure, settings, within, beyond, strictest and loosest (bound), lowest and highest (ratio).
    """
    rows = []
    for claim, measures in COSTS.items():
        of_claim = costs[(costs.subject != "layer") & costs.measure.isin(measures)]
        for key, rows_of in of_claim.groupby(["device", "subject", "measure"], sort=False):
            within, beyond = (
                (rows_of.upper_quartile <= rows_of.bound).sum(),
                (rows_of.lower_quartile > rows_of.bound).sum(),
            )
            rows.append(
                (
                    claim,
                    *key,
                    len(rows_of),
                    within,
                    beyond,
                    rows_of.bound.min(),
                    rows_of.bound.max(),
                    rows_of.ratio.min(),
                    rows_of.ratio.max(),
                )
            )
    columns = ["claim", "device", "subject", "measure", "settings", "within", "beyond", "strictest", "loosest"]
    columns += ["lowest", "highest"]
    return pd.DataFrame(rows, columns=columns)


def _plain(value: str | float) -> str | float | None:
    """A value as JSON takes it: null where there is no number."""
    if isinstance(value, str):
        return value
    return None if np.isnan(value) else round(float(value), 6)


STUDIED = ["variant", "statistics"]  # what a study compares


def at_equal_clean(table: pd.DataFrame, reference: str = "BN", margin: float = MARGIN) -> pd.DataFrame:
    """The best that each variant has under noise while its clean accuracy is within a margin of a reference's with fixed statistics.

    Args:
        table: of `localnorm.study`.
        reference: a variant; its clean accuracy under the largest n0 of mode "prior" is the measure.
        margin: as a share; 0.01 is a point.

    Returns:
        One row per variant and kind of statistics, its index, with network, prior, clean and noisy, means over seeds; all empty where no
        n0 keeps the clean accuracy.

    Raises:
        ValueError: the table has no such variant.
    """
    means = study_means(table)
    kept = means[means.clean >= with_fixed_statistics(table, reference).clean - margin]
    return _best(kept, kept.noisy).reindex(pd.MultiIndex.from_frame(means[STUDIED].drop_duplicates()))


def with_fixed_statistics(table: pd.DataFrame, reference: str = "BN") -> pd.Series:
    """Clean and noisy accuracy of a variant of a study under the largest n0 of mode "prior", which leaves an image no weight.

    Raises:
        ValueError: the table has no such variant.
    """
    means = study_means(table)
    own = means[(means.variant == reference) & (means.statistics == "prior")]
    if own.empty:
        raise ValueError(f"no variant {reference!r} in the study; it has {', '.join(means.variant.unique())}")
    return own.loc[own.prior.idxmax(), ["clean", "noisy"]]


def at_best_mean(table: pd.DataFrame) -> pd.DataFrame:
    """The n0 with which each variant of a study has the best mean of clean and noisy accuracy, as n0 is chosen for all networks.

    Args:
        table: of `localnorm.study`.

    Returns:
        As of `at_equal_clean`, without empty rows.
    """
    means = study_means(table)
    return _best(means, means.clean + means.noisy)


def _best(means: pd.DataFrame, by: pd.Series) -> pd.DataFrame:
    best = by.groupby([means[name] for name in STUDIED], sort=False).idxmax()
    return means.loc[best].set_index(STUDIED)[["network", "prior", "clean", "noisy"]]


def study_means(table: pd.DataFrame) -> pd.DataFrame:
    """Clean and noisy accuracy of each variant, kind of statistics and n0 of a study: means over seeds."""
    by = ["network", "variant", "statistics", "prior"]
    return table.groupby(by, sort=False, as_index=False, dropna=False)[["clean", "noisy"]].mean()


def write(runs: Runs) -> pd.DataFrame:
    """Write comparisons.csv, mcnemar.csv and ratio.json of an experiment to data/results; returns the comparisons."""
    folder = paths.results(runs.experiment)
    table = evaluate(runs)
    paths.write_table(folder / "comparisons.csv", table)
    paths.write_table(folder / "mcnemar.csv", mcnemar_table(runs))
    ratio = largest_ratio(scores.score(runs.answers.values()), runs.about["num_classes"])
    plain = ratio and {key: _plain(value) for key, value in ratio.items()}
    paths.write(folder / "ratio.json", json.dumps(plain, indent=1) + "\n")
    return table
