"""Join the results of several experiments into one file per kind of table, which figures and texts read."""

import json

import pandas as pd

from localnorm import paths
from localnorm.tables import read_about, read_table
from localnorm.words import title

__all__ = ["publish"]


def publish(experiments: list[str]) -> list[str]:
    """Join the results of several experiments in data/results/published, one file per kind of table.

    Args:
        experiments: names of the experiments that the paper reports. One without results yet is left out.

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
    folder = paths.results("published")
    for kind in ("summary", "comparisons", "strengths"):
        tables = [_table(kind, name) for name in there]
        for name, table in zip(there, tables, strict=True):
            table.insert(0, "experiment", name)
            table.insert(1, "title", title(abouts[name], abouts.values()))
        paths.write_table(folder / f"{kind}.csv", pd.concat(tables, ignore_index=True))
    paths.write(folder / "about.json", json.dumps(abouts, indent=1, sort_keys=True) + "\n")
    return there


def _table(kind: str, experiment: str) -> pd.DataFrame:
    """A table of an experiment; its comparisons are followed by those of its ablations, where it has them."""
    table = read_table(kind, experiment)
    if kind == "comparisons" and (paths.results(experiment) / "conversion.csv").is_file():
        return pd.concat([table, read_table("conversion", experiment)], ignore_index=True)
    return table
