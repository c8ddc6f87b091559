"""The pipeline: what makes a stage stale, and the whole digits branch, run by DVC at smoke size in a copy of the project."""

import ast
import json
import os
import re
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT, copy_project, run

from localnorm import paths
from localnorm.params import load_params
from localnorm.pipeline import check, closure, source_of, strip_source

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC["stages"]
PIPELINE = [n for n in NOTEBOOKS if any(f"notebooks/{n.name}" in str(stage["cmd"]) for stage in STAGES.values())]


# ---------------------------------------------------------------------------------------------------- what a stage depends on


def test_comments_docstrings_and_blank_lines_do_not_change_the_source():
    plain = "def f(x):\n    return x\n"
    dressed = '"""Module."""\n\n# why\ndef f(x):  # here\n    """Doc\n    of two lines."""\n\n    return x\n'
    assert strip_source(dressed) == strip_source(plain) == plain


def test_a_change_of_code_changes_the_source():
    assert strip_source("x = 1\n") != strip_source("x = 2\n")
    assert strip_source('x = "# no comment"\n') == 'x = "# no comment"\n'


def test_stripped_library_still_parses_to_the_same_code():
    for file in (ROOT / "localnorm").rglob("*.py"):
        text = file.read_text()
        stripped = ast.parse(strip_source(text))
        for tree in (original := ast.parse(text), stripped):
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if (
                    isinstance(body, list)
                    and body
                    and isinstance(body[0], ast.Expr)
                    and isinstance(body[0].value, ast.Constant)
                ):
                    body[0] = ast.Pass()
                if isinstance(body, list):
                    node.body = [item for item in body if not isinstance(item, ast.Pass)]
        assert ast.dump(original) == ast.dump(stripped), file


def test_closure_follows_imports_through_modules_and_functions_but_not_to_others():
    names = {
        file.relative_to(ROOT / "localnorm").as_posix() for file in closure("from localnorm.evaluate import sweep")
    }
    assert {"evaluate.py", "noise.py", "predict.py", "layers.py"} <= names
    assert not {"train.py", "figures.py", "stats.py"} & names
    assert {file.name for file in closure("from localnorm import LocalNorm2d")} == {"layers.py"}
    fetching = {"fetch.py", "sources.py", "archives.py"}
    assert not fetching & {file.name for file in closure("from localnorm.data import load\nimport localnorm.train")}
    assert fetching <= {file.name for file in closure("from localnorm.data import prepare")}


def test_saving_a_notebook_with_outputs_changes_no_dependency(tmp_path):
    notebook = json.loads((ROOT / "notebooks" / "train.ipynb").read_text())
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"other-{number}"
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["saved"]}]
    saved = tmp_path / "train.ipynb"
    saved.write_text(json.dumps(notebook))
    assert source_of(saved) == source_of(ROOT / "notebooks" / "train.ipynb")


def test_every_stage_depends_on_the_source_of_its_notebook_and_strip_writes_each():
    for name, stage in STAGES.items():
        if name == "strip":
            continue
        (notebook,) = re.findall(r"notebooks/([\w-]+)\.ipynb", stage["cmd"])
        assert f"data/sources/{notebook}.py" in stage["deps"], name
    written = {next(iter(out)) for out in STAGES["strip"]["outs"]}
    assert written >= {f"data/sources/{notebook.stem}.py" for notebook in PIPELINE}


def test_every_parameter_that_dvc_passes_is_in_the_notebook_cell_tagged_parameters():
    for name, stage in STAGES.items():
        for notebook in re.findall(r"notebooks/([\w-]+)\.ipynb", stage["cmd"]):
            cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
            tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
            known = {target.id for node in ast.parse("\n".join(tagged)).body for target in node.targets}
            assert set(re.findall(r"-p (\w+)", stage["cmd"])) <= known, name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_thin(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown"
    assert "".join(cells[0]["source"]).startswith("# ")
    for cell in code:
        text = "".join(cell["source"])
        assert not cell["outputs"]
        assert cell["execution_count"] is None
        assert len(text.splitlines()) <= 20
        assert not re.search(r"^\s*(def|class) ", text, re.M), text


# ------------------------------------------------------------------------------------------------------------------- params


def test_params_of_the_repository_are_valid():
    check()


@pytest.mark.parametrize("file", ["params.yaml", "params/released.yaml"])
def test_every_parameter_has_a_name_that_dvcs_run_cache_sees(file):
    """Under the names of a file's own metadata DVC overlooks a change and gives the outputs of the old value."""
    from dvc_data.hashfile.meta import Meta

    def names(block) -> set[str]:
        if not isinstance(block, dict):
            return set()
        return set(block).union(*map(names, block.values()))

    found = names(yaml.safe_load((ROOT / file).read_text()))
    assert "image_size" in found
    assert not found & {Meta.PARAM_SIZE, Meta.PARAM_NFILES}


def test_an_unknown_experiment_names_the_ones_there_are():
    with pytest.raises(
        ValueError, match=r"unknown experiment 'digit'; params\.yaml has digits-small, cifar10-resnet32"
    ):
        load_params("digit")


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        ("train", "epoch", 3, "digits-small: unknown key epoch in the train block; it knows model, epochs"),
        ("train", "model", "resnet33", "unknown model 'resnet33'; choose one of small"),
        ("train", "num_groups", 65, "num_groups=65 needs at least 65 images in a training batch, got batch_size=64"),
        ("train", "learning_rate", "1e-3", "learning_rate must be a finite number.*write 1.0e-3"),
        ("sweep", "modes", {"batch": ["votes"]}, r"unknown arm \(batch, votes\)"),
        ("sweep", "modes", {"layer": ["batch"]}, r"unknown arm \(layer, batch\)"),
        ("sweep", "noises", {"named": ["gauss"]}, "unknown noise 'gauss' in suite 'named'; choose one of gaussian"),
        ("sweep", "noises", {"name": ["gaussian"]}, "unknown noise suite 'name'; choose one of released, named"),
    ],
)
def test_a_wrong_value_is_refused_before_any_work_with_the_valid_ones(
    tmp_path, monkeypatch, block, key, value, message
):
    params = load_params()
    params["digits-small"][block][key] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        check()


def test_a_missing_block_is_named(tmp_path, monkeypatch):
    params = load_params()
    del params["digits-small"]["sweep"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match="digits-small must have prepare, train, sweep, statistics and may have ablations; it has prepare, train, statistics",
    ):
        load_params("digits-small")


def test_outside_a_project_the_message_says_what_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no dvc\.yaml in .* or a folder above it"):
        paths.project()


# ------------------------------------------------------------------------------------------ the whole branch, as a user runs it


def test_the_digits_branch_runs_from_nothing_to_figures_and_paper(smoke_run):
    for name in (
        "figures/histograms.pdf",
        "figures/noises.png",
        "figures/accuracy-digits-small.pdf",
        "figures/accuracy-digits-small.txt",
        "figures/calibration-digits-small.pdf",
        "figures/fixed-against-batch.pdf",
        "figures/one-image.pdf",
        "figures/strengths.pdf",
        "figures/groups.pdf",
        "figures/network.pdf",
        "figures/poor-light-digits-small.pdf",
        "numbers.tex",
        "paper.pdf",
    ):
        assert (smoke_run / "paper" / name).stat().st_size > 100, name
    table = pd.read_csv(smoke_run / "data" / "sweeps" / "digits-small.csv")
    arms = {(norm, mode) for norm, mode in zip(table.norm, table["mode"], strict=True)}
    assert arms >= {
        ("batch", "fixed"),
        ("batch", "batch"),
        ("local", "batch"),
        ("local", "single"),
        ("local", "vote"),
        ("local", "prior"),
    }
    assert set(table.suite) == {"released", "named"}
    assert set(table.seed) == {0, 1}
    clean = table[(table.level == 0) & (table.norm == "local") & (table["mode"] == "batch")].accuracy
    assert clean.min() > 0.3, "two epochs reach far more than chance (0.1)"


def test_a_second_run_finds_nothing_to_do(smoke_run):
    done = run(["dvc", "repro", "report@digits-small"], smoke_run)
    assert "Data and pipelines are up to date" in done.stdout
    assert "Running stage" not in done.stdout


def test_a_comment_in_the_library_and_a_saved_notebook_train_nothing(smoke_run):
    library, notebook = smoke_run / "localnorm" / "train.py", smoke_run / "notebooks" / "train.ipynb"
    before = library.read_text(), notebook.read_text()
    library.write_text(before[0] + "\n# a comment\n")
    notebook.write_text(before[1].replace('"execution_count": null', '"execution_count": 3'))
    try:
        done = run(["dvc", "repro", "report@digits-small"], smoke_run)
    finally:
        library.write_text(before[0])
        notebook.write_text(before[1])
    assert "Running stage 'strip'" in done.stdout
    assert "Running stage 'train@" not in done.stdout


def test_the_closing_table_names_every_arm_and_the_paper(smoke_run):
    done = run([sys.executable, "-m", "localnorm.results", "digits-small"], smoke_run)
    assert done.returncode == 0, done.stderr
    for text in ("BN fixed", "BN-batch", "LN batch", "LN single", "LN vote", "paper/paper.pdf", "2 seeds"):
        assert text in done.stdout
    assert re.search(r"LN batch +\d+\.\d \[\d", done.stdout), "accuracy with an interval"


def test_notebooks_execute_from_top_to_bottom_where_jupyterlab_opens_them(smoke_run):
    measured = run([sys.executable, "-m", "localnorm.cost", "--quick", "--repeats", "2"], smoke_run)  # figure-cost's
    assert measured.returncode == 0, measured.stderr
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-current-env",
        "notebooks",
    ]
    done = run([*command, "--nbval-cell-timeout=300", "-c", os.devnull, "--rootdir=."], smoke_run)
    assert done.returncode == 0, done.stdout[-4000:]
    cells = sum(
        cell["cell_type"] == "code" for notebook in NOTEBOOKS for cell in json.loads(notebook.read_text())["cells"]
    )
    assert f"{cells} passed" in done.stdout


def test_results_hold_no_path_of_the_machine(smoke_run):
    for folder in ("data/sweeps", "data/statistics", "paper/figures", "paper/tables"):
        for file in (smoke_run / folder).rglob("*"):
            if file.is_file():
                assert str(smoke_run.parent).encode() not in file.read_bytes(), file


def test_missing_data_says_what_was_tried_and_how_to_supply_it(smoke_copy):
    done = run(
        ["dvc", "repro", "prepare@cifar10-resnet32"],
        smoke_copy,
        LOCALNORM_DATA=str(smoke_copy / "nowhere"),
        LOCALNORM_OFFLINE="1",
    )
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "LOCALNORM_DATA" in text
    assert "cifar-10-python.tar.gz" in text
    assert "data/raw" in text
    assert not (smoke_copy / "data" / "prepared" / "cifar10-resnet32").exists()


def test_the_copy_for_these_tests_is_what_a_clone_would_have(tmp_path):
    project = copy_project(tmp_path / "copy")
    assert (project / "localnorm" / "layers.py").is_file()
    assert not (project / ".venv").exists()


def test_the_released_protocol_is_one_file_that_the_pipeline_takes(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (tmp_path / "params.yaml").write_text((ROOT / "params" / "released.yaml").read_text())
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    check()
    (tmp_path / ".git").rmdir()
    run(["dvc", "init", "-q", "--no-scm"], tmp_path)
    (tmp_path / "data" / "sources").mkdir(parents=True)
    listed = run(["dvc", "stage", "list", "--name-only"], tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "train@cars-resnet152-released-local-5" in listed.stdout.split()
    assert load_params("cifar10-resnet32-released")["train"]["epochs"] == 200
