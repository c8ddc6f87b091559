"""Shared parts of the tests: real digits, prepared once, and a copy of the project at smoke size."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from localnorm.settings import AnswersConfig

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # the tests' networks are tiny: threads cost more than they give
if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # read when triton loads, which a test before those of its kernels may do
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # keeps jupyter_core from warning in every kernel that the tests start


# what the tests of answers, strengths and streams ask of a network that knows the digits
ASKED = AnswersConfig(
    noises={"released": ["bernoulli"], "named": ["gaussian", "contrast"]},
    statistics={
        "bn": ["fixed", "batch", "single", "companions", "prior", "last_fixed"],
        "ln": ["batch", "single", "vote", "companions", "prior", "last_fixed"],
    },
    batch_size=64,
    images=192,
    clean_images=256,
    most_images={"vote": 64, "companions": 64},
    max_levels=3,
    prior=[1, 16, 1e6],
    fixed_last=[1, 2],
    prior_noises={"released": {"mnist_foreground": 1}},
    companions=15,
    streams={"sizes": [1, 4, 96], "conditions": {"named": {"gaussian": 0.3, "contrast": 0.9}}, "images": 96},
)


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


@pytest.fixture(scope="session")
def pair(digits):
    """A BatchNorm and a LocalNorm network of the same seed that know the digits."""
    from localnorm.train import TrainConfig, fit

    config = TrainConfig("small", epochs=4, batch_size=64, num_groups=4, augment={"shift": 0.125}, threads=1)
    return {network: fit(digits, config, network, seed=0).model for network in ("bn", "ln")}


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
    digits = params["digits-small"]
    params |= {"networks": ["bn", "ln"], "seeds": [0, 1]}
    for name in params["experiments"]:
        params[name].pop("networks", None)
        params[name].pop("seeds", None)
    digits["prepare"]["limit"] = 200
    digits["train"]["epochs"] = 2
    digits["answers"] |= {
        "noises": {"released": ["bernoulli"], "named": ["brightness", "contrast"]},  # the two of the teaser
        "images": 64,
        "most_images": {"vote": 16},
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
        "networks": ["bn"],
    }
    digits["study"]["images"] = 16
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (project / "dvc.lock").unlink(missing_ok=True)
    for name in params["published"]:  # what the paper reads stays, and the demonstration starts from nothing
        assert (project / "data" / "results" / name).is_dir()
    shutil.rmtree(project / "data" / "results" / "digits-small", ignore_errors=True)
    shutil.rmtree(project / "data" / "runs" / "digits-small", ignore_errors=True)
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
    done = run(
        [sys.executable, "-m", "localnorm.pipeline", "demonstrate", "digits-small", "--jobs", "2"], smoke_project
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return smoke_project


@pytest.fixture
def smoke_copy(smoke_run, tmp_path):
    """A copy of `smoke_run` for what breaks it on purpose."""
    return Path(shutil.copytree(smoke_run, tmp_path / "a project's copy"))
