"""Makes of any source the same folder of uint8 tensors.

Written: {train,validation,test}-images.npy (N, C, H, W) and -labels.npy, split.csv (where each row came from),
dataset.json (classes, counts, mean and deviation, provenance). The folder appears whole or not at all, and the same
source and arguments give the same bytes: no path, no clock. Rows lie in random order by the seed, because a source
sorted by class would put one class into each test batch, and statistics of such a batch are not those of the data.
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
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from tqdm import tqdm

from localnorm.data import archives, fetch, sources
from localnorm.data.dataset import PARTS, VERSION

__all__ = ["prepare"]

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
    image_size: int | None = None,
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
        image_size: side in pixels to which images are resized (squashed to a square, as released); None keeps the images' own,
            which then must be the same for all.
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
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is a side in pixels, at least 1, got {image_size}")
    if not (0 < validation < 1 and 0 < test < 1):
        raise ValueError(f"validation and test are shares between 0 and 1, got {validation} and {test}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of images, at least 1, got {limit}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is 1 (grey) or 3 (RGB), got {channels}")
    output = Path(output)
    if output.exists() and not (output / "dataset.json").is_file() and not _is_empty_folder(output):
        raise ValueError(
            f"{output} is not a prepared data set and will not be replaced; choose another folder, or remove it"
        )
    description = sources.describe(dataset)
    source, found = fetch.obtain(dataset)
    checksum = sources.verify(source, found)
    listing = archives.READERS[source.format](found)
    _check(description, source, listing)
    parts = _split(listing, validation=validation, test=test, seed=seed, limit=limit)
    provenance = {
        "source": " + ".join(file.name for file in source.files),
        "checksum": checksum,
        "lossy": source.lossy,
        "licence": description.licence,
        "date": source.released or listing.date,
        "note": source.note,
        "source_counts": dict(sorted(Counter(listing.splits).items())),
        "cropped": "" if listing.boxes is None else f"to the bounding box and {BOX_MARGIN} pixels around it",
        "split": {"seed": seed, "validation": validation, "test": test, "limit": limit},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    with FileLock(output.with_name(f".{output.name}.lock")):
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left
        temporary.mkdir()
        try:
            shape = _write_images(temporary, listing, parts, image_size, channels or description.channels)
            _write_labels(temporary, listing, parts)
            mean, std = _pixel_statistics(temporary / "train-images.npy")
            record = {
                "version": VERSION,
                "name": dataset,
                "title": source.title,
                "classes": listing.classes,
                "counts": {part: len(rows) for part, rows in parts.items()},
                "shape": shape,  # (C, H, W)
                "mean": mean,  # a channel, of the training part, in 0 ... 255
                "std": std,
                "provenance": provenance,
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
    """A random order whose every beginning holds each class in its share: by rank within the class over its size."""
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
                    f"{shape[1]}; give image_size, the side in pixels to which all are resized"
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

    A photograph that says how the camera was held (EXIF) is turned upright.

    Raises:
        ValueError: not an image, damaged, too large, or with more than 8 bits a channel.
    """
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else archives.open_image(picture, name)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    if image.mode == "LAB":
        raise ValueError(f"{name} is in the colour space LAB, which Pillow does not convert; save it as RGB")
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
        if box is None:  # a box is in the pixels as they are stored
            image = ImageOps.exif_transpose(image)
            corners = (0, 0, *image.size)
        image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow raises whatever wrong bytes make it stumble over
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


def _write_labels(folder: Path, listing: archives.Listing, parts: dict[str, np.ndarray]) -> None:
    labels = np.array(listing.labels, np.int64)
    for part, rows in parts.items():
        with (folder / f"{part}-labels.npy").open("wb") as file:
            np.save(file, labels[rows])
            _sync(file)
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["part", "index", "name", "label"])
        for part, rows in parts.items():
            table.writerows([part, i, listing.names[i], listing.labels[i]] for i in rows)
        _sync(file)


def _sync(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(temporary: Path, output: Path) -> None:
    """Put the finished folder in its place; a folder is renamed to free names only, so the old one steps aside."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    temporary.rename(output)
    shutil.rmtree(old, ignore_errors=True)
