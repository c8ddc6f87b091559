"""The package as it is installed: what it needs, what it writes where, and what its results tell about the machine."""

import getpass
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, copy_project, run
from packaging.metadata import Metadata
from stages import CALLS, EXPERIMENT

from localnorm import __version__
from localnorm.data import prepare

CITATION_KEYS = {"authors", "cff-version", "license", "message", "references", "title", "type", "version"}
CITATION_KEYS |= {"collection-title", "doi", "end", "notes", "start", "url", "year"}  # of a reference


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from what a clone would have."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="builds without a network, so with the setuptools at hand"
    )
    source = copy_project(tmp_path_factory.mktemp("source"))
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "localnorm").rglob("*.py")}
    pages = {file.relative_to(ROOT).as_posix() for file in (ROOT / "localnorm" / "render" / "pages").iterdir()}
    assert {name for name in names if ".dist-info/" not in name} == modules | pages | {"localnorm/py.typed"}


def test_the_wheels_metadata_is_valid_and_complete(wheel):
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA")))
    metadata = Metadata.from_email(text, validate=True)  # an index refuses what this refuses
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.license_expression == "MIT"
    needed = [each.name for each in metadata.requires_dist if "extra ==" not in str(each.marker)]
    assert needed == ["torch"]


def test_the_citation_has_what_its_format_asks_and_is_of_this_version():
    """Citation File Format 1.2.0, https://citation-file-format.github.io."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == __version__
    for work in (citation, *citation["references"]):
        assert {"title", "authors", "type"} <= set(work)
        assert all("name" in author or {"family-names", "given-names"} <= set(author) for author in work["authors"])
        assert set(work) <= CITATION_KEYS, "keys that the format has"
    assert [work["year"] for work in citation["references"]] == [2019, 2021]


def test_the_commit_hooks_need_no_download_and_refuse_what_the_tests_refuse(tmp_path):
    hooks = {}
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]:
        assert repository["repo"] == "local"
        hooks |= {hook["id"]: hook for hook in repository["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    project = copy_project(tmp_path)
    (project / "localnorm" / "bad.py").write_text("import os\n")
    notebook = project / "notebooks" / "tour.ipynb"
    clean = notebook.read_text()
    notebook.write_text(clean.replace('"execution_count": null', '"execution_count": 7'))
    assert run([*hooks["ruff-check"]["entry"].split(), "localnorm/bad.py"], project).returncode == 1
    assert run([*hooks["ruff-check"]["entry"].split(), "localnorm/layers.py"], project).returncode == 0
    assert run(hooks["nbstripout"]["entry"].split(), project).returncode == 0
    assert notebook.read_text() == clean


def test_the_installed_wheel_needs_torch_and_nothing_else(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import sys; sys.path.insert(0, 'site'); import torch; before = set(sys.modules); import localnorm;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(localnorm.__file__); print(sorted(new - set(sys.stdlib_module_names) - {'torch', 'localnorm'}));"
        "layer = localnorm.LocalNorm2d(4, num_groups=2); print(layer(torch.randn(4, 4, 3, 3)).shape)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    file, others, shape = done.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path), "the wheel's own, not the repository's"
    assert others == "[]"
    assert shape == "torch.Size([4, 4, 3, 3])"


def test_with_torch_alone_everything_can_be_listed_and_says_what_it_needs(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("safetensors", "numpy", "pandas", "yaml", "torchvision", "timm", "PIL"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent()); sys.path.insert(0, "site")
import pydoc, localnorm
from localnorm import *
assert "convert_to_localnorm" in pydoc.render_doc(localnorm)
for ask in (lambda: load_published("any"), lambda: localnorm.models):
    try: ask()
    except ModuleNotFoundError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("safetensors" in line and "pip install '.[pipeline]'" in line for line in lines)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """All stages run twice in projects of their own, and the files that this process opened to write or made meanwhile."""
    written: list[str] = []
    watching = [True]

    def watch(event: str, arguments: tuple) -> None:
        if not watching:
            return
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.append(os.fspath(arguments[0]) if not isinstance(arguments[0], int) else "")
        elif event in ("os.mkdir", "os.rename"):
            written.append(os.fspath(arguments[1 if event == "os.rename" else 0]))

    sys.addaudithook(watch)
    projects = [tmp_path_factory.mktemp("project") for _ in range(2)]
    here = Path.cwd()
    for project in projects:
        (project / "dvc.yaml").touch()
        prepare("digits", project / "data" / "prepared" / EXPERIMENT, validation=0.1, test=0.25, limit=256)
        for stage, *arguments in CALLS:
            stage(project, *arguments)
    watching.clear()
    os.chdir(here)
    return projects, [os.path.abspath(name) for name in written if name]


def test_the_same_seeds_give_the_same_files_to_the_byte_on_the_same_machine(twice):
    from soak import fingerprint

    first, second = (fingerprint(project) for project in twice[0])
    assert first == second
    assert {Path(name).suffix for name in first} >= {".csv", ".npz", ".npy", ".safetensors", ".pdf", ".png"}


def test_the_library_writes_in_the_project_alone(twice):
    projects, written = twice
    named = [str(project.resolve()) for project in projects]
    elsewhere = [
        name
        for name in written
        if not any(os.path.realpath(name).startswith(folder) for folder in named)
        and not any(cache in name for cache in ("/dev/", "matplotlib", "__pycache__"))  # caches of engines
    ]
    assert written, "the watch sees what is written"
    assert not elsewhere


def personal(project: Path) -> list[bytes]:
    """What tells about the machine or its user; names too short to mean anything are left out."""
    found = [str(project), str(Path.home()), sys.prefix, str(ROOT), socket.gethostname(), tempfile.gettempdir() + "/"]
    return [text.encode() for text in (*found, getpass.getuser()) if len(text) > 4]


def test_no_result_of_the_pipeline_tells_its_machine_or_user(smoke_run):
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert "data/executed/paper.ipynb" in json.dumps(listed), "executed notebooks are outs and are looked at too"
    files = [file for name in ("data", "paper") for file in (smoke_run / name).rglob("*") if file.is_file()]
    assert len(files) > 40
    for file in files:
        if not file.name.startswith("."):
            content = file.read_bytes()
            for text in personal(smoke_run):
                assert text not in content, f"{file.relative_to(smoke_run)} holds {text!r}"


def test_figures_carry_no_date_and_no_author(smoke_run):
    for file in (smoke_run / "paper" / "figures").glob("*.p*"):
        content = file.read_bytes()
        for key in (b"/CreationDate", b"/Author", b"/ModDate", b"tIME", b"Software\0"):
            assert key not in content, f"{file.name} holds {key!r}"


def test_the_pickles_of_dvc_lie_in_the_project_and_are_closed_to_other_users(smoke_run):
    site = smoke_run / ".dvc" / "tmp" / "site"
    assert list(site.rglob("cache.db")), "DVC wrote its hashes there"
    assert site.stat().st_mode & 0o077 == 0
    tell = 'tell: ; @printf %s "$$DVC_SITE_CACHE_DIR"'
    without = {"env": {key: os.environ[key] for key in os.environ if key != "DVC_SITE_CACHE_DIR"}}
    done = subprocess.run(
        ["make", "-s", "--eval", tell, "tell"], cwd=smoke_run, capture_output=True, text=True, **without
    )
    assert done.stdout == str(site), done.stderr


def test_the_lowest_torch_that_is_tested_is_the_lowest_that_may_be_installed():
    told = subprocess.run(
        ["make", "-s", "--eval", "tell: ; @echo $(LOWEST) $(LAYER)", "tell"], cwd=ROOT, capture_output=True, text=True
    )
    lowest, *tests = told.stdout.split()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert needed == [f"torch>={lowest}"]
    assert "tests/test_layers.py" in tests
    assert all((ROOT / name).is_file() for name in tests)
    assert "make test-lowest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    "command",
    [
        "pipeline check",
        "pipeline runs digits-small",
        "pipeline demonstrate digits-small",
        "pipeline strip",
        "pipeline summary digits-small",
        "pipeline train digits-small ln 0",
        "stage scores digits-small",
        "compare",
        "render numbers",
        "render reproducing",
        "render web",
    ],
)
def test_every_command_of_the_package_fails_plainly_outside_a_project(tmp_path, monkeypatch, command):
    module, *arguments = command.split()
    place = "localnorm.render.__main__" if module == "render" else f"localnorm.{module}"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(place).main(arguments)
    assert "no dvc.yaml in" in stopped.value.code, "text: Python prints it and exits with 1"
