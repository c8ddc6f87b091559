"""From runs to the paper's numbers: nothing is lost on the way, and the manuscript uses no number that no stage makes."""

import json
import re

import pandas as pd
import pytest
from conftest import ROOT

from localnorm import paths, results, stats
from localnorm.evaluate import SweepConfig, save_sweep, sweep, test_images
from localnorm.train import TrainConfig, fit, save_run

SWEEP = SweepConfig(
    noises={"named": ["gaussian", "contrast"]},
    modes={"batch": ["fixed", "batch"], "local": ["batch", "single"]},
    batch_size=64,
    images=128,
    max_levels=2,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory, digits):
    """A project with two seeds of two networks, trained and swept."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "dvc.yaml").write_text("")
    (folder / "params.yaml").write_text(
        "experiments: [digits-small, cifar10-resnet32]\n"
        + "".join(
            f"{name}: {{prepare: {{}}, train: {{}}, sweep: {{}}, statistics: {{}}}}\n"
            for name in ("digits-small", "cifar10-resnet32")
        )
    )
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    paths.prepared("digits-small").parent.mkdir(parents=True)
    paths.prepared("digits-small").symlink_to(digits.folder)
    config = TrainConfig("small", epochs=1, batch_size=64, num_groups=4, threads=1)
    for norm in ("batch", "local"):
        for seed in (0, 1):
            run = paths.run_name("digits-small", norm, seed)
            trained = fit(digits, config, norm, seed)
            save_run(trained, paths.model("digits-small", run))
            table, classes = sweep(trained.model, digits, SWEEP, norm)
            save_sweep(table, classes, test_images(digits, SWEEP)[1], paths.predictions("digits-small", run))
    gathered = results.collect_runs("digits-small", ["batch", "local"], [0, 1])
    results.write_tables(gathered, stats.summary(gathered.sweep), stats.claims(gathered.sweep, margin=0.01, ratio=3))
    yield folder
    patch.undo()


def test_the_tidy_table_has_every_row_of_every_run(project):
    table = pd.read_csv(paths.sweep("digits-small"))
    assert len(table) == 2 * 2 * 2 * 4  # norms, seeds, modes, conditions
    assert not table.duplicated(["norm", "seed", "mode", "suite", "noise", "level"]).any()
    assert table.accuracy.between(0, 1).all()


def test_a_missing_run_is_said_and_nothing_is_left_out_silently(project):
    with pytest.raises(FileNotFoundError, match=r"digits-small-local-s7"):
        results.collect_runs("digits-small", ["local"], [7])


def test_numbers_are_those_of_the_tables_and_experiments_without_results_are_left_out(project):
    numbers = results.collect_numbers()
    assert list(numbers["experiments"]) == ["digits-small"]
    experiment = numbers["experiments"]["digits-small"]
    table = pd.read_csv(paths.sweep("digits-small"))
    chosen = table[(table.norm == "local") & (table["mode"] == "batch") & (table.level == 0)]
    assert experiment["arms"]["LN batch"]["clean"] == pytest.approx(
        chosen.groupby("seed").accuracy.mean().mean(), abs=1e-5
    )
    assert experiment["training"]["seeds"] == 2
    assert experiment["test_images"] == 128


def test_latex_numbers_are_valid_commands_with_the_same_values(project):
    numbers = results.collect_numbers()
    commands = dict(re.findall(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}", results.latex_numbers(numbers)))
    assert (
        commands["LNdigitssmallLNbatchclean"]
        == numbers["experiments"]["digits-small"]["arms"]["LN batch"]["text"]["clean"]
    )
    results.write_latex_tables(numbers)
    table = (paths.paper() / "tables" / "summary-digits-small.tex").read_text()
    assert table.count(r"\\") == 1 + len(numbers["experiments"]["digits-small"]["arms"])


def test_the_table_for_the_terminal_has_an_interval_for_every_accuracy(project):
    text = results.summary_text("digits-small")
    for arm in ("BN fixed", "BN-batch", "LN batch", "LN single"):
        assert re.search(rf"{arm} +\d+\.\d \[\d+\.\d, \d+\.\d\] +\d+\.\d \[\d+\.\d, \d+\.\d\]", text), arm


# ------------------------------------------------------------------------------------------------------- the manuscript


def test_the_manuscript_has_no_result_typed_by_hand():
    text = (ROOT / "paper" / "paper.typ").read_text()
    prose = re.sub(r"//.*|#set .*|#show .*|#let .*|https?://\S+", "", text)
    assert not re.search(r"\d+(\.\d+)? ?%(?! (BCa|interval))", re.sub(r"width: \d+%|95 %|\d+\.?\d*em", "", prose))


def test_every_citation_is_in_the_references_and_every_reference_is_cited():
    text = (ROOT / "paper" / "paper.typ").read_text()
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "paper" / "references.bib").read_text()))
    cited = {key for key in re.findall(r"@(\w+)", text) if re.search(r"\d{4}", key)}
    assert cited == known


def test_every_figure_of_the_manuscript_is_made_by_a_stage():
    text = (ROOT / "paper" / "paper.typ").read_text()
    stages = (ROOT / "dvc.yaml").read_text()
    for name in re.findall(r'image\("figures/([\w-]+?)-?"? ?\+', text) + re.findall(
        r'image\("figures/([\w-]+)\.', text
    ):
        assert f"paper/figures/{name}" in stages, name


def test_committed_numbers_are_those_of_the_committed_tables(monkeypatch, committed_results):
    monkeypatch.chdir(ROOT)
    written = json.loads((ROOT / "paper" / "numbers.json").read_text())
    assert written == json.loads(json.dumps(results.collect_numbers()))
