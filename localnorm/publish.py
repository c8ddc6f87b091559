"""Join the results of several experiments into one file per kind of table, which figures and texts read."""

import json
from collections.abc import Sequence

import pandas as pd

from localnorm import paths, scores, stats
from localnorm.arms import STATISTICS, arm_of, in_order
from localnorm.tables import read_about, read_table
from localnorm.words import title

__all__ = ["publish"]

PUBLISHED_SEED = 0  # of the networks in data/networks, as their descriptions say


def publish(experiments: Sequence[str], lengths: Sequence[str] = (), controlled: Sequence[str] = ()) -> list[str]:
    """Join the results of several experiments in data/results/published, one file per kind of table.

    Args:
        experiments: names of the experiments that the paper reports. One without results yet is left out.
        lengths: experiments that differ in how long they train. One of them without ablations has the conversions of another one's.
        controlled: experiments whose published networks the stage `controls` asked in more ways, on the images and noises of the
            answers. What it found stands for the answers that their seed lacks.

    Returns:
        The names of those that have results.

    Raises:
        FileNotFoundError: none of them has.
    """
    there = [name for name in experiments if (paths.results(name) / "comparisons.csv").is_file()]
    if not there:
        raise FileNotFoundError(
            f"none of {', '.join(experiments)} has results; make them with `dvc repro comparisons@{experiments[0]}`"
        )
    abouts = {name: read_about(name) for name in there}
    tables = {
        "summary": [_summary(name, name in controlled) for name in there],
        "comparisons": [_with_conversion(name, lengths) for name in there],
        "strengths": [read_table("strengths", name) for name in there],
    }
    folder = paths.results("published")
    for kind, each in tables.items():
        for name, table in zip(there, each, strict=True):
            table.insert(0, "experiment", name)
            table.insert(1, "title", title(abouts[name], abouts.values()))
        paths.write_table(folder / f"{kind}.csv", pd.concat(each, ignore_index=True))
    paths.write(folder / "about.json", json.dumps(abouts, indent=1, sort_keys=True) + "\n")
    return there


def _with_conversion(experiment: str, lengths: Sequence[str]) -> pd.DataFrame:
    """The comparisons of an experiment, followed by those of converted networks, where some were trained."""
    table = read_table("comparisons", experiment)
    for name in (experiment, *(lengths if experiment in lengths else ())):
        if (paths.results(name) / "conversion.csv").is_file():
            return pd.concat([table, read_table("conversion", name)], ignore_index=True)
    return table


def _summary(experiment: str, controlled: bool) -> pd.DataFrame:
    """The summary of an experiment, with how far each arm lies from BN fixed on the seeds that both have.

    Where published networks alone were asked in a way, their seed stands in. Such means have no interval: answers to single images,
    by which it is widened, were not kept.
    """
    summary, answered = read_table("summary", experiment), read_table("scores", experiment)
    asked = _of_controls(experiment) if controlled else {}
    images = summary.groupby("metric").images.max()
    rows, change = [], {}
    for metric, known in summary.groupby("metric", sort=False):
        counts = known.set_index("arm").seeds
        values = scores.per_seed(answered, metric)
        values = values.combine_first(asked.get(metric, values[:0]))
        change |= {(arm, metric): each for arm, each in scores.changes(values).items()}
        for arm, of_arm in values.groupby(level="arm"):
            if of_arm.size > counts.get(arm, 0):
                row = {"arm": arm, "metric": metric, "seeds": of_arm.size, "images": images[metric]}
                rows.append(row | {"estimate": of_arm.mean(), "by_seed": stats.by_seed(of_arm)})
    key = ["arm", "metric"]
    added = pd.DataFrame(rows, columns=summary.columns)
    replaced = pd.MultiIndex.from_frame(summary[key]).isin(pd.MultiIndex.from_frame(added[key]))
    whole = pd.concat([summary[~replaced], added], ignore_index=True)
    whole["change"] = [change[arm, metric] for arm, metric in zip(whole.arm, whole.metric, strict=True)]
    places = {each: place for place, each in enumerate([*dict.fromkeys(whole.metric), *in_order(whole.arm)])}
    return whole.sort_values(["metric", "arm"], key=lambda column: column.map(places), ignore_index=True)


def _of_controls(experiment: str) -> dict[str, pd.Series]:
    """Metric -> what published networks have with each way to answer one image, by arm and seed."""
    table = read_table("controls", experiment)
    table = table[(table.part == "test") & table.control.isin(STATISTICS)]
    arms = [arm_of(*each).label for each in zip(table.network, table.control, strict=True)]
    index = pd.MultiIndex.from_arrays([arms, [PUBLISHED_SEED] * len(arms)], names=["arm", "seed"])
    return {metric: pd.Series(table[metric].to_numpy(), index) for metric in ("clean", "noisy")}
