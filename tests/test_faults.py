"""What goes wrong on machines that people share: kills, a full disk, a second pipeline. Nothing is lost, nothing is half-written.

Fetching and preparing have such tests of their own (test_fetch, test_prepare); `make soak` kills the whole pipeline for longer.
"""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, environment, make_smoke_project, run
from data_fixtures import kill_after
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import differences, fingerprint, kill, printed, start, wait_for
from stages import CALLS, EXPERIMENT, STAGES, TRAIN, remove_outputs

from localnorm import paths
from localnorm.data import load, prepare
from localnorm.dvc_state import repair
from localnorm.strip import source_of
from localnorm.train import fit, make_fabric

SHARED = tuple(
    f"data/{kind}/digits-small/" for kind in ("prepared", "models", "runs")
)  # what DVC's cache gives to another clone


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which every stage has run undisturbed, the fingerprint of its results, and the seconds of each stage."""
    project = tmp_path_factory.mktemp("project")
    prepare("digits", project / "data" / "prepared" / EXPERIMENT, validation=0.1, test=0.25, limit=256)
    (project / "dvc.yaml").touch()
    seconds = {}

    here = Path.cwd()
    for stage, *arguments in CALLS:
        began = time.monotonic()
        stage(project, *arguments)
        seconds[stage] = time.monotonic() - began
    os.chdir(here)
    return project, fingerprint(project), seconds


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_killed_at_random_moments_a_stage_leaves_nothing_half_written_and_its_next_run_is_equal(finished, stage):
    project, expected, seconds = finished
    draw = random.Random(stage.__name__)
    killed = 0
    for _ in range(int(os.environ.get("LOCALNORM_KILLS", 4))):
        remove_outputs(project, stage)
        killed += kill_after(draw.uniform(0, seconds[stage]), stage, project)
        assert not differences(fingerprint(project), expected)
    assert not kill_after(None, stage, project)
    assert fingerprint(project) == expected
    assert killed, "no kill came before the stage's end"
    print(f"{killed} kills")


# ------------------------------------------------------------------------------------------- a disk that is full or read-only


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk of so many bytes; skips where this user may not."""
    mounted = []

    def make(size: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a small disk: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield make
    os.chdir(tmp_path)
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_on_a_full_disk_a_stage_fails_by_name_and_goes_on_once_there_is_room(finished, disk, stage):
    finished_project, expected, _ = finished
    small = disk(64 << 20)
    here = Path.cwd()
    project = small / "project"
    # a process killed in the middle of a write (by the tests above) has left its temporary file: not this stage's
    shutil.copytree(finished_project, project, ignore=shutil.ignore_patterns(".*.tmp"))
    remove_outputs(project, stage)
    ballast = small / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small).free)
    with pytest.raises(OSError, match="No space left on device"):
        stage(project)
    assert not differences(fingerprint(project), expected)
    assert not list(project.rglob(".*.tmp")), "a temporary file would keep the disk full"
    ballast.unlink()
    stage(project)
    os.chdir(here)
    assert fingerprint(project) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_prepare_on_a_full_disk_leaves_nothing_behind(disk, monkeypatch):
    folder = disk(64 << 10)
    monkeypatch.chdir(folder)
    (folder / "dvc.yaml").touch()
    with pytest.raises(OSError, match="No space left on device"):
        prepare("digits", folder / "out")
    assert {path.name for path in folder.iterdir()} <= {"dvc.yaml", ".out.lock"}


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_read_only_folder_is_named_and_keeps_what_it_holds(disk):
    folder = disk(1 << 20)
    paths.write(folder / "summary.csv", "old")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    message = r"Read-only file system; what was there before is kept: make its folder writable.*summary\.csv"
    with pytest.raises(OSError, match=message) as error:
        paths.write(folder / "summary.csv", "new")
    assert error.value.errno == errno.EROFS
    assert (folder / "summary.csv").read_text() == "old"


# ------------------------------------------------------------------------------------------------------- device and kernel


def test_a_gpu_that_was_asked_for_and_is_missing_is_an_error_not_a_slow_run(monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("LT_ACCELERATOR", "cuda")  # how one asks Lightning Fabric for it
    with pytest.raises(Exception, match=r"(?i)cuda.*accelerator|accelerator.*cuda"):
        make_fabric()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the process's memory")
def test_too_little_memory_suggests_a_smaller_batch(finished):
    script = f"""
import resource, psutil; from localnorm.data import load; from localnorm.train import TrainConfig, fit
data = load({str(finished[0] / "data" / "prepared" / EXPERIMENT)!r})
limit = psutil.Process().memory_info().vms + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
fit(data, TrainConfig("resnet18", epochs=1, batch_size=256, num_groups=8, threads=1), "bn", 0)
"""
    done = run([sys.executable, "-c", script], Path(__file__).parent.parent)
    assert "MemoryError: training resnet18 with batch_size=256" in done.stderr
    assert "lower batch_size" in done.stderr


def test_a_damaged_checkpoint_starts_anew_and_says_so(finished, tmp_path, capsys):
    data = load(finished[0] / "data" / "prepared" / EXPERIMENT)
    (tmp_path / "run.safetensors").write_bytes(b"half")
    assert fit(data, TRAIN, "ln", 0, checkpoint=tmp_path / "run.safetensors").record["resumed_at_epoch"] == 0
    assert "run.safetensors is damaged" in capsys.readouterr().err


def test_a_kernel_that_dies_stops_the_stage_with_a_name(project):
    cell = {"cell_type": "code", "source": "import os\nos.kill(os.getpid(), 9)", "metadata": {}, "outputs": []}
    notebook = {"cells": [cell | {"execution_count": None, "id": "0a0b0c0d"}], "metadata": {}, "nbformat": 4}
    for folder in ("notebooks", "data/sources"):
        (project / folder).mkdir(parents=True)
    (project / "notebooks" / "dies.ipynb").write_text(json.dumps(notebook | {"nbformat_minor": 5}))
    (project / "data" / "sources" / "dies.py").write_text(source_of(project / "notebooks" / "dies.ipynb"))
    done = run([sys.executable, "-m", "localnorm.stage", "dies"], project, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "dies" in last
    assert "Kernel died" in last


# ------------------------------------------------------------------------------------------- DVC: killed, cut off, two at once


LOCK = (Path(__file__).parent.parent / "dvc.lock").read_text()[:3000]  # what a few stages look like is enough


@given(cut=st.integers(0, len(LOCK)))
@settings(max_examples=40, deadline=None)
def test_a_dvc_lock_cut_off_anywhere_is_removed_or_still_one_that_dvc_reads(tmp_path_factory, cut):
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    project = tmp_path_factory.mktemp("project")
    (project / "dvc.yaml").touch()
    (project / ".dvc" / "tmp").mkdir(parents=True)
    (project / "dvc.lock").write_text(LOCK[:cut])
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"write": {}, "read": {}}'[: cut % 26])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        removed = repair()
    for name, read in (
        ("dvc.lock", lambda t: COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(t))),
        (".dvc/tmp/rwlock", json.loads),
    ):
        assert (project / name).exists() != (name in removed)
        if name not in removed:
            read((project / name).read_text())


def test_files_that_a_living_dvc_is_writing_are_left_alone(tmp_path, monkeypatch):

    (tmp_path / "dvc.yaml").touch()
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n  train@digits-small-l")
    monkeypatch.chdir(tmp_path)
    script = "import sys; from dvc.lock import make_lock; held = make_lock(sys.argv[1]); held.lock(); print(flush=True); input()"
    other = [sys.executable, "-c", script, str(tmp_path / ".dvc" / "tmp" / "lock")]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert repair() == []
        process.communicate(b"\n")
    assert repair() == ["dvc.lock"]


def test_after_a_cut_off_dvc_lock_nothing_trains_again(smoke_copy):
    lock = smoke_copy / "dvc.lock"
    before, results_before = lock.read_text(), fingerprint(smoke_copy)
    lock.write_text(before[: before.index("- path:", len(before) // 2) + len("- path")])
    try:
        checked = run([sys.executable, "-m", "localnorm.pipeline", "check"], smoke_copy)
        done = run(["dvc", "repro", "answers@digits-small-ln-0"], smoke_copy)
    finally:
        lock.write_text(before)
    assert "dvc.lock was cut off" in checked.stderr
    assert done.returncode == 0, done.stderr
    assert "Stage 'train@digits-small-ln-0' is cached - skipping run" in done.stdout
    assert not re.search(r"Running stage '(train|answers)@", done.stdout)
    assert fingerprint(smoke_copy) == results_before


def test_a_second_clone_that_shares_the_cache_trains_nothing_while_the_first_is_at_work(smoke_run, tmp_path):
    second = make_smoke_project(tmp_path / "second")
    with (second / ".dvc" / "config.local").open("a") as config:
        config.write(f'[cache]\n    dir = "{smoke_run / ".dvc" / "cache"}"\n')
    expected = {name: digest for name, digest in fingerprint(smoke_run).items() if name.startswith(SHARED)}
    first = start(smoke_run, ["dvc", "repro", "--force", "--single-item", "scores@digits-small"])
    done = run(["dvc", "repro", *(f"answers@digits-small-{name}" for name in ("bn-0", "bn-1", "ln-0", "ln-1"))], second)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"Running stage '(prepare|train|answers)@", done.stdout)
    assert done.stdout.count("is cached - skipping run") == 9, (
        "the images, and four networks that are trained and asked"
    )
    assert {name: digest for name, digest in fingerprint(second).items() if name.startswith(SHARED)} == expected
    assert first.wait(300) == 0, printed(smoke_run)


def run_until(project: Path, stage: str) -> tuple[int, str]:
    """Run the demonstration until a stage's notebook is at work, press Ctrl-C, and say how it ended and what it printed."""
    command = [sys.executable, "-m", "localnorm.pipeline", "demonstrate", "digits-small", "--jobs", "1"]
    process = subprocess.Popen(
        command,
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(project),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell started us with &
    )
    at_work, deadline = [], time.monotonic() + 300
    while not any("ipykernel_launcher" in each for each in at_work) or not any(
        f".stage {stage}" in each for each in at_work
    ):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, at_work
        time.sleep(0.05)
        at_work = [" ".join(line) for line in map(command_line, psutil.Process(process.pid).children(recursive=True))]
    tree = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive, "nothing works on behind the prompt"
    return process.returncode, said


def command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def test_ctrl_c_in_any_part_of_the_demonstration_ends_all_of_it_and_the_next_run_goes_on(smoke_copy):
    """Networks are trained by several DVCs side by side; what comes before and after them by one."""
    expected = fingerprint(smoke_copy)
    lock = yaml.safe_load((smoke_copy / "dvc.lock").read_text())
    for stage in ("train@digits-small-ln-1", "scores@digits-small"):
        del lock["stages"][stage]
    (smoke_copy / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree(smoke_copy / ".dvc" / "cache" / "runs")  # else they would come from there
    for stage in ("train", "scores"):
        code, said = run_until(smoke_copy, stage)
        assert (code, said.splitlines()[-1]) == (130, "interrupted; the same command goes on from there"), (stage, said)
        assert not differences(fingerprint(smoke_copy), expected), stage
    done = run(["dvc", "repro", "--single-item", "scores@digits-small", "report@digits-small"], smoke_copy)
    assert done.returncode == 0, done.stderr
    assert "Running stage 'scores@digits-small'" in done.stdout
    assert fingerprint(smoke_copy) == expected


def wait_for_stage(project: Path, stage: str) -> None:
    deadline = time.monotonic() + 120
    while f"Running stage '{stage}" not in printed(project):
        assert time.monotonic() < deadline, printed(project)
        time.sleep(0.05)


def test_a_second_dvc_says_who_holds_the_stage_and_a_notebook_saved_meanwhile_trains_nothing(smoke_copy):
    before = fingerprint(smoke_copy)
    notebook = smoke_copy / "notebooks" / "train.ipynb"
    text = notebook.read_text()
    first = start(smoke_copy, ["dvc", "repro", "--force", "--single-item", "scores@digits-small"])
    try:
        wait_for_stage(smoke_copy, "scores")
        notebook.write_text(text.replace('"execution_count": null', '"execution_count": 3'))
        second = run(["dvc", "repro", "--force", "--single-item", "scores@digits-small"], smoke_copy)
        assert first.poll() is None, "the first was to be at work still"
        assert second.returncode != 0
        assert "is busy, it is being blocked by" in second.stderr
        assert str(first.pid) in second.stderr
        assert first.wait(300) == 0, printed(smoke_copy)
        third = run(["dvc", "repro", "train@digits-small-ln-0"], smoke_copy)
    finally:
        notebook.write_text(text)
    assert third.returncode == 0, third.stderr
    assert "Running stage 'strip'" in third.stdout
    assert "Running stage 'train" not in third.stdout
    assert fingerprint(smoke_copy) == before


def test_dvc_killed_in_training_the_next_repro_finishes_with_equal_results(smoke_copy):
    expected = fingerprint(smoke_copy)
    target = "train@digits-small-ln-0"
    lock = yaml.safe_load((smoke_copy / "dvc.lock").read_text())
    del lock["stages"][target]
    (smoke_copy / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree(smoke_copy / ".dvc" / "cache" / "runs")  # else it would come from there
    draw = random.Random(0)
    survivors: list[psutil.Process] = []
    for victim in ("all", "dvc"):
        process = start(smoke_copy, ["dvc", "repro", "--single-item", target])
        wait_for_stage(smoke_copy, target)
        time.sleep(draw.uniform(0, 3))
        survivors += kill(process, victim)
        process.wait(60)
        assert not differences(fingerprint(smoke_copy), expected)
    done = run(["dvc", "repro", target], smoke_copy)
    assert done.returncode == 0, done.stderr
    assert f"Running stage '{target}'" in done.stdout
    wait_for(survivors)
    assert fingerprint(smoke_copy) == expected
