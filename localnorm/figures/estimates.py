"""Means and intervals over seeds of what a chart shows, from the tidy tables."""

import pandas as pd

from localnorm.stats import interval, label_arms

__all__ = ["by_arm", "clean_and_noisy"]


def by_arm(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """A row an arm and combination of the columns `by`: mean of `value` over seeds with `low` and `high`.

    Args:
        table: a row a norm, mode, seed and combination of `by`; more than one of a seed are averaged first.
    """
    rows = []
    labelled = label_arms(table).assign(arm=lambda t: t.arm.astype(str))
    for key, group in labelled.groupby(["arm", *by], sort=False):
        estimate, low, high = interval(group.groupby("seed")[value].mean())
        rows.append(dict(zip(["arm", *by], key, strict=True)) | {value: estimate, "low": low, "high": high})
    return pd.DataFrame(rows)


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
