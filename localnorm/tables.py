"""Read the tables that the pipeline wrote, and refuse those that were edited into something that no stage writes."""

import json
import math
from collections.abc import Sequence

import pandas as pd

from localnorm import noise, paths
from localnorm.arms import ARMS, METRICS, NETWORKS, STATISTICS

__all__ = ["read_about", "read_history_end", "read_lengths", "read_table"]

COMPARED = (
    "claim primary first second metric source value threshold seeds train_gap deviation images_error estimate low "
    "high p p_holm p_sign_flip"
)
# kind -> (file below data/results, columns that its readers use)
TABLES = {
    "scores": ("{}/scores.csv", "arm seed suite noise level images right nll brier ece disagreement"),
    "summary": ("{}/summary.csv", "arm metric seeds images estimate low high"),
    "runs": ("{}/runs.csv", "run model network seed epochs num_groups batch_size precision seconds device torch"),
    "streams": ("{}/streams.csv", "network seed statistics composition batch_size suite noise level images right"),
    "strengths": ("{}/strengths.csv", "network seed statistics prior fixed_last clean noisy"),
    "comparisons": ("{}/comparisons.csv", COMPARED),
    "own_rate": ("{}/own_rate.csv", COMPARED),
    "conversion": ("{}/conversion.csv", COMPARED),
    "mcnemar": ("{}/mcnemar.csv", "seed suite noise level images only_first only_second p p_holm"),
    "shifts": ("{}/shifts.csv", "suite noise level images batch_size distance low high"),
    "ablations": (
        "{}/ablations.csv",
        "ablation value seed network statistics suite noise level images right device precision",
    ),
    "study": ("{}/study.csv", "variant network seed statistics prior clean noisy images seconds device precision"),
    "controls": ("{}/controls.csv", "network part control strength chosen clean noisy images"),
    "fine_tuning": ("{}/fine_tuning.csv", "epochs network part control strength chosen clean noisy images"),
    "cost": (
        "cost.csv",
        "subject measure shape layout dtype ratio lower_quartile upper_quartile bound device machine torch threads",
    ),
}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


COUNTS = _set("seed seeds images right only_first only_second epochs num_groups batch_size parameters threads")
SHARES = _set("train_accuracy validation_accuracy ece disagreement clean noisy p p_holm p_sign_flip")  # in [0, 1]
NUMBERS = _set(
    "level distance prior strength fixed_last nll brier estimate change low high train_gap deviation images_error threshold seconds "
    "train_seconds images_per_second batchnorm localnorm ratio lower_quartile upper_quartile bound"
)
MAY_BE_EMPTY = _set(  # one seed has no interval, and not every pair of arms was run
    "train_seconds prior fixed_last primary value nll brier ece disagreement clean noisy estimate change low high p p_holm "
    "p_sign_flip deviation train_gap images_error"
)
# column -> what may stand in it
KNOWN = {
    "arm": set(ARMS),
    "first": set(ARMS),
    "second": set(ARMS),
    "network": set(NETWORKS),
    "statistics": set(STATISTICS),
    "metric": set(METRICS),
    "chosen": {"True", "False"},
}


def read_table(kind: str, experiment: str = "") -> pd.DataFrame:
    """A table of the pipeline, with the columns and the values that its stage writes.

    Args:
        kind: a key of TABLES.
        experiment: a name in params.yaml; not for "cost", which belongs to none.

    Raises:
        FileNotFoundError: the stage did not run.
        ValueError: it is no table, a column is missing, or a value cannot be; names file, line, column and value.
    """
    place, columns = TABLES[kind]
    columns = columns.split()
    path = paths.results() / place.format(experiment)
    name = path.relative_to(paths.project()).as_posix()
    repair = f"`git checkout -- {name}` brings the committed one back, the stage that writes it a new one"
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
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
        if column in COUNTS | SHARES | NUMBERS:
            table[column] = _numbers(text[column], column, name, repair)
        elif column in columns and column not in MAY_BE_EMPTY and (text[column] == "").any():
            row = int((text[column] == "").argmax())
            raise ValueError(f"{name}, line {row + 2}: {column} is empty; {repair}")
    if "by_seed" in text:
        _check_by_seed(text.by_seed, name, repair)
    _check_known(table, columns, name, repair)
    if "chosen" in columns:
        table["chosen"] = text.chosen == "True"
    return table


def read_about(experiment: str) -> dict:
    """What an experiment's data and training were, as the stage `scores` wrote it.

    Raises:
        FileNotFoundError: the stage did not run.
    """
    path = paths.results(experiment) / "about.json"
    if not path.is_file():
        raise FileNotFoundError(f"no results of {experiment} yet; make them with `dvc repro scores@{experiment}`")
    return json.loads(path.read_text(encoding="utf-8"))


def _check_known(table: pd.DataFrame, columns: list[str], name: str, repair: str) -> None:
    for column, known in KNOWN.items():
        if column in columns and (wrong := ~table[column].isin(known)).any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{name}, line {row + 2}: unknown {column} {table[column][row]!r}; choose one of {', '.join(known)}; {repair}"
            )
    if {"suite", "noise"} <= set(columns):
        conditions = {
            ("clean", "clean"),
            *((suite, noise_) for suite in noise.SUITES for noise_ in noise.noises(suite)),
        }
        for row, found in enumerate(zip(table.suite, table.noise, strict=True)):
            if found not in conditions:
                raise ValueError(f"{name}, line {row + 2}: unknown suite and noise {', '.join(found)}; {repair}")


def _check_by_seed(column: pd.Series, name: str, repair: str) -> None:
    for row, text in enumerate(column):
        if pd.to_numeric(pd.Series(text.split(), dtype=str), errors="coerce").isna().any():
            raise ValueError(
                f"{name}, line {row + 2}: by_seed must be numbers with spaces between, got {text!r}; {repair}"
            )


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


def read_history_end(experiment: str, variant: str, seed: int) -> dict[str, float]:
    """The last epoch of a variant of a study, as `localnorm.study` keeps it: learning_rate, train_loss and accuracies.

    Raises:
        FileNotFoundError: the study did not train it.
    """
    place = f"data/runs/{experiment}-study/{variant.replace(' ', '_')}-s{seed}.json"
    try:
        kept = json.loads((paths.project() / place).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{place} is not there; make it with `dvc repro study@{experiment}`") from None
    return kept["history"][-1]


def read_lengths(experiments: Sequence[str]) -> tuple[pd.DataFrame, dict[int, dict]]:
    """Accuracies of experiments that differ in how long they train.

    Args:
        experiments: of the list `lengths` of params.yaml.

    Returns:
        The rows of their tables `summary` with the column `epochs`, and epochs -> what `read_about` gives, both by rising epochs.

    Raises:
        FileNotFoundError: one of them has no results.
        ValueError: there is none, two of them train equally long, or they differ in images or network.
    """
    if not experiments:
        raise ValueError(
            "the list lengths of params.yaml names no experiment, so there is no length of training to compare"
        )
    abouts = {name: read_about(name) for name in experiments}
    same = {(about["title"], about["model"], about["counts"]["test"]) for about in abouts.values()}
    lengths = {about["epochs"]: name for name, about in abouts.items()}
    if len(same) > 1 or len(lengths) < len(abouts):
        named = ", ".join(f"{name} ({about['model']}, {about['epochs']} epochs)" for name, about in abouts.items())
        raise ValueError(
            "the list lengths of params.yaml must name experiments of one network on the same images, each with its own number of "
            f"epochs; it names {named}"
        )
    table = pd.concat(read_table("summary", lengths[epochs]).assign(epochs=epochs) for epochs in sorted(lengths))
    return table.reset_index(drop=True), {epochs: abouts[lengths[epochs]] for epochs in sorted(lengths)}
