"""The one command for a GPU runs whole: errors, layers, networks, a profile, predictions; here in Triton's interpreter."""

import csv
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which comes with torch's CUDA builds")


def run(folder, *arguments, **environment):
    command = [sys.executable, "-m", "localnorm.card", "--output", str(folder / "card.csv"), *arguments]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_quick_run_leaves_one_table(tmp_path):
    done = run(tmp_path, "--quick", "--repeats", "2", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "card.csv").open() as file:
        rows = list(csv.DictReader(file))
    measures = {row["measure"] for row in rows}
    assert measures == {
        "error",
        "step",
        "relu",
        "drawn",
        "shrunk",
        "memory",
        "profile",
        "single",
        "prior",
        "gated",
        "vote",
    }
    errors = [float(row["localnorm"]) for row in rows if row["measure"] == "error"]
    assert len(errors) == 4 * 4, "y and three gradients, in two layouts and two assignments"
    assert max(errors) < 1e-5
    assert {row["torch"] for row in rows} == {torch.__version__}
    assert all(row["triton"] for row in rows)


def test_what_the_time_does_not_allow_is_named(tmp_path):
    done = run(tmp_path, "--quick", "--minutes", "0", TRITON_INTERPRET="1")
    assert "left out, since 0 minutes are over: profile small" in done.stdout
    assert not (tmp_path / "card.csv").exists()


def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path, TRITON_INTERPRET="0")
    assert done.returncode
    assert "this measures a GPU, and there is none" in done.stderr
