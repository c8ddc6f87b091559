"""A table is read back as its stage wrote it, or refused with file, line, column and value."""

import random
import shutil
import sys
import traceback
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import localnorm
from localnorm import scores
from localnorm.figures.ablations import plot_ablations
from localnorm.figures.accuracy import plot_accuracy
from localnorm.figures.forest import plot_forest
from localnorm.strip import notebook_code
from localnorm.tables import TABLES, read_table

EXPERIMENT = "cars-efficientnet_lite0"
OF_AN_EXPERIMENT = [
    kind for kind in TABLES if kind not in ("cost", "study", "controls", "fine_tuning", "own_rate")
]  # a study belongs to those in the list `studied`, controls to those in `controlled`, own_rate to those in `tuned`
DRAWN = {
    "scores": lambda table: plot_accuracy(scores.curves(table), ["BN fixed", "LN batch"]),
    "comparisons": lambda table: plot_forest(table.assign(title="Cars")),
    "ablations": lambda table: plot_ablations(table, ["LN batch", "LN single"]),
}


def file_of(kind: str, experiment: str = EXPERIMENT) -> Path:
    return Path("data/results") / TABLES[kind][0].format(experiment)


@pytest.fixture
def tables(project):
    """The committed tables, in a project of their own."""
    for kind in OF_AN_EXPERIMENT:
        name = file_of(kind)
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, project / name)
    return project


@pytest.mark.parametrize("kind", OF_AN_EXPERIMENT)
def test_a_table_comes_back_with_the_values_that_were_written(tables, kind):
    written = pd.read_csv(ROOT / file_of(kind), dtype={"value": str})
    read = read_table(kind, EXPERIMENT)
    for column in ("primary", "value", "by_seed"):  # empty text is text, and pandas reads it as a missing number
        if column in written:
            written[column] = written[column].astype(object).fillna("")
    pd.testing.assert_frame_equal(read, written, check_dtype=False)


def edit(table, line, column, value):
    rows = [row.split(",") for row in table.read_text().splitlines()]
    rows[line - 1][rows[0].index(column)] = value
    table.write_text("\n".join(map(",".join, rows)) + "\n")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ece", "98.3", "ece must be a number from 0 to 1, got '98.3'"),
        ("level", "", "level must be a number, got ''"),
        ("level", "inf", "level must be a number, got 'inf'"),
        ("right", "2.5", "right must be a whole number of at least 0, got '2.5'"),
        ("noise", "", "noise is empty"),
        ("noise", "fog", "unknown suite and noise"),
        ("arm", "LN", "unknown arm 'LN'"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_line_and_the_way_back(tables, column, value, message):
    edit(tables / file_of("scores"), 3, column, value)
    with pytest.raises(ValueError, match=rf"^data/results/{EXPERIMENT}/scores\.csv, line 3: {message}.*`git checkout"):
        read_table("scores", EXPERIMENT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no table"),
        (b"arm,suite\n1,2,3,4,5\n", "is no table|has no column"),
        (b"\xff\xfe\x00a", "is no table"),
        (b"arm,metric,seeds,images,low,high\n", "has no column estimate, only arm, metric"),
        (b"arm,metric,seeds,images,estimate,low,high\n", "has no rows"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tables, content, message):
    (tables / file_of("summary")).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table("summary", EXPERIMENT)


def test_a_missing_table_says_so(project):
    with pytest.raises(FileNotFoundError, match=r"data/results/cost\.csv is not there"):
        read_table("cost")


STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
IMAGES = ("data/raw", "data/prepared", "data/models", "data/runs")
OF_TABLES = [
    name
    for name, stage in STAGES.items()
    if name.startswith("figure-") and not any(file.startswith(IMAGES) for file in stage["deps"])
]
READ: list[str] | None = None


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and READ is not None and (arguments[1] or "r").startswith("r"):
        READ.append(str(arguments[0]))


sys.addaudithook(_note)  # for good: Python cannot take one away


@pytest.mark.parametrize("name", [*OF_TABLES, "report", "conversion", "publish"])
def test_a_stage_names_every_file_that_its_notebook_reads(name, project, monkeypatch):
    """What is read and not named may change, and the stage is not run again."""
    stage = STAGES[name]
    listed = {"${studied}": "cifar10-resnet32", "${controlled}": "cars-efficientnet_lite0-long"}
    experiment = listed.get(stage.get("matrix", {}).get("experiment"), EXPERIMENT)
    shutil.copyfile(ROOT / "params.yaml", project / "params.yaml")
    for folder in ("data/results", "paper/figures"):
        shutil.copytree(ROOT / folder, project / folder)
    code = notebook_code(ROOT / "notebooks" / f"{name}.ipynb").replace("digits-small", experiment)
    with monkeypatch.context() as watched:
        watched.setattr(Figure, "savefig", lambda *_, **__: None)  # the slow part
        watched.setattr(sys.modules[__name__], "READ", [])
        exec(code, {})
        read = [Path(file).relative_to(project) for file in READ if file.startswith(str(project))]
    named = [file.replace("${item.experiment}", experiment) for file in stage["deps"]]
    named += ["params.yaml"] if "params" in stage else []
    named += [next(iter(out)) for out in stage["outs"] if isinstance(out, dict)]  # what it wrote, read back to be shown
    assert [str(file) for file in read if not any(file.is_relative_to(one) for one in named)] == []


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(sorted(DRAWN)),
    place=st.integers(0, 2**32),
    value=st.sampled_from(["", "0", "1e400", "nan", "-1", "0.5", '"', "x", ",", "0.1,0.2", "NA", "é", "\r", "1_000"]),
)
@example(kind="ablations", place=2066, value="NA")
def test_one_cell_edited_by_hand_is_drawn_or_refused_by_name(tmp_path_factory, kind, place, value):
    project = tmp_path_factory.mktemp("edited")
    (project / "dvc.yaml").touch()
    name = file_of(kind)
    lines = (ROOT / name).read_text().splitlines()
    draw = random.Random(place)
    line = draw.randrange(len(lines))
    cells = lines[line].split(",")
    cells[draw.randrange(len(cells))] = value
    lines[line] = ",".join(cells)
    (project / name).parent.mkdir(parents=True)
    (project / name).write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(project)
        try:
            DRAWN[kind](read_table(kind, EXPERIMENT))
        except ValueError as error:  # the package's own, not one of a library that it calls
            raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            assert raised_in.is_relative_to(Path(localnorm.__file__).parent), error  # noqa: PT017
