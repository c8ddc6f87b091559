"""The end of the pipeline: runs gathered into tables, tables turned into the numbers and LaTeX that a paper needs.

Every number of the paper goes through `collect_numbers`, with the record of what it was measured on beside it.
"""

import argparse
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from localnorm import paths, stats
from localnorm.data import load
from localnorm.evaluate import load_predictions
from localnorm.params import load_params

__all__ = [
    "Results",
    "collect_numbers",
    "collect_runs",
    "latex_numbers",
    "summary_text",
    "write_latex_tables",
    "write_tables",
]


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
    """

    experiment: str
    about: dict
    runs: pd.DataFrame
    sweep: pd.DataFrame
    batches: pd.DataFrame
    mcnemar: pd.DataFrame


def collect_runs(experiment: str, norms: list[str], seeds: list[int]) -> Results:
    """Read what the train and sweep stages of an experiment wrote: the seeds that every norm has been trained and swept with.

    Raises:
        FileNotFoundError: no seed has all its runs yet.
    """
    dataset = load(paths.prepared(experiment))
    swept = [
        seed
        for seed in seeds
        if all(
            (paths.predictions(experiment, paths.run_name(experiment, norm, seed)) / "sweep.csv").is_file()
            for norm in norms
        )
    ]
    if not swept:
        raise FileNotFoundError(
            f"no seed of {experiment} has been trained and swept with each of {', '.join(norms)}; "
            f"run: dvc repro statistics@{experiment}"
        )
    if len(swept) < len(seeds):
        print(f"{len(swept)} of {len(seeds)} seeds are there: {', '.join(map(str, swept))}")
    runs, sweeps, batches, predictions = [], [], [], {}
    for norm in norms:
        for seed in swept:
            run = paths.run_name(experiment, norm, seed)
            record = json.loads((paths.model(experiment, run) / "record.json").read_text(encoding="utf-8"))
            history = pd.read_csv(paths.model(experiment, run) / "history.csv")
            predictions[norm, seed] = load_predictions(paths.predictions(experiment, run))
            of_batches = pd.read_csv(paths.predictions(experiment, run) / "batches.csv")
            batches.append(of_batches.assign(experiment=experiment, norm=norm, seed=seed))
            sweeps.append(predictions[norm, seed][0].assign(experiment=experiment, norm=norm, seed=seed))
            runs.append(
                {
                    "run": run,
                    "model": record["train"]["model"],
                    "norm": norm,
                    "seed": seed,
                    "epochs": record["train"]["epochs"],
                    "num_groups": record["train"]["num_groups"],
                    "batch_size": record["train"]["batch_size"],
                    "precision": record["train"]["precision"],
                    "parameters": record["parameters"],
                    "validation_accuracy": history.validation_accuracy.iloc[-1],
                    "seconds": record["seconds"],
                    "images_per_second": record["images_per_second"],
                    "device": record["device"],
                    "torch": record["versions"]["torch"],
                    "revision": record["revision"],
                }
            )
    about = {
        "title": dataset.title,
        "provenance": dataset.provenance,
        "num_classes": dataset.num_classes,
        "shape": list(dataset.shape),
        "counts": {part: len(dataset.labels(part)) for part in ("train", "validation", "test")},
    }
    keys = ["experiment", "norm", "seed"]
    sweep, batches = (pd.concat(tables, ignore_index=True) for tables in (sweeps, batches))
    sweep, batches = (table[[*keys, *table.columns.drop(keys)]] for table in (sweep, batches))
    modes = set(zip(sweep.norm, sweep["mode"], strict=True))
    pair = ("local", "batch"), ("batch", "batch")
    mcnemar = stats.mcnemar_table(predictions, *pair) if modes.issuperset(pair) else pd.DataFrame()
    return Results(experiment, about, pd.DataFrame(runs), sweep, batches, mcnemar)


def write_tables(results: Results, summary: pd.DataFrame, claims: pd.DataFrame) -> None:
    """Write the tidy sweep and, in the experiment's statistics folder, the tables that figures and numbers read."""
    tables = {
        "summary": summary,
        "claims": claims,
        "curves": stats.curves(results.sweep),
        "areas": stats.areas(results.sweep),
        "mcnemar": results.mcnemar,
        "runs": results.runs,
    }
    folder = paths.statistics(results.experiment)
    for name, table in tables.items():
        paths.write(folder / f"{name}.csv", _csv(table))
    paths.write(folder / "about.json", json.dumps(results.about, indent=1, sort_keys=True) + "\n")
    paths.write(paths.sweep(results.experiment), _csv(results.sweep))
    paths.write(paths.batches(results.experiment), _csv(results.batches))


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


# ------------------------------------------------------------------------------------------------------------------ text


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _with_interval(row, part: str) -> str:
    low, high = getattr(row, f"{part}_low"), getattr(row, f"{part}_high")
    text = _percent(getattr(row, part))
    return text if np.isnan(low) else f"{text} [{_percent(low)}, {_percent(high)}]"


def summary_text(experiment: str) -> str:
    """The small table of an experiment, for a terminal: clean and noisy accuracy in percent, and where the figures are."""
    folder = paths.statistics(experiment)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    summary = pd.read_csv(folder / "summary.csv")
    lines = [
        f"{about['title']}, {summary.seeds.max()} seeds: accuracy in % [95 % interval over seeds]",
        f"  {'':10} {'clean':>20} {'noisy (mean of all)':>22}",
        *(
            f"  {row.arm:10} {_with_interval(row, 'clean'):>20} {_with_interval(row, 'noisy'):>22}"
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


# --------------------------------------------------------------------------------------------------------------- numbers


def collect_numbers() -> dict:
    """Every number of the paper, from the tables of the experiments that have results.

    Returns:
        {"experiments": {name: {about, runs, arms, claims}}}; values are raw, text forms are beside them under `text`.
    """
    experiments = {}
    for name in load_params()["experiments"]:
        folder = paths.statistics(name)
        if (folder / "summary.csv").is_file():
            experiments[name] = _experiment_numbers(name)
    return {"experiments": experiments}


def _experiment_numbers(name: str) -> dict:
    folder = paths.statistics(name)
    runs = pd.read_csv(folder / "runs.csv")
    summary = pd.read_csv(folder / "summary.csv")
    claims = pd.read_csv(folder / "claims.csv")
    sweep = pd.read_csv(paths.sweep(name))
    return {
        "about": json.loads((folder / "about.json").read_text(encoding="utf-8")),
        "training": {
            "model": runs.model[0],
            "epochs": int(runs.epochs[0]),
            "batch_size": int(runs.batch_size[0]),
            "num_groups": int(runs.num_groups[0]),
            "seeds": int(runs.seed.nunique()),
            "runs": len(runs),
            "device": ", ".join(sorted(runs.device.unique())),
            "torch": ", ".join(sorted(runs.torch.unique())),
            "precision": ", ".join(sorted(runs.precision.unique())),
            "minutes": round(float(runs.seconds.sum()) / 60, 1),
        },
        "test_images": int(sweep.images.max()),
        "conditions": len(sweep[sweep.level > 0].drop_duplicates(["suite", "noise", "level"])),
        "arms": {
            row.arm: {
                "clean": row.clean,
                "noisy": row.noisy,
                "text": {part: _with_interval(row, part) for part in ("clean", "noisy")},
            }
            for row in summary.itertuples()
        },
        "claims": [_claim_numbers(row) for row in claims.itertuples()],
    }


def _claim_numbers(row) -> dict:
    ratio = row.part == "largest ratio"

    def form(value: float) -> str:
        return f"{value:.2f}" if ratio else f"{100 * value:+.1f}"  # a multiple, or points of accuracy

    interval = "" if np.isnan(row.low) else f" [{form(row.low)}, {form(row.high)}]"
    return {
        "claim": row.claim,
        "what": row.what,
        "first": row.first,
        "second": row.second,
        "part": row.part,
        "text": form(row.estimate) + interval,
        "p": None if np.isnan(row.p) else f"{row.p:.3f}",
        "verdict": row.verdict,
    }


def latex_numbers(numbers: dict) -> str:
    r"""One \newcommand a number: \LNdigitssmallLNbatchclean and so on (LaTeX names hold letters only)."""
    lines = ["% generated by the stage `numbers`; do not edit"]
    for name, experiment in numbers["experiments"].items():
        for arm, values in experiment["arms"].items():
            for part, text in values["text"].items():
                lines.append(f"\\newcommand{{\\LN{_letters(name)}{_letters(arm)}{part}}}{{{text}}}")
    return "\n".join(lines) + "\n"


def _letters(text: str) -> str:
    digits = dict(
        zip("0123456789", ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), strict=True)
    )
    return "".join(digits.get(letter, letter) for letter in text if letter.isalnum())


def write_latex_tables(numbers: dict) -> None:
    """Write paper/tables/summary-<experiment>.tex, a booktabs table each."""
    for name, experiment in numbers["experiments"].items():
        rows = [
            f"{arm} & {values['text']['clean']} & {values['text']['noisy']} \\\\"
            for arm, values in experiment["arms"].items()
        ]
        lines = [
            "% generated by the stage `numbers`; do not edit",
            "\\begin{tabular}{lrr}",
            "\\toprule",
            "Arm & Clean (\\%) & Noisy (\\%) \\\\",
            "\\midrule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}",
        ]
        paths.write(paths.paper() / "tables" / f"summary-{name}.tex", "\n".join(lines) + "\n")


README_MARKS = "<!-- results: written by `python -m localnorm.results --readme` -->", "<!-- /results -->"


def readme_table(numbers: dict) -> str:
    """The README's table of results, with a link to the figure, notebook and stage of each experiment."""
    lines = []
    for name, experiment in numbers["experiments"].items():
        training = experiment["training"]
        lines += [
            f"**{experiment['about']['title']}**, `{training['model']}`, {training['epochs']} epochs, {training['seeds']} seeds, "
            f"{experiment['test_images']} test images, {training['device']}: [figure](paper/figures/accuracy-{name}.pdf), "
            f"[notebook](notebooks/figure-accuracy.ipynb), stage `report@{name}`",
            "",
            "| arm | clean | noisy |",
            "|---|--:|--:|",
            *(
                f"| {arm} | {values['text']['clean']} | {values['text']['noisy']} |"
                for arm, values in experiment["arms"].items()
            ),
            "",
        ]
    return "\n".join(lines)


def write_readme() -> None:
    """Put the current table between the marks of README.md."""
    readme = paths.project() / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(README_MARKS[0])
    after = rest.partition(README_MARKS[1])[2]
    numbers = json.loads((paths.paper() / "numbers.json").read_text(encoding="utf-8"))
    paths.write(readme, f"{before}{README_MARKS[0]}\n{readme_table(numbers)}{README_MARKS[1]}{after}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m localnorm.results", description="Print the small table of an experiment."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("experiment", nargs="?", help="a name in params.yaml")
    what.add_argument("--readme", action="store_true", help="write the tables of paper/numbers.json into README.md")
    given = parser.parse_args(arguments)
    if given.readme:
        write_readme()
    else:
        print(summary_text(given.experiment))


if __name__ == "__main__":
    main()
