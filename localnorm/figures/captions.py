"""What a caption says of its source, in one place, so that no figure is without data set, n, seeds and device."""

import json

import pandas as pd

from localnorm import paths
from localnorm.evaluate import ARMS
from localnorm.params import load_params
from localnorm.stats import ENOUGH_SEEDS
from localnorm.tables import read_table

__all__ = [
    "describe",
    "experiments_with_results",
    "intervals",
    "scored_images",
    "seed_count",
    "seeds_by_ablation",
    "title",
    "trained_on",
]


def experiments_with_results() -> list[str]:
    """The experiments of params.yaml that have statistics, in its order."""
    return [name for name in load_params()["experiments"] if (paths.statistics(name) / "summary.csv").is_file()]


def title(experiment: str) -> str:
    """The name of an experiment's data, for the axes of figures; with its network where another experiment has the same data.

    Raises:
        FileNotFoundError: the experiment has no statistics yet.
    """
    own = _data_title(experiment)
    shared = any(_data_title(other) == own for other in experiments_with_results() if other != experiment)
    return f"{own}, {read_table('runs', experiment).model[0]}" if shared else own


def _data_title(experiment: str) -> str:
    return json.loads((paths.statistics(experiment) / "about.json").read_text(encoding="utf-8"))["title"]


def _enumerated(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def seed_count(count: int) -> str:
    """ "6 seeds", and for one what it means: a number without an interval."""
    return f"{count} seeds" if count > 1 else "one seed, so no interval"


def intervals(seeds: int) -> str:
    """What `localnorm.stats.interval` gives of so many seeds: "95 % BCa intervals"."""
    return "95 % BCa intervals" if seeds >= ENOUGH_SEEDS else "95 % intervals of Student's t"


def seeds_by_ablation(table: pd.DataFrame) -> str:
    """Over how many seeds the means of a table of ablations are; where that differs, each number with its ablations.

    "3 seeds (bands 95 % intervals of Student's t; norm) and one seed, so no interval (groups at fixed batch)".
    """
    counts = table.groupby("ablation", sort=False).seed.nunique()
    said = []
    for count in sorted(counts.unique(), reverse=True):
        inside = [f"bands {intervals(count)}"] if count > 1 else []
        inside += [", ".join(counts.index[counts == count])] if counts.nunique() > 1 else []
        said.append(seed_count(count) + (f" ({'; '.join(inside)})" if inside else ""))
    return _enumerated(said)


def trained_on(table: pd.DataFrame) -> str:
    """Where and how long the networks of a table of ablations were trained; where they differ in it, how many networks of
    which seeds.

    "CPU (x86_64), bf16-mixed (4 networks, of seed 0) and CPU (x86_64), 32-true (9 networks, of seeds 0, 1, 2); 21 minutes".
    A network that no time is known of is counted: "5 of 18 networks 3 minutes, of the others no time was kept".
    """
    networks = table.drop_duplicates(["ablation", "value", "seed"])
    kinds = networks.assign(kind=networks.device + ", " + networks.precision).groupby("kind", sort=False).seed
    kinds = kinds.agg(number="size", seeds=lambda seeds: sorted(seeds.unique()))
    said = [
        f"{kind} ({row.number} network{'s' * (row.number > 1)}, of seed{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))})"
        for kind, row in zip(kinds.index, kinds.itertuples(index=False), strict=True)
    ]
    where = _enumerated(said) if len(kinds) > 1 else kinds.index[0]
    timed, minutes = networks.train_seconds.notna().sum(), networks.train_seconds.sum() / 60
    if not timed:
        return f"{where}; of their training no time was kept"
    time = f"{minutes:.0f} minutes" if minutes >= 10 else f"{minutes:.1f} minutes"
    if timed < len(networks):
        time = f"{timed} of {len(networks)} networks {time}, of the others no time was kept"
    return f"{where}; {time}"


def scored_images(sweep: pd.DataFrame) -> str:
    """How many test images a condition of a sweep has, and what differs: "384 (clean 5,000; LN vote 32)".

    An arm of other images has another accuracy for that alone, so each is named.
    """
    most, clean = (sweep[chosen].images.max() for chosen in (sweep.level > 0, sweep.level == 0))
    arms = sweep[sweep.level > 0].groupby(["norm", "mode"], sort=False).images.max()
    fewer: dict[int, list[str]] = {}  # images -> arms
    for key, images in arms[arms < most].items():
        fewer.setdefault(images, []).append(ARMS[key])
    apart = [f"clean {clean:,}"] if clean != most else []
    apart += [f"{_enumerated(names)} {images:,}" for images, names in fewer.items()]
    return f"{most:,} ({'; '.join(apart)})" if apart else f"{most:,}"


def describe(experiment: str) -> str:
    """A sentence on what an experiment's numbers were measured on: data, network, training, test images, device.

    Raises:
        FileNotFoundError: the experiment has no statistics yet.
    """
    folder = paths.statistics(experiment)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    runs = read_table("runs", experiment)
    images = scored_images(read_table("sweep", experiment))
    counts, first = about["counts"], runs.iloc[0]
    _, height, width = about["shape"]
    source = f" ({about['provenance']['note']})" if about["provenance"]["lossy"] else ""
    epochs = f"{first.epochs} epoch{'s' if first.epochs > 1 else ''}"
    seeds = runs.seed.nunique()
    return (
        f"{about['title']}{source}: {counts['train']:,} training and {counts['test']:,} test images of {width} x {height} pixels, "
        f"{images} of them scored; {first.model}, {epochs}, batches of {first.batch_size} in {first.num_groups} groups; "
        f"{seed_count(seeds)}{f' with {intervals(seeds)}' if seeds > 1 else ''}; "
        f"{' or '.join(sorted(runs.device.unique()))}, torch {' or '.join(sorted(runs.torch.unique()))}"
    )
