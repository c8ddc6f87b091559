"""From sweeps to claims: intervals over seeds, paired tests, areas under the curve.

The unit of replication is the seed: a difference between two arms is taken within a seed (same initial weights, batches, noise)
and then averaged. With n seeds a two-sided sign-flip test cannot give less than p = 2 / 2^n, which is .03 for six. All seeds share the
test images and the noise drawn on them, so an interval over seeds says what training again would change, and nothing of other
images: what those leave open is computed from the answers to single images and stands beside it.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import scipy.stats

from localnorm.evaluate import ARMS, arm_label

__all__ = [
    "areas",
    "by_arm",
    "claims",
    "curves",
    "difference_row",
    "holm",
    "interval",
    "label_arms",
    "largest_ratio",
    "mcnemar",
    "mcnemar_table",
    "paired_differences",
    "part_scores",
    "per_seed_scores",
    "sign_flip",
    "suites",
    "summary",
    "widened",
]

CONFIDENCE = 0.95
ENOUGH_SEEDS = 6  # a two-sided sign-flip test of fewer cannot give p < .05
RESAMPLES = 9_999
CONDITION = ["suite", "noise", "level"]
DARK = ("named", "brightness")  # the noise of claim C6
COLUMNS = [
    "claim",
    "what",
    "first",
    "second",
    "part",
    "seeds",
    "estimate",
    "low",
    "high",
    "over_images",
    "p",
    "verdict",
]
ONE_IMAGE = ("single", "vote", "companions", "prior", "last fixed")  # the modes that look at one image

Run = tuple[pd.DataFrame, np.ndarray, np.ndarray]  # what localnorm.evaluate.load_predictions gives


def interval(values: Iterable[float], seed: int = 0) -> tuple[float, float, float]:
    """(estimate, low, high): the mean of values over seeds with its 95 % interval.

    BCa bootstrap; of fewer than six values Student's t, mean +- t s / sqrt(n), since resamples of so few never leave their range.
    Of six normal values a BCa interval holds the true mean 88 times in 100 (1,500 draws), so verdicts ask `sign_flip` too.
    A single value has no interval (nan); equal values have one of width zero.

    Source: Efron, Better bootstrap confidence intervals, JASA 1987; as scipy.stats.bootstrap computes it.
    """
    values = np.asarray(list(values), float)
    estimate = float(values.mean())
    if len(values) < 2:
        return estimate, np.nan, np.nan
    if np.ptp(values) < 1e-12:
        return estimate, estimate, estimate
    if len(values) < ENOUGH_SEEDS:
        half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        return estimate, float(estimate - half), float(estimate + half)
    result = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa", rng=seed
    ).confidence_interval
    return estimate, float(result.low), float(result.high)


def sign_flip(differences: Iterable[float], seed: int = 0) -> float:
    """Two-sided p of paired differences having mean zero: every sign pattern if there are few, else 9,999 drawn ones.

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


def holm(pvalues: Iterable[float]) -> np.ndarray:
    """Holm's step-down adjustment: p_(i) (m - i + 1), made to rise, at most 1. Source: Holm, Scand. J. Stat. 1979."""
    pvalues = np.asarray(list(pvalues), float)
    order = pvalues.argsort()
    raised = np.maximum.accumulate(pvalues[order] * np.arange(len(pvalues), 0, -1)).clip(max=1)
    adjusted = np.empty_like(raised)
    adjusted[order] = raised
    return adjusted


# -------------------------------------------------------------------------------------------------- tables of an experiment


def _estimates(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """A row a group: mean over seeds with interval, number of seeds."""
    rows = []
    for key, group in table.groupby(by, sort=False):
        estimate, low, high = _of_shares(group.groupby("seed")[value].mean())
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "seeds": group.seed.nunique(),
                value: estimate,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def _of_shares(values: pd.Series) -> tuple[float, float, float]:
    """The interval of shares, which are between 0 and 1 and so is their mean: Student's does not know that."""
    estimate, *bounds = interval(values)
    return estimate, *(float(bound) for bound in np.clip(bounds, 0, 1))


def label_arms(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column `arm`, ordered as in `localnorm.evaluate.ARMS`."""
    arms = [arm_label(norm, mode) for norm, mode in zip(table.norm, table["mode"], strict=True)]
    return table.assign(arm=pd.Categorical(arms, list(ARMS.values()), ordered=True)).sort_values(
        ["arm", "seed"], kind="stable"
    )


def by_arm(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """A row an arm and combination of the columns `by`: mean of `value` over seeds with `low` and `high`.

    Args:
        table: a row a norm, mode, seed and combination of `by`; more than one of a seed are averaged first.
    """
    return _estimates(label_arms(table).assign(arm=lambda t: t.arm.astype(str)), ["arm", *by], value)


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy against level: a row an arm, suite, noise and level, with mean and interval over seeds."""
    return by_arm(table, CONDITION, "accuracy")


def _per_seed_area(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, group in table.groupby(["arm", "seed", "suite", "noise"], sort=False, observed=True):
        group = group.sort_values("level")
        if len(group) > 1:
            area = np.trapezoid(group.accuracy, group.level) / np.ptp(group.level)
            rows.append(dict(zip(["arm", "seed", "suite", "noise", "area"], (*key, area), strict=True)))
    return pd.DataFrame(rows)


def areas(table: pd.DataFrame) -> pd.DataFrame:
    """Area under accuracy against level, divided by the range of levels: 1 is right at every level."""
    per_seed = _per_seed_area(label_arms(table)).assign(arm=lambda t: t.arm.astype(str))
    return _estimates(per_seed, ["arm", "suite", "noise"], "area")


def per_seed_scores(table: pd.DataFrame) -> pd.DataFrame:
    """A row an arm and seed: clean accuracy, and accuracy averaged over the noises (each over its levels above 0)."""
    table = label_arms(table).assign(arm=lambda t: t.arm.astype(str))
    clean = table[table.level == 0].groupby(["arm", "seed"], sort=False).accuracy.mean()
    noisy = (
        table[table.level > 0]
        .groupby(["arm", "seed", "suite", "noise"], sort=False)
        .accuracy.mean()
        .groupby(["arm", "seed"], sort=False)
        .mean()
    )
    return pd.DataFrame({"clean": clean, "noisy": noisy}).reset_index()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The small table: a row an arm with clean and noisy accuracy, each with its interval."""
    rows = []
    for arm, group in per_seed_scores(table).groupby("arm", sort=False):
        row = {"arm": arm, "seeds": len(group)}
        for part in ("clean", "noisy"):
            row[part], row[f"{part}_low"], row[f"{part}_high"] = _of_shares(group[part])
        rows.append(row)
    return pd.DataFrame(rows)


def suites(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy under each suite, averaged as `noisy` is: a row an arm and suite, with its interval over seeds."""
    table = label_arms(table[table.level > 0]).assign(arm=lambda t: t.arm.astype(str))
    each = table.groupby(["arm", "seed", "suite", "noise"], sort=False).accuracy.mean().reset_index()
    return _estimates(each, ["arm", "suite"], "accuracy")


def paired_differences(
    table: pd.DataFrame, first: str, second: str, part: str, runs: dict[tuple[str, int], Run] | None = None
) -> tuple[pd.Series, float]:
    """Accuracy of `first` minus that of `second` in each seed, and how far the test images leave its mean open.

    Args:
        table: the tidy sweep.
        first, second: arms.
        part: "clean"; "noisy", each noise over its levels above 0 and then the noises; or "brightness", that noise alone.
        runs: (norm, seed) -> what `localnorm.evaluate.load_predictions` gives. With them both arms count on the images that both
            have scored under every condition; without them, on the table's accuracies.

    Returns:
        The differences, with the seeds as index, and half the width of the 95 % interval over test images, 1.96 sd / sqrt(N) of the
        images' differences averaged over seeds and conditions; nan without `runs`.
    """
    if runs is None:
        scores = part_scores(table, part)
        return (scores[first] - scores[second]).dropna(), np.nan
    keys = {label: key for key, label in ARMS.items()}
    (norm, mode), (other_norm, other_mode) = keys[first], keys[second]
    seeds = sorted({seed for own, seed in runs if own == norm} & {seed for own, seed in runs if own == other_norm})
    pairs = [
        (_of_images(runs[norm, seed], mode, part), _of_images(runs[other_norm, seed], other_mode, part))
        for seed in seeds
    ]
    differences = np.stack([one - two for one, two in pairs])  # (seeds, N), nan where an arm did not score an image
    differences = differences[:, ~np.isnan(differences).any(0)]
    over_images = 1.96 * differences.mean(0).std(ddof=1) / np.sqrt(differences.shape[1])
    return pd.Series(differences.mean(1), pd.Index(seeds, name="seed")), float(over_images)


def _of_images(run: Run, mode: str, part: str) -> np.ndarray:
    """(N,) how often each image was answered rightly in a part; nan where it was not scored under all of its conditions."""
    noises: dict[tuple, list[np.ndarray]] = {}
    for (suite, noise, level), right in _right(run, mode).items():
        if (level == 0) == (part == "clean") and (part != DARK[1] or (suite, noise) == DARK):
            noises.setdefault((suite, noise), []).append(np.where(right < 0, np.nan, right))
    return np.mean([np.mean(levels, axis=0) for levels in noises.values()], axis=0)


def part_scores(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Accuracy in a part (see `paired_differences`): (seeds, arms)."""
    if part == DARK[1]:
        table = table[(table.level == 0) | ((table.suite == DARK[0]) & (table.noise == DARK[1]))]
        part = "noisy"
    return per_seed_scores(table).pivot(index="seed", columns="arm", values=part)


def difference_row(
    claim: str,
    what: str,
    arms: tuple[str, str],
    part: str,
    differences: Iterable[float],
    over_images: float = np.nan,
    sign: int = 1,
    threshold: float = 0.0,
) -> dict:
    """A row of the claims: a difference of two arms, paired within seeds, with its interval, p and verdict.

    The verdict needs the widened interval on one side of the threshold and, of as many seeds as can give p < .05 (six), that p too: a
    bootstrap interval of so few values is too narrow alone. Of six seeds that is all six on one side; one tie gives p = .0625. p is the
    sign-flip test's of the difference being the threshold, two-sided.

    Args:
        differences: one a seed.
        over_images: half-width of the interval over test images, nan where it is not known; the interval over seeds is widened by it
            for the verdict (root of the sum of squares), since all seeds share the images.
        sign: -1 where the claim is that the difference is negative.
        threshold: the difference, times `sign`, that the claim holds above.
    """
    differences = np.asarray(differences, float)
    estimate, low, high = interval(differences)
    bounds = widened(estimate, low, high, over_images)
    verdict = _verdict(*sorted(sign * bound for bound in bounds), threshold)
    p = sign_flip(sign * differences - threshold)
    if len(differences) >= ENOUGH_SEEDS and p >= 1 - CONFIDENCE:
        verdict = "undecided"
    return {
        "claim": claim, "what": what, "first": arms[0], "second": arms[1], "part": part, "seeds": len(differences),
        "estimate": estimate, "low": low, "high": high, "over_images": over_images, "p": p, "verdict": verdict,
    }  # fmt: skip


def widened(estimate: float, low: float, high: float, over_images: float) -> tuple[float, float]:
    """An interval over seeds widened by what the test images leave open (nan: nothing is known), root of the sum of squares."""
    extra = 0.0 if np.isnan(over_images) else over_images
    return float(estimate - np.hypot(estimate - low, extra)), float(estimate + np.hypot(high - estimate, extra))


def largest_ratio(table: pd.DataFrame, first: str, second: str, num_classes: int) -> dict:
    """Claim C3: the condition where mean accuracy of `first` is the largest multiple of `second`'s, with its interval.

    The ratio is one of means over seeds, r = mean(a) / mean(b), since that of a single seed that got two images right would outweigh all
    others. Its interval is r exp(i) with the interval i of a / mean(a) - b / mean(b), which is how log r moves with a seed. A mean of
    `second` below chance, 1 / num_classes, counts as chance: bad luck in guessing makes no ratio large.
    The condition is picked on the same data, so the ratio is the best case, not what to expect of a new noise.

    Source: the variance of a ratio by linearisation; Cochran, Sampling Techniques, 1977, chapter 6.
    """
    table = label_arms(table).assign(arm=lambda t: t.arm.astype(str))
    pairs = table.pivot_table(index=[*CONDITION, "seed"], columns="arm", values="accuracy")[[first, second]].dropna()
    means = pairs.groupby(CONDITION).mean()
    ratios = means[first] / means[second].clip(lower=1 / num_classes)
    best = ratios.idxmax()
    ratio, relative = ratios[best], pairs.loc[best] / means.loc[best]
    if means[second][best] <= 1 / num_classes:
        relative[second] = 1.0
    _, low, high = interval(relative[first] - relative[second]) if ratio else (0.0, 0.0, 0.0)
    return {
        "first": first,
        "second": second,
        **dict(zip(CONDITION, best, strict=True)),
        "seeds": len(relative),
        "first_accuracy": means.loc[best, first],
        "second_accuracy": means.loc[best, second],
        "ratio": ratio,
        "low": ratio * np.exp(low),
        "high": ratio * np.exp(high),
    }


def _verdict(low: float, high: float, threshold: float = 0.0) -> str:
    """What an interval says about "greater than the threshold"."""
    if low > threshold:
        return "holds"
    return "does not hold here" if high < threshold else "undecided"


def claims(
    table: pd.DataFrame,
    num_classes: int,
    margin: float,
    ratio: float,
    runs: dict[tuple[str, int], Run] | None = None,
) -> pd.DataFrame:
    """The claims that the sweeps of one experiment can test, each with estimate, interval, p and verdict.

    A difference is paired within seeds. It "holds" if its interval, widened by what the test images leave open, lies above zero (C4, and
    "drawn" in batches: above -margin), "does not hold here" if it lies below, and is "undecided" between, or where six seeds or more
    leave p at .05 or above (`difference_row`). C3 "holds in part" where
    LocalNorm is ahead but nowhere by `ratio` times, by the interval's lower end. A claim whose arms were not swept has no row.

    Args:
        table: the tidy sweep of an experiment.
        num_classes: of its data; chance is 1 / num_classes.
        margin: accuracies closer than this count as the same (C4, and "drawn" in batches).
        ratio: the multiple of BatchNorm's accuracy that the paper speaks of (C3).
        runs: the predictions of single images, see `paired_differences`.
    """
    present = set(label_arms(table).arm.astype(str))
    dark = ((table.suite == DARK[0]) & (table.noise == DARK[1]) & (table.level > 0)).any()

    def difference(claim: str, what: str, first: str, second: str, part: str, **options) -> dict:
        found = paired_differences(table, first, second, part, runs)
        return difference_row(claim, what, (first, second), part, *found, **options)

    clean = {"part": "clean", "threshold": -margin}
    asked = [
        ("C2", "statistics of the test batch help BN under noise", "BN-batch", "BN fixed", {"part": "noisy"}),
        ("C2", "and cost it accuracy on clean images", "BN-batch", "BN fixed", {"part": "clean", "sign": -1}),
        ("C3", "LN is more robust than BN", "LN batch", "BN fixed", {"part": "noisy"}),
        ("control", "LN is more robust than BN-batch", "LN batch", "BN-batch", {"part": "noisy"}),
        ("C4", "LN is no worse on clean images", "LN batch", "BN fixed", clean),
        ("C4", "LN is no worse on clean images than BN-batch", "LN batch", "BN-batch", clean),
    ]
    for network in ("LN prior", "LN drawn single"):  # ours, on one image
        for other in ("BN fixed", "BN prior"):
            asked.append(("C4", "LN is no worse on clean images that it sees alone", network, other, clean))
    for claim, part, what in (
        ("C5", "noisy", "LN on one image is more robust"),
        ("C6", DARK[1], "LN recognises one poorly lit image better"),
    ):
        for network in ("LN", "LN drawn"):
            for mode in ONE_IMAGE if part == "noisy" or dark else ():
                asked += [
                    (claim, what, f"{network} {mode}", other, {"part": part}) for other in ("BN fixed", f"BN {mode}")
                ]
        if part == "noisy" or dark:  # one image without the help of others against BN's best way with that help
            asked.append((claim, what, "LN drawn single", "BN prior", {"part": part}))
    for mode in ("batch", *ONE_IMAGE):
        what = (
            "in batches groups of drawn size cost LN less than the margin"
            if mode == "batch"
            else "groups of drawn size make LN better on one image"
        )
        asked += [
            (
                "drawn",
                what,
                f"LN drawn {mode}",
                f"LN {mode}",
                {"part": part, "threshold": -margin if mode == "batch" else 0.0},
            )
            for part in ("noisy", "clean")
        ]
    rows = []
    for claim, what, first, second, options in asked:
        if {first, second} <= present:
            rows.append(difference(claim, what, first, second, **options))
            # an accuracy of at least chance has no multiple above the number of classes
            if claim == "C3" and ratio < num_classes:
                rows.append(_largest_ratio_row(table, num_classes, ratio, ahead=rows[-1]["verdict"]))
    return pd.DataFrame(rows, columns=COLUMNS)


def _largest_ratio_row(table: pd.DataFrame, num_classes: int, ratio: float, ahead: str) -> dict:
    """The row of claim C3 on `ratio`, at the condition where LN batch is the largest multiple of BN fixed."""
    best = largest_ratio(table, "LN batch", "BN fixed", num_classes)
    at_best = table[(table[CONDITION] == [best[key] for key in CONDITION]).all(axis=1)]
    control = at_best[(at_best.norm == "batch") & (at_best["mode"] == "batch")].accuracy.mean()
    beside = "" if np.isnan(control) else f" (BN-batch {control:.1%})"
    return {
        "claim": "C3",
        "what": f"LN reaches {ratio:g} times BN, at {best['noise']} ({best['suite']}) {best['level']:g}: "
        f"{best['first_accuracy']:.1%} against {best['second_accuracy']:.1%}{beside}",
        **{key: best[key] for key in ("first", "second", "seeds", "low", "high")},
        "part": "largest ratio",
        "estimate": best["ratio"],
        "over_images": np.nan,
        "p": np.nan,
        # of one seed, which has no interval, `ahead` is undecided
        "verdict": "holds in part" if ahead == "holds" and best["low"] < ratio else ahead,
    }


def mcnemar_table(
    runs: dict[tuple[str, int], Run],
    first: tuple[str, str],
    second: tuple[str, str],
) -> pd.DataFrame:
    """McNemar with Holm over all conditions of one pair of arms, seed by seed.

    Args:
        runs: (norm, seed) -> what `localnorm.evaluate.load_predictions` gives.
        first, second: (norm, mode).

    Returns:
        A row a seed, suite, noise and level: counts of images that only one arm got right, p and its Holm adjustment
        (over the levels above 0 of all noises, and one clean level, of that seed).
    """
    rows = []
    for seed in sorted({seed for _, seed in runs}):
        if (first[0], seed) not in runs or (second[0], seed) not in runs:
            continue
        right = [_right(runs[norm, seed], mode) for norm, mode in (first, second)]
        family = []
        for key in right[0]:
            scored = (right[0][key] >= 0) & (right[1][key] >= 0)
            counts = mcnemar(right[0][key][scored] == 1, right[1][key][scored] == 1)
            family.append(
                {"seed": seed, **dict(zip(CONDITION, key, strict=True)), "images": int(scored.sum())}
                | dict(zip(("only_first", "only_second", "p"), counts, strict=True))
            )
        for row, adjusted in zip(family, holm(row["p"] for row in family), strict=True):
            rows.append({"first": arm_label(*first), "second": arm_label(*second), **row, "p_holm": adjusted})
    return pd.DataFrame(rows)


def _right(run: Run, mode: str) -> dict[tuple, np.ndarray]:
    """(suite, noise, level) -> (N,) int8: 1 right, 0 wrong, -1 not scored; level 0 once."""
    table, classes, labels = run
    right: dict[tuple, np.ndarray] = {}
    for index, row in table[table["mode"] == mode].iterrows():
        key = ("clean", "clean", 0.0) if row.level == 0 else (row.suite, row.noise, row.level)
        right[key] = np.where(classes[index] < 0, -1, classes[index] == labels).astype(np.int8)
    return right
