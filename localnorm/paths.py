"""Where things are: every folder of a project, found from the caller's working folder.

papermill runs a notebook in the project's folder, nbval and JupyterLab in the notebook's own: so nothing is relative, and the
project is the nearest folder upwards that holds dvc.yaml. A run is named once, and a file is written in one way, here.
"""

import contextlib
import errno
import os
from pathlib import Path

__all__ = [
    "checkpoint",
    "model",
    "paper",
    "prepared",
    "project",
    "raw",
    "results",
    "run",
    "run_name",
    "write",
    "write_table",
]


def write(path: Path, content: str | bytes) -> Path:
    """Write `content` to `path` so that the file is there whole or not at all, and return `path`.

    Raises:
        OSError: it could not be written; names the file and what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        fix = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make its folder writable"
        reason = f"{error.strerror}; what was there before is kept: {fix} and run the same command again"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that went read-only: its own error is the one to tell
            temporary.unlink(missing_ok=True)
    return path


def project() -> Path:
    """The project's folder: the working folder or the nearest one above it that holds dvc.yaml.

    Raises:
        FileNotFoundError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no dvc.yaml in {here} or a folder above it; run from inside the localnorm project")


def write_table(path: Path, table) -> Path:
    """Write a pandas table as CSV, six digits a number, so that the same values give the same bytes everywhere."""
    return write(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def run_name(experiment: str, network: str, seed: int) -> str:
    """``<dataset>-<model>-<network>-s<seed>``: a run's name in folders, tables and legends alike."""
    return f"{experiment}-{network}-s{seed}"


def raw() -> Path:
    """Downloads and the user's own archives; the pipeline never deletes them."""
    return project() / "data" / "raw"


def prepared(experiment: str) -> Path:
    """The uint8 images of an experiment, with their provenance."""
    return project() / "data" / "prepared" / experiment


def model(experiment: str, run: str) -> Path:
    """The weights of a trained network."""
    return project() / "data" / "models" / experiment / f"{run}.safetensors"


def checkpoint(run: str) -> Path:
    """Where a run's training saves itself every epoch, to be continued after an interruption."""
    return project() / "data" / "checkpoints" / f"{run}.safetensors"


def run(experiment: str, run: str) -> Path:
    """All that is kept of a run but its weights, small enough for git.

    From training history.csv (one row per epoch) and record.json (how it was made). From the answers answers.csv and answers.npz
    (the class that each test image got under each condition), streams.csv (other test batches) and strengths.csv (what was chosen
    on validation images).
    """
    return project() / "data" / "runs" / experiment / run


def results(experiment: str = "") -> Path:
    """The tidy tables of an experiment; without one, of all experiments together (cost.csv, summary.csv)."""
    return project() / "data" / "results" / experiment


def paper() -> Path:
    """Manuscript, figures, tables and numbers."""
    return project() / "paper"
