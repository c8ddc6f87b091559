"""A folder of one's own images: packed faithfully, and through the notebook's block of params.yaml through the whole pipeline."""

import json
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import copy_project, run
from PIL import Image

from localnorm import paths
from localnorm.data import load, prepare, sources
from localnorm.own_images import experiment_block, main, pack_folder, write_sample_folder
from localnorm.params import check_keys
from localnorm.settings import MODELS, AnswersConfig, TrainConfig


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALNORM_DATA", raising=False)
    return tmp_path


def visible(folder):
    return [file.name for file in folder.iterdir() if not file.name.startswith(".")]


def draw(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file)
    return file


def test_a_folder_of_classes_becomes_training_images_and_is_prepared_pixel_for_pixel(project):
    for number in range(10):
        for shade, name in enumerate(("robin", "wren")):
            draw(project / "my birds" / name / f"{number}.png", 100 * shade + number)
    draw(project / "my birds" / ".cache" / "x.png", 255)
    (project / "my birds" / "notes.txt").write_text("no image")
    name = pack_folder(project / "my birds")
    assert name == "my-birds"
    data = load(prepare(name, project / "prepared", test=0.2, validation=0.2))
    assert data.classes == ("robin", "wren")
    assert sum(data.counts.values()) == 20
    for part in data.counts:
        pixels = data.images(part)[:, 0, 0, 0] // 100
        assert pixels.tolist() == data.labels(part).tolist()


def test_splits_of_ones_own_are_kept(project):
    for split in ("train", "test"):
        for name in ("a", "b"):
            for number in range(4):
                draw(project / "pictures" / split / name / f"{number}.png", 50 if split == "train" else 200)
    data = load(prepare(pack_folder(project / "pictures"), project / "prepared", validation=0.25))
    assert data.counts == {"train": 6, "validation": 2, "test": 8}
    assert set(data.images("test").flatten().tolist()) == {200}


def test_the_same_folder_gives_the_same_archive(project):
    draw(project / "x" / "a" / "1.png", 3)
    name = pack_folder(project / "x")
    archive = paths.raw() / f"{name}.zip"
    before = archive.read_bytes()
    pack_folder(project / "x")
    assert archive.read_bytes() == before
    assert visible(archive.parent) == [archive.name]
    assert zipfile.ZipFile(archive).namelist() == ["train/a/1.png"]


def test_a_copy_of_the_folder_has_its_archive_already(project):
    draw(project / "here" / "x" / "a" / "1.png", 3)
    archive = paths.raw() / f"{pack_folder(project / 'here' / 'x')}.zip"
    before = archive.read_bytes()
    copy = project / "there" / "x"
    draw(copy / "a" / "1.png", 3)
    os.utime(copy / "a" / "1.png", (0, 0))
    assert pack_folder(copy) == "x"
    assert archive.read_bytes() == before


def test_a_folder_that_lies_where_data_is_looked_for_does_not_hide_its_archive(project, monkeypatch):
    monkeypatch.setenv(sources.VARIABLE, str(project / "mine"))
    for place in (paths.raw(), project / "mine"):
        draw(place / place.name / "a" / "1.png", 3)
        name = pack_folder(place / place.name)
        assert name == f"{place.name}-packed"
        assert sources.plan(name).files == (paths.raw() / f"{name}.zip",)
    draw(paths.raw() / "shells" / "a" / "1.png", 3)
    (paths.raw() / "shells-packed").mkdir()
    with pytest.raises(ValueError, match=r"the name 'shells-packed' must lead to .*, but .*shells-packed has it"):
        pack_folder(paths.raw() / "shells")


@pytest.mark.parametrize("builtin", [*sources.DATASETS, "Digits"])
def test_a_folder_named_like_a_built_in_data_set_gets_a_name_that_leads_to_its_own_images(project, builtin):
    for number in range(10):
        for name in ("mine", "yours"):
            draw(project / builtin / name / f"{number}.png", number)
    name = pack_folder(project / builtin)
    assert name == f"{builtin}-packed"
    data = load(prepare(name, project / "prepared"))
    assert data.classes == ("mine", "yours")
    assert sum(data.counts.values()) == 20


def test_images_of_another_folder_of_the_same_name_are_refused_and_those_of_the_same_folder_packed_anew(project):
    for year in ("2023", "2024"):
        draw(project / year / "photos" / "a" / "1.png", int(year) % 100)
    pack_folder(project / "2023" / "photos")
    archive = paths.raw() / "photos.zip"
    before = archive.read_bytes()
    message = "must lead to the images of .*2024/photos, but .*photos.zip has it and holds others; rename the folder, or remove"
    with pytest.raises(ValueError, match=message):
        pack_folder(project / "2024" / "photos")
    assert archive.read_bytes() == before
    draw(project / "2023" / "photos" / "a" / "2.png", 0)
    pack_folder(project / "2023" / "photos")
    assert zipfile.ZipFile(archive).namelist() == ["train/a/1.png", "train/a/2.png"]


@pytest.mark.parametrize("file", ["mine/photos.zip", "mine/photos.tar", "data/raw/photos.zip", "data/raw/photos.tgz"])
def test_an_archive_that_has_the_name_is_neither_replaced_nor_hidden_nor_read_instead(project, monkeypatch, file):
    monkeypatch.setenv(sources.VARIABLE, str(project / "mine"))
    archive = paths.write(project / file, b"somebody's own")
    draw(project / "photos" / "a" / "1.png", 3)
    with pytest.raises(ValueError, match=f"the name 'photos' must lead to .*/photos, but .*{file} has it"):
        pack_folder(project / "photos")
    assert archive.read_bytes() == b"somebody's own"
    assert [each for each in project.rglob("photos*") if each.is_file()] == [archive]


def test_an_archive_of_the_same_images_elsewhere_is_taken(project, monkeypatch):
    draw(project / "photos" / "a" / "1.png", 3)
    pack_folder(project / "photos")
    (project / "mine").mkdir()
    (paths.raw() / "photos.zip").rename(project / "mine" / "photos.zip")
    monkeypatch.setenv(sources.VARIABLE, str(project / "mine"))
    assert pack_folder(project / "photos") == "photos"
    assert visible(paths.raw()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no images .* as class/file or split/class/file"),
        (["1.png"], "neither as class/file nor as split/class/file .*: 1.png"),
        (["train/a/1.png", "b/2.png"], "splits of .*train.*: train/a/1.png; give the folder that holds"),
        (["summer/a/1.png"], "neither as class/file nor as split/class/file .*: summer/a/1.png"),
    ],
)
def test_another_layout_is_refused_with_the_file_that_does_not_fit(project, files, message):
    (project / "x").mkdir()
    for name in files:
        draw(project / "x" / name, 1)
    with pytest.raises(ValueError, match=message):
        pack_folder(project / "x")
    assert not paths.raw().exists()


def test_links_to_folders_and_names_of_another_encoding_are_named(project):
    draw(project / "x" / "a" / "1.png", 1)
    draw(project / "elsewhere" / "1.png", 2)
    (project / "x" / "lily").symlink_to(project / "elsewhere", target_is_directory=True)
    with pytest.raises(ValueError, match=r"links to folders, which are not followed: lily; .*cp -rL"):
        pack_folder(project / "x")
    (project / "x" / "lily").unlink()
    draw(project / "x" / "a" / "2.png", 1).rename(project / "x" / "a" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(ValueError, match=r"names that are not UTF-8: 'a/caf\\udce9.png'; rename"):
        pack_folder(project / "x")
    assert not paths.raw().exists()


def test_a_missing_folder_is_named(project):
    with pytest.raises(NotADirectoryError, match="gone is not a folder; give one that holds class/file"):
        pack_folder(project / "gone")


# ------------------------------------------------------------------------------------ the notebook's block, through the pipeline


def run_whole(command: list[str], project: Path) -> None:
    done = run(command, project, LOCALNORM_DATA="")
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_images_of_ones_own_go_from_a_folder_to_a_report_by_the_block_that_the_notebook_prints(tmp_path):
    project = copy_project(tmp_path / "localnorm")
    (project / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    pictures = write_sample_folder(tmp_path / "photos of mine", images=300, size=8)
    (pictures / "0" / "notes.txt").write_text("no image")
    notebook = ["papermill", "-k", "python3", "--no-progress-bar", "notebooks/your-own-images.ipynb", "executed.ipynb"]
    run_whole([*notebook, "-p", "folder", str(pictures), "-p", "image_size", "8", "-p", "epochs", "2"], project)

    outputs = [
        o for cell in json.loads((project / "executed.ipynb").read_text())["cells"] for o in cell.get("outputs", [])
    ]
    assert any("left out of 0: 1 file (no image: .txt)" in "".join(o.get("text", "")) for o in outputs)
    (printed,) = ["".join(o["text"]) for o in outputs if "then: " in "".join(o.get("text", ""))]
    text, _, command = printed.partition("then: ")
    (experiment,) = block = yaml.safe_load(text)
    assert command.split() == ["make", "quickstart", f"EXPERIMENT={experiment}"]
    block[experiment]["seeds"] = [0]
    block[experiment]["train"]["epochs"] = 2
    params = yaml.safe_load((project / "params.yaml").read_text()) | block
    params["experiments"].append(experiment)
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    # what that command runs, but for the paper, which does not read this experiment
    run_whole(["dvc", "repro", "--single-item", "strip"], project)
    run_whole([sys.executable, "-m", "localnorm.pipeline", "demonstrate", experiment], project)
    table = pd.read_csv(project / "data" / "results" / experiment / "scores.csv")
    assert {"BN fixed", "BN batch", "LN batch", "LN single"} <= set(table.arm)
    assert set(table.seed) == {0}
    clean = table[(table.level == 0) & (table.arm == "BN batch")]
    assert (clean.right / clean.images).mean() > 0.2, "two epochs reach more than chance (0.1)"
    about = json.loads((project / "data" / "results" / experiment / "about.json").read_text())
    assert about["title"] == "photos-of-mine"
    assert about["provenance"]["source_counts"] == {"train": 300}
    assert (project / "data" / "executed" / f"report-{experiment}.ipynb").stat().st_size > 100


# ------------------------------------------------------------------------------------------------------- the block to copy


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [16, 128])
def test_the_block_to_copy_is_taken_whole_and_small(project, model, size):
    (experiment,) = block = yaml.safe_load(experiment_block("flowers", model, size))
    assert experiment == f"flowers-{model}"
    given = block[experiment]
    assert given["networks"] == ["bn", "ln"]
    assert len(given["seeds"]) <= 3
    assert given["prepare"]["dataset"] == "flowers"
    check_keys("prepare", given["prepare"], prepare, ("output",))
    train, asked = TrainConfig.from_params(given["train"]), AnswersConfig.from_params(given["answers"])
    assert set(asked.statistics) == set(given["networks"])
    assert asked.streams, "the stage figure-streams depends on them"
    assert train.batch_size % train.num_groups == 0
    assert not {"digits", "cars", "cifar10"} & set(re.findall(r"\w+", experiment_block("flowers", model, size)))


def test_one_command_packs_a_folder_and_prints_its_block(project, capsys):
    for name in ("robin", "wren"):
        draw(project / "birds" / name / "1.png", 3)
    assert main([str(project / "birds"), "--model", "small", "--image-size", "16"]) == 0
    out, err = capsys.readouterr()
    assert list(yaml.safe_load(out)) == ["birds-small"]
    assert "make quickstart EXPERIMENT=birds-small" in err
    assert (paths.raw() / "birds.zip").is_file()
    assert main(["birds", "--model", "small"]) == 0
    assert main([str(project / "gone")]) == 1
    assert "gone is not a folder" in capsys.readouterr().err


def test_the_same_command_takes_a_folder_that_changed_though_its_name_is_packed(project):
    for name in ("robin", "wren"):
        draw(project / "birds" / name / "1.png", 3)
    assert main(["birds"]) == 0
    draw(project / "birds" / "wren" / "2.png", 4)
    assert main(["birds"]) == 0
    assert "train/wren/2.png" in zipfile.ZipFile(paths.raw() / "birds.zip").namelist()


def test_what_prepare_would_refuse_gets_no_block(project, capsys):
    draw(project / "alone" / "robin" / "1.png", 3)
    draw(paths.raw() / "vehicles" / "car" / "1.png", 3)
    for given, said in (
        (["alone"], "alone holds one class, robin"),
        (["vehicles"], "is not laid out as split/class/file"),
        (["digits", "--image-size", "-5"], "image_size must be a whole number of at least 1"),
    ):
        assert main(given) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err


def test_the_block_reads_back_as_it_was_meant():
    """Of a name that YAML takes for a number, and of one with a dot, which DVC takes for a step into a block."""
    (experiment,) = block = yaml.safe_load(experiment_block("2024", fit="squash", epochs=3))
    assert experiment == "2024-resnet18"
    assert block[experiment]["prepare"] | {"dataset": "2024", "fit": "squash"} == block[experiment]["prepare"]
    assert block[experiment]["train"]["epochs"] == 3
    (experiment,) = block = yaml.safe_load(experiment_block("birds.v2"))
    assert (experiment, block[experiment]["prepare"]["dataset"]) == ("birds-v2-resnet18", "birds.v2")
    with pytest.raises(ValueError, match="unknown model 'resnet19'"):
        experiment_block("birds", "resnet19")
