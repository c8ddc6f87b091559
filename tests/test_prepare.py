"""Any source becomes the same kind of folder: right pixels, stratified splits, provenance, whole or not at all."""

import csv
import hashlib
import io
import json
import random
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from data_fixtures import (
    CONTAINERS,
    cars_files,
    cifar_batches,
    enter_project,
    image_files,
    kill_after,
    mnist_files,
    picture,
    prepare_in_child,
    redefine,
    write_container,
    write_parquet,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from localnorm import paths
from localnorm.data import archives, load, prepare, readers
from localnorm.data.__main__ import main
from localnorm.data.images import to_pixels
from localnorm.data.prepare import CHUNK, WORKERS, _decode, _stratify

PARTS = ("train", "validation", "test")


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def split_rows(folder) -> dict[str, list[dict]]:
    with (folder / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {part: [row for row in rows if row["part"] == part] for part in PARTS}


# What is written


def test_digits_become_three_stratified_parts_without_network_or_files(raw, tmp_path):
    from sklearn.datasets import load_digits

    data = load(prepare("digits", tmp_path / "out"))
    digits = load_digits()
    assert data.counts == {"train": 1455, "validation": 162, "test": 180}
    assert (data.name, data.title, data.shape, data.num_classes) == ("digits", "Digits", (1, 8, 8), 10)
    seen = []
    for part, rows in split_rows(tmp_path / "out").items():
        index = [int(row["index"]) for row in rows]
        seen += index
        np.testing.assert_array_equal(data.labels(part), digits.target[index])
        expected = np.rint(digits.images[index] * 255 / 16)
        np.testing.assert_array_equal(data.images(part)[:, 0], expected)
    assert sorted(seen) == list(range(1797))  # every image in one part, and in one only


@pytest.mark.parametrize("kind", CONTAINERS)
def test_an_own_image_folder_arrives_pixel_for_pixel_from_every_container(raw, tmp_path, kind):
    files = image_files(classes=3, train=10, test=4)
    write_container(raw / "birds", kind, {f"birds-master/{name}": data for name, data in files.items()})
    data = load(prepare("birds", tmp_path / "out"))
    assert data.classes == ("class0", "class1", "class2")
    assert data.counts == {"train": 27, "validation": 3, "test": 12}
    for part, rows in split_rows(tmp_path / "out").items():
        for row, image, label in zip(rows, data.images(part), data.labels(part), strict=True):
            original = Image.open(io.BytesIO(files[row["name"].removeprefix("birds-master/")]))
            np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(original))
            assert int(row["label"]) == label
            assert data.classes[label] in row["name"]


def test_the_sources_own_splits_are_kept(raw, tmp_path):
    files = image_files(train=8, test=4)
    files |= {name.replace("test/", "val/"): data for name, data in files.items() if name.startswith("test/")}
    write_container(raw / "birds", "zip", files)
    rows = split_rows(prepare("birds", tmp_path / "out", validation=0.5, test=0.5))
    for part, folder, count in (("train", "train", 24), ("validation", "val", 12), ("test", "test", 12)):
        assert len(rows[part]) == count
        assert all(row["name"].startswith(f"{folder}/") for row in rows[part])


def test_mean_and_deviation_are_those_of_the_training_part_alone(raw, tmp_path):
    write_container(raw / "birds", "zip", image_files(train=10))
    data = load(prepare("birds", tmp_path / "out"))
    pixels = data.images("train").double()
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3), correction=0), rtol=1e-12)
    assert not np.allclose(data.mean, data.images("test").double().mean((0, 2, 3)), rtol=1e-4)


def test_rows_lie_in_random_order_and_not_sorted_by_class(raw, tmp_path):
    write_container(raw / "birds", "zip", image_files(classes=4, train=40, test=40))
    data = load(prepare("birds", tmp_path / "out"))
    for part in ("train", "test"):
        labels = data.labels(part)
        changes = (labels[1:] != labels[:-1]).float().mean()
        assert 0.6 < changes < 0.9  # 3/4 at random; 0.02 if sorted, 1 if dealt out in turn


def test_the_same_source_and_arguments_give_the_same_bytes(raw, tmp_path):
    write_container(raw / "birds", "tar.xz", image_files())
    first, again, other = (
        contents(prepare("birds", tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first["split.csv"] != other["split.csv"]


def test_the_folder_does_not_tell_where_the_source_lies(raw, tmp_path, monkeypatch):
    write_container(raw / "birds", "folder", image_files())
    first = contents(prepare("birds", tmp_path / "a"))
    shutil.move(raw / "birds", tmp_path / "elsewhere" / "birds")
    monkeypatch.setenv("LOCALNORM_DATA", str(tmp_path / "elsewhere"))
    assert contents(prepare("birds", tmp_path / "b")) == first


def test_limit_keeps_a_stratified_few_of_each_part(raw, tmp_path):
    write_container(raw / "birds", "zip", image_files(classes=3, train=20, test=9))
    data = load(prepare("birds", tmp_path / "out", limit=6))
    assert data.counts == {"train": 6, "validation": 6, "test": 6}
    for part in PARTS:
        assert Counter(data.labels(part).tolist()) == {0: 2, 1: 2, 2: 2}


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_every_beginning_of_the_stratified_order_holds_each_class_in_its_share(sizes, share, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = _stratify(labels, rng.random(len(labels)))
    assert sorted(order) == list(range(len(labels)))
    count = round(share * len(labels))
    taken = np.bincount(labels[order[:count]], minlength=len(sizes))
    assert np.all(np.abs(taken - np.array(sizes) * count / len(labels)) <= 1.5)


def test_the_stratified_order_is_random_within_a_class():
    labels = np.zeros(1000, int)
    first, second = (_stratify(labels, np.random.default_rng(seed).random(1000)) for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15


def test_provenance_names_source_checksum_licence_date_counts_and_split(raw, tmp_path):
    path = write_container(raw / "birds", "tar.gz", image_files())
    provenance = load(prepare("birds", tmp_path / "out", seed=3)).provenance

    assert provenance["source"] == "birds.tar.gz"
    assert provenance["checksum"] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert provenance["licence"] == "supplied by the user"
    assert provenance["date"] == "2020-05-17"
    assert provenance["lossy"] is False
    assert provenance["source_counts"] == {"test": 6, "train": 18}
    assert provenance["split"] == {"seed": 3, "validation": 0.1, "test": 0.1, "limit": None}


# Official formats, through the same door


def test_cifar10_in_its_official_archive(raw, tmp_path, monkeypatch):
    files, pixels, labels = cifar_batches()
    path = write_container(raw / "cifar-10-python", "tar.gz", files)
    redefine(monkeypatch, "cifar10", "CIFAR-10", "cifar-batches", {path.name: path}, {"train": 100, "test": 20})
    data = load(prepare("cifar10", tmp_path / "out"))
    assert (data.title, data.counts) == ("CIFAR-10", {"train": 90, "validation": 10, "test": 20})
    for part, rows in split_rows(tmp_path / "out").items():
        index = [int(row["index"]) for row in rows]
        np.testing.assert_array_equal(data.images(part), pixels[index])
        np.testing.assert_array_equal(data.labels(part), labels[index])


def test_cifar10_in_parquet_equals_the_official_archive(raw, tmp_path, monkeypatch):
    files, pixels, labels = cifar_batches()
    path = write_container(raw / "cifar-10-python", "tar.gz", files)
    counts = {"train": 100, "test": 20}
    redefine(monkeypatch, "cifar10", "CIFAR-10", "cifar-batches", {path.name: path}, counts)
    official = contents(prepare("cifar10", tmp_path / "official"))
    encoded = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    names = [f"class {i}" for i in range(10)]
    found = {
        f"cifar10/{split}-0.parquet": write_parquet(
            raw / "cifar10" / f"{split}-0.parquet", "img", encoded[rows], labels[rows].tolist(), names
        )
        for split, rows in (("train", slice(0, 100)), ("test", slice(100, 120)))
    }
    redefine(monkeypatch, "cifar10", "CIFAR-10", "parquet", found, counts)
    parquet = contents(prepare("cifar10", tmp_path / "parquet"))
    for name in official:
        if name.endswith(".npy"):
            assert official[name] == parquet[name]


def test_cars_are_cut_to_the_box_and_16_pixels_and_grey_ones_become_rgb(raw, tmp_path, monkeypatch):
    path = write_container(raw / "stanford_cars", "folder", cars_files())
    counts = {"train": 9, "test": 6}
    redefine(monkeypatch, "cars", "Stanford Cars", "cars-devkit", {path.name: path}, counts, num_classes=3)
    data = load(prepare("cars", tmp_path / "out", image_size=48))
    assert data.shape == (3, 48, 48)
    assert "16 pixels" in data.provenance["cropped"]
    for part in PARTS:
        images = data.images(part).float()
        # box (30, 24)-(50, 40) and 16 pixels around, 52 x 48, squashed to 48 x 48: the car begins 16 pixels in
        assert (images[:, :, 20:28, 20:28] > 250).all()
        assert (images[:, :, :12] < 5).all()
        assert (images[:, :, -12:] < 5).all()
        assert (images[:, :, :, :11] < 5).all()
        assert (images[:, :, :, -11:] < 5).all()
        bright = (images[0, 0] > 128).sum().item()
        assert bright == pytest.approx((20 * 48 / 52) * 16, rel=0.12)


def test_mnist_is_one_channel_of_28_pixels(raw, tmp_path, monkeypatch):
    files, pixels, _labels = mnist_files()
    write_container(raw, "folder", files)
    found = {name: raw / name for name in files}
    redefine(monkeypatch, "mnist", "MNIST", "mnist-idx", found, {"train": 30, "test": 10})
    data = load(prepare("mnist", tmp_path / "out"))
    assert data.shape == (1, 28, 28)
    index = [int(row["index"]) for row in split_rows(tmp_path / "out")["test"]]
    np.testing.assert_array_equal(data.images("test")[:, 0], pixels[index])


# One picture


def test_a_picture_is_resized_to_a_square_without_aliasing():
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, ::2] = 255
    pixels = to_pixels(stripes, "stripes", 16, 1)
    assert pixels.shape == (1, 16, 16)
    assert np.abs(pixels.astype(int) - 127.5).max() < 10  # every third or fourth column alone would be 0 or 255


def test_a_large_jpeg_shrunk_by_its_decoder_looks_like_one_decoded_in_full():
    smooth = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    large = Image.fromarray(smooth).resize((1800, 1200), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=95)
    box = np.array([300, 200, 1500, 1000])
    for each in (None, box):
        shrunk = to_pixels(buffer.getvalue(), "large", 48, 3, each).astype(int)
        full = to_pixels(np.asarray(large), "large", 48, 3, each).astype(int)
        assert np.abs(shrunk - full).mean() < 2


@pytest.mark.parametrize("size", [None, 16])
def test_a_photograph_taken_with_a_turned_camera_stands_upright(size):
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[:32] = 255  # the sky
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # to be turned clockwise by a quarter
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(buffer, "JPEG", quality=95, exif=turned)
    pixels, expected = (to_pixels(each, "turned", size, 3).astype(int) for each in (buffer.getvalue(), upright))
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 4
    box = np.array([0, 0, 31, 63])  # of the pixels as they are stored, where the sky is at the left
    assert to_pixels(buffer.getvalue(), "turned", 8, 3, box)[:, :, 0].min() > 200


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_channels_are_as_asked_for(channels, mode):
    pixels = to_pixels(picture(0, mode=mode), "1.png", None, channels)
    original = Image.open(io.BytesIO(picture(0, mode=mode)))
    assert pixels.shape == (channels, 6, 6)
    np.testing.assert_array_equal(
        pixels[0], np.asarray(original.convert("L" if channels == 1 else "RGB")).reshape(6, 6, -1)[..., 0]
    )


def test_a_cut_off_picture_is_named_and_nothing_is_left_behind(raw, tmp_path):
    files = image_files()
    files["train/class1/3.png"] = files["train/class1/3.png"][:-60]
    write_container(raw / "birds", "zip", files)
    with pytest.raises(ValueError, match=r"train/class1/3\.png is damaged"):
        prepare("birds", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part").exists()


def test_sixteen_bits_a_channel_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match=r"1\.png has 16 bits per pixel; .* sixteen_bit: true"):
        to_pixels(buffer.getvalue(), "1.png", None, 3)


def test_only_a_few_pictures_are_in_memory_at_once():
    for data, most in ((picture(0), (2 * WORKERS + 2) * CHUNK), (picture(0, (300, 400)), 2 * WORKERS + 2)):
        source = iter([(i, data) for i in range(5000)])
        listing = readers.Listing(["train"] * 5000, [0] * 5000, [""] * 5000, ["a"], lambda _, source=source: source)
        decoded = _decode(listing, list(range(5000)), partial(to_pixels, size=4, channels=3))
        next(decoded)
        decoded.close()
        assert len(list(source)) >= 5000 - most


# Refusals


def test_images_of_several_sizes_ask_for_one(raw, tmp_path):
    files = image_files() | {"train/class0/odd.png": picture(9, (7, 6))}
    write_container(raw / "birds", "zip", files)
    with pytest.raises(ValueError, match=r"pixels, others are \d x \d; give image_size"):
        prepare("birds", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert load(prepare("birds", tmp_path / "out", image_size=5)).shape == (3, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"image_size": 0}, "image_size is a side in pixels, at least 1, got 0"),
        ({"validation": 0}, "shares between 0 and 1, got 0 and 0.1"),
        ({"test": 1.5}, "shares between 0 and 1, got 0.1 and 1.5"),
        ({"limit": 0}, "limit is a number of images, at least 1, got 0"),
        ({"channels": 2}, r"channels is 1 \(grey\) or 3 \(RGB\), got 2"),
        ({"validation": 0.999}, "leaves none to train on"),
    ],
)
def test_arguments_out_of_range_are_named(raw, tmp_path, arguments, reason):
    write_container(raw / "birds", "zip", image_files(classes=2, train=3, test=1))
    with pytest.raises(ValueError, match=reason):
        prepare("birds", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_missing_data_is_said_and_nothing_is_written(raw, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data for 'bird': built in are digits, cifar10, cars, mnist"):
        prepare("bird", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("counts", "classes", "reason"),
    [
        ({"train": 101, "test": 20}, 10, r"CIFAR-10 has \{'train': 101, 'test': 20\} images, but cifar.tar.gz holds"),
        ({"train": 100, "test": 20}, 11, r"CIFAR-10 has 11 classes, but cifar.tar.gz holds 10"),
    ],
)
def test_wrong_counts_or_classes_are_refused_before_anything_is_written(
    raw, tmp_path, monkeypatch, counts, classes, reason
):
    path = write_container(raw / "cifar", "tar.gz", cifar_batches()[0])
    redefine(monkeypatch, "cifar10", "CIFAR-10", "cifar-batches", {path.name: path}, counts, num_classes=classes)
    with pytest.raises(ValueError, match=reason):
        prepare("cifar10", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_not_opened_unless_its_checksum_holds(raw, tmp_path, monkeypatch):
    path = write_container(raw / "cifar", "tar.gz", cifar_batches()[0])
    redefine(monkeypatch, "cifar10", "CIFAR-10", "cifar-batches", {path.name: path}, {"train": 100, "test": 20})
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(archives, "unpickle", lambda *_: pytest.fail("opened"))
    with pytest.raises(ValueError, match="is not the published file"):
        prepare("cifar10", tmp_path / "out")


def test_a_folder_that_is_no_prepared_data_set_is_never_replaced(raw, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").touch()
    with pytest.raises(ValueError, match="thesis is not a prepared data set and will not be replaced"):
        prepare("digits", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1").exists()


# Whole or not at all


def test_a_new_folder_replaces_the_old_one_and_leaves_nothing_beside_it(raw, tmp_path):
    prepare("digits", tmp_path / "out", limit=10)
    prepare("digits", tmp_path / "out", limit=20)
    assert load(tmp_path / "out").counts["train"] == 20
    beside = {path.name for path in tmp_path.iterdir()} - {"out", "data", "dvc.yaml"}
    assert beside <= {".out.lock"}


def test_killed_before_any_sync_rename_or_removal_the_next_run_finishes_and_is_equal(raw, tmp_path):
    write_container(raw / "birds", "tar.gz", image_files(train=20))
    expected = contents(prepare("birds", tmp_path / "expected"))
    old = contents(prepare("birds", tmp_path / "out", seed=7))
    assert not kill_after(None, prepare_in_child, tmp_path, "birds")
    assert contents(tmp_path / "out") == expected
    steps = int((tmp_path / "steps").read_text())
    assert steps == 13  # a removal; 3 images, 3 labels, split, record; a removal, 2 renames, a removal
    for step in range(1, steps + 1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        prepare("birds", tmp_path / "out", seed=7)
        assert kill_after(None, prepare_in_child, tmp_path, "birds", step)
        assert not (tmp_path / "out").exists() or contents(tmp_path / "out") in (old, expected)
        assert contents(prepare("birds", tmp_path / "out")) == expected


def test_killed_at_twenty_random_moments_the_next_run_finishes_and_is_equal(raw, tmp_path):
    write_container(raw / "birds", "tar.gz", image_files(train=600, size=(40, 40)))
    expected = contents(prepare("birds", tmp_path / "expected"))
    moments = random.Random(0)
    killed = 0
    for _ in range(20):
        killed += kill_after(moments.uniform(0, 0.25), prepare_in_child, tmp_path, "birds")
        if (tmp_path / "out").exists():
            assert contents(tmp_path / "out") == expected
            shutil.rmtree(tmp_path / "out")
    assert killed >= 5
    assert contents(prepare("birds", tmp_path / "out")) == expected


# Reading


@pytest.fixture
def prepared(raw, tmp_path):
    return prepare("digits", tmp_path / "out", limit=50)


def test_images_are_mapped_uint8_tensors_that_never_write_back(prepared):
    before = contents(prepared)
    images = load(prepared).images("train")
    assert (images.dtype, images.shape) == (torch.uint8, (50, 1, 8, 8))
    assert load(prepared).labels("train").dtype == torch.int64
    images.zero_()
    assert contents(prepared) == before
    assert load(prepared).images("train").any()


def test_loading_where_nothing_was_prepared_says_how_to_prepare(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prepared data set in .*nothing; make one with `python -m"):
        load(tmp_path / "nothing")


def test_loading_an_experiment_that_was_not_prepared_names_its_stage(raw, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    for folder in (paths.prepared("birds-small"), "../data/prepared/birds-small"):
        with pytest.raises(FileNotFoundError, match=r"make one with `dvc repro prepare@birds-small`$"):
            load(folder)


def test_an_unknown_part_names_the_parts(prepared):
    with pytest.raises(ValueError, match="a part is one of train, validation, test, got 'dev'"):
        load(prepared).images("dev")


def test_another_version_is_refused(prepared):
    record = json.loads((prepared / "dataset.json").read_text())
    (prepared / "dataset.json").write_text(json.dumps(record | {"version": 99}))
    with pytest.raises(ValueError, match="prepared as version 99, this is version 1; prepare it again"):
        load(prepared)


@pytest.mark.parametrize("damage", ["cut", "missing", "other shape", "record"])
def test_a_damaged_folder_is_refused_when_it_is_opened(prepared, damage):
    images = prepared / "test-images.npy"
    if damage == "cut":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "missing":
        images.unlink()
    elif damage == "other shape":
        np.save(images, np.zeros((50, 1, 8, 9), np.uint8))
    else:
        (prepared / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"prepare .*again"):
        load(prepared)


# The command line


def test_the_command_line_prepares_verifies_lists_and_reports_errors_plainly(raw, tmp_path, capsys):
    write_container(raw / "birds", "zip", image_files())
    assert main(["prepare", "birds", str(tmp_path / "out"), "--image-size", "4", "--limit", "5"]) == 0
    assert "birds: 5 train, 2 validation, 5 test images of 3 x 4 x 4, 3 classes" in capsys.readouterr().out
    assert main(["verify", "birds"]) == 0
    assert "birds: sha256:" in capsys.readouterr().out
    assert main(["fetch", "birds"]) == 0
    assert "birds.zip" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "CIFAR-10 (JPEG copy)" in capsys.readouterr().out
    assert main(["verify", "cars"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("no data for 'cars'")
    assert "Traceback" not in err
