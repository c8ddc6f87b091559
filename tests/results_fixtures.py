"""A small experiment whose right answers are known: networks that are right about given images, written as the stages write them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from localnorm import paths

EXPERIMENT = "toy-small"
CONDITIONS = [
    ("clean", "clean", 0.0),
    ("named", "gaussian", 0.1),
    ("named", "gaussian", 0.3),
    ("named", "brightness", 0.5),
]
IMAGES = 40


def right_share(network: str, statistics: str, seed: int, level: float) -> float:
    """The share of images that a toy network gets right: LN is ahead in batches, BN fixed fails under noise."""
    base = {
        "bn fixed": (0.9, 0.3),
        "bn batch": (0.85, 0.6),
        "bn_shrunk fixed": (0.9, 0.4),
        "bn_shrunk batch": (0.85, 0.6),
        "ln batch": (0.875, 0.7),
        "ln single": (0.5, 0.4),
    }
    clean, noisy = base[f"{network} {statistics}"]
    return (clean if level == 0 else noisy) + 0.025 * (seed % 3 - 1)


def write_run(
    project: Path, network: str, seed: int, statistics: list[str], experiment: str = EXPERIMENT, **changes
) -> Path:
    """The files of one run; `changes` of its record, or `images` scored under noise."""
    rows, classes = [], []
    labels = np.arange(IMAGES) % 4
    for key in statistics:
        for suite, noise, level in CONDITIONS:
            scored = IMAGES if level == 0 else changes.get("images", IMAGES)
            right = round(right_share(network, key, seed, level) * IMAGES)
            answer = np.where(np.arange(IMAGES) < right, labels, (labels + 1) % 4)
            answer[scored:] = -1
            rows.append((key, suite, noise, level, np.nan, np.nan, scored, min(right, scored), 0.5, 0.3, 0.1, 0.0))
            classes.append(answer)
    folder = project / "data" / "runs" / experiment / paths.run_name(experiment, network, seed)
    columns = [
        "statistics",
        "suite",
        "noise",
        "level",
        "prior",
        "fixed_last",
        "images",
        "right",
        "nll",
        "brier",
        "ece",
        "disagreement",
    ]
    paths.write_table(folder / "answers.csv", pd.DataFrame(rows, columns=columns))
    np.savez_compressed(folder / "answers.npz", classes=np.array(classes, np.int16), labels=labels.astype(np.int16))
    streams = [
        (
            key,
            composition,
            size,
            *condition,
            IMAGES,
            round(right_share(network, key, seed, condition[2]) * IMAGES * (0.5 if composition == "mixed" else 1)),
        )
        for key in statistics
        if key in ("fixed", "batch")
        for composition in ("uniform", "mixed")
        for size in (4, 8)
        for condition in CONDITIONS[:2]
    ]
    columns = ["statistics", "composition", "batch_size", "suite", "noise", "level", "images", "right"]
    paths.write_table(folder / "streams.csv", pd.DataFrame(streams, columns=columns))
    strengths = pd.DataFrame(
        {"statistics": "prior", "prior": [4.0, 16.0], "fixed_last": [0, 0], "clean": [0.5, 0.6], "noisy": [0.4, 0.3]}
    )
    paths.write_table(folder / "strengths.csv", strengths)
    history = pd.DataFrame({"epoch": [1, 2], "train_accuracy": [0.5, 0.97], "validation_accuracy": [0.4, 0.8]})
    paths.write_table(folder / "history.csv", history)
    train = {"model": "small", "epochs": 2, "batch_size": 8, "num_groups": 4, "precision": "32-true"} | changes.get(
        "train", {}
    )
    record = {
        "train": train,
        "network": network,
        "seed": seed,
        "precision": "32-true",
        "parameters": 10,
        "seconds": 60.0,
        "images_per_second": 5.0,
        "device": "CPU (x86_64)",
        "versions": {"torch": "2.14.1"},
        "revision": "abc",
        "data": {
            "title": "Toys",
            "num_classes": 4,
            "shape": [1, 8, 8],
            "counts": {"train": 100, "validation": 20, "test": IMAGES},
            "provenance": {"lossy": False, "checksum": "sha256:0", "note": "", "date": "2026"},
        },
    }
    paths.write(folder / "record.json", json.dumps(record))
    return folder


def write_experiment(project: Path, seeds=range(6)) -> None:
    """The runs of both networks."""
    for seed in seeds:
        write_run(project, "bn", seed, ["fixed", "batch"])
        write_run(project, "ln", seed, ["batch", "single"])
