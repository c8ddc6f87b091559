"""Shared parts of the tests: real digits, prepared once, and a copy of the project at smoke size."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # the tests' networks are tiny: threads cost more than they give
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # keeps jupyter_core from warning in every kernel that the tests start


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes long; run with `pytest -m slow`, left out otherwise")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Side by side, a file's tests stay in one process, and so do the files that share `smoke_run`, minutes long to make."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0]).stem
            return "smoke" if file in ("test_faults", "test_package", "test_pipeline") else file

    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr:
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with `pytest -m slow`"))


@pytest.fixture(autouse=True)
def _same_working_folder():
    """A test that fails in another folder does not take the next ones with it."""
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """scikit-learn's digits, prepared as the pipeline does."""
    from localnorm.data import load, prepare

    return load(prepare("digits", tmp_path_factory.mktemp("prepared") / "digits", validation=0.1, test=0.25))


def copy_project(folder: Path) -> Path:
    """The files that a clone would have, as they are now; no environment, no results of the pipeline's ignored folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an archive without git
        files = [file for file in ROOT.rglob("*") if not {".venv", ".dvc", "__pycache__"} & set(file.parts)]
        files += [ROOT / ".dvc" / "config", ROOT / ".dvc" / ".gitignore"]
    for file in files:
        if file.is_file():
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
    return folder


def make_smoke_project(folder: Path) -> Path:
    """A copy of the project, without git, whose digits experiment is as small as it can be; no results in it."""
    project = copy_project(folder)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["seeds"] = [0, 1]
    digits = params["digits-small"]
    digits["prepare"]["limit"] = 200
    digits["train"]["epochs"] = 2
    digits["sweep"] |= {
        "noises": {"released": ["bernoulli"], "named": ["brightness", "contrast"]},  # the two of the teaser
        "images": 64,
        "mode_images": {"vote": 16},
        "max_levels": 2,
    }
    digits["ablations"] = {
        "seeds": [0],
        "noises": {"named": ["brightness"]},
        "max_levels": 2,
        "images": 64,
        "groups_at_fixed_batch": [1, 4],
        "groups_at_full_length": [2],
        "groups_at_fixed_group_size": [1, 2],
        "group_sizes": [[1]],
        "fine_tuning_epochs": [0, 1],
        "norms": ["batch"],
    }
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (project / "dvc.lock").unlink(missing_ok=True)
    for name in ("ablations", "runs", "statistics", "sweeps"):
        shutil.rmtree(project / "data" / name, ignore_errors=True)
    (project / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return project


def environment(project: Path, **more: str) -> dict[str, str]:
    """For a command in a copy of the project: this Python's commands, the copy's library, one thread."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    named = {"PATH": path, "PYTHONPATH": str(project), "DVC_SITE_CACHE_DIR": str(project / ".dvc" / "tmp" / "site")}
    return os.environ | named | {"OMP_NUM_THREADS": "1"} | more


def run(command: list[str], project: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run a command in a project to its end; `variables` are added to its environment."""
    return subprocess.run(
        command,
        cwd=project,
        capture_output=True,
        text=True,
        env=environment(project, **variables),
        timeout=900,
        check=False,
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The working folder, an empty project."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def smoke_project(tmp_path_factory):
    """See `make_smoke_project`; its path has a space, quotes and a letter that is not ASCII, as people's have."""
    return make_smoke_project(tmp_path_factory.mktemp('a project, the "author\'s" Übung') / "localnorm")


@pytest.fixture(scope="session")
def smoke_run(smoke_project):
    """`smoke_project` after what `make quickstart` does."""
    for command in (
        [sys.executable, "-m", "localnorm.pipeline", "runs", "digits-small", "--jobs", "2"],
        ["dvc", "repro", "report@digits-small"],
        [
            "dvc",
            "repro",
            "--single-item",
            "shifts@digits-small",
            "figure-fixed-against-batch",
            "figure-one-image",
            "figure-strengths",
            "numbers",
            "paper",
        ],
    ):
        done = run(command, smoke_project)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return smoke_project


@pytest.fixture
def smoke_copy(smoke_run, tmp_path):
    """A copy of `smoke_run` for what breaks it on purpose."""
    return Path(shutil.copytree(smoke_run, tmp_path / "a project's copy"))


@pytest.fixture
def committed_results():
    """Skips where the results in the tree are those of a run of the user's own, which need not be the published ones."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "data/statistics", "data/sweeps", "paper/numbers.json"]
    if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1:
        pytest.skip("the results here are of a run of your own, not the committed ones")
