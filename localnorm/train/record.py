"""What is written down about a training run: its settings and data, the machine, the code."""

import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from lightning_fabric import Fabric

from localnorm import paths
from localnorm.data.dataset import Dataset
from localnorm.machine import device_name
from localnorm.settings import TrainConfig

__all__ = ["TrainedRun", "describe_run", "identify", "part_of", "revision"]


@dataclass(frozen=True)
class TrainedRun:
    """What training gives: the network, its history (one row per epoch), and a record of how it was made."""

    model: torch.nn.Module
    history: list[dict]
    record: dict


def identify(dataset: Dataset, config: TrainConfig, network: str, seed: int) -> dict:
    """Everything that a run's weights depend on, but for code and machine: a checkpoint of anything else is not continued."""
    return {
        "train": asdict(config),
        "network": network,
        "seed": seed,
        "data": {
            "name": dataset.name,
            "title": dataset.title,
            "num_classes": dataset.num_classes,
            "shape": list(dataset.shape),
            "provenance": dataset.provenance,
            "counts": {part: len(dataset.labels(part)) for part in ("train", "validation", "test")},
        },
    }


def part_of(fabric: Fabric, started: float) -> dict:
    """Device, precision, versions and seconds of one part of a training, which may go on elsewhere."""
    seconds = time.perf_counter() - started
    return {
        "device": device_name(fabric.device),
        "precision": fabric.strategy.precision.precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": seconds,
    }


def _in_turn(parts: list[dict], key: str) -> str:
    return ", then ".join(dict.fromkeys(part[key] for part in parts))


def describe_run(
    identity: dict,
    parts: list[dict],
    *,
    parameters: int,
    images: int,
    resumed_at: int,
    group_sizes: list[int],
    fabric: Fabric,
) -> dict:
    """The record of a run.

    Args:
        identity: what `identify` gives.
        parts: what `part_of` gave for each part.
        parameters: of the network.
        images: that it was trained on, each as often as it was.
        resumed_at: the epoch at which the last part started.
        group_sizes: that the steps drew from.
        fabric: of the last part.
    """
    seconds = sum(part["seconds"] for part in parts)
    return {
        **identity,
        "parameters": parameters,
        "resumed_at_epoch": resumed_at,
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 1),
        "group_sizes": group_sizes,
        "device": _in_turn(parts, "device"),
        "precision": _in_turn(parts, "precision"),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "versions": {
            "localnorm": version("localnorm"),
            "torch": _in_turn(parts, "torch"),
            "python": _in_turn(parts, "python"),
        },
        "revision": revision(),
    }


def revision() -> str | None:
    """The git revision, with "+" where what makes results differs from it; None outside a repository."""
    # not all that git tracks: DVC removes a stage's results before it starts
    made_by = ["localnorm", "notebooks", "params.yaml", "dvc.yaml", "requirements.lock"]
    try:
        head, changes = (
            subprocess.run(
                ["git", *command],
                cwd=paths.project(),
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (["describe", "--always", "--exclude=*"], ["status", "--porcelain", "--", *made_by])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+" if changes else head
