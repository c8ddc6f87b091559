"""The comparisons behind the claims of the paper, as one table, and what the results say about each: numbers, never text.

A comparison is the difference of two arms in one metric, paired within seeds. The *primary* comparisons were fixed when this analysis was
written, and not by what it gave. (Version 0.1 had scored CIFAR-10, and Stanford Cars after fewer epochs, by then.) Only they have a
verdict, after Holm's correction over all of them. All others are descriptions: an estimate and its interval.
To add a claim, add one row to COMPARISONS.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from localnorm import scores, stats
from localnorm.arms import ARMS, METRICS, arm_of, find

if TYPE_CHECKING:
    from localnorm.gather import Runs

__all__ = [
    "CLAIMS",
    "COLUMNS",
    "COMPARISONS",
    "PRIMARY",
    "VERDICTS",
    "Claim",
    "Comparison",
    "evaluate",
    "evaluate_ablations",
    "lacks_training",
    "verdict",
]

MARGIN = 0.01  # clean accuracies closer than a point count as the same
LARGE = 64  # pixels a side, at least, of what a claim calls large images
CONVERTED = "fine-tuning epochs after conversion"
HOLDS, FAILS, UNDECIDED = VERDICTS = ("holds", "does not hold here", "undecided")


@dataclass(frozen=True)
class Claim:
    """A claim of the original paper, or of this package, in words.

    Args:
        key: its name in tables.
        statement: the claim itself.
        ours: it is this package's, not the original's.
    """

    key: str
    statement: str
    ours: bool = False


CLAIMS = {
    claim.key: claim
    for claim in (
        Claim("C1", "Noise shifts the statistics of images."),
        Claim(
            "C2",
            "BatchNorm with fixed statistics fails under noise. Statistics of the test batch help, and cost clean accuracy.",
        ),
        Claim("C3", "LocalNorm is far more robust than BatchNorm with fixed statistics."),
        Claim("control", "LocalNorm is more robust than BatchNorm with the statistics of the test batch."),
        Claim("C4", "LocalNorm is the same or slightly better on clean images."),
        Claim("C5", "On large images LocalNorm works on a single test image."),
        Claim("C6", "Poorly lit objects are recognised from one image."),
        Claim("C7", "The extra cost of training is negligible."),
        Claim("C8", "There is little or no extra cost at inference."),
        Claim("C9", "LocalNorm can be put into many already-trained networks simply."),
        Claim(
            "prior",
            "With a prior from the training set LocalNorm answers one image better than BatchNorm.",
            ours=True,
        ),
        Claim(
            "drawn",
            "Trained with random group sizes, LocalNorm answers one image better than BatchNorm with a prior.",
            ours=True,
        ),
        Claim(
            "streams",
            "On a stream of mixed conditions, images one at a time are answered better than in batches.",
            ours=True,
        ),
    )
}


@dataclass(frozen=True)
class Comparison:
    """One difference: accuracy of `first` minus that of `second`.

    Args:
        claim: a key of CLAIMS.
        first, second: labels of arms.
        metric: a key of `localnorm.arms.METRICS`.
        threshold: the claim says that the difference is above it: 0, or minus the margin where "no worse" is meant.
        primary: "P1" ... where it carries a verdict; empty for a description.
        large: the claim is about large images; on others it is a description.
        source: a key of SOURCES: where the accuracies are from.
        value: of an ablation, where the source is one: "0" epochs of fine-tuning.
        statement: what the difference means in words, for a reader who does not know the arms.
    """

    claim: str
    first: str
    second: str
    metric: str
    threshold: float = 0.0
    primary: str = ""
    large: bool = False
    source: str = "answers"
    value: str = ""
    statement: str = ""

    def __post_init__(self):
        find("claim", self.claim, CLAIMS)
        find("arm", self.first, ARMS)
        find("arm", self.second, ARMS)
        find("metric", self.metric, METRICS)
        find("source", self.source, SOURCES)


Differences = tuple[pd.Series, float]  # one per seed, and the standard error over test images (nan: not known)


def _of_answers(comparison: Comparison, runs: "Runs") -> Differences | None:
    """On the images that both arms have scored under every condition of the metric, in the seeds that were asked in both ways."""
    first, second = (ARMS[label] for label in (comparison.first, comparison.second))
    per_seed = {}
    for network, seed in runs.answers:
        both = [(runs.answers.get((arm.network, seed)), arm.statistics) for arm in (first, second)]
        if network == first.network and all(each and each.conditions(statistics) for each, statistics in both):
            one, two = (scores.per_image(*each, comparison.metric) for each in both)
            per_seed[seed] = one - two
    if not per_seed:
        return None
    images = np.stack(list(per_seed.values()))  # (seeds, N)
    images = images[:, ~np.isnan(images).any(0)]
    if not images.size:
        return None
    return pd.Series(images.mean(1), pd.Index(list(per_seed), name="seed")), stats.image_spread(images)


def _of_mixed_streams(comparison: Comparison, runs: "Runs") -> Differences | None:
    """The largest test batches, in which images of several conditions are mixed; an arm of one image is not moved by its company."""
    if runs.streams.empty:
        return None
    mixed = runs.streams[runs.streams.composition == "mixed"]
    mixed = mixed[mixed.batch_size == mixed.batch_size.max()]
    return _of_table(comparison, mixed, mixed)


def _of_ablations(comparison: Comparison, ablations: pd.DataFrame) -> Differences | None:
    """Trained BatchNorm networks of the ablations, converted and fine-tuned, against the same networks as they were."""
    converted = ablations[(ablations.ablation == CONVERTED) & (ablations.value == comparison.value)]
    return _of_table(comparison, converted, ablations[(ablations.ablation == "network") & (ablations.value == "bn")])


def _of_table(comparison: Comparison, of_first: pd.DataFrame, of_second: pd.DataFrame) -> Differences | None:
    values = []
    for label, table in ((comparison.first, of_first), (comparison.second, of_second)):
        arm = ARMS[label]
        rows = table[(table.network == arm.network) & (table.statistics == arm.statistics)]
        values.append(
            scores.per_seed(rows, comparison.metric, ["seed"]).droplevel([]) if len(rows) else pd.Series(dtype=float)
        )
    differences = (values[0] - values[1]).dropna()
    differences.index = [key[0] if isinstance(key, tuple) else key for key in differences.index]
    return (differences, np.nan) if len(differences) else None


# source -> what gives the differences, of an experiment's runs or, for a conversion, of its ablations
SOURCES: dict[str, Callable[..., Differences | None]] = {
    "answers": _of_answers,
    "mixed streams": _of_mixed_streams,
    "conversion": _of_ablations,
}


# fmt: off
_PRIMARY = (  # of one image and of streams, the second arm is BatchNorm's best way to do the same
    ("P1", "C3", "LN batch", "BN fixed", "noisy", 0.0, "LocalNorm in batches is more robust than BatchNorm as it is used"),
    ("P2", "control", "LN batch", "BN batch", "noisy", 0.0, "LocalNorm adds robustness to statistics of the test batch"),
    ("P3", "C4", "LN batch", "BN fixed", "clean", -MARGIN, "LocalNorm in batches is as good on clean images, to a point"),
    ("P4", "C5", "LN single", "BN fixed", "noisy", 0.0, "LocalNorm alone with one image is more robust"),
    ("P4", "C5", "LN single", "BN fixed", "clean", -MARGIN, "LocalNorm alone with one image is as good on clean images, to a point"),
    ("P5", "prior", "LN prior", "BN prior", "noisy", 0.0, "with a prior, LocalNorm is more robust on one image"),
    ("P5", "prior", "LN prior", "BN fixed", "clean", -MARGIN, "with a prior, LocalNorm is as good on one clean image, to a point"),
    ("P6", "drawn", "LN drawn single", "BN prior", "noisy", 0.0, "trained for one image, LocalNorm beats BatchNorm with a prior"),
    ("P7", "streams", "LN prior", "BN batch", "noisy", 0.0, "one image at a time beats test batches on a stream of mixed conditions"),
)
_DESCRIBED = (
    ("C2", "BN batch", "BN fixed", "noisy", 0.0),
    ("C2", "BN fixed", "BN batch", "clean", 0.0),
    ("C4", "LN batch", "BN batch", "clean", -MARGIN),
    ("control", "LN pooled", "LN batch", "noisy", 0.0),  # the same network, so what few images per statistic cost
    ("control", "LN pooled", "BN batch", "noisy", 0.0),  # as many images per statistic, so what the training brings
    ("control", "LN pooled", "BN batch", "clean", -MARGIN),
    ("prior", "LN prior", "BN prior", "clean", -MARGIN),
    ("prior", "BN prior", "BN fixed", "noisy", 0.0),
    ("prior", "BN gated", "BN prior", "noisy", 0.0),
    ("prior", "BN gated", "BN fixed", "clean", -MARGIN),
    ("prior", "LN gated", "LN prior", "noisy", 0.0),
    ("prior", "LN gated", "BN gated", "noisy", 0.0),
    ("prior", "LN gated", "BN fixed", "clean", -MARGIN),
    ("prior", "BN shrunk prior", "BN prior", "noisy", 0.0),
    ("prior", "LN shrunk prior", "BN prior", "noisy", 0.0),
    ("prior", "LN shrunk prior", "BN shrunk prior", "noisy", 0.0),
    ("prior", "BN shrunk prior", "BN fixed", "clean", -MARGIN),
    ("prior", "LN shrunk prior", "BN fixed", "clean", -MARGIN),
    ("prior", "BN shrunk gated", "BN gated", "noisy", 0.0),
    ("prior", "LN shrunk gated", "BN gated", "noisy", 0.0),
    ("drawn", "LN drawn single", "BN fixed", "clean", -MARGIN),
    ("drawn", "LN drawn single", "BN prior", "clean", -MARGIN),
    ("C6", "LN drawn single", "BN prior", "dark", 0.0),
)
# fmt: on


def _of_one_image() -> Iterator[Comparison]:
    """Every way to answer one image, against BN fixed and against BatchNorm in the same way; drawn groups against LocalNorm's own."""
    alone = ("single", "vote", "companions", "prior", "last_fixed")
    for claim, metric in (("C5", "noisy"), ("C6", "dark")):
        for network in ("ln", "ln_drawn"):
            for statistics in alone:
                yield Comparison(claim, arm_of(network, statistics).label, "BN fixed", metric)
                if statistics != "vote":  # BatchNorm has one affine, so no jury
                    yield Comparison(claim, arm_of(network, statistics).label, arm_of("bn", statistics).label, metric)
    for statistics in ("batch", *alone):
        for metric in ("noisy", "clean"):
            yield Comparison("drawn", arm_of("ln_drawn", statistics).label, arm_of("ln", statistics).label, metric)


def _of_conversion() -> Iterator[Comparison]:
    """A trained BatchNorm network that gets LocalNorm's layers, after so many epochs of fine-tuning."""
    for epochs in ("0", "1", "5"):
        for second, metric, threshold in (
            ("BN fixed", "noisy", 0.0),
            ("BN fixed", "clean", -MARGIN),
            ("BN batch", "noisy", 0.0),
        ):
            yield Comparison("C9", "LN batch", second, metric, threshold, source="conversion", value=epochs)


def _all() -> tuple[Comparison, ...]:
    primary = [
        Comparison(
            claim,
            first,
            second,
            metric,
            threshold,
            name,
            large=name == "P4",
            source="mixed streams" if name == "P7" else "answers",
            statement=statement,
        )
        for name, claim, first, second, metric, threshold, statement in _PRIMARY
    ]
    asked = {(row.first, row.second, row.metric) for row in primary}
    described = [*(Comparison(*row) for row in _DESCRIBED), *_of_one_image()]
    described = [row for row in described if (row.first, row.second, row.metric) not in asked]
    return (*primary, *described, *_of_conversion())


COMPARISONS = _all()
PRIMARY = tuple(row for row in COMPARISONS if row.primary)
TRAINED = 0.05  # of training accuracy: an arm that is farther behind another one was not trained to the end
KEYS = ["claim", "primary", "first", "second", "metric", "source", "value"]
MEASURED = ["seeds", "train_gap", "deviation", "images_error", "estimate", "low", "high", "p", "p_holm", "p_sign_flip"]
COLUMNS = [*KEYS, "threshold", *MEASURED, "by_seed"]


def evaluate(runs: "Runs") -> pd.DataFrame:
    """Evaluate every comparison on one experiment, in the order of COMPARISONS. `evaluate_ablations` does those of its ablations.

    Args:
        runs: what `localnorm.gather.collect` gives.

    Returns:
        One row per comparison with the columns COLUMNS. Where the arms were not run, seeds is 0 and the numbers are empty. p tests whether
        the difference equals the threshold. p_holm is corrected over all primary comparisons of the experiment, run or not. What is
        claimed of large images is no primary comparison of small ones.
    """
    trained = runs.table.groupby("network").train_accuracy.mean()
    table = _table([each for each in COMPARISONS if each.source != "conversion"], runs)
    networks = [[ARMS[label].network for label in table[column]] for column in ("first", "second")]
    if min(runs.about["shape"][-2:]) < LARGE:
        table.loc[[each.large for each in COMPARISONS if each.source != "conversion"], "primary"] = ""
    table["train_gap"] = trained.reindex(networks[0]).to_numpy() - trained.reindex(networks[1]).to_numpy()
    tested = (table.primary != "") & table.p.notna()
    table.loc[tested, "p_holm"] = stats.holm(table.p[tested], family=int((table.primary != "").sum()))
    return table


def evaluate_ablations(ablations: pd.DataFrame) -> pd.DataFrame:
    """Claim C9: the comparisons of converted networks, from an experiment's ablations; columns as in `evaluate`."""
    return _table([each for each in COMPARISONS if each.source == "conversion"], ablations)


def _table(comparisons: list[Comparison], source: "Runs | pd.DataFrame") -> pd.DataFrame:
    rows = []
    for each in comparisons:
        row = {key: getattr(each, key) for key in (*KEYS, "threshold")} | {"seeds": 0, "by_seed": ""}
        found = SOURCES[each.source](each, source)
        if found is not None:
            differences, over_images = found
            made = stats.interval(differences, over_images, null=each.threshold)
            spread = float(differences.std(ddof=1)) if len(differences) > 1 else np.nan
            row |= {"seeds": len(differences), "deviation": spread, "images_error": over_images, **made._asdict()}
            row |= {"p_sign_flip": stats.sign_flip(differences - each.threshold), "by_seed": stats.by_seed(differences)}
        rows.append(row)
    numbers = {key: float for key in MEASURED if key != "seeds"}
    return pd.DataFrame(rows, columns=COLUMNS).astype(numbers)


def verdict(row) -> str:
    """The verdict of a primary comparison, one of VERDICTS; empty for a description, and where too few seeds for an interval were run.

    A comparison is decided if the corrected p is below .05. It holds if the difference is then above the
    threshold. If it is below, the comparison fails, unless the network of the first arm was not trained to the end: see
    `lacks_training`. Two seeds or three that happen to agree make a small p, so they decide nothing.
    """
    if not row.primary or row.seeds < stats.ENOUGH_SEEDS:
        return ""
    if np.isnan(row.p_holm) or row.p_holm >= 1 - stats.CONFIDENCE:
        return UNDECIDED
    if row.estimate > row.threshold:
        return HOLDS
    return UNDECIDED if lacks_training(row) else FAILS


def lacks_training(row) -> bool:
    """Whether the first arm's network is more than 5 points behind the second's on the training images: it was not trained to the end."""
    return bool(row.train_gap < -TRAINED)
