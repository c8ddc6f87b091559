"""Expected against obtained: a faithful run is inside, chance is outside, and settings that differ are said first and fail."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from results_fixtures import EXPERIMENT, write_experiment

from localnorm import compare, evaluators, paths
from localnorm.gather import collect, write_results
from localnorm.params import load_params
from localnorm.stats import ENOUGH_SEEDS
from localnorm.tables import read_about, read_table


def git(folder, *command):
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *name, *command], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def committed(project):
    """A repository whose HEAD holds the results of a toy experiment."""
    write_experiment(project)
    runs = collect(EXPERIMENT, ["bn", "ln"], list(range(6)))
    write_results(runs)
    evaluators.write(runs)
    params = {
        "experiments": [EXPERIMENT],
        "published": [EXPERIMENT],
        EXPERIMENT: {"prepare": {}, "train": {}, "answers": {}},
    }
    (project / "params.yaml").write_text(json.dumps(params))
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "results")
    return project


def change_table(change):
    file = paths.results(EXPERIMENT) / "comparisons.csv"
    paths.write_table(file, change(pd.read_csv(file)))


def change_about(**changes):
    file = paths.results(EXPERIMENT) / "about.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_results_that_nobody_ran_again_agree_and_are_said_to_be_the_committed_ones(committed):
    report = compare.compare(EXPERIMENT)
    assert report.unchanged
    assert report.agrees
    assert report.table.inside.all()
    assert "committed ones" in compare.text(report)


def test_another_run_is_inside_and_chance_is_not(committed):
    change_table(lambda table: table.assign(estimate=table.estimate + 0.0009))
    report = compare.compare(EXPERIMENT)
    assert not report.unchanged
    assert report.agrees
    change_table(lambda table: table.assign(estimate=0.0))
    report = compare.compare(EXPERIMENT)
    assert not report.agrees
    assert not report.table.set_index(["first", "second", "metric"]).inside["LN batch", "BN fixed", "noisy"]


def test_settings_that_differ_are_said_first_and_fail(committed, capsys):
    change_about(epochs=1)
    report = compare.compare(EXPERIMENT)
    assert report.settings == {"epochs": (2, 1)}
    assert not report.agrees
    assert compare.text(report).index("epochs") < compare.text(report).index("difference")
    with pytest.raises(SystemExit) as ended:
        compare.main([EXPERIMENT])
    assert ended.value.code == 1


def test_another_machine_is_said_and_does_not_fail(committed):
    change_about(devices=["NVIDIA H200"])
    report = compare.compare(EXPERIMENT)
    assert list(report.machine) == ["devices"]
    assert report.agrees


def test_a_quantity_that_could_not_tell_is_listed_and_decides_nothing(committed):
    change_table(lambda table: table.assign(deviation=0.5))
    git(committed, "commit", "-qam", "seeds that scatter widely")
    report = compare.compare(EXPERIMENT)
    assert not report.table.power.any()
    assert report.agrees, "nothing lies outside"
    assert "no power" in compare.text(report)
    assert "nothing could be judged" in compare.text(report)


def test_a_tolerance_grows_with_scatter_and_shrinks_with_seeds():
    assert compare.tolerance(0.02, 6, 6) == pytest.approx(2 * compare.tolerance(0.01, 6, 6))
    assert compare.tolerance(0.01, 12, 12) < compare.tolerance(0.01, 6, 6)
    assert np.isnan(compare.tolerance(np.nan, 1, 1))


def test_tolerances_of_the_published_results_reject_zero_for_what_holds(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in load_params()["published"]:
        if read_about(name)["seeds"] < ENOUGH_SEEDS:
            continue  # fewer tell next to nothing
        within = compare.tolerances(name)
        table = read_table("comparisons", name).query("primary == 'P1'").iloc[0]
        assert within["LN batch", "BN fixed", "noisy", "answers"] < table.estimate


def test_without_committed_or_own_results_the_way_on_is_named(committed):
    with pytest.raises(FileNotFoundError, match="--against"):
        compare.compare(EXPERIMENT, "HEAD~9")
    (paths.results(EXPERIMENT) / "comparisons.csv").unlink()
    with pytest.raises(FileNotFoundError, match=f"dvc repro comparisons@{EXPERIMENT}"):
        compare.compare(EXPERIMENT)
