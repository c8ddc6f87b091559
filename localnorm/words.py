"""Write numbers and sources as text: accuracies, differences, and what a caption says about its source."""

import math
from collections.abc import Iterable, Sequence

from localnorm.stats import ENOUGH_SEEDS

__all__ = [
    "FEW_SEEDS",
    "IN_BRACKETS",
    "describe",
    "difference",
    "enumerate_words",
    "percent",
    "scored_images",
    "seed_count",
    "seed_values",
    "share",
    "spread",
    "title",
]


# of `localnorm.scores.beside_reference`
FEW_SEEDS = (
    "a hollow one has fewer seeds than BN fixed, and stands where its difference from BN fixed on these seeds puts it"
)
IN_BRACKETS = ("its 95 % interval in [ ]", "each seed in ( )")  # how tables show it, see `spread`


def percent(value: float) -> str:
    """A share in percent: 0.8685 -> "86.9"; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def share(row) -> str:
    """A share in percent with its interval, "86.9 [86.5, 87.1]"; of few seeds with each of them instead, "38.0 (35.2, 40.8)".

    Args:
        row: with the attributes estimate, low, high and by_seed, as a row of the tables `summary` and `comparisons` has them.
    """
    return _around(row, percent)


def difference(row) -> str:
    """A difference of two shares in points with its interval, "+1.2 [-0.3, +2.7]", or with its seeds; `row` as of `share`."""
    return _around(row, lambda value: "-" if math.isnan(value) else f"{100 * value:+.1f}")


def _around(row, written) -> str:
    seeds = seed_values(row)
    if not math.isnan(row.low):
        return f"{written(row.estimate)} [{written(row.low)}, {written(row.high)}]"
    return written(row.estimate) + (f" ({', '.join(map(written, seeds))})" if len(seeds) > 1 else "")


def seed_values(row) -> list[float]:
    """The value of each seed, from a table's column `by_seed`; none where a table has no such column."""
    return [float(value) for value in getattr(row, "by_seed", "").split()]


def enumerate_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c".

    Example:
        >>> enumerate_words(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([*filter(None, [", ".join(words[:-1])]), *words[-1:]])


def seed_count(count: int) -> str:
    """ "6 seeds", and for few what it means: no interval."""
    if count == 1:
        return "one seed, so no interval"
    return f"{count} seeds" if count >= ENOUGH_SEEDS else f"{count} seeds, too few for an interval"


def spread(counts: Iterable[int], interval: str = "its 95 % interval", seeds: str = "each seed as a small dot") -> str:
    """What a figure or a table shows beside a mean over so many seeds: "with its 95 % interval".

    Args:
        counts: the seeds of each experiment or row that is shown.
        interval, seeds: how it is shown; by default as in figures.

    Example:
        >>> spread([6]), spread([1]), spread([6, 1])
        ('with its 95 % interval', 'without an interval', 'with its 95 % interval, where there is more than one seed')
    """
    kinds = {"interval" if count >= ENOUGH_SEEDS else "seeds" if count > 1 else "" for count in counts}
    said = [text for kind, text in (("interval", interval), ("seeds", seeds)) if kind in kinds]
    if not said:
        return "without an interval"
    return f"with {' or, of few seeds, '.join(said)}{', where there is more than one seed' if '' in kinds else ''}"


def title(about: dict, others: Iterable[dict] = ()) -> str:
    """The name of an experiment's data; where another experiment has the same, with what tells them apart: the network, or its epochs.

    Example:
        >>> short, long = {"title": "Cars", "model": "resnet50", "epochs": 7}, {"title": "Cars", "model": "resnet50", "epochs": 16}
        >>> title(long), title(long, [short, long])
        ('Cars', 'Cars, 16 epochs')
    """
    shared = [other for other in others if other is not about and other["title"] == about["title"]]
    if not shared:
        return about["title"]
    same_network = any(other["model"] == about["model"] for other in shared)
    return f"{about['title']}, {about['epochs']} epochs" if same_network else f"{about['title']}, {about['model']}"


def describe(about: dict) -> str:
    """A sentence on what an experiment's numbers were measured on.

    Args:
        about: what `localnorm.tables.read_about` gives.
    """
    counts, (_, height, width) = about["counts"], about["shape"]
    source = f" ({about['provenance']['note']})" if about["provenance"]["lossy"] else ""
    epochs = f"{about['epochs']} epoch{'s' if about['epochs'] > 1 else ''}"
    return (
        f"{about['title']}{source}: {counts['train']:,} training and {counts['test']:,} test images of {width} x "
        f"{height} pixels, {scored_images(about)} of them scored; {about['model']}, {epochs}, batches of "
        f"{about['batch_size']} in {about['num_groups']} groups; {seed_count(about['seeds'])}; "
        f"{' or '.join(about['devices'])}, torch {' or '.join(about['torch'])}"
    )


def scored_images(about: dict) -> str:
    """How many test images a condition has, and which arms have fewer: "384 (clean 5,000; LN vote 32)".

    An arm of other images has another accuracy for that alone, so each is named.
    """
    fewer: dict[int, list[str]] = {}  # images -> arms
    for arm, images in about["images_of_arm"].items():
        if images < about["noisy_images"]:
            fewer.setdefault(images, []).append(arm)
    apart = [f"clean {about['clean_images']:,}"] if about["clean_images"] != about["noisy_images"] else []
    apart += [f"{enumerate_words(arms)} {images:,}" for images, arms in fewer.items()]
    return f"{about['noisy_images']:,} ({'; '.join(apart)})" if apart else f"{about['noisy_images']:,}"


def summary_text(summary) -> str:
    """The small table of an experiment for a terminal: clean and noisy accuracy of each arm in percent, see `share`.

    Args:
        summary: what `localnorm.scores.summarise` gives.
    """
    value = summary.set_index(["arm", "metric"])
    arms = list(dict.fromkeys(summary.arm))
    rows = [("accuracy in %", "clean", "noisy (mean of all)")]
    rows += [(arm, *(share(value.loc[arm, metric]) for metric in ("clean", "noisy"))) for arm in arms]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{arm:{widths[0]}}  {clean:>{widths[1]}}  {noisy:>{widths[2]}}" for arm, clean, noisy in rows]
    return "\n".join([*lines, f"mean {spread(summary.seeds, *IN_BRACKETS)}"])
