"""Where things are: every folder of a project, found from the caller's working folder.

papermill runs a notebook in the project's folder, nbval and JupyterLab in the notebook's own: so nothing is relative, and the
project is the nearest folder upwards that holds dvc.yaml. A run is named once, and a file is written in one way, here.
"""

import contextlib
import errno
import os
from pathlib import Path

__all__ = [
    "ablations",
    "batches",
    "checkpoint",
    "model",
    "paper",
    "prepared",
    "project",
    "raw",
    "run",
    "run_name",
    "statistics",
    "sweep",
    "write",
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


def run_name(experiment: str, norm: str, seed: int) -> str:
    """``<dataset>-<model>-<norm>-s<seed>``: a run's name in folders, tables and legends alike."""
    return f"{experiment}-{norm}-s{seed}"


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

    From training history.csv (a row an epoch) and record.json (how it was made), from the sweep sweep.csv (a row a condition),
    batches.csv (a row a test batch size and composition), choice.csv (a row a strength for one image, on validation images) and
    predictions.npz (a class an image and condition).
    """
    return project() / "data" / "runs" / experiment / run


def sweep(experiment: str) -> Path:
    """The tidy table of an experiment: a row a run, mode, noise and level."""
    return project() / "data" / "sweeps" / f"{experiment}.csv"


def ablations(experiment: str) -> Path:
    """The ablations of an experiment: a row a trained variant, seed, mode, noise and level."""
    return project() / "data" / "ablations" / f"{experiment}.csv"


def batches(experiment: str) -> Path:
    """Accuracy against the size and company of test batches: a row a run, size, composition, noise and level."""
    return project() / "data" / "sweeps" / f"{experiment}-batches.csv"


def statistics(experiment: str) -> Path:
    """Intervals, tests and areas that an experiment's sweep gives."""
    return project() / "data" / "statistics" / experiment


def paper() -> Path:
    """Manuscript, figures, tables and numbers."""
    return project() / "paper"
