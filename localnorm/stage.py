"""Runs one notebook as a stage: ``python -m localnorm.stage train digits-small-ln-s0 -p experiment digits-small -p network ln -p seed 0``.

papermill executes it, and this module adds three things. The kernel is the Python of this environment, whatever other kernels the machine
offers. A stage fails if its code changed while it ran, since its results would belong to neither version. A failure ends with its reason
in one line.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from localnorm import paths
from localnorm.strip import current_source, parameters_of

__all__ = ["run_notebook"]

NOTES = {  # exception -> what to do about it, where the message itself does not say
    "MemoryError": "this machine has too little memory for it",
}


def run_notebook(name: str, suffix: str, parameters: dict) -> Path:
    """Execute notebooks/<name>.ipynb into data/executed/<name>-<suffix>.ipynb.

    Args:
        name: of the notebook.
        suffix: tells its runs apart; empty where it has one.
        parameters: values for its parameters cell.

    Returns:
        The executed notebook.

    Raises:
        ValueError: a parameter that the notebook does not have, or code that is not what data/sources says, before or after the run.
        PapermillExecutionError: a cell failed; what ran until then is in the executed notebook.
    """
    project = paths.project()
    notebook = project / "notebooks" / f"{name}.ipynb"
    known = parameters_of(notebook)
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(
            f"notebooks/{name}.ipynb has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    _check_source(name, "is not of the code that is there; run `dvc repro strip` first")
    output = project / "data" / "executed" / (f"{name}-{suffix}.ipynb" if suffix else f"{name}.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(project):
        _offer_own_kernel(Path(folder))
        papermill.execute_notebook(
            notebook.relative_to(project),  # it writes down both paths, and where the project lies is nobody's business
            output.relative_to(project),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            stderr_file=sys.stderr,  # progress bars of the stage itself
        )
    _check_source(name, "changed while the stage ran, so its results are of neither version; run it again")
    return output


def _check_source(name: str, otherwise: str) -> None:
    file = paths.project() / "data" / "sources" / f"{name}.py"
    if not file.is_file() or file.read_text(encoding="utf-8") != current_source(name):
        raise ValueError(f"data/sources/{name}.py {otherwise}")


def _offer_own_kernel(folder: Path) -> None:
    """Let "python3" be this Python: on shared machines JUPYTER_PATH often names another one, and the first that is found is taken."""
    kernel = folder / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    # jupyter interrupts an idle kernel before it ends it, and the kernel would log that as an error at the end of a stage that succeeded
    command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("JUPYTER_PATH")]))


def _value(text: str):
    """What papermill's own command line makes of a parameter: a number where it looks like one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _reason(error: PapermillExecutionError) -> str:
    said = " ".join(str(error.evalue).split("\n"))
    note = NOTES.get(error.ename, "")
    return f"{said or error.ename}{f' ({note})' if note else ''}"


def _end_interrupted() -> NoReturn:
    print("interrupted; the same command goes on from there", file=sys.stderr)
    sys.exit(130)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.stage", description=__doc__.split("\n")[0])
    parser.add_argument("notebook", help="its name in notebooks, without .ipynb")
    parser.add_argument("suffix", nargs="?", default="", help="tells its runs apart in data/executed")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    given = parser.parse_args(arguments)
    stage = f"{given.notebook}@{given.suffix}" if given.suffix else given.notebook
    try:
        run_notebook(given.notebook, given.suffix, {name: _value(value) for name, value in given.p})
    except KeyboardInterrupt:
        _end_interrupted()
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # Ctrl-C goes to the kernel too, and its answer may come first
            _end_interrupted()
        print("\n".join(error.traceback), file=sys.stderr)
        sys.exit(f"stage {stage} failed: {_reason(error)}")
    except DeadKernelError as error:
        sys.exit(f"stage {stage} failed: {error}; the system may have ended it for want of memory")
    except (OSError, ValueError) as error:
        sys.exit(f"stage {stage} failed: {error}")


if __name__ == "__main__":
    main()
