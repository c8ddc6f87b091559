"""Folders of photographs as people have them, from end to end: by README's section and by the notebook's own function."""

import io
import json
import shutil

import numpy as np
import pytest
from conftest import ROOT
from data_fixtures import (
    BAD_FILES,
    BAD_NAMES,
    HEIC,
    enter_project,
    image_files,
    mixed_folder,
    photograph,
    picture,
    sixteen_bit_tiff,
    write_container,
    write_zip_without_flag,
)
from PIL import Image, features

from localnorm import own_images, paths
from localnorm.data import archives, load, prepare, readers
from localnorm.data.__main__ import main
from localnorm.data.images import to_pixels, why_unread
from localnorm.data.photographs import photographs
from localnorm.data.report import changed, report, warnings
from localnorm.own_images import pack_folder

SETTINGS = {"image_size": 8, "validation": 0.2, "test": 0.2}
reads_heic = not why_unread("1.heic")


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


def supply(raw, files: dict[str, bytes], door: str) -> str:
    """Bring class/file to where `prepare` finds it, as README says (an archive of split/class/file) or as the notebook does."""
    if door == "readme":
        (raw / "birds.zip").unlink(missing_ok=True)
        write_container(raw / "birds", "zip", {f"train/{name}": data for name, data in files.items()})
        return "birds"
    folder = raw.parent.parent / "pictures" / "birds"
    shutil.rmtree(folder, ignore_errors=True)
    write_container(folder, "folder", files)
    return pack_folder(folder)


@pytest.fixture(params=["readme", "notebook"])
def door(request):
    return request.param


def test_a_mixed_folder_is_taken_and_every_file_that_is_not_is_counted_by_reason_and_class(raw, tmp_path, door, capsys):
    files = mixed_folder() | {f"robin/IMG_{i}.HEIC": HEIC for i in range(3 * (not reads_heic))}
    data = load(prepare(supply(raw, files, door), tmp_path / "out", **SETTINGS))
    assert data.classes == ("Rötel", "robin", "wren")
    assert sum(data.counts.values()) == 17
    skipped = {(row["reason"], row["class"]): row["files"] for row in data.provenance["skipped"]}
    expected = {("hidden", "robin"): 1, ("hidden", "wren"): 1, ("no image: .csv", ""): 1}
    expected |= {("no image: .mov", "wren"): 1, ("no image: .txt", "wren"): 1}
    if not reads_heic:
        expected["HEIC, which needs the package pillow-heif: pip install pillow-heif", "robin"] = 3
    assert skipped == expected
    text = report(data)
    assert "left out of wren: " in text
    assert "1 file (no image: .mov)" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("  wren")]
    assert row[1:] == [str((data.labels(part) == 2).sum().item()) for part in ("train", "validation", "test")]
    without = [line for line in warnings(data) if "Rötel" in line]
    assert len(without) == 2, "one image is in one part only"
    assert any("never tested" in line or "cannot learn" in line for line in without)
    assert any("11 of 17 images are not square and were squeezed" in line for line in warnings(data))


def test_all_bad_files_are_named_at_once_nothing_stays_behind_and_the_next_run_just_works(raw, tmp_path, door):
    with pytest.raises(ValueError, match="3 of 20 images cannot be used; replace or remove them") as error:
        prepare(supply(raw, mixed_folder() | BAD_FILES, door), tmp_path / "out", **SETTINGS)
    for name in BAD_NAMES:
        assert name in str(error.value)
    assert " at 0x" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.part"))
    if door == "notebook":
        assert list(raw.iterdir()) == []
    assert load(prepare(supply(raw, mixed_folder(), door), tmp_path / "out", **SETTINGS)).num_classes == 3


def test_one_folder_with_every_kind_goes_through_the_readmes_command_and_then_through_the_notebook(
    raw, tmp_path, capsys
):
    heic = {f"robin/IMG_{i}.HEIC": HEIC for i in range(3 * (not reads_heic))}
    files = mixed_folder() | heic | BAD_FILES | {"wren/microscope.tif": sixteen_bit_tiff(9)}
    folder = write_container(tmp_path / "pictures" / "birds", "folder", files)
    command = [str(folder), "--model", "small", "--image-size", "8"]
    assert own_images.main(command) == 1
    said = capsys.readouterr().err
    assert "3 of 21 images cannot be used" in said
    for name in BAD_NAMES:
        assert name in said
    assert list(raw.iterdir()) == []
    for name in BAD_FILES:
        (folder / name).unlink()
    assert own_images.main(command) == 0
    assert "birds-small:" in capsys.readouterr().out

    cells = json.loads((ROOT / "notebooks" / "your-own-images.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (last,) = [number for number, cell in enumerate(code) if "report(dataset)" in cell]
    code.insert(2, f"folder, image_size = {str(folder)!r}, 8")  # after the parameters, as papermill does
    with pytest.raises(ValueError, match=r"wren/microscope\.tif has 16 bits per pixel; .* set sixteen_bit: true"):
        exec("\n".join(code[: last + 2]), {})
    (folder / "wren" / "microscope.tif").unlink()
    exec("\n".join(code[: last + 2]), {})
    said = capsys.readouterr().out
    for text in (
        "left out of robin:",
        "(no image: .mov)",
        "never tested",
        "11 of 17 images are not square and were cut",
    ):
        assert text in said
    assert ("HEIC, which needs" in said) == bool(heic)


def test_a_class_that_ends_up_empty_is_an_error_with_its_reason(raw, tmp_path, door):
    files = mixed_folder() | {f"owl/{i}.raw": b"sensor" for i in range(30)}
    with pytest.raises(ValueError, match=r"classes without an image(.|\n)*  owl: 30 files \(no image: \.raw\)"):
        prepare(supply(raw, files, door), tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(reads_heic, reason="this environment reads HEIC")
def test_a_class_of_heic_files_says_what_to_install(raw, tmp_path, door):
    files = mixed_folder() | {f"owl/{i}.HEIC": HEIC for i in range(30)}
    with pytest.raises(ValueError, match=r"owl: 30 files \(HEIC, .*pip install pillow-heif\)"):
        prepare(supply(raw, files, door), tmp_path / "out", **SETTINGS)


def test_an_empty_folder_is_a_class_without_images(raw, tmp_path):
    write_container(raw / "birds", "folder", image_files())
    (raw / "birds" / "train" / "owl").mkdir()
    with pytest.raises(ValueError, match="owl: an empty folder"):
        prepare("birds", tmp_path / "out")
    write_container(tmp_path / "birds of mine", "folder", {"a/1.png": picture(0), "b/1.png": picture(1)})
    (tmp_path / "birds of mine" / "owl").mkdir()
    with pytest.raises(ValueError, match=r"birds of mine has classes without(.|\n)*owl: an empty folder"):
        pack_folder(tmp_path / "birds of mine")
    assert not list(raw.glob("*.zip"))


def test_one_class_alone_is_refused(raw, tmp_path, door):
    with pytest.raises(ValueError, match="holds one class, robin; a classifier needs at least two"):
        prepare(supply(raw, {f"robin/{i}.png": picture(i) for i in range(9)}, door), tmp_path / "out")


# ------------------------------------------------------------------------------------------- what is on disk decides


def test_a_replaced_archive_is_noticed_with_the_command_that_takes_it(raw, capsys):
    write_container(raw / "birds", "zip", image_files())
    prepare("birds", paths.prepared("birds-small"))
    assert changed(["birds-small", "never prepared"]) == {}
    assert main(["changed"]) == 0
    write_container(raw / "birds", "zip", image_files(classes=4))
    found = changed(["birds-small"])
    assert "birds.zip holds other bytes now" in found["birds-small"]
    assert "dvc repro --force --single-item prepare@birds-small" in found["birds-small"]
    assert main(["changed"]) == 1
    assert "birds.zip holds other bytes" in capsys.readouterr().err
    assert load(prepare("birds", paths.prepared("birds-small"))).num_classes == 4
    assert changed(["birds-small"]) == {}
    write_container(raw / "birds", "folder", image_files())
    assert "prepared from birds.zip, and now birds is found first" in changed(["birds-small"])["birds-small"]


def test_a_folder_that_changed_is_packed_anew_and_somebody_elses_archive_is_not_touched(raw, tmp_path):
    folder = write_container(tmp_path / "pictures" / "birds", "folder", mixed_folder())
    pack_folder(folder)
    (folder / "owl").mkdir()
    (folder / "owl" / "1.png").write_bytes(picture(0))
    pack_folder(folder)
    assert "owl" in readers.read_image_folder([raw / "birds.zip"]).classes
    write_container(raw / "birds", "zip", image_files())
    before = (raw / "birds.zip").read_bytes()
    with pytest.raises(ValueError, match=r"birds\.zip has it and holds others"):
        pack_folder(folder)
    assert (raw / "birds.zip").read_bytes() == before


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("encoding", "names"),
    [("utf-8", ["Zaunkönig", "猫", "Ворона"]), ("cp437", ["Zaunkönig", "café"]), ("utf-8", ["Cafe\u0301", "Zoo"])],
)
def test_names_of_a_zip_that_does_not_say_its_encoding_are_right(tmp_path, encoding, names):
    files = {f"train/{name}/{i}.png": picture(i) for name in names for i in range(2)}
    listing = readers.read_image_folder([write_zip_without_flag(tmp_path / "birds.zip", files, encoding)])
    assert set(listing.classes) == {name.replace("e\u0301", "é") for name in names}
    assert sorted(data for _, data in listing.stream(range(len(files)))) == sorted(files.values())


# ------------------------------------------------------------------------------------------------- shapes and formats


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_as_on_a_page(mode):
    """A black disc on nothing must not become a black square."""
    drawn = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (2, 2, 6, 6))
    if mode == "P":
        drawn = Image.fromarray((np.array(drawn)[..., 3] > 0).astype(np.uint8), "P")
        drawn.putpalette([0] * 768)
    buffer = io.BytesIO()
    (drawn if mode == "P" else drawn.convert(mode)).save(buffer, "PNG", **({"transparency": 0} if mode == "P" else {}))
    for channels in (1, 3):
        pixels = to_pixels(buffer.getvalue(), "1.png", None, channels)
        assert (pixels[:, 2:6, 2:6] == 0).all()
        assert (pixels[:, 0, :] == 255).all()


def test_films_and_links_beside_photographs_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10_000)
    (tmp_path / "album").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "1.png").write_bytes(next(iter(image_files().values())))
    (tmp_path / "mine" / "film.mp4").write_bytes(bytes(20_000))
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "album", target_is_directory=True)
    (tmp_path / "mine" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert photographs(tmp_path / "mine", (3, 8, 8))[0] == ["1.png"]


@pytest.mark.parametrize("turned", [False, True])
def test_crop_takes_the_square_in_the_middle_and_squash_the_whole_image(turned):
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = (0, 255, 0)  # the middle third
    pixels = np.rot90(pixels) if turned else pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    for picture_ in (buffer.getvalue(), np.ascontiguousarray(pixels)):
        cropped = to_pixels(picture_, "1.jpg", 12, 3, fit="crop")
        assert cropped[1].min() > 180
        squashed = to_pixels(picture_, "1.jpg", 12, 3)
        assert 0.25 < (squashed[1] > 128).mean() < 0.4


def test_crop_is_recorded_and_said(raw, tmp_path, capsys):
    write_container(
        raw / "birds", "zip", {f"train/{c}/{i}.jpg": photograph("JPEG", seed=i) for c in "ab" for i in range(9)}
    )
    assert main(["prepare", "birds", str(tmp_path / "out"), "--image-size", "8", "--fit", "crop"]) == 0
    assert "18 of 18 images are not square and were cut to the square in the middle" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["provenance"]["fit"] == "crop"
    with pytest.raises(ValueError, match="fit is one of squash, crop, got 'stretch'"):
        prepare("birds", tmp_path / "out", fit="stretch")


def test_sixteen_bits_are_taken_by_choice(raw, tmp_path):
    files = {
        f"train/{name}/{i}.tif": sixteen_bit_tiff(256 * value)
        for name, value in (("a", 50), ("b", 200))
        for i in range(5)
    }
    write_container(raw / "cells", "zip", files)
    with pytest.raises(ValueError, match="16 bits per pixel; save it with 8, or set sixteen_bit: true"):
        prepare("cells", tmp_path / "out")
    data = load(prepare("cells", tmp_path / "out", sixteen_bit=True))
    assert set(data.images("train").flatten().tolist()) == {50, 200}


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_does(raw, tmp_path):
    write_container(
        raw / "birds", "zip", {f"train/{c}/{i}.avif": photograph("AVIF", seed=i) for c in "ab" for i in range(5)}
    )
    assert load(prepare("birds", tmp_path / "out")).shape == (3, 18, 24)


@pytest.mark.skipif(not reads_heic, reason="pillow-heif is not installed")
def test_heic_is_read_where_its_package_is_there(raw, tmp_path):
    to_pixels(photograph("JPEG"), "1.jpg", 8, 3)  # registers the format
    write_container(
        raw / "birds", "zip", {f"train/{c}/{i}.HEIC": photograph("HEIF", seed=i) for c in "ab" for i in range(5)}
    )
    assert load(prepare("birds", tmp_path / "out")).shape == (3, 18, 24)


@pytest.mark.skipif(reads_heic, reason="this environment reads HEIC")
def test_heic_under_another_suffix_is_told_by_its_content():
    with pytest.raises(ValueError, match=r"1\.jpg is no image .*; inside it is HEIC, .*pip install pillow-heif"):
        to_pixels(HEIC, "1.jpg", 8, 3)
