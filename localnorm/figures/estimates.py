"""Clean and noisy accuracy of what a chart shows, from the tidy tables."""

import pandas as pd

__all__ = ["clean_and_noisy"]


def clean_and_noisy(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A row a norm, mode, seed, combination of `by` and `part`, "clean" or "noisy", with its accuracy.

    "clean" is level 0; "noisy" is the mean over the noises, each over its other levels, as in the tables.
    """
    keys = ["norm", "mode", "seed", *by]
    levels = [*keys, "suite", "noise"]
    clean = table[table.level == 0].groupby(keys).accuracy.mean()
    noisy = table[table.level != 0].groupby(levels, dropna=False).accuracy.mean().groupby(keys).mean()
    parts = {"clean": clean, "noisy": noisy}
    return pd.concat(parts, names=["part"]).rename("accuracy").reset_index()
