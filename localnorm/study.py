"""A study of trainings for one image at a time: clean against noisy accuracy on validation images, for every n0.

What each network answers is kept at once in data/runs/<experiment>-study/<variant>-s<seed>.json, which git keeps too, so that a study
of days can be interrupted anywhere. What was kept counts only while data, settings and code are the same.

    python -m localnorm.study cifar10-resnet32 --jobs 2
"""

import argparse
import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd

from localnorm import paths
from localnorm.data.dataset import load
from localnorm.params import load_params
from localnorm.settings import AnswersConfig, StudyConfig, TrainConfig
from localnorm.strengths import measure_on_validation, measure_strengths
from localnorm.train import fit

__all__ = ["COLUMNS", "run", "save_table"]

COLUMNS = [
    "variant",
    "network",
    "seed",
    "statistics",
    "prior",
    "clean",
    "noisy",
    "images",
    "seconds",
    "device",
    "precision",
]


def run(experiment: str, jobs: int = 1) -> pd.DataFrame:
    """Train each variant with each seed and ask it; what an earlier run of the same data, settings and code kept is read.

    Args:
        experiment: its block has train, answers and study.
        jobs: networks that are trained at the same time.

    Returns:
        One row per variant, seed, kind of statistics and n0 with COLUMNS: clean and noisy are accuracies on validation images, noisy the
        plain mean over the block's noises; seconds are the training's. A layer that answers one image in its own way has no n0.
    """
    config = StudyConfig.from_params(load_params(experiment)["study"])
    planned = [(seed, name) for seed in config.seeds for name in config.variants]
    open_ones = [(seed, name) for seed, name in planned if _read(experiment, name, seed) is None]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(jobs, len(open_ones))), mp_context=context) as pool:
        waiting = [pool.submit(_make, experiment, name, seed) for seed, name in open_ones]
        for number, done in enumerate(as_completed(waiting), 1):
            print(f"{done.result()}, {number} of {len(waiting)}", flush=True)
    rows = [
        {"variant": name, "network": config.variants[name]["network"], "seed": seed, "images": config.images}
        | {key: kept[key] for key in ("seconds", "device", "precision")}
        | row
        for seed, name in planned
        for kept in [_read(experiment, name, seed)]
        for row in kept["rows"]
    ]
    return pd.DataFrame(rows)[COLUMNS]


def save_table(experiment: str, table: pd.DataFrame) -> None:
    """Write data/results/<experiment>/study.csv."""
    paths.write_table(paths.results(experiment) / "study.csv", table)


def _file(experiment: str, name: str, seed: int) -> Path:
    return paths.project() / "data" / "runs" / f"{experiment}-study" / f"{name.replace(' ', '_')}-s{seed}.json"


def _digest(experiment: str, name: str, seed: int) -> str:
    """Of everything that a result depends on."""
    params = load_params(experiment)
    config = StudyConfig.from_params(params["study"])
    train = config.train_of(name, TrainConfig.from_params(params["train"]))
    asked = config.asked(name, AnswersConfig.from_params(params["answers"]))
    files = [paths.prepared(experiment) / "dataset.json", paths.project() / "data" / "sources" / "study.py"]
    texts = [file.read_text(encoding="utf-8") if file.is_file() else None for file in files]
    return hashlib.sha256(repr((texts, train, asked, config.variants[name], seed)).encode()).hexdigest()


def _read(experiment: str, name: str, seed: int) -> dict | None:
    file = _file(experiment, name, seed)
    if not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    return kept if kept["digest"] == _digest(experiment, name, seed) else None


def _make(experiment: str, name: str, seed: int) -> str:
    """Train and ask one variant, and keep what it gave."""
    params = load_params(experiment)
    config = StudyConfig.from_params(params["study"])
    train = config.train_of(name, TrainConfig.from_params(params["train"]))
    asked = config.asked(name, AnswersConfig.from_params(params["answers"]))
    dataset, network, digest = (
        load(paths.prepared(experiment)),
        config.variants[name]["network"],
        _digest(experiment, name, seed),
    )
    checkpoint = paths.checkpoint(f"{experiment}-study/{digest[:16]}")
    trained = fit(dataset, train, network, seed, checkpoint=checkpoint)
    if list(asked.statistics_of(network)) == ["own"]:
        measured = measure_on_validation(trained.model, dataset, asked, [("own", 0, 0)])
        rows = pd.DataFrame({"statistics": "own", "prior": None} | measured)
    else:
        rows = measure_strengths(trained.model, dataset, asked, network)[["statistics", "prior", "clean", "noisy"]]
    about = {key: trained.record[key] for key in ("seconds", "device", "precision", "revision")}
    kept = {"digest": digest, **about, "history": trained.history, "rows": rows.to_dict("records")}
    paths.write(_file(experiment, name, seed), json.dumps(kept, indent=1).encode() + b"\n")
    checkpoint.unlink(missing_ok=True)
    return f"{name} s{seed}: {about['seconds']:.0f} s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    run(given.experiment, given.jobs)
