"""Write numbers and sources as text: accuracies, differences, and what a caption says about its source."""

import math
from collections.abc import Iterable, Sequence

__all__ = [
    "describe",
    "difference",
    "enumerate_words",
    "percent",
    "scored_images",
    "seed_count",
    "share",
    "title",
]


def percent(value: float) -> str:
    """A share in percent: 0.8685 -> "86.9"; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def share(estimate: float, low: float, high: float) -> str:
    """A share in percent with its interval: "86.9 [86.5, 87.1]"; without it where one seed has none."""
    return percent(estimate) if math.isnan(low) else f"{percent(estimate)} [{percent(low)}, {percent(high)}]"


def difference(estimate: float, low: float, high: float) -> str:
    """A difference of two shares in points with its interval: "+1.2 [-0.3, +2.7]"."""
    if math.isnan(estimate):
        return "-"
    signed = [f"{100 * value:+.1f}" for value in (estimate, low, high)]
    return signed[0] if math.isnan(low) else f"{signed[0]} [{signed[1]}, {signed[2]}]"


def enumerate_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c".

    Example:
        >>> enumerate_words(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([*filter(None, [", ".join(words[:-1])]), *words[-1:]])


def seed_count(count: int) -> str:
    """ "6 seeds", and for one what it means: a number without an interval."""
    return f"{count} seeds" if count > 1 else "one seed, so no interval"


def title(about: dict, others: Iterable[dict] = ()) -> str:
    """The name of an experiment's data, with its network where another experiment has the same data."""
    shared = any(other is not about and other["title"] == about["title"] for other in others)
    return f"{about['title']}, {about['model']}" if shared else about["title"]


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
    """The small table of an experiment for a terminal: clean and noisy accuracy of each arm in percent, with the interval over seeds.

    Args:
        summary: what `localnorm.scores.summarise` gives.
    """
    value = summary.set_index(["arm", "metric"])
    arms = list(dict.fromkeys(summary.arm))
    width = max(map(len, arms))
    lines = [f"{'accuracy in %':{width}} {'clean':>20} {'noisy (mean of all)':>22}"]
    for arm in arms:
        cells = [share(*value.loc[(arm, metric), ["estimate", "low", "high"]]) for metric in ("clean", "noisy")]
        lines.append(f"{arm:{width}} {cells[0]:>20} {cells[1]:>22}")
    return "\n".join(lines)
