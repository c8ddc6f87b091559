"""A stage is its notebook under this environment's Python, of the code that was there, and its failure ends with the reason."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import ROOT, environment

from localnorm.strip import source_of


@pytest.fixture
def project(tmp_path):
    """A project whose one stage, `hello`, is of the cells that `write` gets."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "localnorm").symlink_to(ROOT / "localnorm")  # a project's code is that beside its notebooks
    return tmp_path


def write(project, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, project / "notebooks" / "hello.ipynb")
    (project / "data" / "sources").mkdir(parents=True, exist_ok=True)
    (project / "data" / "sources" / "hello.py").write_text(source_of(project / "notebooks" / "hello.ipynb"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "localnorm.stage", "hello", *arguments]


def stage(project, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments),
        cwd=project,
        env=environment(project, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_a_stage_runs_with_its_parameters_and_shows_its_progress(project):
    write(project, "name = 'x'\ncount = 1", "import sys\nprint(name * count)\nprint('half done', file=sys.stderr)")
    done = stage(project, "ab", "-p", "name", "ab", "-p", "count", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "half done", "and no word of the kernel's own end"
    cells = json.loads((project / "data" / "executed" / "hello-ab.ipynb").read_text())["cells"]
    assert "ababab" in json.dumps(cells)


def test_another_python3_kernel_of_the_machine_does_not_win(project):
    write(project, "pass", "import sys\nfrom pathlib import Path\nPath('python').write_text(sys.executable)")
    other = project / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Another", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    done = stage(project, JUPYTER_PATH=str(project / "jupyter"))
    assert done.returncode == 0, done.stderr
    assert os.path.realpath((project / "python").read_text()) == os.path.realpath(sys.executable)


def test_a_failure_ends_with_the_stage_and_the_reason(project):
    write(project, "pass", "raise ValueError('birds.zip holds one class; supply another')")
    done = stage(project, "birds")
    assert done.returncode == 1
    assert last_line(done.stderr) == "stage hello@birds failed: birds.zip holds one class; supply another"


def test_an_interrupt_that_the_kernel_answers_first_is_no_failure(project):
    write(project, "pass", "raise KeyboardInterrupt")
    done = stage(project)
    assert (done.returncode, last_line(done.stderr)) == (130, "interrupted; the same command goes on from there")


def test_code_that_changes_while_a_stage_runs_fails_it(project):
    change = "from pathlib import Path\nnotebook = Path('notebooks/hello.ipynb')\n"
    change += "notebook.write_text(notebook.read_text().replace('answer = 1', 'answer = 2'))"
    write(project, "pass", "answer = 1", change)
    done = stage(project)
    assert done.returncode == 1
    assert "data/sources/hello.py changed while the stage ran" in last_line(done.stderr)
    assert "run it again" in last_line(done.stderr)


def test_a_stage_of_other_code_than_its_source_says_is_refused_before_it_runs(project):
    write(project, "pass", "from pathlib import Path\nPath('ran').touch()")
    (project / "data" / "sources" / "hello.py").write_text("# notebook hello\n")
    done = stage(project)
    assert done.returncode == 1
    assert "run `dvc repro strip` first" in last_line(done.stderr)
    assert not (project / "ran").exists()


def test_an_unknown_parameter_is_named_with_the_ones_there_are(project):
    write(project, "name = 'x'")
    done = stage(project, "-p", "nam", "y")
    assert done.returncode == 1
    assert last_line(done.stderr) == "stage hello failed: notebooks/hello.ipynb has no parameter nam; it has name"


def test_ctrl_c_ends_a_stage_and_its_kernel(project):
    write(
        project,
        "pass",
        "import os, time\nfrom pathlib import Path\nPath('kernel').write_text(str(os.getpid()))\ntime.sleep(100)",
    )
    running = subprocess.Popen(
        command(),
        cwd=project,
        env=environment(project),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell started us with &
    )
    until = time.monotonic() + 60
    while not (project / "kernel").exists() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.3)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert last_line(said) == "interrupted; the same command goes on from there"
    kernel = int((project / "kernel").read_text())
    time.sleep(0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
