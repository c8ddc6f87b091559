"""The stages as their notebooks call them, small, to be run in a child process that may be killed."""

import os
from pathlib import Path

import pandas as pd

from localnorm import paths, results, stats
from localnorm.data import load
from localnorm.evaluate import SweepConfig, choices, save_sweep, sweep, sweep_batches, test_images
from localnorm.figures.accuracy import plot_accuracy
from localnorm.figures.style import save
from localnorm.models import load_model
from localnorm.train import TrainConfig, fit, save_run

EXPERIMENT = "digits-small"
TRAIN = TrainConfig("small", epochs=3, batch_size=64, num_groups=4, threads=1)
SWEEP = SweepConfig(
    noises={"named": ["gaussian", "contrast"]},
    modes={"batch": ["fixed", "batch"], "local": ["batch", "single"]},
    batch_size=64,
    max_levels=3,
    threads=1,
)


def train_stage(project: Path, norm: str = "local", seed: int = 0) -> None:
    os.chdir(project)
    name = paths.run_name(EXPERIMENT, norm, seed)
    trained = fit(load(paths.prepared(EXPERIMENT)), TRAIN, norm, seed, checkpoint=paths.checkpoint(name))
    save_run(trained, paths.model(EXPERIMENT, name), paths.run(EXPERIMENT, name), paths.checkpoint(name))


def sweep_stage(project: Path, norm: str = "local", seed: int = 0) -> None:
    os.chdir(project)
    name = paths.run_name(EXPERIMENT, norm, seed)
    dataset = load(paths.prepared(EXPERIMENT))
    model = load_model(paths.model(EXPERIMENT, name))
    choice = choices(model, dataset, SWEEP, norm)
    table, classes = sweep(model, dataset, SWEEP, norm, choice=choice)
    batches = sweep_batches(model, dataset, SWEEP, norm)
    labels = test_images(dataset, SWEEP)[1]
    save_sweep(table, classes, batches, choice, labels, paths.run(EXPERIMENT, name))


def statistics_stage(project: Path) -> None:
    os.chdir(project)
    gathered = results.collect_runs(EXPERIMENT, ["batch", "local"], [0, 1])
    claims = stats.claims(
        gathered.sweep, gathered.about["num_classes"], margin=0.01, ratio=3, runs=gathered.predictions
    )
    results.write_tables(gathered, stats.summary(gathered.sweep), claims)


def figure_stage(project: Path) -> None:
    os.chdir(project)
    curves = pd.read_csv(paths.statistics(EXPERIMENT) / "curves.csv")
    save(plot_accuracy(curves), f"accuracy-{EXPERIMENT}", "Accuracy against level.")


RUN = f"{EXPERIMENT}/{EXPERIMENT}-local-s0"
# stage -> what DVC removes before it starts it
STAGES = {
    train_stage: [f"data/models/{RUN}.safetensors", f"data/runs/{RUN}/history.csv", f"data/runs/{RUN}/record.json"],
    sweep_stage: [f"data/runs/{RUN}/{name}" for name in ("sweep.csv", "batches.csv", "choice.csv", "predictions.npz")],
    statistics_stage: [f"data/statistics/{EXPERIMENT}/{name}.csv" for name in ("claims", "curves", "summary")],
    figure_stage: [f"paper/figures/accuracy-{EXPERIMENT}.{suffix}" for suffix in ("pdf", "png", "txt")],
}


def remove_outputs(project: Path, stage) -> None:
    for name in STAGES[stage]:
        (project / name).unlink(missing_ok=True)


# every call of two pairs, in the order of the pipeline
CALLS = [
    *((stage, norm, seed) for norm in ("batch", "local") for seed in (0, 1) for stage in (train_stage, sweep_stage)),
    (statistics_stage,),
    (figure_stage,),
]
