"""Makes of any source the same folder of uint8 tensors, and reads that folder.

Written: {train,validation,test}-images.npy (N, C, H, W) and -labels.npy, split.csv (where each row came from),
dataset.json (classes, counts, mean and deviation, provenance). The folder appears whole or not at all, and the same source
and arguments give the same bytes: no path, no clock. Rows lie in random order by the seed, because a source sorted by class
would put one class into each test batch, and statistics of such a batch are not those of the data.
"""

import csv
import json
import math
import os
import random
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from localnorm.data import archives, fetch, sources

__all__ = ["PARTS", "Dataset", "load", "prepare"]

PARTS = ("train", "validation", "test")
VERSION = 1  # of the prepared folder
BOX_MARGIN = 16  # pixels around a car's box, as released
WORKERS = (
    2  # decoding threads: Pillow lets go of the interpreter lock, and more only queue behind the archive's one stream
)
CHUNK = 32  # images a task: a thread's hand-over takes as long as decoding one image of 32 x 32 ...
CHUNK_BYTES = 1 << 18  # ... but fewer of large ones, encoded, so that memory stays bounded


def prepare(
    dataset: str,
    output: str | Path,
    *,
    size: int | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    channels: int | None = None,
) -> Path:
    """Prepare a data set into a folder, fetching it first where it is not on this machine.

    Args:
        dataset: "digits", "cifar10", "cars", "mnist", or the name of an image folder or archive of one's own.
        output: folder to write; what was there is replaced, and only once the new one is whole.
        size: side in pixels to which images are resized (squashed to a square, as released); None keeps the images' own
            size, which then must be the same for all.
        validation: share of the training images kept for validation, stratified, where the source has no part for it.
        test: share of the training images first cut off for testing, stratified, where the source has no test images.
        seed: of the splits and of the order of rows.
        limit: at most so many images a part, stratified; None keeps all.
        channels: 1 (grey) or 3 (RGB); None takes the data set's own.

    Returns:
        `output`.

    Raises:
        ValueError: an argument out of its range, or a source that is unsafe, damaged or not what it claims to be.
        FileNotFoundError: the data is neither here nor to be had; the message says what was tried and how to supply it.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is a side in pixels, at least 1, got {size}")
    if not (0 < validation < 1 and 0 < test < 1):
        raise ValueError(f"validation and test are shares between 0 and 1, got {validation} and {test}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of images, at least 1, got {limit}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is 1 (grey) or 3 (RGB), got {channels}")
    output = Path(output)
    description = sources.describe(dataset)
    source, found = fetch.obtain(dataset)
    checksum = sources.verify(source, found)
    listing = archives.READERS[source.format](found)
    _check(description, source, listing)
    parts = _split(listing, validation=validation, test=test, seed=seed, limit=limit)
    if output.exists() and not (output / "dataset.json").is_file() and not _is_empty_folder(output):
        raise ValueError(
            f"{output} is not a prepared data set and will not be replaced; choose another folder, or remove it"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    # dot names: not to be taken for a prepared data set
    temporary = output.with_name(f".{output.name}.part")
    with FileLock(output.with_name(f".{output.name}.lock")):
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left
        temporary.mkdir()
        try:
            shape = _write_images(temporary, listing, parts, size, channels or description.channels)
            mean, std = _pixel_statistics(temporary / "train-images.npy")
            labels = np.array(listing.labels, np.int64)
            for part, rows in parts.items():
                with (temporary / f"{part}-labels.npy").open("wb") as file:
                    np.save(file, labels[rows])
                    _sync(file)
            _write_split(temporary / "split.csv", listing, parts)
            record = {
                "version": VERSION,
                "name": dataset,
                "title": source.title,
                "classes": listing.classes,
                "counts": {part: len(rows) for part, rows in parts.items()},
                "shape": shape,  # (C, H, W)
                "mean": mean,  # a channel, of the training part, in 0 ... 255
                "std": std,
                "provenance": {
                    "source": " + ".join(file.name for file in source.files),
                    "checksum": checksum,
                    "lossy": source.lossy,
                    "licence": description.licence,
                    "date": source.released or listing.date,
                    "note": source.note,
                    "source_counts": dict(sorted(Counter(listing.splits).items())),
                    "cropped": None
                    if listing.boxes is None
                    else f"to the bounding box and {BOX_MARGIN} pixels around it",
                    "split": {"seed": seed, "validation": validation, "test": test, "limit": limit},
                },
            }
            with (temporary / "dataset.json").open("w", newline="\n", encoding="utf-8") as file:
                file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
                _sync(file)
            _replace(temporary, output)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return output


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check(description: sources.DataSet, source: sources.Source, listing: archives.Listing) -> None:
    counts = dict(Counter(listing.splits))
    if source.counts and counts != source.counts:
        raise ValueError(f"{source.title} has {source.counts} images, but {source.files[0].name} holds {counts}")
    classes = len(listing.classes)
    if description.num_classes not in (None, classes):
        raise ValueError(
            f"{source.title} has {description.num_classes} classes, but {source.files[0].name} holds {classes}"
        )
    if not 0 <= min(listing.labels) <= max(listing.labels) < classes:
        raise ValueError(
            f"labels are 0 ... {classes - 1}, but {source.files[0].name} holds "
            f"{min(listing.labels)} ... {max(listing.labels)}"
        )


def _split(
    listing: archives.Listing, *, validation: float, test: float, seed: int, limit: int | None
) -> dict[str, np.ndarray]:
    """The source's indices of each part, in the order of rows."""
    draw = random.Random(seed)  # its random() gives the same numbers in every version of Python
    choice, order = (np.array([draw.random() for _ in listing.labels]) for _ in range(2))
    labels, splits = np.array(listing.labels), np.array(listing.splits)
    parts = {part: np.flatnonzero(splits == part) for part in PARTS}
    for part, share in (("test", test), ("validation", validation)):
        if len(parts[part]) == 0:
            rows = parts["train"][_stratify(labels[parts["train"]], choice[parts["train"]])]
            count = max(1, round(share * len(rows)))
            if count >= len(rows):
                raise ValueError(f"{part}={share} of {len(rows)} training images leaves none to train on; lower it")
            parts[part], parts["train"] = rows[:count], rows[count:]
    for part, rows in parts.items():
        rows = rows[_stratify(labels[rows], choice[rows])][:limit]
        parts[part] = rows[np.argsort(order[rows])]
    return parts


def _stratify(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A random order whose every beginning holds each class in its share: by rank in the class over the class's size."""
    by_class = np.lexsort((keys, labels))
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    share = np.empty(len(labels))
    share[by_class] = (np.arange(len(labels)) - first[labels[by_class]] + 0.5) / sizes[labels[by_class]]
    return np.lexsort((keys, share))


def _write_images(
    folder: Path, listing: archives.Listing, parts: dict[str, np.ndarray], size: int | None, channels: int
) -> tuple[int, int, int]:
    """Decode each wanted image and write it at its row; returns (C, H, W).

    Written by file position and not through a memory map, whose pages would count as this process's memory.
    """
    place = {int(index): (part, row) for part, rows in parts.items() for row, index in enumerate(rows)}
    bar = tqdm(total=len(place), desc="prepare", unit=" images", file=sys.stderr)
    with bar, ExitStack() as stack:
        files, first_row, shape = {}, {}, None
        for index, pixels in _decode(listing, list(place), size, channels):
            if shape is None:
                shape = pixels.shape
                for part, rows in parts.items():
                    file = files[part] = stack.enter_context((folder / f"{part}-images.npy").open("wb"))
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    first_row[part] = file.tell()
            if pixels.shape != shape:
                raise ValueError(
                    f"{listing.names[index]} is {pixels.shape[2]} x {pixels.shape[1]} pixels, others are {shape[2]} x "
                    f"{shape[1]}; give size, the side in pixels to which all are resized"
                )
            part, row = place.pop(index)
            files[part].seek(first_row[part] + row * pixels.size)
            files[part].write(pixels)
            bar.update()
        if place:
            raise ValueError(f"the source ended {len(place):,} images early; it is damaged")
        for file in files.values():
            _sync(file)
    return shape


def _decode(
    listing: archives.Listing, wanted: list[int], size: int | None, channels: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, (C, H, W) pixels) of the wanted images in the source's order, with a bounded number of them in memory."""

    def decode(chunk: list[tuple[int, archives.Picture]]) -> list[tuple[int, np.ndarray]]:
        boxes = listing.boxes
        return [
            (i, to_pixels(picture, listing.names[i], size, channels, None if boxes is None else boxes[i]))
            for i, picture in chunk
        ]

    with ThreadPoolExecutor(WORKERS) as pool:
        pending = deque()
        for chunk in _chunks(listing.stream(wanted)):
            pending.append(pool.submit(decode, chunk))
            if len(pending) > 2 * WORKERS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _chunks(pictures: Iterator[tuple[int, archives.Picture]]) -> Iterator[list[tuple[int, archives.Picture]]]:
    chunk, held = [], 0
    for index, picture in pictures:
        chunk.append((index, picture))
        held += len(picture) if isinstance(picture, bytes) else picture.nbytes
        if len(chunk) == CHUNK or held > CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def to_pixels(
    picture: archives.Picture, name: str, size: int | None, channels: int, box: np.ndarray | None = None
) -> np.ndarray:
    """uint8 pixels (C, H, W) of one picture: cut to its box and BOX_MARGIN pixels around, then resized, antialiased.

    Raises:
        ValueError: not an image, damaged, too large, or with more than 8 bits a channel.
    """
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else archives.open_image(picture, name)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    corners = (0, 0, *image.size)
    if box is not None:
        left, top, right, bottom = (int(side) for side in box)
        corners = (
            max(left - BOX_MARGIN, 0),
            max(top - BOX_MARGIN, 0),
            min(right + BOX_MARGIN, image.width),
            min(bottom + BOX_MARGIN, image.height),
        )
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise ValueError(
                f"{name} is {image.width} x {image.height} pixels, its box {tuple(box.tolist())} lies outside"
            )
    try:
        if size is not None and image.format == "JPEG":
            # the decoder itself shrinks a large photograph, its box to no less than twice the size that is wanted
            width, height = image.size
            left, top, right, bottom = corners
            image.draft(None, (2 * size * width // (right - left) + 1, 2 * size * height // (bottom - top) + 1))
            across, down = image.width / width, image.height / height
            corners = (left * across, top * down, right * across, bottom * down)
        image = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=corners)
    elif box is not None:
        image = image.crop(corners)
    pixels = np.asarray(image)  # (H, W) or (H, W, 3)
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))  # (C, H, W)


def _pixel_statistics(path: Path) -> tuple[list[float], list[float]]:
    """Mean and (population) deviation of each channel over all pixels, from exact sums, so equal on every machine."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        (_, *shape), _, _ = np.lib.format.read_array_header_1_0(file)
        counts = np.zeros((shape[0], 256), np.int64)
        # read and not mapped, whose pages would count as this process's memory
        while len(chunk := np.fromfile(file, np.uint8, 256 * math.prod(shape))):
            for channel, pixels in enumerate(chunk.reshape(-1, *shape).swapaxes(0, 1)):  # (C, N, H, W)
                counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    values = np.arange(256)
    sums = [[int((histogram * values**power).sum()) for power in range(3)] for histogram in counts]
    mean = [total / n for n, total, _ in sums]
    std = [math.sqrt(n * squares - total**2) / n for n, total, squares in sums]
    return mean, std


def _write_split(path: Path, listing: archives.Listing, parts: dict[str, np.ndarray]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["part", "index", "name", "label"])
        for part, rows in parts.items():
            table.writerows([part, i, listing.names[i], listing.labels[i]] for i in rows)
        _sync(file)


def _sync(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(temporary: Path, output: Path) -> None:
    """Put the finished folder in its place; a folder is only renamed to a free name, so the old one steps aside first."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    temporary.rename(output)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Dataset:
    """A prepared data set; images stay on disk until they are used.

    Attributes:
        folder: where it lies.
        title: the name for tables and captions.
        classes: names in label order.
        shape: (C, H, W) of an image.
        mean, std: of each channel over the training part, in 0 ... 255.
        counts: images a part.
        provenance: source, checksum, lossy, licence, date and how it was split.
    """

    folder: Path
    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, int]
    provenance: dict

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def images(self, part: str) -> torch.Tensor:
        """uint8 (N, C, H, W), mapped from disk; writing to it changes this process's copy, never the file."""
        return self._tensor(part, "images", (*self.shape,), np.uint8)

    def labels(self, part: str) -> torch.Tensor:
        """int64 (N,)."""
        return self._tensor(part, "labels", (), np.int64)

    def _tensor(self, part: str, kind: str, shape: tuple[int, ...], dtype: type) -> torch.Tensor:
        if part not in self.counts:
            raise ValueError(f"a part is one of {', '.join(self.counts)}, got {part!r}")
        path = self.folder / f"{part}-{kind}.npy"
        expected = (self.counts[part], *shape)
        try:
            array = np.load(path, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is missing or damaged ({error}); prepare {self.name!r} again") from error
        if array.shape != expected or array.dtype != dtype:
            raise ValueError(
                f"{path} holds {array.dtype} {array.shape}, dataset.json says {np.dtype(dtype)} {expected}; "
                f"prepare {self.name!r} again"
            )
        return torch.from_numpy(array)


def load(folder: str | Path) -> Dataset:
    """Open a folder that `prepare` wrote.

    Raises:
        FileNotFoundError: no data set was prepared there.
        ValueError: another version wrote it, or it is damaged.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        version = record.pop("version")
        if version != VERSION:
            raise ValueError(f"{folder} was prepared as version {version}, this is version {VERSION}; prepare it again")
        for key in ("classes", "shape", "mean", "std"):
            record[key] = tuple(record[key])
        data = Dataset(folder=folder, **record)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"no prepared data set in {folder}; make one with `python -m localnorm.data prepare NAME {folder}`"
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'dataset.json'} is damaged ({error!r}); prepare it again") from error
    for part in data.counts:
        data.images(part)
        data.labels(part)
    return data
