"""Reads what a source holds without trusting it.

Nothing is unpacked to disk and nothing in a file is executed. A first pass over an archive lists it and refuses it
whole if one member is unsafe (a path out of the folder, a link, a device) or the archive is a bomb; a second pass, in
the archive's own order because a compressed tar is a stream, hands out the bytes of the wanted members one at a time.
A reader per format makes of that a `Listing`: every label at once, the pictures on demand.
"""

import gzip
import io
import json
import lzma
import os
import pickle
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["READERS", "Entry", "Listing", "open_image", "read", "scan", "unpickle"]

MAX_FILES = 2_000_000  # ImageNet has 1.3 million
MAX_BYTES = 512 << 30  # unpacked; ImageNet has 150 GB
MAX_FILE_BYTES = 256 << 20  # of one member, which is read into memory
MAX_HEADER_BYTES = 1 << 20  # of a tar's extended header, which tarfile reads into memory
MAX_RATIO = 200  # unpacked to packed bytes; photographs hardly shrink, zeros shrink 1,000 to 7,000 times
RATIO_FROM = 256 << 20  # unpacked bytes from which the ratio counts: a small archive may well be all black
MAX_PIXELS = 89_478_485  # of one image: 268 MB as RGB; Pillow warns from here on and refuses only twice as many
MAX_SIDE = 65_535  # pixels: JPEG's own limit; a header of a few bytes may claim millions of rows, which decode for minutes
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow hands none of these to another program
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}

_DAMAGE = (  # what the containers' libraries raise at wrong bytes; zipfile's for an unknown compression stands first
    NotImplementedError,
    EOFError,
    OverflowError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)

# Containers: folders, zips, tars


class Entry(NamedTuple):
    """A file in a container: `name` with "/", `position` where the stream reaches it, `date` as YYYY-MM-DD."""

    path: Path
    name: str
    size: int
    position: int
    date: str


def scan(path: Path) -> list[Entry]:
    """Every file of a folder or of a zip, tar, tar.gz, tgz or tar.xz archive, once all of it is known to be safe.

    Any other file is an entry of its own.

    Raises:
        ValueError: the archive is damaged, or holds an absolute path, "..", a link, a device, a name twice, or more
            than the limits at the top of this module.
    """
    packed = path.stat().st_size
    entries: dict[str, Entry] = {}
    total = 0
    with _named_damage(path):
        for name, kind, size, position, date in _LISTERS[_container(path)](path):
            parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
            if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts:
                raise _refused(path, f"{name!r} leads out of its folder")
            if kind == "folder":
                continue
            if kind != "file":
                raise _refused(path, f"{name!r} is {kind}, and only plain files and folders are read")
            name = "/".join(parts)
            if name in entries:
                raise _refused(path, f"{name!r} stands in it twice")
            total += size
            entries[name] = Entry(path, name, size, position, date)
            if size > MAX_FILE_BYTES and _container(path) != "file":
                raise _refused(path, f"{name!r} has {size:,} bytes, at most {MAX_FILE_BYTES:,} are allowed")
            if len(entries) > MAX_FILES:
                raise _refused(path, f"it holds more than {MAX_FILES:,} files")
            if total > MAX_BYTES:
                raise _refused(path, f"it unpacks to more than {MAX_BYTES:,} bytes")
            if not path.is_dir() and total > max(RATIO_FROM, MAX_RATIO * packed):
                raise _refused(path, f"its {packed:,} bytes unpack to more than {MAX_RATIO} times as many")
    return list(entries.values())


def read(entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """The bytes of each entry, in the order in which its container's stream reaches them.

    Raises:
        ValueError: the container is damaged.
    """
    ordered = sorted(entries, key=lambda entry: (str(entry.path), entry.position))
    for path, group in groupby(ordered, key=lambda entry: entry.path):
        with _named_damage(path):
            yield from _OPENERS[_container(path)](path, group)


def _container(path: Path) -> str:
    if path.is_dir():
        return "folder"
    if path.name.endswith(".zip"):
        return "zip"
    return "tar" if path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz")) else "file"


def _list_folder(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    root = path.resolve()
    position = 0
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in folders:
            if Path(folder, name).is_symlink():
                yield Path(folder, name).relative_to(path).as_posix(), "a link to a folder", 0, 0, ""
        for name in sorted(names):
            file = Path(folder, name)
            kind = "file" if file.is_file() and file.resolve().is_relative_to(root) else "a link out of it"
            # no date: copying a folder changes it
            yield file.relative_to(path).as_posix(), kind, file.lstat().st_size, position, ""
            position += 1


def _list_zip(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    with zipfile.ZipFile(path) as archive:
        for position, info in enumerate(archive.infolist()):
            kind = "folder" if info.is_dir() else "file"
            if stat.S_ISLNK(info.external_attr >> 16):
                kind = "a link"
            elif info.flag_bits & 1:
                kind = "encrypted"
            else:
                if zipfile.stringCentralDir in info.extra + info.comment:  # a wrong length swallowed the next files
                    raise zipfile.BadZipFile(f"the entry of {info.filename!r} holds another")
                try:
                    archive.open(info).close()  # compares its name with the one before its bytes
                except OSError as error:  # its bytes are said to begin before the file does
                    raise zipfile.BadZipFile(f"{info.filename!r} is not where the list of files says") from error
            yield info.filename, kind, info.file_size, position, "{:04}-{:02}-{:02}".format(*info.date_time[:3])


class _BoundedTarInfo(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf, encoding, errors):
        info = super().frombuf(buf, encoding, errors)
        if info.type not in tarfile.REGULAR_TYPES and info.size > MAX_HEADER_BYTES:
            raise tarfile.TarError(f"a header has {info.size:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed")
        return info


def _list_tar(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    with tarfile.open(path, tarinfo=_BoundedTarInfo) as archive:
        for info in archive:
            kind = "file" if info.isreg() and not info.issparse() else "folder" if info.isdir() else "a special file"
            if info.issym() or info.islnk():
                kind = f"a link to {info.linkname!r}"
            date = datetime.fromtimestamp(info.mtime, UTC).strftime("%Y-%m-%d")
            yield info.name, kind, info.size, info.offset_data, date
        # a compressed stream's own checksum stands at its end, behind the tar's last block
        rest = 0
        while chunk := archive.fileobj.read(1 << 20):
            rest += len(chunk)
            if rest > MAX_FILE_BYTES:
                raise tarfile.TarError(f"more than {MAX_FILE_BYTES:,} bytes follow its last file")


def _list_file(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    yield path.name, "file", path.stat().st_size, 0, ""


def _open_folder(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    for entry in entries:
        yield entry, (path / entry.name).read_bytes()


def _open_zip(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for entry in entries:
            yield entry, archive.read(infos[entry.position])


def _open_tar(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    with tarfile.open(path, tarinfo=_BoundedTarInfo) as archive:
        for entry in entries:  # by position: parsing 60,000 headers once more takes as long as unpacking
            archive.fileobj.seek(entry.position)
            yield entry, archive.fileobj.read(entry.size)


def _open_file(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    for entry in entries:
        yield entry, path.read_bytes()


_LISTERS = {"folder": _list_folder, "zip": _list_zip, "tar": _list_tar, "file": _list_file}
_OPENERS = {"folder": _open_folder, "zip": _open_zip, "tar": _open_tar, "file": _open_file}


def _refused(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is refused whole: {reason}")


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"{path} is damaged or not what its name says: {reason}; supply it again") from error


# Members: what one may decode to


def open_image(data: bytes, name: str) -> Image.Image:
    """The image in `data`, its pixels not yet decoded.

    Raises:
        ValueError: no image of a known format, or one of more than MAX_PIXELS pixels (a decompression bomb).
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is refused: {error}") from error
    except Exception as error:  # Pillow raises whatever a damaged header makes it stumble over
        raise ValueError(f"{name} is no image in one of {', '.join(IMAGE_FORMATS)}: {error}") from error
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise ValueError(
            f"{name} is refused: {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are allowed, "
            f"{MAX_SIDE:,} a side"
        )
    return image


_PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how a newer pickle spells the bytes of an older one
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only arrays, dicts, lists, text and numbers are read"
            )
        return super().find_class(module, name)


def unpickle(data: bytes, name: str):
    """The arrays, dicts, lists, strings and numbers in a pickle, Python 2's too; all else is refused before it runs.

    Raises:
        ValueError: the pickle asks for another class or function, or is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise ValueError(f"{name} is refused: {error}") from error


# Formats: which members are images, and of which class and split

Picture = bytes | np.ndarray  # an encoded image, or uint8 pixels (H, W) or (H, W, C)


@dataclass(frozen=True)
class Listing:
    """The labelled images of a source, in the source's own order.

    Args:
        splits: "train", "validation" or "test", one an image.
        labels: class index, one an image.
        names: file name inside the source, one an image; empty where images are rows of an array.
        classes: class names in label order.
        stream: the pictures of the wanted indices with these, in whatever order the source can be read in one pass.
        boxes: (N, 4) left, top, right, bottom in pixels, where the source knows the object.
        date: newest date inside the archive, YYYY-MM-DD; empty where there is none.
    """

    splits: list[str]
    labels: list[int]
    names: list[str]
    classes: list[str]
    stream: Callable[[Collection[int]], Iterator[tuple[int, Picture]]]
    boxes: np.ndarray | None = None
    date: str = ""


def _basename(entry: Entry) -> str:
    return entry.name.rpartition("/")[2]


def _stream_entries(entries: list[Entry]) -> Callable[[Collection[int]], Iterator[tuple[int, Picture]]]:
    def stream(wanted: Collection[int]) -> Iterator[tuple[int, Picture]]:
        index = {entries[i]: i for i in wanted}
        for entry, data in read(index):
            yield index[entry], data

    return stream


def _stream_array(pixels: np.ndarray) -> Callable[[Collection[int]], Iterator[tuple[int, Picture]]]:
    return lambda wanted: ((i, pixels[i]) for i in sorted(wanted))


def _is_litter(parts: list[str]) -> bool:
    """Hidden files, and what macOS adds to a zip."""
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)


def read_image_folder(paths: list[Path]) -> Listing:
    """split/class/file, with or without one folder around it; the classes are the folders' names in order."""
    (path,) = paths
    found = []  # (split, class, entry)
    leads = set()
    for entry in scan(path):
        parts = entry.name.split("/")
        if not entry.name.lower().endswith(IMAGE_SUFFIXES) or _is_litter(parts):
            continue
        *lead, split, label, _ = parts if len(parts) >= 3 else ("", "", "")
        leads.add(tuple(lead))
        if split not in SPLITS or len(leads) > 1 or len(lead) > 1:
            raise ValueError(
                f"{path} is not laid out as split/class/file: {entry.name!r}; expected e.g. train/cat/1.jpg, with "
                f"splits {', '.join(SPLITS)} and at most one folder around them all"
            )
        found.append((SPLITS[split], label, entry))
    if not found:
        raise ValueError(
            f"{path} holds no images as split/class/file, e.g. train/cat/1.jpg, in {', '.join(IMAGE_SUFFIXES)}"
        )
    found.sort(key=lambda each: each[2].name)
    classes = sorted({label for _, label, _ in found})
    trained = {label for split, label, _ in found if split == "train"}
    if untrained := [label for label in classes if label not in trained]:
        raise ValueError(
            f"{path} has no training images of {', '.join(untrained)}; each class needs a folder under train/"
        )
    entries = [entry for _, _, entry in found]
    return Listing(
        splits=[split for split, _, _ in found],
        labels=[classes.index(label) for _, label, _ in found],
        names=[entry.name for entry in entries],
        classes=classes,
        stream=_stream_entries(entries),
        date=max(entry.date for entry in entries),
    )


def read_cifar_batches(paths: list[Path]) -> Listing:
    """CIFAR-10's official pickles, in their archive or unpacked: data_batch_1 ... 5, test_batch, batches.meta."""
    wanted = re.compile(r"data_batch_\d|test_batch|batches\.meta")
    entries = [entry for path in paths for entry in scan(path) if wanted.fullmatch(_basename(entry))]
    pickles = {_basename(entry): unpickle(data, entry.name) for entry, data in read(entries)}
    try:
        classes = list(pickles.pop("batches.meta")["label_names"])
        splits, labels, names, pixels = [], [], [], []
        for name, batch in sorted(pickles.items()):
            splits += ["test" if name == "test_batch" else "train"] * len(batch["labels"])
            labels += batch["labels"]
            names += batch["filenames"]
            pixels.append(
                batch["data"].reshape(len(batch["labels"]), 3, 32, 32).transpose(0, 2, 3, 1)
            )  # (N, 32, 32, 3)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{paths[0]} does not hold CIFAR-10's batches: {error!r}") from error
    return Listing(splits, labels, names, classes, _stream_array(np.concatenate(pixels)))


def read_parquet(paths: list[Path]) -> Listing:
    """Hugging Face's encoding: a column of encoded images, a column `label`; a file's name begins with its split."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    splits, labels, names, classes, columns = [], [], [], [], {}
    for path in paths:
        try:
            file = ParquetFile(path)
            columns[path] = next(name for name in file.schema_arrow.names if name in ("img", "image"))
            if file.schema_arrow.field(columns[path]).type.get_field_index("bytes") < 0:
                raise KeyError(f"{columns[path]}.bytes")
            found = file.read(columns=["label"])["label"].to_pylist()
            names += [
                row[columns[path]]["path"] or "" for row in file.read(columns=[f"{columns[path]}.path"]).to_pylist()
            ]
            split = SPLITS[path.name.partition("-")[0]]
            info = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", "{}"))
            classes = info.get("info", {}).get("features", {}).get("label", {}).get("names", classes)
        except (ArrowException, AttributeError, OSError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged, has no columns img (or image) and label as Hugging Face writes them, or its name "
                f"does not begin with one of {', '.join(SPLITS)} and '-': {error!r}"
            ) from error
        if not found or not all(type(label) is int and 0 <= label <= MAX_FILES for label in found):
            raise ValueError(f"{path} has no rows, or its labels are not whole numbers from 0 on")
        if not isinstance(classes, list):
            raise ValueError(f"{path} names its classes by {type(classes).__name__} and not in a list")
        labels += found
        splits += [split] * len(found)

    def stream(wanted: Collection[int]) -> Iterator[tuple[int, Picture]]:
        wanted, index = set(wanted), 0
        for path, column in columns.items():
            for batch in ParquetFile(path).iter_batches(batch_size=64, columns=[f"{column}.bytes"]):
                for row in batch.column(column):
                    if index in wanted:
                        data = row.as_py()
                        if not isinstance(data, dict) or not isinstance(data.get("bytes"), bytes):
                            raise ValueError(f"{path} has no encoded image in row {index}")
                        yield index, data["bytes"]
                    index += 1

    return Listing(splits, labels, names, classes or [str(label) for label in range(max(labels) + 1)], stream)


def read_cars_devkit(paths: list[Path]) -> Listing:
    """Stanford Cars with its devkit: cars_train/, cars_test/ and .mat files, in a folder, an archive or the original 4.

    Labels in the .mat files begin at 1, and so do the boxes' pixels.
    """
    from scipy.io import loadmat

    tables = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat", "classes": "cars_meta.mat"}
    entries = [entry for path in paths for entry in scan(path)]
    images = {tuple(entry.name.split("/")[-2:]): entry for entry in entries}
    found = [entry for entry in entries if _basename(entry) in tables.values()]
    try:
        mats = {_basename(entry): loadmat(io.BytesIO(data), squeeze_me=True) for entry, data in read(found)}
        classes = [str(name) for name in np.atleast_1d(mats[tables["classes"]]["class_names"])]
        rows = [
            (
                split,
                images[f"cars_{split}", str(row["fname"])],
                int(row["class"]) - 1,
                [int(row[side]) for side in _BOX_SIDES],
            )
            for split in ("train", "test")
            if split == "train" or tables[split] in mats
            for row in np.atleast_1d(mats[tables[split]]["annotations"])
        ]
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"{paths[0]} does not hold Stanford Cars with its devkit: {error!r}") from error
    splits, images, labels, boxes = zip(*rows, strict=True)
    return Listing(
        splits=list(splits),
        labels=list(labels),
        names=[entry.name for entry in images],
        classes=classes,
        stream=_stream_entries(images),
        boxes=np.array(boxes) - [1, 1, 0, 0],
    )


_BOX_SIDES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def read_mnist_idx(paths: list[Path]) -> Listing:
    """MNIST's four files: gzipped, big-endian; a magic number, the array's shape, its bytes."""
    arrays = {}
    for path in paths:
        with _named_damage(path), gzip.open(path) as file:
            data = file.read(MAX_FILE_BYTES)
        try:
            shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
            arrays[path.name.split("-")[0], len(shape)] = np.frombuffer(
                data, np.uint8, offset=4 + 4 * len(shape)
            ).reshape(shape)
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path} is not in MNIST's format: {error}") from error
    parts = ("train", "t10k")
    labels = np.concatenate([arrays[part, 1] for part in parts])
    return Listing(
        splits=["train"] * len(arrays["train", 1]) + ["test"] * len(arrays["t10k", 1]),
        labels=labels.tolist(),
        names=[""] * len(labels),
        classes=[str(digit) for digit in range(10)],
        stream=_stream_array(np.concatenate([arrays[part, 3] for part in parts])),
    )


def read_digits(paths: list[Path]) -> Listing:
    """scikit-learn's 1,797 digits, (8, 8) pixels of 0 ... 16 scaled to 0 ... 255, label last in each row."""
    (path,) = paths
    rows = np.loadtxt(path, delimiter=",")  # (N, 65)
    pixels = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return Listing(
        splits=["train"] * len(rows),
        labels=rows[:, -1].astype(int).tolist(),
        names=[""] * len(rows),
        classes=[str(digit) for digit in range(10)],
        stream=_stream_array(pixels),
    )


READERS: dict[str, Callable[[list[Path]], Listing]] = {
    "image-folder": read_image_folder,
    "cifar-batches": read_cifar_batches,
    "parquet": read_parquet,
    "cars-devkit": read_cars_devkit,
    "mnist-idx": read_mnist_idx,
    "digits-csv": read_digits,
}
