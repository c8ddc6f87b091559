"""The stages as their notebooks call them, small, to be run in a child process that may be killed."""

import os
from pathlib import Path

from localnorm import evaluators, gather, paths, scores
from localnorm.answers import answer, save_answers
from localnorm.data import load
from localnorm.figures.accuracy import plot_accuracy
from localnorm.figures.style import save
from localnorm.models import load_model
from localnorm.settings import AnswersConfig, TrainConfig
from localnorm.streams import answer_streams, save_streams
from localnorm.strengths import choose_strengths, measure_strengths, save_strengths
from localnorm.tables import read_table
from localnorm.train import fit, save_run

EXPERIMENT = "digits-small"
TRAIN = TrainConfig("small", epochs=3, batch_size=64, num_groups=4, threads=1)
ASKED = AnswersConfig(
    noises={"named": ["gaussian", "contrast"]},
    statistics={"bn": ["fixed", "batch"], "ln": ["batch", "single"]},
    batch_size=64,
    max_levels=3,
    threads=1,
)


def train_stage(project: Path, network: str = "ln", seed: int = 0) -> None:
    os.chdir(project)
    name = paths.run_name(EXPERIMENT, network, seed)
    trained = fit(load(paths.prepared(EXPERIMENT)), TRAIN, network, seed, checkpoint=paths.checkpoint(name))
    save_run(trained, paths.model(EXPERIMENT, name), paths.run(EXPERIMENT, name), paths.checkpoint(name))


def answers_stage(project: Path, network: str = "ln", seed: int = 0) -> None:
    os.chdir(project)
    name = paths.run_name(EXPERIMENT, network, seed)
    dataset = load(paths.prepared(EXPERIMENT))
    model = load_model(paths.model(EXPERIMENT, name))
    candidates = measure_strengths(model, dataset, ASKED, network)
    answers = answer(model, dataset, ASKED, network, choose_strengths(candidates))
    folder = paths.run(EXPERIMENT, name)
    save_answers(answers, folder)
    save_streams(answer_streams(model, dataset, ASKED, network), folder)
    save_strengths(candidates, folder)


def scores_stage(project: Path) -> None:
    os.chdir(project)
    gather.write_results(gather.collect(EXPERIMENT, ["bn", "ln"], [0, 1]))


def comparisons_stage(project: Path) -> None:
    os.chdir(project)
    evaluators.write(gather.collect(EXPERIMENT, ["bn", "ln"], [0, 1]))


def figure_stage(project: Path) -> None:
    os.chdir(project)
    curves = scores.curves(read_table("scores", EXPERIMENT))
    save(plot_accuracy(curves, ["BN fixed", "LN batch"]), f"{EXPERIMENT}/accuracy", "Accuracy against level.")


RUN = f"{EXPERIMENT}/{EXPERIMENT}-ln-s0"
# stage -> what DVC removes before it starts it
STAGES = {
    train_stage: [f"data/models/{RUN}.safetensors", f"data/runs/{RUN}/history.csv", f"data/runs/{RUN}/record.json"],
    answers_stage: [
        f"data/runs/{RUN}/{name}" for name in ("answers.csv", "answers.npz", "streams.csv", "strengths.csv")
    ],
    scores_stage: [f"data/results/{EXPERIMENT}/{name}.csv" for name in ("scores", "summary", "runs")],
    comparisons_stage: [f"data/results/{EXPERIMENT}/comparisons.csv"],
    figure_stage: [f"paper/figures/{EXPERIMENT}/accuracy.{suffix}" for suffix in ("pdf", "png", "txt")],
}


def remove_outputs(project: Path, stage) -> None:
    for name in STAGES[stage]:
        (project / name).unlink(missing_ok=True)


# every call of two pairs, in the order of the pipeline
CALLS = [
    *((stage, network, seed) for network in ("bn", "ln") for seed in (0, 1) for stage in (train_stage, answers_stage)),
    (scores_stage,),
    (comparisons_stage,),
    (figure_stage,),
]
