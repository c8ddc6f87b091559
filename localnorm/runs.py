"""Run the pipeline: check it first, train and ask networks side by side, and run every stage that is not up to date.

DVC runs each stage; what is here says in which order, how many at a time, and how far they are.
"""

import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from threading import Event, Thread

import yaml
from tqdm import tqdm

from localnorm import dvc_state, paths
from localnorm.params import grid, load_params

__all__ = ["check", "demonstrate", "run_experiments", "run_side_by_side", "run_stages", "runs_of", "stages"]

POLL = 10  # seconds between two looks at the checkpoints
UNMEASURED = (1.0, 0.2)  # a run's training and answers where nobody measured: any unit
OF_ONE_EXPERIMENT = (  # right of its answers, in order
    "scores",
    "comparisons",
    "figure-accuracy",
    "figure-calibration",
    "figure-streams",
    "figure-poor-light",
    "report",
)


def check() -> None:
    """Check everything before any work starts: params.yaml, and that the images are those that were prepared; prepare DVC.

    Raises:
        ValueError: see `localnorm.checks.check_params` and `check_images`.
    """
    paths.project()  # first: the imports take seconds, and `strip` needs none of them
    from localnorm.checks import check_params

    check_params()
    check_images()
    dvc_state.set_up()


def check_images(experiments: Iterable[str] = ()) -> None:
    """Whether the prepared images of these experiments, or of all, are those that lie on this machine now.

    Raises:
        ValueError: an archive was replaced, say; names the command that takes it.
    """
    from localnorm.data.report import changed

    if found := changed(experiments or load_params()["experiments"]):
        raise ValueError("\n".join(found.values()))


def runs_of(experiment: str) -> list[str]:
    """The runs of an experiment as DVC names their stages: "digits-small-ln-0"."""
    networks, seeds = grid(experiment)
    return [f"{experiment}-{network}-{seed}" for seed in seeds for network in networks]


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml: its name, and the files and folders that it needs and makes."""

    name: str
    needs: tuple[str, ...]
    makes: tuple[str, ...]

    def follows(self, other: "Stage") -> bool:
        """Whether it needs something that the other one makes."""
        pairs = ((f"{needed}/", f"{made}/") for needed in self.needs for made in other.makes)
        return any(needed.startswith(made) or made.startswith(needed) for needed, made in pairs)


def stages() -> list[Stage]:
    """All stages of dvc.yaml, in its order, but for the trainings and answers of networks and seeds that an experiment does not have:
    a matrix of DVC has the same for all.
    """
    params, found = load_params(), []
    for name, stage in yaml.safe_load((paths.project() / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        matrix = stage.get("matrix", {})
        experiments = params.get(matrix["experiment"].strip("${}"), []) if matrix else []
        items = [{"experiment": experiment} for experiment in experiments] if matrix else [{}]
        if "seed" in matrix:
            items = [
                item | {"network": network, "seed": seed}
                for item in items
                for networks, seeds in [grid(item["experiment"])]
                for seed in seeds
                for network in networks
            ]
        found += [_stage(name, stage, item) for item in items]
    return found


def _stage(name: str, stage: dict, item: dict) -> Stage:
    def filled(entries: list) -> tuple[str, ...]:
        texts = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
        return tuple(re.sub(r"\$\{item\.(\w+)\}", lambda found: str(item[found[1]]), text) for text in texts)

    made = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    suffix = "-".join(map(str, item.values()))
    return Stage(f"{name}@{suffix}" if item else name, filled(stage.get("deps", [])), filled(made))


def run_stages() -> None:
    """Run all of `stages()` that are not up to date, and leave out what follows from one that failed.

    With DVC's own graph every network would be trained with every seed for every experiment, also where a block names fewer. Without it,
    DVC removes what a stage makes before it sees that a dependency is missing; so such stages are not begun.

    Raises:
        RuntimeError: some failed, whose reasons stand above; names them and what was left out.
    """
    failed, left_out = [], []
    for _, group in groupby(stages(), key=lambda stage: stage.name.partition("@")[0]):  # these do not need each other
        group = list(group)
        begun = [stage for stage in group if not any(stage.follows(other) for other in (*failed, *left_out))]
        left_out += [stage for stage in group if stage not in begun]
        late = dvc_state.stale(stage.name for stage in begun)
        late = [stage for stage in begun if stage.name in late]
        if late and not _reproduce("--single-item", "--keep-going", *(stage.name for stage in late)):
            still = dvc_state.stale(stage.name for stage in late)
            failed += [stage for stage in late if stage.name in still]
    if failed:
        names = [", ".join(stage.name for stage in each) or "none" for each in (failed, left_out)]
        raise RuntimeError(f"failed: {names[0]}; left out, since they need these: {names[1]}")


def _stages_of(runs: list[str]) -> list[str]:
    return [f"{stage}@{run}" for run in runs for stage in ("train", "answers")]


def _reproduce(*arguments: str) -> bool:
    """Whether `dvc repro` succeeds; its reasons and progress are on stderr (with --quiet it would keep them to itself)."""
    return subprocess.run(["dvc", "repro", *arguments], stdout=subprocess.DEVNULL).returncode == 0


class _Bar:
    """One bar over the runs of all experiments. A run counts for the seconds that it was expected to take, and moves the bar with every
    epoch that its checkpoint holds.

    Args:
        seconds: run, as DVC names it -> expected of its training, and of its answers.
    """

    def __init__(self, seconds: dict[str, tuple[float, float]]):
        self.seconds, self.running, self.ended = seconds, set(), set()
        total = sum(map(sum, seconds.values()))
        form = "train and ask: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
        self.bar = tqdm(total=total, bar_format=form, smoothing=0, disable=not seconds)

    def start(self, run: str) -> None:
        self.running.add(run)

    def end(self, run: str) -> None:
        self.running.discard(run)
        self.ended.add(run)
        self.show()

    def show(self) -> None:
        """Move the bar to where the runs are now."""
        done = sum(sum(self.seconds.get(run, (0, 0))) for run in self.ended)
        done += sum(_share_trained(run) * self.seconds.get(run, (0, 0))[0] for run in list(self.running))
        self.bar.set_postfix_str(f"{len(self.ended)} of {len(self.seconds)} runs", refresh=False)
        self.bar.update(max(0, done - self.bar.n))

    @contextmanager
    def moving(self) -> Iterator["_Bar"]:
        """A block during which the bar moves by itself."""
        stop = Event()

        def move() -> None:
            while not stop.wait(POLL):
                self.show()

        mover = Thread(target=move, daemon=True)
        mover.start()
        try:
            yield self
        finally:
            stop.set()
            mover.join()
            self.bar.close()


def _share_trained(run: str) -> float:
    """How much of its training a run's checkpoint holds; 0 where there is none."""
    experiment_network, _, seed = run.rpartition("-")
    try:
        with paths.checkpoint(f"{experiment_network}-s{seed}").open("rb") as file:  # safetensors: a length, then JSON
            length = int.from_bytes(file.read(8), "little")
            about = json.loads(file.read(min(length, 2**24)))["__metadata__"]
        return len(json.loads(about["history"])) / json.loads(about["identity"])["train"]["epochs"]
    except (OSError, ValueError, KeyError):
        return 0.0


def run_side_by_side(experiment: str, jobs: int, share: tuple[int, int] = (0, 1), bar: _Bar | None = None) -> None:
    """Train and ask all networks of an experiment, `jobs` of them at a time, each by a DVC of its own.

    The runs do not depend on each other, so this is what `dvc repro` does one after the other. Ctrl-C ends those under
    way, which get it too, and starts no other.

    Args:
        share: (i, n): only the runs i, i + n, i + 2n, ..., while other machines that share this folder do the rest. The images are
            prepared and stripped sources written before: `dvc repro prepare@<experiment>`.
        bar: shows the progress; None makes one of this experiment's runs.

    Raises:
        RuntimeError: a run failed; ends with what it printed. The others finish and are kept.
    """
    targets = runs_of(experiment)[share[0] :: share[1]]
    # Shares start when their machines are free, and DVC locks what preparing writes against the runs that read it already.
    if share == (0, 1):
        if not _reproduce(f"prepare@{experiment}"):
            raise RuntimeError(f"the images of {experiment} could not be prepared; the reason stands above")
        check_images(
            [experiment]
        )  # again: where they were missing, DVC's cache may have brought those of an older archive
    late = dvc_state.stale(_stages_of(targets))
    targets = [target for target in targets if late & set(_stages_of([target]))]

    def reproduce(target: str) -> subprocess.CompletedProcess:
        bar.start(target)
        # single items: two DVCs may not look at the stages that their runs share
        command = ["dvc", "--wait-for-lock", "repro", "--single-item", *_stages_of([target])]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        bar.end(target)
        return done

    failed = []
    own = nullcontext(bar) if bar else _Bar(dict.fromkeys(targets, UNMEASURED)).moving()
    with ThreadPoolExecutor(jobs) as pool, own as bar:
        try:
            for done in as_completed([pool.submit(reproduce, target) for target in targets]):
                failed += [done.result()] if done.result().returncode else []
        except BaseException:  # leaving the pool would start every run that still waits
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(targets)} runs failed; the first printed:\n{failed[0].stdout[-4000:]}"
        )


def _open_runs(experiment: str, late: Collection[str], share: tuple[int, int]) -> list[str]:
    """The runs of a share that DVC would train or ask: all of them where the images are prepared anew."""
    runs = runs_of(experiment)[share[0] :: share[1]]
    return [run for run in runs if {f"prepare@{experiment}", *_stages_of([run])} & set(late)]


def _planned(open_runs: dict[str, list[str]], late: Collection[str], jobs: int) -> list:
    """Say what is to do, and return its parts: see `localnorm.plan`. A process of its own measures, since torch keeps what it took."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            parts, said = pool.submit(_plan, open_runs, late, jobs).result()
    except (RuntimeError, MemoryError) as error:  # a killed child's is one too
        print(f"how long it takes was not measured: {error}", flush=True)
        return []
    print(said, flush=True)
    return parts


def _plan(open_runs: dict[str, list[str]], late: Collection[str], jobs: int) -> tuple[list, str]:
    from localnorm.plan import describe_plan, make_plan

    parts = make_plan({name: len(runs) for name, runs in open_runs.items()}, late)
    return parts, describe_plan(open_runs, parts, jobs)


def _others(experiments: list[str]) -> list[str]:
    """The stages that train networks beside an experiment's own."""
    params = load_params()
    lists = {"ablations": params.get("ablated", []), "study": params.get("studied", [])}
    return [f"{stage}@{name}" for stage, names in lists.items() for name in names if name in experiments]


def _before_scores(experiment: str) -> list[str]:
    return ["strip", f"prepare@{experiment}", *_stages_of(runs_of(experiment))]


def _late(experiments: list[str], others: Iterable[str] = ()) -> set[str]:
    """Which stages DVC would run: those of the experiments up to their answers, and `others`; then all is checked for the run.

    Where it would run none, params.yaml needs no check, which takes as long as all the rest: its values are those of the last run.
    """
    try:
        dvc_state.set_up()
        check_images(experiments)
        late = dvc_state.stale({*others}.union(*map(_before_scores, experiments or load_params()["experiments"])))
        wrong = None
    except Exception as error:  # of a params.yaml that cannot be right: its check says it better
        late, wrong = {*others}, error
    if late or wrong:
        from localnorm.checks import check_params  # here, since it imports what is checked

        check_params()
    if wrong:
        raise wrong
    if not late:
        print("nothing to do: all is as the last run left it", file=sys.stderr)
    return late


def run_experiments(experiments: list[str], jobs: int, share: tuple[int, int] = (0, 1), plan: bool = False) -> None:
    """`run_side_by_side` for each of `experiments` (none: all of params.yaml) that has something to run; one that fails does not keep
    the next ones from their turn.

    Args:
        plan: say before it starts what is to do, how long it will take and how much disk it needs; see `localnorm.plan`.

    Raises:
        ValueError: see `check`.
        RuntimeError: some failed; tells of each.
    """
    experiments = experiments or load_params()["experiments"]
    others = _others(experiments) if plan else ()
    late, failed = _late(experiments, others), []
    if "strip" in late and share == (0, 1):  # what else is late follows from it
        if not _reproduce("--single-item", "strip"):
            raise RuntimeError("the stage strip failed; the reason stands above")
        late = _late(experiments, others)
    open_runs = {name: _open_runs(name, late, share) for name in experiments}
    expected = {run: UNMEASURED for runs in open_runs.values() for run in runs}
    if plan and late:
        parts = _planned(open_runs, late, jobs)
        measured = {
            run: (part.training, part.answering)
            for part in parts
            if part.what == "runs"
            for run in open_runs[part.experiment]
        }
        expected = measured if set(measured) == set(expected) else expected  # of seconds and guesses no bar can be made
    with _Bar(expected).moving() as bar:
        for experiment in experiments:
            try:
                if late.intersection(_before_scores(experiment)):
                    run_side_by_side(experiment, jobs, share, bar)
            except RuntimeError as error:
                failed.append(f"{experiment}: {error}")
    if failed:
        raise RuntimeError("\n".join(failed))


def demonstrate(experiment: str, jobs: int) -> None:
    """The paper, and all of one experiment from its images to its report: its own networks and seeds, and nothing of others.

    `dvc repro report@<experiment>` does the same with all networks and seeds of params.yaml.

    Raises:
        ValueError: see `check`.
        RuntimeError: a run or a stage failed; the reason stands above.
    """
    stages = [f"{stage}@{experiment}" for stage in OF_ONE_EXPERIMENT]
    late = _late([experiment], ["paper", *stages])
    if late & {"strip", "paper"} and not _reproduce("--single-item", "strip", "paper"):
        raise RuntimeError("the paper could not be set; the reason stands above")
    if late.intersection(_before_scores(experiment)):
        run_side_by_side(experiment, jobs)
    if late and not _reproduce("--single-item", *stages):
        raise RuntimeError(f"the results of {experiment} could not be made; the reason stands above")
