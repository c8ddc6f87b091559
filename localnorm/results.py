"""Runs gathered into tables: what is kept of each network, checked to be comparable, and a small table for the terminal."""

import argparse
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from localnorm import paths, stats
from localnorm.evaluate import load_predictions
from localnorm.figures.captions import seed_count
from localnorm.tables import read_table

PAIR = ("batch", "local")

__all__ = ["Results", "collect_runs", "percent", "summary_text", "with_interval", "write_tables"]


@dataclass(frozen=True)
class Results:
    """All runs of an experiment.

    Args:
        experiment: its name in params.yaml.
        about: title, provenance and counts of the data, for captions.
        runs: a row a training run.
        sweep: a row a run, mode, noise and level.
        batches: a row a run, test batch size, composition, noise and level.
        mcnemar: a row a seed, noise and level, LN batch against BN-batch image by image.
        answers: a row a run and mode: how many classes it answered with, over all images and conditions, and the commonest one's share.
        choice: a row a run and strength for one image, accuracy on validation images.
        predictions: (norm, seed) -> what `localnorm.evaluate.load_predictions` gives.
    """

    experiment: str
    about: dict
    runs: pd.DataFrame
    sweep: pd.DataFrame
    batches: pd.DataFrame
    mcnemar: pd.DataFrame
    answers: pd.DataFrame
    choice: pd.DataFrame
    predictions: dict[tuple[str, int], stats.Run]


def collect_runs(experiment: str, norms: list[str], seeds: list[int]) -> Results:
    """Read what the train and sweep stages of an experiment wrote: the seeds that both arms of the pair, batch and local, have been
    trained and swept with (every norm, where none of them is one of these).

    Another norm is left out until it has all of these seeds, so that one more arm never costs the pair its seeds.

    Raises:
        FileNotFoundError: no seed has all its runs yet.
        ValueError: the runs were not trained alike on the same images, or not swept over the same noises and levels.
    """
    swept_with = {
        norm: {
            seed
            for seed in seeds
            if (paths.run(experiment, paths.run_name(experiment, norm, seed)) / "sweep.csv").is_file()
        }
        for norm in norms
    }
    needed = [norm for norm in norms if norm in PAIR] or norms
    swept = [seed for seed in seeds if all(seed in swept_with[norm] for norm in needed)]
    if not swept:
        raise FileNotFoundError(
            f"no seed of {experiment} has been trained and swept with each of {', '.join(needed)}; "
            f"run: dvc repro statistics@{experiment}"
        )
    if lacking := [norm for norm in norms if not swept_with[norm].issuperset(swept)]:
        norms = [norm for norm in norms if norm not in lacking]
        print(f"left out: {', '.join(lacking)}, which has not all of these seeds yet")
    if len(swept) < len(seeds):
        print(f"{len(swept)} of {len(seeds)} seeds are there: {', '.join(map(str, swept))}")
    names = {(norm, seed): paths.run_name(experiment, norm, seed) for norm in norms for seed in swept}
    folders = {key: paths.run(experiment, name) for key, name in names.items()}
    records = {key: json.loads((folder / "record.json").read_text(encoding="utf-8")) for key, folder in folders.items()}
    predictions = {key: load_predictions(folder) for key, folder in folders.items()}
    of_choice = {
        key: pd.read_csv(folder / "choice.csv") for key, folder in folders.items() if (folder / "choice.csv").is_file()
    }
    of_batches = {key: pd.read_csv(folder / "batches.csv") for key, folder in folders.items()}
    _check_comparable(experiment, {names[key]: record for key, record in records.items()})
    _check_same_conditions(
        experiment, {names[norm, seed]: (norm, table) for (norm, seed), (table, *_) in predictions.items()}
    )
    _check_same_images(experiment, {names[key]: labels for key, (*_, labels) in predictions.items()})
    runs = [
        {
            "run": names[norm, seed],
            "model": record["train"]["model"],
            "norm": norm,
            "seed": seed,
            "epochs": record["train"]["epochs"],
            "num_groups": record["train"]["num_groups"],
            "batch_size": record["train"]["batch_size"],
            # the one that was used; older records have only the one that was asked for
            "precision": record.get("precision", record["train"]["precision"]),
            "parameters": record["parameters"],
            **pd.read_csv(folders[norm, seed] / "history.csv").iloc[-1][["train_accuracy", "validation_accuracy"]],
            "seconds": record["seconds"],
            "images_per_second": record["images_per_second"],
            "device": record["device"],
            "torch": record["versions"]["torch"],
            "revision": record["revision"],
        }
        for (norm, seed), record in records.items()
    ]
    data = next(iter(records.values()))["data"]
    about = {key: data[key] for key in ("title", "provenance", "num_classes", "shape", "counts")}
    sweep = _stacked(experiment, {key: table for key, (table, *_) in predictions.items()})
    batches = _stacked(experiment, of_batches)
    modes = set(zip(sweep.norm, sweep["mode"], strict=True))
    pair = ("local", "batch"), ("batch", "batch")
    mcnemar = stats.mcnemar_table(predictions, *pair) if modes.issuperset(pair) else pd.DataFrame()
    choice = _stacked(experiment, of_choice).dropna(subset="noisy") if of_choice else pd.DataFrame()
    answers = []
    for (norm, seed), (table, classes, _) in predictions.items():
        for mode in table["mode"].unique():
            given = classes[table["mode"] == mode]
            counts = np.unique(given[given >= 0], return_counts=True)[1]  # -1: not scored
            answers.append(
                {
                    "norm": norm,
                    "seed": seed,
                    "mode": mode,
                    "commonest": counts.max() / counts.sum(),
                }
            )
    return Results(
        experiment,
        about,
        pd.DataFrame(runs),
        sweep,
        batches,
        mcnemar,
        pd.DataFrame(answers),
        choice,
        predictions,
    )


def _stacked(experiment: str, tables: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """The tables of all runs under each other, with three columns in front that say whose a row is."""
    return pd.concat(
        [
            pd.concat(
                [pd.DataFrame({"experiment": experiment, "norm": norm, "seed": seed}, table.index), table], axis=1
            )
            for (norm, seed), table in tables.items()
        ],
        ignore_index=True,
    )


def _check_comparable(experiment: str, records: dict[str, dict]) -> None:
    """Runs made at different times, or on different machines, are one experiment only with the same settings and images."""
    first, *others = records
    for part in ("train", "data"):
        for other in others:
            one, two = (_without_date(records[name][part]) for name in (first, other))
            if changed := sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key)):
                raise ValueError(
                    f"the runs of {experiment} must be trained with the same settings on the same images, but {first} and "
                    f"{other} differ in {', '.join(f'{part}.{key}' for key in changed)}; run: dvc repro statistics@{experiment}"
                )


def _without_date(part: dict) -> dict:
    provenance = {key: value for key, value in part.get("provenance", {}).items() if key != "date"}
    return part | {"provenance": provenance}


def _check_same_conditions(experiment: str, tables: dict[str, tuple[str, pd.DataFrame]]) -> None:
    """The same noises and levels everywhere, and in each mode of a norm as many images.

    Args:
        tables: run -> its norm and its sweep.
    """
    columns = ["suite", "noise", "level"]
    first, *others = tables
    expected = set(tables[first][1][columns].itertuples(index=False, name=None))
    for other in others:
        if changed := expected ^ set(tables[other][1][columns].itertuples(index=False, name=None)):
            suite, noise, level = sorted(changed)[0]
            raise ValueError(
                f"the runs of {experiment} must be swept over the same noises and levels, but only one of {first} and {other} "
                f"has {suite} {noise} at {level:g}; run: dvc repro statistics@{experiment}"
            )
    counts: dict[
        tuple[str, str, bool], tuple[int, str]
    ] = {}  # norm, mode, noisy -> images, and a run that scored so many
    for name, (norm, table) in tables.items():
        for (mode, noisy), images in table.groupby(["mode", table.level > 0]).images.max().items():
            expected_images, run = counts.setdefault((norm, mode, noisy), (images, name))
            if images != expected_images:
                raise ValueError(
                    f"the runs of {experiment} must score the same test images, but in the mode {mode} {run} scored "
                    f"{expected_images} and {name} {images}{' with noise' if noisy else ''}; run: dvc repro statistics@{experiment}"
                )


def _check_same_images(experiment: str, labels: dict[str, np.ndarray]) -> None:
    """Differences are paired image by image, so all runs must have scored them in one order."""
    first, *others = labels
    for other in others:
        if not np.array_equal(labels[first], labels[other]):
            raise ValueError(
                f"the runs of {experiment} must score the same test images in the same order, but the true classes of {first} and "
                f"{other} differ; run: dvc repro statistics@{experiment}"
            )


def write_tables(results: Results, summary: pd.DataFrame, claims: pd.DataFrame) -> None:
    """Write the tidy sweep and, in the experiment's statistics folder, the tables that figures and numbers read."""
    tables = {
        "summary": summary,
        "claims": claims,
        "curves": stats.curves(results.sweep),
        "areas": stats.areas(results.sweep),
        "suites": stats.suites(results.sweep),
        "mcnemar": results.mcnemar,
        "answers": results.answers,
        "runs": results.runs,
    }
    if not results.choice.empty:
        tables["choice"] = results.choice
    folder = paths.statistics(results.experiment)
    for name, table in tables.items():
        paths.write(folder / f"{name}.csv", _csv(table))
    paths.write(folder / "about.json", json.dumps(results.about, indent=1, sort_keys=True) + "\n")
    paths.write(paths.sweep(results.experiment), _csv(results.sweep))
    paths.write(paths.batches(results.experiment), _csv(results.batches))


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


# ------------------------------------------------------------------------------------------------------------------ text


def percent(value: float) -> str:
    """0.8685 -> "86.9"."""
    return f"{100 * value:.1f}"


def with_interval(row, part: str) -> str:
    """A row of the small table in percent: "86.9 [86.5, 87.1]", without an interval where one seed has none."""
    low, high = getattr(row, f"{part}_low"), getattr(row, f"{part}_high")
    text = percent(getattr(row, part))
    return text if np.isnan(low) else f"{text} [{percent(low)}, {percent(high)}]"


def summary_text(experiment: str) -> str:
    """The small table of an experiment, for a terminal: clean and noisy accuracy in percent, and where the figures are."""
    folder = paths.statistics(experiment)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    summary = read_table("summary", experiment)
    width = summary.arm.str.len().max()
    lines = [
        f"{about['title']}, {seed_count(summary.seeds.max())}: accuracy in % [95 % interval over seeds]",
        f"  {'':{width}} {'clean':>20} {'noisy (mean of all)':>22}",
        *(
            f"  {row.arm:{width}} {with_interval(row, 'clean'):>20} {with_interval(row, 'noisy'):>22}"
            for row in summary.itertuples()
        ),
        "",
    ]
    paper = paths.paper()
    made = [
        *sorted((paper / "figures").glob("*.pdf")),
        paths.statistics(experiment) / "summary.csv",
        paths.sweep(experiment),
        paper / "paper.pdf",
    ]
    lines += [f"  {file.relative_to(paths.project()).as_posix()}" for file in made if file.is_file()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m localnorm.results", description="Print the small table of an experiment."
    )
    parser.add_argument("experiment", help="a name in params.yaml")
    print(summary_text(parser.parse_args(arguments).experiment))


if __name__ == "__main__":
    main()
