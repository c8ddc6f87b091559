"""The commands of the pipeline, ``python -m localnorm.pipeline``: what `make` and the stages of dvc.yaml call."""

import argparse
import os
import subprocess
import sys

from localnorm import paths
from localnorm.networks import NETWORKS
from localnorm.params import load_params
from localnorm.runs import check, demonstrate, run_experiments, run_stages
from localnorm.strip import strip

__all__ = ["main", "publish_network", "summary", "train"]


def train(experiment: str, network: str, seed: int) -> None:
    """Run the train stage's notebook in this process's place among those that torchrun or SLURM started.

    The first process's notebook is the stage's; the others' are thrown away, since several cannot write one file.

    Raises:
        RuntimeError: the notebook failed; what it printed stands above.
    """
    load_params(experiment)
    name = paths.run_name(experiment, network, seed)
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    suffix = name if rank == 0 else f"{name}-{rank}"
    command = [sys.executable, "-m", "localnorm.stage", "train", suffix]
    command += ["-p", "experiment", experiment, "-p", "network", network, "-p", "seed", str(seed)]
    failed = subprocess.run(command, cwd=paths.project()).returncode
    if rank:
        (paths.project() / "data" / "executed" / f"train-{suffix}.ipynb").unlink(missing_ok=True)
    if failed:
        raise RuntimeError(f"training {name} failed; the reason stands above")


def publish_network(experiment: str, network: str, statistics: str, seed: int) -> None:
    """Put one trained network into data/networks, and write the model cards of all that lie there."""
    from localnorm import publish_network  # here, since stripping is to start quickly
    from localnorm.render import model_cards

    file = publish_network.publish_network(experiment, network, statistics, seed)
    model_cards.write()
    print(f"{file.relative_to(paths.project()).as_posix()}, {file.stat().st_size / 1e6:.1f} MB, and its card beside it")


def summary(experiment: str) -> str:
    """The small table of an experiment, and where its figures and tables are."""
    from localnorm.tables import read_about, read_table  # here, since stripping is to start quickly
    from localnorm.words import describe, summary_text

    made = [
        *sorted((paths.paper() / "figures" / experiment).glob("*.pdf")),
        *sorted(paths.results(experiment).glob("*.csv")),
    ]
    made += [
        file
        for file in (paths.paper() / "paper.pdf", paths.project() / "data" / "executed" / f"report-{experiment}.ipynb")
        if file.is_file()
    ]
    places = [f"  {file.relative_to(paths.project()).as_posix()}" for file in made]
    return "\n".join(
        [describe(read_about(experiment)), "", summary_text(read_table("summary", experiment)), "", *places]
    )


def _jobs(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of runs at a time; at least 1")
    return int(text)


def _share(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; of four, counted from 0, the last is 3/4")
    return int(number), int(count)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.pipeline", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("strip", help="write what each notebook runs to data/sources")
    commands.add_parser("check", help="check params.yaml before any work starts")
    commands.add_parser("stages", help="run all stages that are not up to date, one kind after the other")
    runs = commands.add_parser("runs", help="train and sweep an experiment's runs side by side")
    runs.add_argument("experiments", nargs="*", metavar="experiment", help="names in params.yaml; default: all there")
    runs.add_argument("--jobs", type=_jobs, default=os.cpu_count(), help="runs at a time; default: one per core")
    runs.add_argument("--plan", action="store_true", help="say first what is to do, how long it takes, how much disk")
    runs.add_argument("--share", type=_share, default=(0, 1), metavar="i/n", help="every n-th run alone, from the i-th")
    whole = commands.add_parser("demonstrate", help="one experiment from its images to its report")
    whole.add_argument("experiment", help="a name in params.yaml")
    whole.add_argument("--jobs", type=_jobs, default=os.cpu_count(), help="runs at a time; default: one per core")
    shown = commands.add_parser("summary", help="print the small table of an experiment")
    shown.add_argument("experiment", help="a name in params.yaml")
    one = commands.add_parser("train", help="one training run, under torchrun or srun on several devices")
    one.add_argument("experiment", help="a name in params.yaml")
    one.add_argument("network", help=f"one of {', '.join(NETWORKS)}")
    one.add_argument("seed", type=int)
    shared = commands.add_parser("publish-network", help="put a trained network and its card into data/networks")
    shared.add_argument("experiment", help="a name in params.yaml")
    shared.add_argument("network", help=f"one of {', '.join(NETWORKS)}")
    shared.add_argument(
        "statistics", help="those that it is to predict with, of those that the run was asked under: prior, say"
    )
    shared.add_argument("seed", type=int)
    given = parser.parse_args(arguments)
    try:
        if given.command == "strip":
            strip()
        elif given.command == "check":
            check()
        elif given.command == "stages":
            run_stages()
        elif given.command == "demonstrate":
            demonstrate(given.experiment, given.jobs)
            print(summary(given.experiment))
        elif given.command == "summary":
            print(summary(given.experiment))
        elif given.command == "train":
            train(given.experiment, given.network, given.seed)
        elif given.command == "publish-network":
            publish_network(given.experiment, given.network, given.statistics, given.seed)
        else:
            run_experiments(given.experiments, given.jobs, given.share, given.plan)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
