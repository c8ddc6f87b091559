"""Read the formats of image data sets: which files are images, and their classes and splits.

A reader takes the paths of a source's files and returns a `Listing`: all labels at once, and the pictures on demand.
"""

import gzip
import io
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from localnorm.data.archives import MAX_FILE_BYTES, MAX_FILES, Entry, contents, named_damage, read, scan, unpickle
from localnorm.data.images import IMAGE_SUFFIXES, Picture, why_unread

__all__ = ["READERS", "SPLITS", "Listing", "describe_skipped", "is_hidden", "read_image_folder"]

SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


@dataclass(frozen=True)
class Listing:
    """The labelled images of a source, in the source's own order.

    Args:
        splits: "train", "validation" or "test", one per image.
        labels: class index, one per image.
        names: file name inside the source, one per image; empty where images are rows of an array.
        classes: class names in label order.
        stream: the pictures of the wanted indices with these, in whatever order the source can be read in one pass.
        boxes: (N, 4) left, top, right, bottom in pixels, where the source knows the object.
        date: newest date inside the archive, YYYY-MM-DD; empty where there is none.
        skipped: (reason, class) -> files of the source that are not among the images; the class is empty outside of class folders.
    """

    splits: list[str]
    labels: list[int]
    names: list[str]
    classes: list[str]
    stream: Callable[[Collection[int]], Iterator[tuple[int, Picture]]]
    boxes: np.ndarray | None = None
    date: str = ""
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)


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


def read_image_folder(paths: list[Path]) -> Listing:
    """split/class/file, with or without one folder around it; the classes are the folders' names in order.

    Files that are no images, or that cannot be read here, are counted in `Listing.skipped`.

    Raises:
        ValueError: another layout, no images, a class without training images, or a class folder in which nothing can be read.
    """
    (path,) = paths
    entries, folders = contents(path)
    unread = {entry: "hidden" if is_hidden(entry.name) else why_unread(entry.name) for entry in entries}
    found, lead = _by_class(path, [entry for entry, reason in unread.items() if not reason])
    skipped = Counter((reason, _class_of(entry.name, lead)) for entry, reason in unread.items() if reason)
    if not found:
        raise ValueError(
            f"{path} holds no images as split/class/file, e.g. train/cat/1.jpg, in {', '.join(IMAGE_SUFFIXES)}"
            f"{'; it holds ' + describe_skipped(skipped) if skipped else ''}"
        )
    classes = sorted({label for _, label, _ in found})
    empty = {_class_of(f"{name}/", lead) for name in folders if not is_hidden(name)} | {label for _, label in skipped}
    if empty := sorted(empty - {"", *classes}):
        lines = [f"{path} has classes without an image that can be read; supply some, or remove their folders:"]
        for label in empty:
            of_class = Counter({key: count for key, count in skipped.items() if key[1] == label})
            lines.append(f"  {label}: {describe_skipped(of_class) or 'an empty folder'}")
        raise ValueError("\n".join(lines))
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
        skipped=skipped,
    )


def _by_class(path: Path, entries: list[Entry]) -> tuple[list[tuple[str, str, Entry]], list[str]]:
    """(split, class, entry) in the order of their names, and the one folder around them all, if there is one."""
    found, leads = [], set()
    for entry in sorted(entries, key=lambda entry: entry.name):
        parts = entry.name.split("/")
        *lead, split, label, _ = parts if len(parts) >= 3 else ("", "", "")
        leads.add(tuple(lead))
        if split not in SPLITS or len(leads) > 1 or len(lead) > 1:
            raise ValueError(
                f"{path} is not laid out as split/class/file: {entry.name!r}; expected e.g. train/cat/1.jpg, with "
                f"splits {', '.join(SPLITS)} and at most one folder around them all"
            )
        found.append((SPLITS[split], _composed(label), entry))
    return found, list(leads.pop()) if leads else []


def _class_of(name: str, lead: list[str]) -> str:
    """The class in whose folder a file lies; empty where it lies in none. A folder's own name ends in "/"."""
    parts = name.split("/")
    around, inside = parts[: len(lead)], parts[len(lead) :]
    lies_in_one = around == lead and len(inside) >= 3 and inside[0] in SPLITS and not inside[1].startswith(".")
    return _composed(inside[1]) if lies_in_one else ""


def _composed(label: str) -> str:
    """macOS writes "e" and an accent where others write one letter; it is the same class."""
    return unicodedata.normalize("NFC", label)


def is_hidden(name: str) -> bool:
    """Names that begin with a dot, and what macOS and Windows put beside images."""
    parts = name.split("/")
    return parts[-1] in ("Thumbs.db", "desktop.ini") or any(part[:1] == "." or part == "__MACOSX" for part in parts)


def describe_skipped(skipped: Counter[tuple[str, str]]) -> str:
    """ "30 HEIC files, which ...; 2 hidden files": what was left out, over all classes."""
    counts = Counter()
    for (reason, _), count in skipped.items():
        counts[reason] += count
    return ", ".join(f"{count:,} {'file' if count == 1 else 'files'} ({reason})" for reason, count in counts.items())


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
        with named_damage(path), gzip.open(path) as file:
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
