"""Expected against obtained: the committed tables of an experiment beside those that a run on this machine wrote.

Training is not the same bit by bit on another machine, so a new run is as far from the committed one as other seeds would
be. How far that may be follows from the committed seeds: a difference of two means over n and m seeds with the
deviation s over seeds lies within t s sqrt(1/n + 1/m). Nothing is typed by hand, and nothing is called reproduced that was not
run.
"""

import argparse
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import scipy.stats

from localnorm import paths, stats
from localnorm.figures.captions import scored_images
from localnorm.numbers import CLAIMS, estimate_text
from localnorm.params import load_params
from localnorm.tables import read_table

__all__ = ["Comparison", "committed", "compare", "quantities", "report", "tolerance", "write_report"]

CONFIDENCE = 0.99  # that a faithful run has no quantity of one kind outside, if seeds scatter normally
SETTINGS = (
    "model",
    "epochs",
    "batch_size",
    "num_groups",
    "precision",
    "device",
    "torch",
)  # of runs.csv, that may differ
PARTS = ("clean", "noisy", stats.DARK[1])  # of a claim that is a difference of two arms
COLUMNS = ["kind", "quantity", "expected", "obtained", "difference", "tolerance", "inside"]


class OneSeedError(Exception):
    """The committed results are of one seed, which has no scatter to judge others by."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        experiment: its name in params.yaml.
        revision: the git revision that the expected values are of.
        table: a row a quantity: kind, quantity, expected, obtained, difference, tolerance, inside.
        differing: setting -> (expected, obtained), where they differ: data, epochs, device ...
        verdicts: claim -> (expected, obtained), where they differ.
        unchanged: the tables here are byte for byte those of the revision.
    """

    experiment: str
    revision: str
    table: pd.DataFrame
    differing: dict[str, tuple[str, str]]
    verdicts: dict[str, tuple[str, str]]
    unchanged: bool

    @property
    def outside(self) -> pd.DataFrame:
        """The rows of `table` outside their tolerance, or that were expected and not obtained."""
        return self.table[~self.table.inside & self.table.expected.notna()]

    @property
    def counts(self) -> str:
        """So many of the expected quantities lie within their tolerance, as "98 of 100"."""
        expected = len(self.table) - len(self.added)
        return f"{expected - len(self.outside)} of {expected}"

    @property
    def added(self) -> pd.DataFrame:
        """The rows of `table` that the revision does not have, such as those of one more norm."""
        return self.table[self.table.expected.isna()]


def committed(path: Path, revision: str = "HEAD") -> str:
    """Content of a file of the project in a git revision.

    Raises:
        FileNotFoundError: no git, no such revision, or no such file in it; says which.
    """
    name = path.relative_to(paths.project()).as_posix()
    command = ["git", "show", f"{revision}:./{name}"]
    try:
        done = subprocess.run(
            command, cwd=paths.project(), capture_output=True, text=True, encoding="utf-8", check=False
        )
    except OSError as error:
        raise FileNotFoundError(f"git is needed to read what was committed ({error}); install it") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "git says nothing"
        raise FileNotFoundError(
            f"no committed {name} to compare with ({reason}); name a revision that has it: --against"
        )
    return done.stdout


def quantities(sweep: pd.DataFrame, claims: pd.DataFrame) -> pd.DataFrame:
    """What is compared, seed by seed: the accuracy of every arm, overall and under every noise, and the claims' differences.

    Args:
        sweep: the tidy table of an experiment (data/sweeps/<experiment>.csv).
        claims: its claims (data/statistics/<experiment>/claims.csv).

    Returns:
        A row a quantity and seed: kind ("arm", "noise", "claim"), quantity, seed, value in 0 ... 1, and the fewest test images behind
        it. The value of a noise is the mean over its levels above 0, that of a claim the paired difference of two arms that scored
        the same images.
    """
    scores = stats.per_seed_scores(sweep)
    labelled = stats.label_arms(sweep).astype({"arm": str})
    fewest = labelled.groupby("arm").images.min()
    arms = scores.melt(["arm", "seed"], var_name="part", value_name="value")
    arms = arms.assign(kind="arm", quantity=arms.arm + ", " + arms.part)
    noisy = labelled[labelled.level > 0]
    noises = noisy.groupby(["arm", "suite", "noise", "seed"], sort=False).accuracy.mean().reset_index(name="value")
    noises = noises.assign(kind="noise", quantity=noises.arm + ", " + noises.noise + " (" + noises.suite + ")")
    wide = {part: stats.part_scores(sweep, part) for part in PARTS if part in set(claims.part)}
    differences = [
        (wide[row.part][row.first] - wide[row.part][row.second])
        .dropna()
        .reset_index(name="value")
        .assign(kind="claim", quantity=_claim(row))
        for row in claims.itertuples()
        if row.part in wide and {row.first, row.second} <= set(scores.arm) and fewest[row.first] == fewest[row.second]
    ]
    every = pd.concat([arms, noises, *differences])
    of_claim = {_claim(row): row.first for row in claims.itertuples()}
    arm = every.arm.fillna(every.quantity.map(of_claim))
    return every.assign(images=arm.map(fewest))[["kind", "quantity", "seed", "value", "images"]].reset_index(drop=True)


def _claim(row) -> str:
    return f"{row.claim}: {row.first} - {row.second}, {row.part}"


def tolerance(expected: np.ndarray, seeds: int, family: int, resolution: float) -> float:
    """How far the mean over `seeds` new seeds may lie from the mean of the expected ones.

    t s sqrt(1/n + 1/m) with the deviation s of the n expected values, m = `seeds`, and t the two-sided quantile of Student's
    distribution with n - 1 degrees of freedom at 1 - `CONFIDENCE`, shared out over the `family` of quantities that are
    looked at together (Bonferroni). Never less than `resolution`.

    Args:
        expected: (n,) values of the committed seeds, n at least 2.
        seeds: m, of the run that is judged.
        family: quantities of the same kind.
        resolution: one test image, as a share.

    Raises:
        ValueError: one seed has no scatter to judge by.
    """
    n = len(expected)
    if n < 2:
        raise ValueError(f"a tolerance needs at least 2 committed seeds, got {n}; commit results of more seeds")
    quantile = scipy.stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * family), n - 1)
    return max(float(quantile * np.std(expected, ddof=1) * np.sqrt(1 / n + 1 / seeds)), resolution)


def compare(experiment: str, revision: str = "HEAD") -> Comparison:
    """Hold the tables of an experiment in this folder against those of a git revision.

    Raises:
        FileNotFoundError: the revision or this folder has no results of the experiment.
        OneSeedError: those of the revision are of one seed.
    """
    load_params(experiment)
    folder = paths.statistics(experiment)
    if not paths.sweep(experiment).is_file():
        raise FileNotFoundError(f"no results of {experiment} here; make them with `dvc repro report@{experiment}`")
    files = [paths.sweep(experiment), *(folder / name for name in ("runs.csv", "claims.csv", "about.json"))]
    before = {file.name: committed(file, revision) for file in files}
    after = {file.name: file.read_text(encoding="utf-8") for file in files}
    if _read(before["runs.csv"]).seed.nunique() < 2:
        raise OneSeedError(
            f"the results of {revision} are of one seed, and a tolerance needs at least 2; commit more seeds"
        )
    sweep = f"{experiment}.csv"
    return Comparison(
        experiment=experiment,
        revision=revision,
        table=_table(*(quantities(_read(texts[sweep]), _read(texts["claims.csv"])) for texts in (before, after))),
        differing=_differing(before, after),
        verdicts=_verdicts(_read(before["claims.csv"]), _read(after["claims.csv"])),
        unchanged=before == after,
    )


def _read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def _table(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    family = old.groupby("kind").quantity.nunique()
    rows = []
    for kind, quantity in dict.fromkeys(zip(*(pd.concat([old, new])[c] for c in ("kind", "quantity")), strict=True)):
        committed_rows = old[(old.kind == kind) & (old.quantity == quantity)]
        first = committed_rows.value.to_numpy()
        second = new[(new.kind == kind) & (new.quantity == quantity)].value.to_numpy()
        row = {"kind": kind, "quantity": quantity, **dict.fromkeys(COLUMNS[2:6], np.nan), "inside": False}
        if len(first):
            row["expected"] = first.mean()
        if len(second):
            row["obtained"] = second.mean()
        if len(first) and len(second):
            row["difference"] = second.mean() - first.mean()
            row["tolerance"] = tolerance(first, len(second), family[kind], 1 / committed_rows.images.min())
            row["inside"] = bool(abs(row["difference"]) <= row["tolerance"])
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _differing(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Settings in which the two runs differ: results of other settings or data need not agree."""
    sides = []
    for texts in (before, after):
        runs, about = _read(texts["runs.csv"]), json.loads(texts["about.json"])
        side = {name: _values(runs[name]) for name in SETTINGS}
        side["seeds"] = ", ".join(str(seed) for seed in sorted(runs.seed.unique()))
        side["data"] = f"{about['title']} ({about['provenance']['checksum'][:19]})"
        side["test images"] = str(about["counts"]["test"])
        sides.append(side)
    return {name: (sides[0][name], sides[1][name]) for name in sides[0] if sides[0][name] != sides[1][name]}


def _verdicts(expected: pd.DataFrame, obtained: pd.DataFrame) -> dict[str, tuple[str, str]]:
    # by arms and part, not by wording: that of C3 holds the condition, which every run picks anew
    def keyed(table: pd.DataFrame) -> dict[str, str]:
        return {_claim(row): row.verdict for row in table.itertuples()}

    old, new = keyed(expected), keyed(obtained)
    return {
        key: (old.get(key, "-"), new.get(key, "-"))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    }


# --------------------------------------------------------------------------------------------------------------- the report


def report(comparison: Comparison) -> str:
    """The comparison in Markdown: what differs in the settings, what lies outside, changed verdicts, and all quantities."""
    table, outside = comparison.table, comparison.outside
    lines = [f"## {comparison.experiment}", ""]
    if comparison.unchanged:
        lines += [
            f"The tables here are those of {comparison.revision}, byte for byte: nothing was run on this machine, "
            "or its results are committed.",
            "",
        ]
    if comparison.differing:
        lines += ["Settings that differ (results of other settings or data need not agree):", ""]
        lines += ["| setting | expected | obtained |", "|---|---|---|"]
        lines += [f"| {name} | {old} | {new} |" for name, (old, new) in comparison.differing.items()]
        lines += [""]
    lines += [f"{comparison.counts} quantities lie within their tolerance.", ""]
    if len(comparison.added):
        lines += [
            f"{len(comparison.added)} more are not in {comparison.revision}, so there is nothing to hold them against.",
            "",
        ]
    if len(outside):
        lines += ["Outside, in %:", "", *_markdown(outside), ""]
    lines += (
        ["Verdicts on the claims that changed:", ""] if comparison.verdicts else ["No verdict on a claim changed.", ""]
    )
    lines += [f"- {claim}: {old} → {new}" for claim, (old, new) in comparison.verdicts.items()]
    lines += [""] if comparison.verdicts else []
    lines += ["Arms and claims, in %:", "", *_markdown(table[table.kind != "noise"]), ""]
    return "\n".join(lines)


def _markdown(table: pd.DataFrame) -> list[str]:
    def percent(value: float, form: str) -> str:
        return "-" if np.isnan(value) else format(100 * value, form)

    lines = ["| quantity | expected | obtained | difference | tolerance |", "|---|--:|--:|--:|--:|"]
    for row in table.itertuples():
        cells = percent(row.expected, ".1f"), percent(row.obtained, ".1f"), percent(row.difference, "+.1f")
        lines.append(f"| {row.quantity} | {' | '.join(cells)} | {percent(row.tolerance, '.1f')} |")
    return lines


def write_report(experiments: list[str], revision: str = "HEAD") -> tuple[list[Comparison], dict[str, str]]:
    """Write data/comparison/report.md and a table an experiment beside it.

    Returns:
        The comparisons; and experiment -> reason where there was nothing to compare.
    """
    comparisons, skipped = [], {}
    for name in experiments:
        try:
            comparisons.append(compare(name, revision))
        except (FileNotFoundError, OneSeedError) as error:
            skipped[name] = str(error)
    folder = paths.project() / "data" / "comparison"
    for each in comparisons:
        table = each.table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        paths.write(folder / f"{each.experiment}.csv", table)
    head = [
        "# Expected against obtained",
        "",
        f"Expected are the results committed in git ({revision}), obtained those in this folder. A tolerance is what seeds "
        f"scatter by (see `localnorm.compare`): a faithful run has with {CONFIDENCE:.0%} probability no quantity of a kind "
        "(arms, arms under one noise, differences of arms that claims speak of) outside.",
        "",
    ]
    left_out = [f"{name}: {reason}\n" for name, reason in skipped.items()]
    paths.write(folder / "report.md", "\n".join([*head, *(report(each) for each in comparisons), *left_out]))
    return comparisons, skipped


# ----------------------------------------------------------------------------------------------------------- REPRODUCING.md

MARKS = "<!-- tables: written by `python -m localnorm.compare --reproducing` -->", "<!-- /tables -->"

# claim -> its figure and the command that makes it; "*" stands for an experiment
SHOWN = {
    "C1": ("histograms", "dvc repro figure-histograms shifts"),
    "C2": ("accuracy-*", "dvc repro report@*"),
    "C3": ("accuracy-*", "dvc repro report@*"),
    "control": ("accuracy-*", "dvc repro report@*"),
    "C4": ("accuracy-*", "dvc repro report@*"),
    "C5": ("accuracy-*", "dvc repro report@*"),
    "C6": ("poor-light-*", "dvc repro figure-poor-light@*"),
    "drawn": ("one-image", "dvc repro statistics@* && dvc repro --single-item figure-one-image"),
    "C7": ("cost", "make bench && dvc repro strip && dvc repro --single-item figure-cost numbers"),
    "C8": ("cost", "make bench && dvc repro strip && dvc repro --single-item figure-cost numbers"),
    "C9": ("ablations-*", "dvc repro figure-ablations@*"),
}


def reproducing_tables() -> str:
    """The tables of REPRODUCING.md: a row a claim and experiment, and a row an experiment with its hardware and time."""
    numbers = json.loads((paths.paper() / "numbers.json").read_text(encoding="utf-8"))
    experiments = list(numbers["experiments"])
    lines = ["| claim | command | figure | expected | tolerance |", "|---|---|---|---|--:|"]
    for claim, (figure, command) in SHOWN.items():
        rows = []  # experiment, what is expected, tolerance
        if "*" in command:
            for name in experiments:
                tolerances = _tolerances(name)
                found = [row for row in numbers["experiments"][name]["claims"] if row["claim"] == claim]
                rows += [(name, _expected(row), tolerances.get(_claim(SimpleNamespace(**row)), "")) for row in found]
        else:
            found = next(each for each in numbers["claims"] if each["claim"] == claim)["results"]
            rows += [("", f"{row['on']}, {row['what']}: {_expected(row)}", "") for row in found]
        for number, (name, expected, within) in enumerate(rows or [("*", "not tested here", "")]):
            title = f"**{claim}** {CLAIMS[claim]}" if number == 0 else f"**{claim}**"
            shown = _figure(figure.replace("*", name))
            lines.append(f"| {title} | `{command.replace('*', name)}` | {shown} | {expected} | {within} |")
    lines += ["", "| experiment | data | test images | networks | epochs | hardware | torch | training |"]
    lines += ["|---|---|--:|--:|--:|---|---|--:|", *(_experiment_row(name) for name in experiments)]
    return "\n".join(lines) + "\n"


def _figure(stem: str) -> str:
    """A link to a figure of the paper, or its name where no run has made it yet."""
    name = f"paper/figures/{stem}.pdf"
    return f"[{stem}]({name})" if (paths.project() / name).is_file() else stem


def _expected(row: dict) -> str:
    """What numbers.json says of a claim: what is compared, the estimate and the verdict."""
    images = f", images ±{row['over_images']}" if row["over_images"] else ""
    return f"{row['first']} against {row['second']}, {row['part']}: {estimate_text(row)}{images}; {row['verdict']}"


def _tolerances(experiment: str) -> dict[str, str]:
    """The claims that `compare` compares, as `_claim` names them, with their tolerance in points; none with one seed."""
    claims, sweep = (read_table(kind, experiment) for kind in ("claims", "sweep"))
    measured = quantities(sweep, claims)
    groups = measured[measured.kind == "claim"].groupby("quantity")
    within = {
        quantity: tolerance(rows.value.to_numpy(), len(rows), len(groups), 1 / rows.images.min())
        for quantity, rows in groups
        if len(rows) > 1
    }
    return {quantity: f"{100 * value:.1f}" if value < 1 else "-" for quantity, value in within.items()}


def _experiment_row(experiment: str) -> str:
    runs = read_table("runs", experiment)
    about = json.loads((paths.statistics(experiment) / "about.json").read_text(encoding="utf-8"))
    images = scored_images(read_table("sweep", experiment))
    cells = (
        f"`{experiment}`", about["title"], images, len(runs), _values(runs.epochs), _values(runs.device), _values(runs.torch),
        f"{runs.seconds.sum() / 60:.1f} min",
    )  # fmt: skip
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _values(column: pd.Series) -> str:
    return ", ".join(sorted({str(value) for value in column}))


def write_reproducing() -> None:
    """Put the current tables between the marks of REPRODUCING.md."""
    file = paths.project() / "REPRODUCING.md"
    before, _, rest = file.read_text(encoding="utf-8").partition(MARKS[0])
    paths.write(file, f"{before}{MARKS[0]}\n{reproducing_tables()}{MARKS[1]}{rest.partition(MARKS[1])[2]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.compare", description=__doc__.split("\n")[0])
    parser.add_argument(
        "experiments", nargs="*", help="names in params.yaml; default: all with results here and in git"
    )
    parser.add_argument("--against", default="HEAD", metavar="REVISION", help="git revision of the expected results")
    parser.add_argument("--strict", action="store_true", help="end with status 1 if a quantity lies outside")
    parser.add_argument("--reproducing", action="store_true", help="write the tables of REPRODUCING.md instead")
    given = parser.parse_args(arguments)
    if given.reproducing:
        return write_reproducing()
    here = given.experiments or [name for name in load_params()["experiments"] if paths.sweep(name).is_file()]
    try:
        comparisons, skipped = write_report(here, given.against)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for each in comparisons:
        print(
            f"{each.experiment}: {each.counts} quantities within their tolerance, "
            f"{len(each.verdicts)} verdicts changed, {len(each.differing)} settings differ"
            + (f"; the tables are those of {each.revision}: nothing new was run" if each.unchanged else "")
        )
        for row in each.outside.itertuples():
            print(f"  outside: {row.quantity}: {row.expected:.3f} expected, {row.obtained:.3f} obtained")
    for name, reason in skipped.items():
        print(f"{name}: {reason}")
    print("in full: data/comparison/report.md")
    if given.strict and (skipped or any(len(each.outside) for each in comparisons)):
        sys.exit(1)


if __name__ == "__main__":
    main()
