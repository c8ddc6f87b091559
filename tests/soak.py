"""Kill the digits pipeline at random moments, start it again, and compare what comes out with an undisturbed run.

`make soak`, or `python tests/soak.py --kills 50 --minutes 40 --seed 1`. It ends after so many kills or minutes, whichever comes first, and
says how many it made, of what, and in which stage. A failure prints the command that repeats its kills.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import yaml
from conftest import environment, make_smoke_project, run
from tqdm import tqdm

COMMAND = ["dvc", "repro", "figure-accuracy@digits-small"]  # and so prepare, train, answers, scores
RESULTS = ("prepared", "models", "runs", "results")  # in data/
TIMES = {"seconds", "images_per_second", "minutes", "resumed_at_epoch"}  # what a second run may have otherwise
VICTIMS = ("all", "dvc", "stage", "kernel")  # every process at once, or one of them


def fingerprint(project: Path) -> dict[str, str]:
    """Every result under its final name with the SHA-256 of its content, measured times left out.

    Raises:
        ValueError: a table or record is half-written.
    """
    files = [file for name in RESULTS for file in (project / "data" / name).rglob("*")]
    files += (project / "paper" / "figures" / "digits-small").glob("*")
    found = {}
    for file in files:
        name = file.relative_to(project).as_posix()
        if file.name.startswith(".") or "/." in name or not file.is_file():
            continue  # a temporary name
        try:
            content = file.read_bytes()
            if file.suffix == ".json":
                content = json.dumps(_without_times(json.loads(content))).encode()
            elif file.name == "runs.csv":
                content = pd.read_csv(file).drop(columns=list(TIMES), errors="ignore").to_csv().encode()
        except FileNotFoundError:  # a process that survived is at work
            continue
        except ValueError as error:
            raise ValueError(f"{name} is half-written: {error}") from error
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in TIMES}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def start(project: Path, command: list[str] = COMMAND) -> subprocess.Popen:
    """Start DVC; what it prints goes to the file `printed` beside the project."""
    with open(project.parent / "printed", "wb") as printed:
        return subprocess.Popen(
            command,
            cwd=project,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment(project),
            start_new_session=True,
        )


def printed(project: Path) -> str:
    return (project.parent / "printed").read_text(errors="replace")


def stage_under_way(project: Path) -> str:
    stages = re.findall(r"Running stage '([\w-]+)", printed(project))
    return stages[-1] if stages else "before the first stage"


def kill(process: subprocess.Popen, victim: str) -> list[psutil.Process]:
    """SIGKILL the whole tree of processes or one of it ("all" where that one is not there); returns those that live on."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    chosen = [each for each in tree if _role(each) == victim] or tree
    for each in chosen:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    return [each for each in tree if each not in chosen]


def _role(process: psutil.Process) -> str:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    if "ipykernel_launcher" in line:
        return "kernel"
    return "stage" if "localnorm.stage" in line else "dvc" if "bin/dvc" in line else "shell"


def wait_for(survivors: list[psutil.Process]) -> None:
    """Let what a kill left alive come to its own end: a stage whose DVC is gone still finishes."""
    _, alive = psutil.wait_procs(survivors, timeout=120)
    assert not alive, f"still alive two minutes after its parent was killed: {alive}"


def forget(project: Path) -> None:
    """Remove every result and DVC's memory of them."""
    for name in (*RESULTS, "checkpoints"):
        shutil.rmtree(project / "data" / name, ignore_errors=True)
    for file in [
        *(project / "data" / "executed").glob("*.ipynb"),
        *(project / "paper" / "figures" / "digits-small").glob("*"),
    ]:
        file.unlink()
    (project / "dvc.lock").unlink(missing_ok=True)
    for name in ("cache", "tmp"):
        shutil.rmtree(project / ".dvc" / name, ignore_errors=True)


def differences(now: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files of `now` that are not as expected; a file that is not there yet is none."""
    return sorted(name for name in now if now[name] != expected.get(name))


def soak(project: Path, kills: int, seconds: float, seed: int) -> Counter:
    """Kill and restart until so many kills are made or the time is over; returns what happened.

    Raises:
        AssertionError: a run failed without having been killed, or a result differs from an undisturbed run's.
    """
    draw = random.Random(seed)
    happened: Counter = Counter()
    began = time.monotonic()
    done = run(COMMAND, project)
    assert done.returncode == 0, done.stdout + done.stderr
    longest = time.monotonic() - began
    expected = fingerprint(project)
    forget(project)
    survivors: list[psutil.Process] = []
    with tqdm(total=kills, desc="kills", file=sys.stderr) as bar:
        while happened["kills"] < kills or happened["unfinished"]:
            late = time.monotonic() - began > seconds
            over = late or happened["kills"] >= kills  # let the last one finish
            process = start(project)
            try:
                process.wait(None if over else draw.uniform(0.3, longest / 4))
            except subprocess.TimeoutExpired:
                victim = draw.choice(VICTIMS)
                survivors += kill(process, victim)
                process.wait(120)
                happened.update(["kills", f"of {victim}", f"in {stage_under_way(project)}"])
                happened["unfinished"] = 1
                print(f"kill of {victim} in {stage_under_way(project)}", flush=True)
                bar.update()
                assert not (wrong := differences(fingerprint(project), expected)), f"half-written or other: {wrong}"
                continue
            if process.returncode and "corrupted" in printed(project):
                # DVC itself was killed while it rewrote a file of its own; `make` checks for that before it starts
                mended = run([sys.executable, "-m", "localnorm.pipeline", "check"], project)
                assert "removed" in mended.stderr, mended.stderr + printed(project)
                happened["repairs"] += 1
                continue
            assert process.returncode == 0, printed(project)
            wait_for(survivors)
            survivors = []
            now = fingerprint(project)
            assert now == expected, (
                f"differs: {differences(now, expected)}, missing: {sorted(set(expected) - set(now))}"
            )
            happened["finished and equal to the bit"] += 1
            happened["unfinished"] = 0
            if over:
                break
            forget(project)
    return happened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="default: another one each time")
    given = parser.parse_args()
    print(f"soak: seed {given.seed}, {given.kills} kills or {given.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="localnorm soak ") as folder:
        project = make_smoke_project(Path(folder) / "localnorm")
        params = yaml.safe_load((project / "params.yaml").read_text())
        (project / "params.yaml").write_text(yaml.safe_dump(params | {"seeds": [0]}, sort_keys=False))
        try:
            happened = soak(project, given.kills, 60 * given.minutes, given.seed)
        except (AssertionError, ValueError) as error:
            sys.exit(f"{error}\nrepeat it: python tests/soak.py --seed {given.seed} --kills {given.kills}")
    for what, count in sorted(happened.items()):
        print(f"{count:5} {what}")


if __name__ == "__main__":
    main()
