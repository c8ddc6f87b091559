"""Expected against obtained: a faithful run is inside, chance and a broken method are outside, and settings that differ are said."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT

from localnorm import compare, paths

TABLES = ("data/statistics/digits-small", "data/sweeps")


def git(folder, *command):
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *name, *command], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository of its own whose HEAD holds the digits' results."""
    for name in TABLES:
        shutil.copytree(ROOT / name, tmp_path / name)
    for file in (tmp_path / "data" / "sweeps").iterdir():
        if not file.name.startswith("digits-small"):
            file.unlink()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewrite(change):
    """Put a changed sweep in the place of the one that is there."""
    file = paths.sweep("digits-small")
    change(pd.read_csv(file)).to_csv(file, index=False)


def test_results_that_nobody_ran_again_are_said_to_be_the_committed_ones(project):
    found = compare.compare("digits-small")
    assert found.unchanged
    assert found.table.difference.abs().max() == 0
    assert found.table.inside.all()
    assert "nothing was run on this machine" in compare.report(found)


def test_a_committed_experiment_of_one_seed_is_left_out_with_its_reason(project):
    for file in ("data/statistics/digits-small/runs.csv", "data/sweeps/digits-small.csv"):
        table = pd.read_csv(project / file)
        table[table.seed == 0].to_csv(project / file, index=False)
    git(project, "commit", "-qam", "one seed")
    found, skipped = compare.write_report(["digits-small"])
    assert found == []
    assert "of one seed, and a tolerance needs at least 2" in skipped["digits-small"]


def test_a_run_with_other_seeds_lies_inside(project):
    draw = np.random.default_rng(0)

    def scatter(table):  # as seeds do: each run's accuracies move together
        runs = table.groupby(["norm", "seed", "mode"]).ngroup()
        return table.assign(accuracy=(table.accuracy + 0.003 * draw.standard_normal(runs.max() + 1)[runs]).clip(0, 1))

    rewrite(scatter)
    found = compare.compare("digits-small")
    assert not found.unchanged
    assert found.table.difference.abs().max() > 0
    assert found.outside.empty


def test_chance_lies_outside_nearly_everywhere_that_the_committed_run_is_far_from_it(project):
    rewrite(lambda table: table.assign(accuracy=0.1))
    table = compare.compare("digits-small").table
    far = table[(table.expected - 0.1).abs() > 0.15]
    # Single images scatter over seeds by up to a third, so that a few noises cannot tell; and by more where each network
    # chooses its own strength, of which one serves clean images and another noisy ones.
    own_strength = far.quantity.str.contains("prior|last fixed")
    assert far[~own_strength].inside.mean() < 0.05
    assert far[own_strength].inside.mean() < 0.2
    assert not table[table.kind == "arm"].inside.any()
    assert not table[table.quantity == "C3: LN batch - BN fixed, noisy"].inside.any()


def test_a_control_that_lost_its_statistics_is_listed_and_nothing_else_is(project):
    def break_control(table):  # BN-batch gets what BN fixed gets
        key = ["seed", "suite", "noise", "level"]
        fixed = table[(table.norm == "batch") & (table["mode"] == "fixed")].set_index(key).accuracy
        control = (table.norm == "batch") & (table["mode"] == "batch")
        table.loc[control, "accuracy"] = fixed.loc[list(map(tuple, table.loc[control, key].to_numpy()))].to_numpy()
        return table

    rewrite(break_control)
    found = compare.compare("digits-small")
    assert "BN-batch, noisy" in set(found.outside.quantity)
    assert all("BN-batch" in quantity for quantity in found.outside.quantity)
    assert "control: LN batch - BN-batch, noisy" in set(found.outside.quantity)
    row = found.table.set_index("quantity").loc["BN-batch, noisy"]
    fixed = found.table.set_index("quantity").loc["BN fixed, noisy"]
    assert row.obtained == pytest.approx(fixed.expected)
    assert f"| BN-batch, noisy | {100 * row.expected:.1f} | {100 * fixed.expected:.1f} |" in compare.report(found)


def test_an_arm_that_the_revision_does_not_have_is_said_to_be_new_and_not_outside(project):
    before = len(compare.compare("digits-small").table)
    rewrite(lambda table: pd.concat([table, table[table.norm == "local"].assign(norm="group", mode="batch")[::6]]))
    found = compare.compare("digits-small")
    assert len(found.added) == len(found.table) - before > 0
    assert found.added.quantity.str.contains("GN").all()
    assert found.outside.empty
    assert f"{len(found.added)} more are not in HEAD" in compare.report(found)


def test_an_arm_that_is_missing_is_outside_and_not_left_out(project):
    rewrite(lambda table: table[table["mode"] != "vote"])
    outside = compare.compare("digits-small").outside
    assert {"LN vote, clean", "LN vote, noisy"} <= set(outside.quantity)
    assert outside.obtained.isna().all()


def test_tolerance_grows_with_scatter_with_fewer_seeds_and_with_more_questions():
    values = np.array([0.70, 0.71, 0.69, 0.70, 0.72, 0.68])
    base = compare.tolerance(values, 6, 14, 0.001)
    assert compare.tolerance(values * 2, 6, 14, 0.001) == pytest.approx(2 * base)
    assert compare.tolerance(values, 2, 14, 0.001) > base
    assert compare.tolerance(values, 6, 70, 0.001) > base
    assert compare.tolerance(np.full(6, 0.5), 6, 14, 0.002) == 0.002


def test_a_faithful_run_is_inside_as_often_as_is_said():
    draw = np.random.default_rng(1)
    runs, seeds = draw.standard_normal((2, 4000, 6))
    far = np.abs(runs.mean(1) - seeds.mean(1))
    outside = np.mean([d > compare.tolerance(run, 6, 1, 0.0) for d, run in zip(far, runs, strict=True)])
    assert outside == pytest.approx(1 - compare.CONFIDENCE, abs=0.006)


def test_one_committed_seed_is_refused():
    with pytest.raises(ValueError, match="at least 2 committed seeds, got 1"):
        compare.tolerance(np.array([0.5]), 6, 1, 0.01)


def test_other_settings_and_changed_verdicts_are_said(project):
    folder = paths.statistics("digits-small")
    runs = pd.read_csv(folder / "runs.csv").assign(epochs=3, device="another")
    runs.to_csv(folder / "runs.csv", index=False)
    claims = pd.read_csv(folder / "claims.csv")
    before = claims.loc[0, "verdict"]
    claims.loc[0, "verdict"] = "no verdict"
    claims.to_csv(folder / "claims.csv", index=False)
    found = compare.compare("digits-small")
    assert found.differing["epochs"][1] == "3"
    assert found.differing["device"][1] == "another"
    assert list(found.verdicts.values()) == [(before, "no verdict")]


def test_without_committed_results_the_message_names_file_and_remedy(project):
    git(project, "rm", "-q", "--cached", "data/sweeps/digits-small.csv")
    git(project, "commit", "-qm", "without")
    with pytest.raises(FileNotFoundError, match=r"no committed data/sweeps/digits-small\.csv .*--against"):
        compare.compare("digits-small")
    assert compare.compare("digits-small", "HEAD~1").unchanged


def test_the_command_writes_the_report_and_strict_ends_with_an_error(project, capsys):
    compare.main(["--strict"])  # nothing is outside yet
    printed = capsys.readouterr().out
    assert re.search(r"digits-small: (\d+) of \1 quantities within their tolerance, 0 verdicts changed", printed)
    rewrite(lambda table: table.assign(accuracy=0.1))
    with pytest.raises(SystemExit) as ended:
        compare.main(["--strict", "digits-small"])
    assert ended.value.code == 1
    text = (project / "data" / "comparison" / "report.md").read_text()
    table = pd.read_csv(project / "data" / "comparison" / "digits-small.csv")
    assert re.search(r"\| BN fixed, clean \| 9\d\.\d \| 10\.0 \|", text)
    assert list(table.columns) == compare.COLUMNS
    assert not table.inside.all()


def test_an_experiment_that_was_never_committed_is_said_and_the_others_are_compared(project, capsys):
    shutil.copy(paths.sweep("digits-small"), paths.sweep("cifar10-resnet32"))
    shutil.copytree(paths.statistics("digits-small"), paths.statistics("cifar10-resnet32"))
    compare.main([])
    printed = capsys.readouterr().out
    assert "cifar10-resnet32: no committed data/sweeps/cifar10-resnet32.csv" in printed
    assert "digits-small: " in printed.replace("cifar10-resnet32: no committed", "")


def test_the_tables_of_reproducing_are_those_of_the_committed_results(monkeypatch, committed_results):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "REPRODUCING.md").read_text(encoding="utf-8")
    written = text.partition(compare.MARKS[0])[2].partition(compare.MARKS[1])[0]
    assert written.strip() == compare.reproducing_tables().strip(), "run `python -m localnorm.compare --reproducing`"


def test_every_claim_of_the_tables_has_a_row_and_every_link_of_reproducing_is_there():
    text = (ROOT / "REPRODUCING.md").read_text(encoding="utf-8")
    for claim in compare.SHOWN:
        assert f"| **{claim}** " in text
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_every_command_of_reproducing_is_there():
    text = (ROOT / "REPRODUCING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([\w-]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made = set(re.findall(r"`dvc repro (?:--single-item )?([\w-]+)", text))
    assert made <= set(stages)
