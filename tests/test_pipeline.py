"""The pipeline: what makes a stage stale, and the whole digits branch, run by DVC at smoke size in a copy of the project."""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, copy_project, environment, run
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.manager import start_new_kernel
from jupyter_server.services.contents.filemanager import FileContentsManager

from localnorm import dvc_state, paths
from localnorm.params import load_params
from localnorm.pipeline import main
from localnorm.runs import OF_ONE_EXPERIMENT, check, stages
from localnorm.strip import closure, current_source, parameters_of, source_of, strip, strip_source

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC["stages"]
RELEASED = ROOT / "params" / "released.yaml"  # unlike params.yaml the same in every tree
SOURCES = [
    Path(next(iter(out))).stem for out in STAGES["strip"]["outs"]
]  # a notebook's, or a module's that a stage runs
PIPELINE = [notebook for notebook in NOTEBOOKS if notebook.stem in SOURCES]


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


def modules(code: str) -> set[str]:
    return {file.relative_to(ROOT / "localnorm").as_posix() for file in closure(code)}


def test_closure_follows_imports_through_modules_and_functions_but_not_to_others():
    names = modules("from localnorm.answers import answer")
    assert {"answers.py", "noise/draw.py", "prediction.py", "layers.py"} <= names
    assert not {"train/loop.py", "scores.py", "stats.py"} & names
    assert "convert.py" not in modules("from localnorm import LocalNorm2d")
    fetching = {"data/fetch.py", "data/sources.py", "data/archives.py"}
    assert not fetching & modules("from localnorm.data import load\nimport localnorm.train")
    assert fetching <= modules("from localnorm.data import prepare")
    assert "noise/draw.py" not in modules("from localnorm import noise"), "the catalogue alone"


def test_right_of_the_scores_no_stage_has_a_module_that_imports_torch():
    """A line plot of a table is not to be drawn anew because a layer changed."""
    left = {"prepare", "train", "answers", "ablations", "study", "controls", "fine-tuning", "shifts"} | {
        "figure-groups",
        "figure-network",
        "figure-poor-light",
    }
    left |= {"figure-histograms", "figure-noises"}  # photographs under noise: of no table
    stages = [name for name in SOURCES if name not in left]
    assert len(stages) > 12
    for name in stages:
        imports = re.findall(r"^\s*(?:import|from) (torch\w*|timm|lightning_fabric)\b", current_source(name), re.M)
        assert not imports, name


def test_training_does_not_depend_on_what_asks_scores_or_draws():
    names = set(re.findall(r"^# localnorm/(\S+)", current_source("train"), re.M))
    assert {"train/loop.py", "layers.py", "models.py"} <= names
    assert not {"answers.py", "arms.py", "scores.py", "comparisons.py", "noise/draw.py"} & names


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


def notebook_of(stage: dict) -> str:
    """The notebook that a stage runs, empty for one that runs a module."""
    found = re.match(r"\$\{run\} ([\w-]+)", stage["cmd"])
    return found[1] if found else ""


def test_every_stage_depends_on_the_source_of_what_it_runs_and_strip_writes_each():
    needed = set()
    for name, stage in STAGES.items():
        if name != "strip":
            module = re.match(r"python -m localnorm\.render (\w+)", stage["cmd"])
            source = notebook_of(stage) or f"render-{module[1]}"
            assert f"data/sources/{source}.py" in stage["deps"], name
            needed.add(source)
    assert set(SOURCES) == needed
    assert {notebook.stem for notebook in PIPELINE} == {name for name in needed if not name.startswith("render-")}


def test_each_figure_of_a_table_depends_on_one_kind_of_table():
    for name, stage in STAGES.items():
        tables = [dep for dep in stage.get("deps", []) if dep.endswith(".csv")]
        if name.startswith("figure-") and tables:
            kinds = {
                Path(table).name for table in tables if "/published/" not in table
            }  # one of each experiment that it draws
            assert len(kinds) == 1 or (not kinds and len(tables) == 1), name


def write_notebook(file: Path, code: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"cells": [{"cell_type": "code", "source": code.splitlines(keepends=True)}]}))


def test_a_notebook_that_no_stage_runs_may_hold_anything(project):
    (project / "dvc.yaml").write_text("stages: {strip: {outs: [{data/sources/train.py: {cache: false}}]}}")
    write_notebook(project / "notebooks" / "train.ipynb", "x = 1\n")
    write_notebook(project / "notebooks" / "Untitled.ipynb", "%matplotlib inline\n!ls")
    (project / "notebooks" / "empty.ipynb").touch()
    assert strip() == [project / "data" / "sources" / "train.py"]
    assert os.listdir(project / "data" / "sources") == ["train.py"]


@pytest.mark.parametrize("code", ["%matplotlib inline", "x = 1\n!ls data"])
def test_a_pipeline_notebook_that_is_no_plain_python_is_named_with_its_line(tmp_path, code):
    write_notebook(tmp_path / "notebooks" / "train.ipynb", code)
    line = re.escape(code.splitlines()[-1])
    with pytest.raises(ValueError, match=rf"^notebooks/train\.ipynb: invalid syntax: {line}; .* is plain Python"):
        source_of(tmp_path / "notebooks" / "train.ipynb")


def test_a_notebook_that_is_cut_off_is_named(tmp_path):
    (tmp_path / "train.ipynb").write_text('{"cells": [{')
    with pytest.raises(ValueError, match=r"^notebooks/train\.ipynb: Expecting property name"):
        source_of(tmp_path / "train.ipynb")


def test_every_parameter_that_dvc_passes_is_in_the_notebook_cell_tagged_parameters():
    for name, stage in STAGES.items():
        if notebook := notebook_of(stage):
            passed = re.findall(r"-p (\w+)", stage["cmd"])
            assert set(passed) <= set(parameters_of(ROOT / "notebooks" / f"{notebook}.ipynb")), name


# what JupyterLab writes of the kernel into a notebook that is opened: where it stands there already, it changes nothing
SAVED = {
    "kernelspec": {"display_name": get_kernel_dict()["display_name"], "language": "python", "name": "python3"},
    "language_info": {key: value for key, value in IPythonKernel.language_info.items() if key != "version"},
}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_thin(notebook):
    text = notebook.read_text(encoding="utf-8")
    content = json.loads(text)
    cells = content["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown"
    assert "".join(cells[0]["source"]).startswith("# ")
    fix = "it was opened and saved: `make strip-notebooks` takes out what that left"
    assert content["metadata"] == SAVED, fix
    assert nbformat.writes(nbformat.reads(text, as_version=4)) == text.removesuffix("\n"), "written as JupyterLab does"
    for cell in code:
        text = "".join(cell["source"])
        assert not cell["outputs"], fix
        assert cell["execution_count"] is None, fix
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


def test_an_unknown_experiment_names_the_ones_there_are(project):
    shutil.copy(RELEASED, project / "params.yaml")
    with pytest.raises(
        ValueError, match=r"unknown experiment 'digit'; params\.yaml has mnist-released, cifar10-resnet32-released"
    ):
        load_params("digit")


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        ("train", "epoch", 3, "mnist-released: unknown key epoch in the train block; it knows model, epochs"),
        ("train", "model", "resnet33", "unknown model 'resnet33'; choose one of small"),
        (
            "train",
            "num_groups",
            101,
            "num_groups=101 needs at least 101 images in a training batch, got batch_size=100",
        ),
        ("train", "learning_rate", "1e-3", "learning_rate must be a finite number.*write 1.0e-3"),
        ("answers", "statistics", {"bn": ["votes"]}, r"votes.*fixed, batch"),
        ("answers", "statistics", {"ghost": ["batch"]}, r"ghost.*bn, ln"),
        ("answers", "noises", {"named": ["gauss"]}, "unknown noise 'gauss' in suite 'named'; choose one of gaussian"),
        ("answers", "noises", {"name": ["gaussian"]}, "unknown noise suite 'name'; choose one of released, named"),
    ],
)
def test_a_wrong_value_is_refused_before_any_work_with_the_valid_ones(project, block, key, value, message):
    params = yaml.safe_load(RELEASED.read_text())
    params["mnist-released"][block][key] = value
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=message):
        check()


def test_a_missing_block_is_named(project):
    params = yaml.safe_load(RELEASED.read_text())
    del params["mnist-released"]["answers"]
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    with pytest.raises(
        ValueError,
        match=r"mnist-released must have prepare, train, answers .* it has prepare, train",
    ):
        load_params("mnist-released")


def test_outside_a_project_the_message_says_what_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no dvc\.yaml in .* or a folder above it"):
        paths.project()


# ----------------------------------------------------------------------------------------------------------- runs side by side


def write_command(file: Path, script: str) -> None:
    """A command for PATH that first adds its name and arguments to the file `calls` of the working folder."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> calls\n{script}\n')
    file.chmod(0o755)


def path_with(folder: Path) -> str:
    return f"{folder}{os.pathsep}{environment(ROOT)['PATH']}"


def runs_of(project: Path) -> list[str]:
    """Of the calls of `dvc`, the runs that they train."""
    calls = (project / "calls").read_text() if (project / "calls").exists() else ""
    return re.findall(r"dvc --wait-for-lock repro --single-item train@(\S+) answers@\1$", calls, re.M)


PIPELINE_RUNS = [sys.executable, "-m", "localnorm.pipeline", "runs"]


def test_ctrl_c_starts_no_further_run_and_ends_at_once(project):
    shutil.copy(RELEASED, project / "params.yaml")
    (project / ".git").mkdir()
    # like DVC, it takes a moment to end
    write_command(
        project / "bin" / "dvc", "case $* in *status*) exit 1;; *train@*) trap 'sleep 0.3; exit 1' INT; sleep 60;; esac"
    )
    process = subprocess.Popen(
        [*PIPELINE_RUNS, "mnist-released", "--jobs", "2"],
        env=environment(ROOT, PATH=path_with(project / "bin")),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the tests themselves do not get the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell started us with &
    )
    late = time.monotonic() + 120
    while len(runs_of(project)) < 2 and process.poll() is None and time.monotonic() < late:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, said = process.communicate(timeout=50)  # less than the 60 s that a run would go on
    finally:
        with contextlib.suppress(ProcessLookupError):  # all ended, as they should
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert "interrupted; the same command goes on from there" in said
    assert "Traceback" not in said
    assert len(runs_of(project)) == 2, "of 12"


def test_without_a_name_all_experiments_have_their_turn_and_a_failed_one_stops_no_other(project):
    params = yaml.safe_load(RELEASED.read_text()) | {"seeds": [3, 1]}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    (project / ".git").mkdir()
    write_command(
        project / "bin" / "dvc", "case $* in *status*|*prepare@cars*|*train@mnist-released-ln-3*) exit 1;; esac"
    )
    done = run([*PIPELINE_RUNS, "--jobs", "1"], project, PATH=path_with(project / "bin"), PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "error: mnist-released: 1 of 4 runs failed" in done.stderr
    assert "cars-resnet152-released: the images of cars-resnet152-released could not be prepared" in done.stderr
    trained = params["experiments"][:3]
    assert runs_of(project) == [
        f"{name}-{network}-{seed}" for name in trained for seed in (3, 1) for network in params["networks"]
    ]


def test_shares_are_disjoint_complete_and_leave_preparing_to_whoever_starts_them(project):
    shutil.copy(RELEASED, project / "params.yaml")
    (project / ".git").mkdir()
    write_command(project / "bin" / "dvc", "case $* in *status*) exit 1;; esac")
    for number in range(2):
        command = [*PIPELINE_RUNS, "mnist-released", "--jobs", "1", "--share", f"{number}/2"]
        assert run(command, project, PATH=path_with(project / "bin"), PYTHONPATH=str(ROOT)).returncode == 0
        assert len(runs_of(project)) == 6 * (number + 1)
    assert len(set(runs_of(project))) == 12, "each run once"
    assert "prepare@" not in (project / "calls").read_text()


@pytest.mark.parametrize("share", ["4/4", "1", "-1/4", "a/b"])
def test_what_is_no_share_is_refused(share, capsys):
    with pytest.raises(SystemExit):
        main(["runs", f"--share={share}"])
    assert "counted from 0, the last is 3/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, "0/1"),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, "2/4"),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}, "3/4"),
    ],
    ids=["alone", "from 0", "from 1"],
)
def test_a_task_of_a_slurm_array_takes_its_share_with_the_environments_own_python(project, variables, share):
    script = ROOT / "localnorm" / "pipeline.sbatch"
    for folder in ("elsewhere", ".venv/bin", "conda/bin"):
        (project / folder).mkdir(parents=True)
        write_command(project / folder / "python", 'echo "$0 $DVC_SITE_CACHE_DIR $CUBLAS_WORKSPACE_CONFIG" >> of')
    variables |= {"PATH": path_with(project / "elsewhere"), "CONDA_PREFIX": str(project / "conda"), "TMPDIR": "/local"}
    for environment_of_its_own in (".venv", "conda"):
        assert run(["bash", str(script), "digits-small"], project, **variables).returncode == 0
        (called,) = calls(project)
        assert called == f"python -m localnorm.pipeline runs digits-small --jobs 1 --share {share}"
        python, site, cublas = (project / "of").read_text().split()
        assert python == str(project / environment_of_its_own / "bin" / "python")
        assert site.startswith("/local/"), "on a disk of the machine's own"
        assert cublas == ":4096:8"
        shutil.rmtree(project / ".venv", ignore_errors=True)
        for name in ("calls", "of"):
            (project / name).unlink()
    assert run(["bash", str(script), "digits-small"], project, **variables | {"CONDA_PREFIX": ""}).returncode != 0


# -------------------------------------------------------------------------------------------------------------------- make


@pytest.fixture
def tree(project):
    """A project of the Makefile alone, whose `python` and `dvc` say in the file `calls` how they were called."""
    shutil.copy(ROOT / "Makefile", project)
    for name in ("requirements.lock", "pyproject.toml"):
        (project / name).touch()
    for command in ("python", "dvc"):
        write_command(project / "bin" / command, "case $* in *' runs'*) exit ${RUNS_END_WITH:-0};; esac")
    return project


def make(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return run(["make", *arguments, "ENV="], tree, PATH=path_with(tree / "bin"), **variables)


def calls(tree: Path) -> list[str]:
    return (tree / "calls").read_text().splitlines() if (tree / "calls").exists() else []


def test_variables_of_the_shell_choose_no_folder_to_remove_and_no_experiment(tree):
    named = dict.fromkeys(("ENV", "EXPERIMENT", "JOBS", "PYTHON"), "of-the-shell")
    done = run(["make", "--dry-run", "clean", "repro", "quickstart"], tree, **named)
    assert "rm -rf .venv .venv-lowest\n" in done.stdout
    assert "demonstrate digits-small" in done.stdout
    assert "of-the-shell" not in done.stdout
    assert "rm -rf elsewhere .venv-lowest\n" in run(["make", "--dry-run", "clean", "ENV=elsewhere"], tree).stdout


@pytest.mark.parametrize(("given", "jobs"), [((), ""), (("JOBS=3",), " --jobs 3")])
@pytest.mark.parametrize("end", ["0", "1"])
def test_repro_runs_side_by_side_first_and_then_dvc_does_the_rest_and_what_failed(tree, given, jobs, end):
    assert make(tree, "repro", *given, RUNS_END_WITH=end).returncode == 0
    assert calls(tree) == [
        "python -m localnorm.pipeline check",
        f"python -m localnorm.pipeline runs --plan{jobs}",
        "python -m localnorm.pipeline stages",
    ]


def test_all_stages_are_named_once_each_after_what_it_needs_and_no_network_that_its_experiment_lacks(monkeypatch):
    """DVC's matrix has every network and seed for every experiment; a full run would train all of them."""
    monkeypatch.chdir(ROOT)
    found = stages()
    named = [stage.name for stage in found]
    assert len(set(named)) == len(named)
    params = load_params()
    expected = [
        f"train@{experiment}-{network}-{seed}"
        for experiment in params["experiments"]
        for seed in params[experiment].get("seeds", params["seeds"])
        for network in params[experiment].get("networks", params["networks"])
    ]
    assert [name for name in named if name.startswith("train@")] == expected
    assert "train@cars-efficientnet_lite0-long-ln-4" not in named
    assert {"strip", "paper", "scores@cars-efficientnet_lite0-long"} <= set(named)
    for place, stage in enumerate(found):
        assert "${" not in "".join((*stage.needs, *stage.makes))
        assert not [later.name for later in found[place + 1 :] if stage.follows(later)], stage.name


TOY = """
stages:
  prepare: {matrix: {experiment: "${experiments}"}, cmd: "exit 3", outs: ["prepared/${item.experiment}"]}
  train:
    matrix: {experiment: "${experiments}", network: "${networks}", seed: "${seeds}"}
    cmd: echo new > ${item.experiment}-${item.network}-${item.seed}.json
    deps: ["prepared/${item.experiment}"]
    metrics: [{"${item.experiment}-${item.network}-${item.seed}.json": {cache: false}}]
  other: {cmd: echo new > other, outs: [other]}
  scores:
    matrix: {experiment: "${experiments}"}
    cmd: echo new > scores.csv
    deps: ["${item.experiment}-bn-0.json"]
    plots: [{scores.csv: {cache: false}}]
"""


def test_what_follows_from_a_failed_stage_is_not_begun_so_dvc_removes_none_of_its_files(project):
    (project / "params.yaml").write_text(
        "experiments: [toy]\nnetworks: [bn]\nseeds: [0]\ntoy: {prepare: {}, train: {}, answers: {}}\n"
    )
    (project / "dvc.yaml").write_text("vars: [params.yaml]\n" + TOY)
    kept = [project / "toy-bn-0.json", project / "scores.csv"]
    for file in kept:
        file.write_text("committed")
    assert run(["dvc", "init", "--no-scm", "--quiet"], project).returncode == 0
    done = run([sys.executable, "-m", "localnorm.pipeline", "stages"], project, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "failed: prepare@toy; left out, since they need these: train@toy-bn-0, scores@toy" in done.stderr
    assert [file.read_text() for file in kept] == ["committed"] * 2
    assert (project / "other").read_text() == "new\n"


def test_repro_ends_where_its_runs_were_interrupted(tree):
    assert make(tree, "repro", RUNS_END_WITH="130").returncode != 0
    assert calls(tree)[-1] == "python -m localnorm.pipeline runs --plan"


@pytest.fixture
def committed(tree):
    """`tree` with git, params.yaml and params/released.yaml committed."""
    (tree / "params").mkdir()
    (tree / "params.yaml").write_text("seeds: [0]\n")
    (tree / "params" / "released.yaml").write_text("seeds: [0, 1]\n")
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for arguments in (["init", "-q"], ["add", "params.yaml", "params"], ["commit", "-qm", "params"]):
        assert run(["git", *name, *arguments], tree).returncode == 0
    return tree


def test_released_takes_the_place_of_committed_params_and_is_then_left_alone(committed):
    params, released = committed / "params.yaml", committed / "params" / "released.yaml"
    assert make(committed, "released").returncode == 0
    assert params.read_text() == released.read_text()
    ran = ["python -m localnorm.pipeline check", "dvc repro --keep-going"]
    assert calls(committed) == ran
    written = params.stat().st_mtime_ns
    assert make(committed, "released").returncode == 0
    assert params.stat().st_mtime_ns == written


def test_released_overwrites_no_settings_that_git_does_not_hold(committed):
    (committed / "params.yaml").write_text("seeds: [7]\n")
    done = make(committed, "released")
    assert done.returncode != 0
    assert "not committed, and params/released.yaml would overwrite them; commit them first" in done.stdout
    assert (committed / "params.yaml").read_text() == "seeds: [7]\n"
    assert not calls(committed)


def test_without_git_released_keeps_a_copy_of_params(committed):
    shutil.rmtree(committed / ".git")
    assert make(committed, "released").returncode == 0
    (kept,) = committed.glob("params/replaced-*.yaml")
    assert kept.read_text() == "seeds: [0]\n"


def test_a_python_that_is_too_old_is_refused_before_anything_is_installed(tree):
    old = f"exec {sys.executable} -c 'import sys; sys.version_info = (3, 10, 4); exec(sys.argv[2])' \"$@\""
    write_command(tree / "bin" / "old", old)
    done = run(["make", "quickstart", "PYTHON=old"], tree, PATH=path_with(tree / "bin"))
    assert done.returncode != 0
    assert "needs Python 3.11 or newer, old is 3.10; name another: make quickstart PYTHON=python3.12" in done.stderr, (
        done.stderr
    )
    assert not (tree / ".venv").exists()


def test_the_newest_python_that_runs_is_taken_and_named(tree):
    """A name on PATH may be a shim of a Python that is not installed."""
    write_command(tree / "bin" / "python3.13", "exit 127")
    write_command(tree / "bin" / "python3.12", f'exec {sys.executable} "$@"')
    done = run(["make", "--dry-run", ".venv/installed"], tree, PATH=path_with(tree / "bin"))
    assert "python3.12 -m venv" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("env", "finished", "clears"),
    [(".venv", False, True), (".venv", True, False), ("elsewhere", False, False)],
)
def test_only_half_an_environment_of_our_own_is_emptied(tree, env, finished, clears):
    (tree / env).mkdir()
    if finished:
        (tree / env / "installed").touch()
        os.utime(tree / env / "installed", (0, 0))  # older than the lock: installed again, over what is there
    planned = run(["make", "--dry-run", f"{env}/installed", f"ENV={env}"], tree).stdout
    assert re.search(rf"-m venv +{'--clear ' if clears else ''}{env}\n", planned), planned


def test_the_kernel_tells_jupyterlab_what_the_notebooks_say_and_the_pipeline_its_version_too(tree):
    """The file that sets up kernels, as `make` writes it; JupyterLab names its session to the kernels that it starts."""
    planned = run(["make", "--dry-run", "env/installed", "ENV=env"], tree).stdout
    (recipe,) = re.findall(r"^mkdir -p env/etc/ipython.*?ipython_kernel_config\.py$", planned, re.M | re.S)
    assert run(["bash", "-c", recipe], tree).returncode == 0
    profile = tree / "home" / "profile_default"
    profile.mkdir(parents=True)
    shutil.copy(tree / "env" / "etc" / "ipython" / "ipython_kernel_config.py", profile)
    for session, told in (
        ({"JPY_SESSION_NAME": "tour.ipynb"}, SAVED["language_info"]),
        ({}, IPythonKernel.language_info),
    ):
        manager, client = start_new_kernel(env=environment(tree, IPYTHONDIR=str(tree / "home")) | session)
        try:
            assert client.kernel_info(reply=True, timeout=60)["content"]["language_info"] == told
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def test_saving_an_opened_notebook_changes_nothing_and_strip_notebooks_takes_out_what_running_it_left(tree):
    original = (ROOT / "notebooks" / "explore.ipynb").read_text()
    (tree / "notebooks").mkdir()
    file = tree / "notebooks" / "explore.ipynb"
    file.write_text(original)
    contents = FileContentsManager(root_dir=str(file.parent))  # as JupyterLab's server reads and writes
    opened = contents.get(file.name)
    contents.save({"type": "notebook", "format": "json", "content": opened["content"]}, file.name)
    assert file.read_text() == original
    opened["content"]["metadata"]["language_info"]["version"] = "3.12.1"  # of a kernel that `make` did not set up
    for cell in opened["content"]["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
            cell["outputs"] = [nbformat.v4.new_output("stream", name="stdout", text="saved")]
    contents.save({"type": "notebook", "format": "json", "content": opened["content"]}, file.name)
    assert file.read_text() != original
    done = make(tree, "strip-notebooks")
    assert done.returncode == 0, done.stderr
    assert file.read_text() == original
    assert "explore.ipynb" in os.listdir(tree / "notebooks")
    assert '"parameters"' in original, "a tag that papermill needs"


def test_the_tour_computes_on_one_thread_whatever_the_machine_has():
    """On two its small networks take ten times as long, which is a minute instead of the seconds that it promises."""
    cells = json.loads((ROOT / "notebooks" / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        exec("\n".join(code[:3]), {})
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_notebook_to_read_first_is_the_one_that_make_lab_opens_and_all_stand_in_reading_order(tree):
    assert "jupyter lab notebooks/tour.ipynb\n" in run(["make", "--dry-run", "lab", "ENV="], tree).stdout
    listed = re.findall(r"\((\S+)\.ipynb\)", (ROOT / "notebooks" / "README.md").read_text())
    assert listed[0] == "tour"
    assert sorted(listed) == [notebook.stem for notebook in NOTEBOOKS]


# ------------------------------------------------------------------------------------------ the whole branch, as a user runs it


def test_the_digits_branch_runs_from_nothing_to_scores_and_figures(smoke_run):
    folder = smoke_run / "paper" / "figures" / "digits-small"
    for name in ("accuracy", "calibration", "streams", "poor-light"):
        for suffix in ("pdf", "png", "txt"):
            assert (folder / f"{name}.{suffix}").stat().st_size > 50, name
    table = pd.read_csv(smoke_run / "data" / "results" / "digits-small" / "scores.csv")
    assert {"BN fixed", "BN batch", "LN batch", "LN single", "LN vote", "LN prior"} <= set(table.arm)
    assert set(table.suite) == {"clean", "released", "named"}
    assert set(table.seed) == {0, 1}
    clean = table[(table.level == 0) & (table.arm == "LN batch")]
    assert (clean.right / clean.images).min() > 0.3, "two epochs reach far more than chance (0.1)"


def test_the_demonstration_leaves_what_is_published_as_it_is(smoke_run):
    """A run of one's own and the published results never mix: the paper and its tables are the committed ones to the byte."""
    for name in ("paper/paper.pdf", "paper/supplement.pdf", "paper/numbers.json", "README.md", "REPRODUCING.md"):
        assert (smoke_run / name).read_bytes() == (ROOT / name).read_bytes(), name
    ignored = (ROOT / ".gitignore").read_text()
    for kind in ("data/runs", "data/results", "paper/figures"):
        assert f"/{kind}/*/" in ignored
        assert not re.search(rf"^!/{kind}/digits", ignored, re.M)


@pytest.mark.parametrize("command", [("demonstrate", "digits-small"), ("runs", "digits-small")], ids=" ".join)
def test_a_second_run_finds_nothing_to_do_and_starts_no_dvc(smoke_run, tmp_path, command):
    write_command(tmp_path / "bin" / "dvc", "exit 1")
    (smoke_run / ".git").mkdir()  # without it DVC is told so, which is a start
    try:
        done = run([sys.executable, "-m", "localnorm.pipeline", *command], smoke_run, PATH=path_with(tmp_path / "bin"))
    finally:
        (smoke_run / ".git").rmdir()
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert not (smoke_run / "calls").exists(), "no dvc is started"
    assert ("LN batch" in done.stdout) == (command[0] == "demonstrate")


def test_dvc_itself_finds_nothing_to_do_either(smoke_run):
    done = run(["dvc", "repro", "--single-item", "scores@digits-small", "report@digits-small", "paper"], smoke_run)
    assert "Running stage" not in done.stdout


# what changes -> the stages, without their matrix, of which one question says that DVC would run them
CHANGES = {
    "localnorm/train/loop.py": "strip",
    "notebooks/report.ipynb": "strip",
    "data/sources/answers.py": "strip answers",
    "data/prepared/digits-small/split.csv": "prepare train answers figure-poor-light",
    "data/models/digits-small/digits-small-ln-s1.safetensors": "train answers figure-poor-light",
    "data/runs/digits-small/digits-small-bn-s0/answers.csv": "answers scores comparisons figure-poor-light",
    "data/results/digits-small/summary.csv": "scores report",
    "paper/paper.pdf": "paper",
}


@pytest.fixture(scope="module")
def asked(smoke_run):
    """A function that asks which stages of the demonstration DVC would run, in `smoke_run` as it is now."""
    stages = ["strip", "paper", "prepare@digits-small", *(f"{stage}@digits-small" for stage in OF_ONE_EXPERIMENT)]
    stages += [f"{s}@digits-small-{n}-{i}" for s in ("train", "answers") for n in ("bn", "ln") for i in (0, 1)]

    def ask() -> set[str]:
        with pytest.MonkeyPatch.context() as here:
            here.chdir(smoke_run)
            here.setenv("DVC_SITE_CACHE_DIR", str(smoke_run / ".dvc" / "tmp" / "site"))
            return dvc_state.stale(stages)

    assert ask() == set()
    return ask


@pytest.mark.parametrize("name", CHANGES)
def test_one_question_for_all_stages_misses_no_change(smoke_run, asked, name):
    file = smoke_run / name
    before = file.read_bytes()
    file.write_bytes(before + b" ")
    try:
        found = asked()
    finally:
        file.write_bytes(before)
    assert {each.split("@")[0] for each in found} == set(CHANGES[name].split())
    of_one_run = [each for each in found if each.startswith(("train@", "answers@"))]
    assert name.startswith("data/runs") <= (of_one_run == ["answers@digits-small-bn-0"]), "and of no other run"
    file.unlink()
    try:
        assert asked(), "a file that is gone is a change too"
    finally:
        file.write_bytes(before)


def test_one_question_sees_other_settings_and_a_lost_lock(smoke_run, asked):
    params, lock = smoke_run / "params.yaml", smoke_run / "dvc.lock"
    before = params.read_text(), lock.read_text()
    changed = yaml.safe_load(before[0])
    changed["digits-small"]["train"]["epochs"] = 3
    try:
        params.write_text(yaml.safe_dump(changed, sort_keys=False))
        assert asked() == {f"train@digits-small-{network}-{seed}" for network in ("bn", "ln") for seed in (0, 1)}
        params.write_text(before[0])
        lock.unlink()
        assert {"strip", "train@digits-small-ln-0", "report@digits-small"} <= asked()
        lock.write_text(before[1][:1000])
        assert "strip" in asked(), "where DVC cannot say, all may have changed"
    finally:
        params.write_text(before[0])
        lock.write_text(before[1])
    assert asked() == set()


@pytest.mark.parametrize("command", ["demonstrate", "runs"])
@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("seeds: 3\n", "experiments"), ("[1]\n", "must map names to values")]
)
def test_a_params_file_that_cannot_be_read_is_refused_by_name_before_any_dvc(project, capsys, command, text, message):
    (project / "params.yaml").write_text(text)
    (project / ".git").mkdir()
    with pytest.raises(SystemExit, match=message):
        main([command, "digits-small"])


def test_a_comment_in_the_library_and_a_saved_notebook_train_nothing(smoke_run):
    library, notebook = smoke_run / "localnorm" / "train" / "loop.py", smoke_run / "notebooks" / "train.ipynb"
    before = library.read_text(), notebook.read_text()
    library.write_text(before[0] + "\n# a comment\n")
    notebook.write_text(before[1].replace('"execution_count": null', '"execution_count": 3'))
    try:
        done = run(["dvc", "repro", "strip", "train@digits-small-ln-0"], smoke_run)
    finally:
        library.write_text(before[0])
        notebook.write_text(before[1])
    assert "Running stage 'strip'" in done.stdout
    assert "Running stage 'train@" not in done.stdout


def test_the_closing_table_names_every_arm_and_where_things_are(smoke_run):
    done = run([sys.executable, "-m", "localnorm.pipeline", "summary", "digits-small"], smoke_run)
    assert done.returncode == 0, done.stderr
    for text in (
        "BN fixed",
        "BN batch",
        "LN batch",
        "LN single",
        "LN vote",
        "paper/paper.pdf",
        "2 seeds",
        "report-digits-small.ipynb",
    ):
        assert text in done.stdout
    assert re.search(r"LN batch +\d+\.\d \(\d+\.\d, \d+\.\d\)", done.stdout), "two seeds: each of them, no interval"


def test_notebooks_that_no_stage_of_the_demonstration_ran_execute_where_jupyterlab_opens_them(smoke_run):
    ran = {file.stem.removesuffix("-digits-small") for file in (smoke_run / "data" / "executed").glob("*.ipynb")}
    rest = [
        notebook
        for notebook in NOTEBOOKS
        if notebook.stem not in ran and not notebook.stem.startswith(("train", "answers"))
    ]
    assert {"tour", "explore", "your-own-images", "your-own-network", "shifts"} <= {notebook.stem for notebook in rest}
    late = ("conversion", "figure-ablations", "figure-front", "figure-controls")  # of tables that the others make
    order = sorted(rest, key=lambda notebook: notebook.stem in late)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    command += [f"notebooks/{notebook.name}" for notebook in order]
    done = run([*command, "--nbval-cell-timeout=300", "-c", os.devnull, "--rootdir=."], smoke_run)
    assert done.returncode == 0, done.stdout[-4000:]
    cells = sum(cell["cell_type"] == "code" for notebook in rest for cell in json.loads(notebook.read_text())["cells"])
    assert f"{cells} passed" in done.stdout


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
    (tmp_path / "params.yaml").write_text(RELEASED.read_text())
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    check()
    (tmp_path / ".git").rmdir()
    run(["dvc", "init", "-q", "--no-scm", "--force"], tmp_path)  # `check` makes .dvc where no other place is set
    (tmp_path / "data" / "sources").mkdir(parents=True)
    listed = run(["dvc", "stage", "list", "--name-only"], tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "train@cars-resnet152-released-ln-5" in listed.stdout.split()
    assert load_params("cifar10-resnet32-released")["train"]["epochs"] == 200
