"""Any good layout reads alike from every container; any unsafe, damaged or wrong one is refused whole."""

import io
import os
import pickle
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from data_fixtures import (
    CONTAINERS,
    cars_files,
    cifar_batches,
    image_files,
    member,
    mnist_files,
    picture,
    write_container,
    write_parquet,
    write_tar,
    zeros_xz,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from localnorm.data import archives, images, readers

NAMES = st.text(st.characters(categories=("Ll", "Lu", "Nd"), include_characters=" -_é"), min_size=1, max_size=8).filter(
    lambda name: name.strip() == name and name != "__MACOSX"
)


@st.composite
def layouts(draw) -> tuple[str, dict[str, tuple[str, str]]]:
    """(leading folder or "", {name inside it: (split, class)}), names in any order."""
    # one spelling each: the reader takes the spellings that Unicode calls equal for one class
    spelt = NAMES.map(lambda name: unicodedata.normalize("NFC", name))
    classes = draw(st.lists(spelt, min_size=1, max_size=4, unique_by=str.casefold))
    test = draw(st.sampled_from(["test", None]))
    validation = draw(st.sampled_from(["val", "valid", "validation", None]))
    files = {}
    for folder, split in (("train", "train"), (test, "test"), (validation, "validation")):
        for label in classes if folder else ():
            names = draw(st.lists(NAMES, min_size=split == "train", max_size=3, unique_by=str.casefold))
            suffix = draw(st.sampled_from([".png", ".PNG"]))
            files |= {f"{folder}/{label}/{name}{suffix}": (split, label) for name in names}
    return draw(st.one_of(st.just(""), NAMES)), {name: files[name] for name in draw(st.permutations(sorted(files)))}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(layout=layouts(), kind=st.sampled_from(CONTAINERS), junk=st.booleans())
def test_every_layout_of_split_class_file_reads_the_same_from_every_container(tmp_path_factory, layout, kind, junk):
    lead, files = layout
    tmp_path = tmp_path_factory.mktemp("layout")
    prefix = f"{lead}/" if lead else ""
    stored = {f"{prefix}{name}": name.encode() for name in files}
    if junk:
        stored |= {f"{prefix}README.md": b"", f"{prefix}train/.DS_Store": b"", "__MACOSX/train/x/._1.png": b""}
    listing = readers.read_image_folder([write_container(tmp_path / "mine", kind, stored)])
    order = sorted(files)
    assert listing.names == [f"{prefix}{name}" for name in order]
    assert listing.classes == sorted({label for _, label in files.values()})
    assert [(split, listing.classes[label]) for split, label in zip(listing.splits, listing.labels, strict=True)] == [
        files[name] for name in order
    ]
    wanted = range(0, len(order), 2)
    assert dict(listing.stream(wanted)) == {i: order[i].encode() for i in wanted}


@pytest.mark.parametrize("kind", [kind for kind in CONTAINERS if kind != "folder"])
def test_an_archives_date_is_its_newest_images(tmp_path, kind):
    assert readers.read_image_folder([write_container(tmp_path / "mine", kind, image_files())]).date == "2020-05-17"


EVIL = ["../train/cat/1.png", "/train/cat/1.png", "train/../../cat/1.png", "C:/train/cat/1.png", "train\\..\\..\\1.png"]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_path_out_of_the_folder_condemns_the_whole_archive(tmp_path, kind, name):
    path = write_container(tmp_path / "evil", kind, {**image_files(), name: picture(0)})
    with pytest.raises(ValueError, match=r"evil\..* is refused whole: .* leads out of its folder"):
        archives.scan(path)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "train/cat/2.png"])
@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_condemns_it(tmp_path, type, target):
    path = write_tar(tmp_path / "evil.tar", [(member("train/cat/1.png", type=type, linkname=target), b"")])
    with pytest.raises(ValueError, match=rf"refused whole: 'train/cat/1.png' is a link to '{target}'"):
        archives.scan(path)


@pytest.mark.parametrize("type", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_or_pipe_condemns_a_tar(tmp_path, type):
    path = write_tar(tmp_path / "evil.tar", [(member("train/cat/1.png", type=type), b"")])
    with pytest.raises(ValueError, match="is a special file, and only plain files"):
        archives.scan(path)


def test_a_link_in_a_zip_condemns_it(tmp_path):
    info = zipfile.ZipInfo("train/cat/1.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link, and only plain files"):
        archives.scan(tmp_path / "evil.zip")


@pytest.mark.parametrize("what", ["file", "folder", "nothing"])
def test_a_link_out_of_a_folder_condemns_it(tmp_path, what):
    folder = write_container(tmp_path / "mine", "folder", image_files())
    outside = tmp_path / "outside"
    if what == "file":
        outside.write_bytes(picture(0))
    elif what == "folder":
        outside.mkdir()
    (folder / "train" / "linked").symlink_to(outside)
    with pytest.raises(ValueError, match="'train/linked' is a link"):
        archives.scan(folder)


def test_a_name_that_stands_twice_condemns_the_archive(tmp_path):
    twice = [(member("train/cat/1.png", 1), b"a"), (member("./train//cat/1.png", 1), b"b")]
    with pytest.raises(ValueError, match=r"'train/cat/1\.png' stands in it twice"):
        archives.scan(write_tar(tmp_path / "evil.tar", twice))


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_container(tmp_path / "locked", "zip", {"train/cat/1.png": picture(0)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is encrypted"):
        archives.scan(path)


# Bombs


def test_a_tar_xz_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    (tmp_path / "bomb.tar.xz").write_bytes(zeros_xz(8 << 20))
    monkeypatch.setattr(archives, "RATIO_FROM", 1 << 20)
    with pytest.raises(ValueError, match=r"refused whole: its [\d,]+ bytes unpack to more than 200 times as many"):
        archives.scan(tmp_path / "bomb.tar.xz")


def test_a_zip_of_zeros_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(8):
            archive.writestr(f"train/cat/{i}.png", bytes(1 << 20))
    monkeypatch.setattr(archives, "RATIO_FROM", 1 << 20)
    with pytest.raises(ValueError, match="unpack to more than 200 times"):
        archives.scan(tmp_path / "bomb.zip")


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("MAX_FILES", 23, "more than 23 files"),
        ("MAX_BYTES", 2000, "more than 2,000 bytes"),
        ("MAX_FILE_BYTES", 100, r"has \d+ bytes, at most 100 are allowed"),
    ],
)
@pytest.mark.parametrize("kind", CONTAINERS)
def test_too_many_files_or_bytes_are_refused(tmp_path, monkeypatch, kind, limit, value, reason):
    path = write_container(tmp_path / "large", kind, image_files())  # 24 files
    assert len(archives.scan(path)) == 24
    monkeypatch.setattr(archives, limit, value)
    if (kind, limit) == ("folder", "MAX_FILE_BYTES"):
        assert len(archives.scan(path)) == 24, "a film may lie beside the photographs"
        return
    with pytest.raises(ValueError, match=reason):
        archives.scan(path)


def test_a_header_that_would_fill_the_memory_is_refused_unread(tmp_path):
    header = member("PaxHeaders/x", 1 << 40, type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "bomb.tar").write_bytes(header + bytes(10240))
    with pytest.raises(ValueError, match=r"a header has 1,099,511,627,776 bytes"):
        archives.scan(tmp_path / "bomb.tar")


def test_endless_zeros_behind_the_last_file_are_refused(tmp_path, monkeypatch):
    path = write_container(tmp_path / "mine", "tar", image_files())
    path.write_bytes(path.read_bytes() + bytes(3 << 20))
    assert len(archives.scan(path)) == 24
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="bytes follow its last file"):
        archives.scan(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_is_refused_undecoded():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (11_000, 60_000):  # beyond this module's limit, and beyond Pillow's
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with pytest.raises(ValueError, match=r"bomb\.png is refused: .*(pixels|size)"):
            images.open_image(data, "bomb.png")


def test_a_format_that_runs_another_program_is_no_image():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(ValueError, match=r"1\.png is no image in one of BMP, GIF, JPEG"):
        images.open_image(buffer.getvalue(), "1.png")


# Damage and wrong content


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["zip", "tar.gz", "tar.xz"]), share=st.floats(0, 0.999))
def test_an_archive_cut_off_anywhere_is_refused(tmp_path_factory, kind, share):
    path = write_container(tmp_path_factory.mktemp("cut") / "mine", kind, image_files(classes=2, train=3))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"mine\.{kind} is damaged or not what its name says"):
        archives.scan(path)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["zip", "tar.gz", "tar.xz"]), share=st.floats(0.2, 0.8), bit=st.integers(0, 7))
@example(kind="zip", share=0.798828125, bit=0)  # the ending of a name in the list of files
def test_a_flipped_bit_never_changes_an_image_or_loses_one(tmp_path_factory, kind, share, bit):
    files = image_files(classes=2, train=3)
    path = write_container(tmp_path_factory.mktemp("flip") / "mine", kind, files)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        listing = readers.read_image_folder([path])
        contents = dict(listing.stream(range(len(listing.names))))
    except ValueError:
        return
    # a bit of a date carries no checksum in a zip; the images do, and names stand there twice
    assert sorted(contents.values()) == sorted(files.values())


@pytest.mark.parametrize("name", ["mine.zip", "mine.tar", "mine.tar.gz", "mine.tar.xz"])
def test_a_file_that_is_no_archive_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=f"{name} is damaged or not what its name says"):
        archives.scan(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["cat/1.png"], "not laid out as split/class/file: 'cat/1.png'; expected e.g. train/cat/1.jpg"),
        (["train/1.png"], "not laid out as split/class/file"),
        (["a/b/train/cat/1.png"], "not laid out as split/class/file"),
        (["train/cat/1.png", "mine/train/cat/2.png"], "at most one folder around them all"),
        (["a/train/cat/1.png", "b/train/cat/2.png"], "at most one folder around them all"),
        (["train/cat/1.png", "dev/cat/2.png"], "splits train, test, val, valid, validation"),
        (["train/cat/1.png", "test/dog/2.png"], "no training images of dog; each class needs a folder under train/"),
        (["train/cat/1.txt"], r"holds no images as split/class/file.*\.jpg"),
    ],
)
def test_a_wrong_layout_is_named_with_the_right_one(tmp_path, names, reason):
    path = write_container(tmp_path / "mine", "zip", {name: picture(0) for name in names})
    with pytest.raises(ValueError, match=reason):
        readers.read_image_folder([path])


# Pickles


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_asks_for_a_function_is_refused_before_it_runs(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"data": _Evil(tmp_path / "ran")}, protocol)
        with pytest.raises(ValueError, match=r"batch is refused: it asks for (posix|nt|os)\.mkdir; only arrays"):
            archives.unpickle(data, "batch")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_python_2_is_read():
    # {'data': 'a\xff', 'labels': [3]} as Python 2 writes it at protocol 2, strings of bytes
    assert archives.unpickle(b"\x80\x02}(U\x04dataU\x02a\xffU\x06labels]K\x03au.", "batch") == {
        "data": "aÿ",
        "labels": [3],
    }


def test_a_damaged_pickle_is_refused():
    with pytest.raises(ValueError, match="batch is refused: "):
        archives.unpickle(pickle.dumps([1, 2, 3])[:-3], "batch")


# Official formats


@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_cifar_batches_read_in_their_order_packed_or_not(tmp_path, kind):
    files, pixels, labels = cifar_batches()
    path = write_container(tmp_path / "cifar", kind, files)
    found = [path] if kind != "folder" else [path / name for name in files]
    listing = readers.read_cifar_batches(found)
    assert listing.splits == ["train"] * 100 + ["test"] * 20
    assert listing.labels == labels.tolist()
    assert listing.classes[3] == "cat"
    assert listing.names[21] == "data_batch_2_1.png"
    for i, array in listing.stream([119, 0, 57]):
        np.testing.assert_array_equal(array.transpose(2, 0, 1), pixels[i])


def test_an_archive_without_cifars_batches_is_named(tmp_path):
    files, _, _ = cifar_batches()
    del files["cifar-10-batches-py/batches.meta"]
    with pytest.raises(ValueError, match=r"does not hold CIFAR-10's batches: KeyError\('batches.meta'\)"):
        readers.read_cifar_batches([write_container(tmp_path / "cifar", "tar.gz", files)])


@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_reads_labels_names_classes_and_images_of_several_files(tmp_path, column):
    images = [picture(i) for i in range(50)]
    labels = [i % 3 for i in range(50)]
    pieces = {
        "train-00000-of-00002": slice(0, 20),
        "train-00001-of-00002": slice(20, 40),
        "test-00000-of-00001": slice(40, 50),
    }
    paths = [
        write_parquet(tmp_path / f"{name}.parquet", column, images[rows], labels[rows], ["ant", "bee", "cow"])
        for name, rows in pieces.items()
    ]
    listing = readers.read_parquet(paths)
    assert listing.splits == ["train"] * 40 + ["test"] * 10
    assert (listing.labels, listing.classes, listing.names[22]) == (labels, ["ant", "bee", "cow"], "2.png")
    wanted = [3, 19, 20, 41, 49]
    assert list(listing.stream(wanted)) == [(i, images[i]) for i in wanted]


def test_a_damaged_parquet_is_named(tmp_path):
    path = write_parquet(tmp_path / "train-0.parquet", "img", [picture(0)], [0], ["ant"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-0\.parquet is damaged, has no columns img"):
        readers.read_parquet([path])


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz", "originals", "nested"])
def test_cars_read_the_same_from_torchvisions_folder_an_archive_and_the_original_files(tmp_path, kind):
    files = cars_files()
    if kind == "originals":
        paths = []
        for stem in ("cars_train", "cars_test", "devkit"):
            part = {name: data for name, data in files.items() if name.startswith(f"{stem}/")}
            paths.append(write_container(tmp_path / stem, "tar.gz", part))
        annotations = "cars_test_annos_withlabels.mat"
        paths.append(tmp_path / annotations)
        paths[-1].write_bytes(files[annotations])
    elif kind == "nested":  # as in the fast.ai archive
        nested = {
            f"stanford-cars/{name.replace('cars_train/', 'cars_train/cars_train/')}": files[name] for name in files
        }
        paths = [write_container(tmp_path / "cars", "tar.gz", nested)]
    else:
        paths = [write_container(tmp_path / "cars", kind, files)]
    listing = readers.read_cars_devkit(paths)
    assert listing.splits == ["train"] * 9 + ["test"] * 6
    assert listing.labels == [i % 3 for i in range(9)] + [i % 3 for i in range(6)]
    assert listing.classes == ["Car 0", "Car 1", "Car 2"]
    assert listing.boxes.tolist() == [[30, 24, 50, 40]] * 15
    assert dict(listing.stream([4, 14])) == {4: files["cars_train/00005.jpg"], 14: files["cars_test/00006.jpg"]}


def test_cars_without_labelled_test_images_have_a_training_split_only(tmp_path):
    files = cars_files()
    del files["cars_test_annos_withlabels.mat"]
    listing = readers.read_cars_devkit([write_container(tmp_path / "cars", "folder", files)])
    assert listing.splits == ["train"] * 9


def test_a_car_that_is_annotated_but_missing_is_named(tmp_path):
    files = cars_files()
    del files["cars_train/00003.jpg"]
    with pytest.raises(ValueError, match=r"does not hold Stanford Cars.*00003\.jpg"):
        readers.read_cars_devkit([write_container(tmp_path / "cars", "folder", files)])


def test_mnists_files_read_as_their_arrays(tmp_path):
    files, pixels, labels = mnist_files()
    write_container(tmp_path, "folder", files)
    listing = readers.read_mnist_idx([tmp_path / name for name in files])
    assert listing.splits == ["train"] * 30 + ["test"] * 10
    assert listing.labels == labels.tolist()
    for i, array in listing.stream(range(40)):
        np.testing.assert_array_equal(array, pixels[i])


def test_a_damaged_mnist_file_is_named(tmp_path):
    files, _, _ = mnist_files()
    write_container(tmp_path, "folder", files)
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        readers.read_mnist_idx([tmp_path / name for name in files])
