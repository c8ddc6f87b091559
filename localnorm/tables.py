"""The tables that the pipeline writes for people and figures, read back: people open them, and some save them changed."""

import math

import pandas as pd

from localnorm import noise, paths
from localnorm.evaluate import ARMS
from localnorm.stats import COLUMNS

__all__ = ["read_table"]

CONDITION = ["suite", "noise", "level"]
SWEPT = ["experiment", "norm", "seed", "mode", *CONDITION, "images", "accuracy"]
RUN = [
    "run",
    "model",
    "norm",
    "seed",
    "epochs",
    "num_groups",
    "batch_size",
    "precision",
    "parameters",
    "train_accuracy",
    "validation_accuracy",
    "seconds",
    "device",
    "torch",
]
COST = [
    "subject",
    "measure",
    "shape",
    "layout",
    "dtype",
    "ratio",
    "lower_quartile",
    "upper_quartile",
    "bound",
    "device",
    "machine",
]

# kind -> (path below the project, columns that its readers use)
TABLES = {
    "sweep": ("data/sweeps/{}.csv", [*SWEPT, "nll", "brier", "ece", "disagreement"]),
    "batches": ("data/sweeps/{}-batches.csv", [*SWEPT, "composition", "batch_size"]),
    "cost": ("data/sweeps/cost.csv", [*COST, "torch", "threads"]),
    "ablations": ("data/ablations/{}.csv", ["ablation", "value", *SWEPT[1:], "device", "precision", "train_seconds"]),
    "curves": ("data/statistics/{}/curves.csv", ["arm", *CONDITION, "seeds", "accuracy", "low", "high"]),
    "claims": ("data/statistics/{}/claims.csv", COLUMNS),
    "summary": (
        "data/statistics/{}/summary.csv",
        ["arm", "seeds", *(part + bound for part in ("clean", "noisy") for bound in ("", "_low", "_high"))],
    ),
    "suites": ("data/statistics/{}/suites.csv", ["arm", "suite", "seeds", "accuracy", "low", "high"]),
    "answers": ("data/statistics/{}/answers.csv", ["norm", "mode", "seed", "commonest"]),
    "mcnemar": ("data/statistics/{}/mcnemar.csv", [*CONDITION, "seed", "only_first", "only_second", "p_holm"]),
    "choice": ("data/statistics/{}/choice.csv", ["norm", "seed", "prior", "fixed_last", "clean", "noisy"]),
    "shifts": ("data/statistics/{}-shifts.csv", [*CONDITION, "images", "batch_size", "distance", "low", "high"]),
    "runs": ("data/statistics/{}/runs.csv", RUN),
}

COUNTS = [
    *("seed", "seeds", "images", "only_first", "only_second"),
    *("epochs", "num_groups", "batch_size", "parameters", "threads"),
]
SHARES = [
    "accuracy",
    "train_accuracy",
    "validation_accuracy",
    "commonest",
    "ece",
    "disagreement",
    "clean",
    "noisy",
    "p",
    "p_holm",
]  # in [0, 1]
NUMBERS = [
    *(
        "level",
        "distance",
        "prior",
        "fixed_last",
        "nll",
        "brier",
        "low",
        "high",
        "clean_low",
        "clean_high",
        "noisy_low",
        "noisy_high",
        "estimate",
        "over_images",
    ),
    *(
        "seconds",
        "train_seconds",
        "images_per_second",
        "batchnorm",
        "localnorm",
        "ratio",
        "lower_quartile",
        "upper_quartile",
        "bound",
    ),
]
MAY_BE_EMPTY = {
    "train_seconds",
    "low",
    "high",
    "clean_low",
    "clean_high",
    "noisy_low",
    "noisy_high",
    "p",
    "over_images",
    "prior",
    "fixed_last",
}  # one seed has no interval


# columns -> what stands in them together
CHOICES = {
    ("arm",): {(label,) for label in ARMS.values()},
    ("norm", "mode"): set(ARMS),
    ("suite", "noise"): {
        ("clean", "clean"),
        *((suite, name) for suite in noise.SUITES for name in noise.noises(suite)),
    },
}


def read_table(kind: str, experiment: str = "") -> pd.DataFrame:
    """A table of the pipeline, with the columns and the values that its stage writes.

    Args:
        kind: sweep, batches, ablations, curves, claims, summary, suites, answers, mcnemar, choice, shifts, runs (of an
            experiment), or cost.

    Raises:
        FileNotFoundError: the stage did not run.
        ValueError: it is no table, a column is missing, or a value cannot be; names file, row, column and value.
    """
    name, columns = TABLES[kind]
    name = name.format(experiment)
    repair = f"`git checkout -- {name}` brings the committed one back, the stage that writes it a new one"
    try:
        text = pd.read_csv(paths.project() / name, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} is not there; {repair}") from None
    except (ValueError, pd.errors.ParserError) as error:  # pandas' own among the first, and text that is not UTF-8
        raise ValueError(f"{name} is no table: {error}; {repair}") from None
    if missing := [column for column in columns if column not in text]:
        raise ValueError(f"{name} has no column {', '.join(missing)}, only {', '.join(text)}; {repair}")
    if text.empty:
        raise ValueError(f"{name} has no rows; {repair}")
    table = text.copy()
    for column in text:
        if column in (*COUNTS, *SHARES, *NUMBERS):
            table[column] = _numbers(text[column], column, name, repair)
        elif column in columns and (text[column] == "").any():
            row = int((text[column] == "").argmax())
            raise ValueError(f"{name}, line {row + 2}: {column} is empty; {repair}")
    for together, known in CHOICES.items():
        if set(together) <= set(columns):
            for row, values in enumerate(zip(*(table[column] for column in together), strict=True)):
                if values not in known:
                    raise ValueError(
                        f"{name}, line {row + 2}: unknown {' and '.join(together)} {', '.join(values)}; {repair}"
                    )
    return table


def _numbers(text: pd.Series, column: str, name: str, repair: str) -> pd.Series:
    values = pd.to_numeric(text, errors="coerce").astype(float)
    empty = (text == "") & (column in MAY_BE_EMPTY)
    rule, right = "a number", values.abs() < math.inf
    if column in SHARES:
        rule, right = "a number from 0 to 1", values.between(0, 1)
    elif column in COUNTS:
        rule, right = "a whole number of at least 0", right & (values >= 0) & (values % 1 == 0)
    wrong = ~empty & ~right
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{name}, line {row + 2}: {column} must be {rule}, got {text[row]!r}; {repair}")
    return values.astype(int) if column in COUNTS else values
