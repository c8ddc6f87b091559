"""Compare the results of a run on this machine with the committed results of the same experiment.

Training gives other bits on another machine, so a new run differs from the committed one as much as a run with other seeds would. How
much that may be follows from the scatter of the committed seeds. Where the tolerance is so wide that it could not tell the finding from
no effect, the comparison has no power: it is listed as such and not counted.
"""

import argparse
import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import scipy.stats

from localnorm import paths
from localnorm.arms import METRICS
from localnorm.comparisons import PRIMARY
from localnorm.params import load_params
from localnorm.stats import ENOUGH_SEEDS
from localnorm.tables import read_table
from localnorm.words import percent

__all__ = ["Report", "committed", "compare", "tolerance", "tolerances"]

RESOLUTION = 0.001  # a tenth of a point, which is what is shown
CONFIDENCE = 0.99  # that a faithful run has no primary comparison outside, if seeds scatter normally
SETTINGS = (
    "title",
    "model",
    "epochs",
    "batch_size",
    "num_groups",
    "precision",
    "counts",
    "conditions",
    "noisy_images",
    "seeds",
)
MACHINE = ("devices", "torch")  # may differ
KEYS = ["first", "second", "metric", "source"]


@dataclass(frozen=True)
class Report:
    """What `compare` found.

    Args:
        experiment: its name in params.yaml.
        revision: the git revision that the expected values are of.
        settings: name -> (expected, obtained), where they differ: results of other settings need not agree.
        machine: the same of device and torch, which another machine may have.
        table: one row per primary comparison: primary, first, second, metric, source, expected, obtained, tolerance, power (whether the
            tolerance could tell the expected value from the threshold), inside.
        unchanged: the results here are those of the revision, to the byte.
    """

    experiment: str
    revision: str
    settings: dict[str, tuple]
    machine: dict[str, tuple]
    table: pd.DataFrame
    unchanged: bool

    @property
    def counted(self) -> pd.DataFrame:
        return self.table[self.table.power]

    @property
    def agrees(self) -> bool:
        """Whether the settings are the same and no quantity with power lies outside its tolerance."""
        return not self.settings and bool(self.counted.inside.all())


def committed(path: Path, revision: str = "HEAD") -> str:
    """The content of a file of this project in a git revision.

    Raises:
        FileNotFoundError: no git, no such revision, or no such file in it; says which.
    """
    name = path.relative_to(paths.project()).as_posix()
    try:
        done = subprocess.run(
            ["git", "show", f"{revision}:./{name}"],
            cwd=paths.project(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    except OSError as error:
        raise FileNotFoundError(f"git is needed to read what was committed ({error}); install it") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "git says nothing"
        raise FileNotFoundError(
            f"no committed {name} to compare with ({reason}); name a revision that has it: --against"
        )
    return done.stdout


def tolerance(deviation: float, seeds: int, new_seeds: int) -> float:
    """How far the mean over new seeds may lie from the mean of the expected ones: t s sqrt(1/n + 1/m).

    t is the two-sided quantile of Student's distribution with n - 1 degrees of freedom at the 99 % level, shared out over all primary
    comparisons (Bonferroni).

    Args:
        deviation: s over the expected seeds; nan where there is one alone.
        seeds: n.
        new_seeds: m, of the run that is judged.

    Example:
        >>> round(tolerance(0.01, 6, 6), 3)
        0.039
    """
    if seeds < 2 or not new_seeds or math.isnan(deviation):
        return math.nan
    quantile = scipy.stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * len(PRIMARY)), seeds - 1)
    return max(float(quantile * deviation * math.sqrt(1 / seeds + 1 / new_seeds)), RESOLUTION)


def tolerances(experiment: str) -> dict[tuple[str, str, str, str], float]:
    """(first, second, metric, source) -> by how much a run with as many seeds may differ, for each primary comparison with an interval."""
    table = read_table("comparisons", experiment)
    table = table[(table.primary != "") & (table.seeds >= ENOUGH_SEEDS)]  # fewer tell next to nothing
    return {
        tuple(getattr(row, key) for key in KEYS): tolerance(row.deviation, row.seeds, row.seeds)
        for row in table.itertuples()
    }


def compare(experiment: str, revision: str = "HEAD") -> Report:
    """Compare the results of an experiment in this folder with those of a git revision.

    Raises:
        FileNotFoundError: the revision or this folder has no results of the experiment.
    """
    load_params(experiment)
    folder = paths.results(experiment)
    files = [folder / name for name in ("about.json", "comparisons.csv")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"no results of {experiment} here ({missing[0]}); make them with `dvc repro comparisons@{experiment}`"
        )
    before, after = (
        [reader(file) for file in files] for reader in (lambda file: committed(file, revision), Path.read_text)
    )
    old, new = (json.loads(texts[0]) for texts in (before, after))
    return Report(
        experiment,
        revision,
        _differing(old, new, SETTINGS) | _differing(old["provenance"], new["provenance"], ("checksum", "split")),
        _differing(old, new, MACHINE),
        _table(
            *(pd.read_csv(io.StringIO(texts[1]), keep_default_na=False, na_values=[""]) for texts in (before, after))
        ),
        before == after,
    )


def _differing(old: dict, new: dict, names: tuple[str, ...]) -> dict[str, tuple]:
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _table(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    rows = []
    obtained = {tuple(getattr(row, key) for key in KEYS): row for row in new.itertuples()}
    for row in old[old.primary.notna() & (old.seeds > 0)].itertuples():
        key = tuple(getattr(row, name) for name in KEYS)
        own = obtained.get(key)
        got, seeds = (own.estimate, own.seeds) if own is not None and own.seeds else (math.nan, 0)
        within = tolerance(row.deviation, row.seeds, seeds or row.seeds)
        power = not math.isnan(within) and within < abs(row.estimate - row.threshold)
        inside = not math.isnan(got) and abs(got - row.estimate) <= within
        rows.append((row.primary, *key, row.estimate, got, within, power, inside))
    return pd.DataFrame(rows, columns=["primary", *KEYS, "expected", "obtained", "tolerance", "power", "inside"])


def text(report: Report) -> str:
    """The report as text for a terminal. Settings that differ come first."""
    lines = [f"{report.experiment}, against {report.revision}:"]
    if report.unchanged:
        lines.append(
            "  the results here are the committed ones, to the byte: nothing was run, or its results are committed"
        )
    if report.settings:
        lines.append("  settings differ, and results of other settings need not agree:")
        lines += [f"    {name}: {old} expected, {new} here" for name, (old, new) in report.settings.items()]
    lines += [f"  {name}: {old} expected, {new} here" for name, (old, new) in report.machine.items()]
    lines.append(f"  {'':4}{'difference':46}{'expected':>9}{'obtained':>9}{'tolerance':>10}  in points")
    for row in report.table.itertuples():
        what = f"{row.first} - {row.second}, {METRICS[row.metric].label}"
        said = "inside" if row.inside else "OUTSIDE"
        said = said if row.power else "no power, not counted"
        lines.append(
            f"  {row.primary:4}{what:46}{percent(row.expected):>9}{percent(row.obtained):>9}{percent(row.tolerance):>10}  {said}"
        )
    counted = report.counted
    lines.append(
        f"  {int(counted.inside.sum())} of {len(counted)} lie inside their tolerance"
        if len(counted)
        else "  no difference is larger than its tolerance, so nothing could be judged: more seeds narrow it"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.compare", description=__doc__.split("\n")[0])
    parser.add_argument("experiments", nargs="*", help="names in params.yaml; default: those that are published")
    parser.add_argument("--against", default="HEAD", metavar="REVISION", help="git revision of the expected results")
    given = parser.parse_args(arguments)
    agree = True
    try:
        for name in given.experiments or load_params()["published"]:
            report = compare(name, given.against)
            print(text(report))
            agree &= report.agrees
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if not agree:
        sys.exit(1)


if __name__ == "__main__":
    main()
