"""The table's facts are well formed, local data is found in the stated order, and what is missing or wrong is named."""

import hashlib
import os
import re

import pytest
from data_fixtures import CONTAINERS, enter_project, image_files, write_container

from localnorm.data import readers, sources
from localnorm.data.sources import DATASETS, File, Source

FILES = [
    (name, source, file) for name, dataset in DATASETS.items() for source in dataset.sources for file in source.files
]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return enter_project(tmp_path, monkeypatch)


def test_every_checksum_in_the_table_is_a_whole_one():
    for _, _, file in FILES:
        assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.checksum), file
    checksums = [file.checksum for _, _, file in FILES if file.checksum]
    assert len(set(checksums)) == len(checksums)


def test_every_download_of_cifar10_and_mnist_has_a_checksum_and_every_pickle_too():
    for name, source, file in FILES:
        if (file.urls and name in ("cifar10", "mnist")) or source.format == "cifar-batches":
            assert file.checksum, file


def test_every_source_has_a_reader_counts_and_an_honest_title():
    titles = {"digits": "Digits", "cifar10": "CIFAR-10", "cars": "Stanford Cars", "mnist": "MNIST"}
    for name, source, _ in FILES:
        assert source.format in readers.READERS
        assert source.counts
        copy = {"cifar10": " (JPEG copy)", "cars": " (crops)"}[name] if source.lossy else ""
        assert source.title == titles[name] + copy


def test_originals_stand_before_lossy_copies():
    for dataset in DATASETS.values():
        lossy = [source.lossy for source in dataset.sources]
        assert lossy == sorted(lossy)


def test_digits_are_found_and_verified_without_any_folder(raw):
    plan = sources.plan("digits")
    assert sources.verify(plan.source, plan.files) == plan.source.files[0].checksum


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_folder_or_archive_of_ones_own_is_found_by_its_name(raw, kind):
    path = write_container(raw / "birds", kind, image_files())
    plan = sources.plan("birds")
    assert (plan.source.title, plan.source.format, plan.files) == ("birds", "image-folder", (path,))
    assert plan.is_own


def test_the_folders_of_the_variable_come_before_data_raw_in_their_order(raw, tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in (*folders, raw):
        write_container(folder / "birds", "folder", image_files())
    assert sources.plan("birds").files == (raw / "birds",)
    monkeypatch.setenv("LOCALNORM_DATA", os.pathsep.join(map(str, reversed(folders))))
    assert sources.plan("birds").files == (folders[1] / "birds",)


def test_a_source_counts_only_when_all_its_files_are_there(raw):
    (raw / "cifar10").mkdir()
    (raw / "cifar10" / "train-00000-of-00001.parquet").touch()
    assert sources.plan("cifar10").source is None
    (raw / "cifar10" / "test-00000-of-00001.parquet").touch()
    assert sources.plan("cifar10").source.format == "parquet"


def test_the_original_is_taken_where_a_lossy_copy_lies_beside_it(raw):
    for name in ("CIFAR-10-images.tar.xz", "stanford-cars-crops.tar"):
        (raw / name).touch()
    assert sources.plan("cifar10").source.title == "CIFAR-10 (JPEG copy)"
    assert sources.plan("cars").source.title == "Stanford Cars (crops)"
    (raw / "cifar-10-python.tar.gz").touch()
    (raw / "stanford_cars").mkdir()
    assert sources.plan("cifar10").source.title == "CIFAR-10"
    assert sources.plan("cars").source.title == "Stanford Cars"


def test_an_unknown_data_set_names_the_valid_ones_the_places_and_the_way_in(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALNORM_DATA", str(tmp_path / "nowhere"))
    assert sources.plan("bird").source is None
    message = str(sources.missing(sources.plan("bird").dataset, []))
    for text in (
        "no data for 'bird': built in are digits, cifar10, cars, mnist",
        "bird/train/cat/1.jpg",
        "bird.tar.xz",
        f"{tmp_path / 'nowhere'} (no such folder)",
        str(raw),
        "LOCALNORM_DATA",
    ):
        assert text in message


def test_missing_built_in_data_names_every_file_that_would_do(raw):
    message = str(sources.missing(DATASETS["cars"], ["https://example.org/cars: HTTP 404"]))
    for _, _, file in (each for each in FILES if each[0] == "cars"):
        assert file.name in message
    assert "https://example.org/cars: HTTP 404" in message


@pytest.mark.parametrize("name", ["", "../up", "/etc", "a/b", ".hidden", "a\nb"])
def test_a_name_that_leads_elsewhere_is_refused(raw, name):
    with pytest.raises(ValueError, match="a data set's name is letters"):
        sources.plan(name)


def test_a_damaged_file_is_refused_with_both_checksums(raw):
    (raw / "file").write_bytes(b"wrong")
    right, wrong = (hashlib.sha256(data).hexdigest() for data in (b"right", b"wrong"))
    source = Source("Mine", "parquet", (File("file", f"sha256:{right}", 5),))
    with pytest.raises(ValueError, match=f"file is not the published file: sha256 {right} expected, {wrong} found"):
        sources.verify(source, [raw / "file"])
    (raw / "file").write_bytes(b"too long")
    with pytest.raises(ValueError, match="5 bytes expected, 8 found"):
        sources.verify(source, [raw / "file"])


def verified(name: str) -> str:
    plan = sources.plan(name)
    return sources.verify(plan.source, plan.files)


def test_the_checksum_of_a_folder_is_that_of_its_sha256sum_listing(raw):
    write_container(raw / "birds", "folder", {"b": b"2", "a/c": b"1"})
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"1", b"2"))
    listing = f"{one}  birds/a/c\n{two}  birds/b\n"
    assert verified("birds") == f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    (raw / "birds" / "b").write_bytes(b"3")
    assert verified("birds") != f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
