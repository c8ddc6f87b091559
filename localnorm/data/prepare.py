"""Turn any source of images into a folder of uint8 tensors, always of the same form.

It writes {train,validation,test}-images.npy (N, C, H, W) and -labels.npy, split.csv (where each row came from),
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from localnorm.data import fetch, sources
from localnorm.data.dataset import PARTS, VERSION
from localnorm.data.images import BOX_MARGIN, FITS, Picture, is_oblong, refusals, to_pixels
from localnorm.data.readers import READERS, Listing

__all__ = ["prepare"]

WORKERS = (
    2  # decoding threads: Pillow lets go of the interpreter lock, and more only queue behind the archive's one stream
)
CHUNK = 32  # images per task: a thread's hand-over takes as long as decoding one image of 32 x 32 ...
CHUNK_BYTES = 1 << 18  # ... but fewer of large ones, encoded, so that memory stays bounded


def prepare(
    dataset: str,
    output: str | Path,
    *,
    image_size: int | None = None,
    fit: str = "squash",
    sixteen_bit: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    channels: int | None = None,
) -> Path:
    """Write a data set as a folder of tensors, and fetch it first if it is not on this machine.

    Args:
        dataset: "digits", "cifar10", "cars", "mnist", or the name of an image folder or archive of one's own.
        output: folder to write; what was there is replaced, and only once the new one is whole.
        image_size: side in pixels to which images are resized; None keeps the images' own, which then must be the same for all.
        fit: how an oblong image becomes a square of that size: "squash" squeezes its longer side, as released; "crop" takes the
            square in its middle.
        sixteen_bit: take grey images with 16 bits per pixel, by the upper 8 of them; without it they are refused.
        validation: share of the training images kept for validation, stratified, where the source has no part for it.
        test: share of the training images first cut off for testing, stratified, where the source has no test images.
        seed: of the splits and of the order of rows.
        limit: at most so many images per part, stratified; None keeps all.
        channels: 1 (grey) or 3 (RGB); None takes the data set's own.

    Returns:
        `output`.

    Raises:
        ValueError: an argument out of its range, or a source that is unsafe, damaged or not what it claims to be. Images that
            cannot be used are named, all of them in one message.
        FileNotFoundError: the data is neither here nor to be had; the message says what was tried and how to supply it.
    """
    _check_arguments(image_size, fit, validation, test, limit, channels)
    output = Path(output)
    if output.exists() and not (output / "dataset.json").is_file() and not _is_empty_folder(output):
        raise ValueError(
            f"{output} is not a prepared data set and will not be replaced; choose another folder, or remove it"
        )
    plan = sources.plan(dataset)
    source, found = fetch.obtain(plan)
    checksum = sources.verify(source, found)
    listing = READERS[source.format](found)
    _check(plan, source, listing)
    parts = _split(listing, validation=validation, test=test, seed=seed, limit=limit)
    provenance = {
        "source": " + ".join(file.name for file in source.files),
        "checksum": checksum,
        "lossy": source.lossy,
        "licence": plan.dataset.licence,
        "date": source.released or listing.date,
        "note": source.note,
        "source_counts": dict(sorted(Counter(listing.splits).items())),
        "cropped": "" if listing.boxes is None else f"to the bounding box and {BOX_MARGIN} pixels around it",
        "split": {"seed": seed, "validation": validation, "test": test, "limit": limit},
    }
    if plan.is_own:  # of a source in the table all of this is published
        skipped = sorted(listing.skipped.items())
        provenance["skipped"] = [{"reason": key[0], "class": key[1], "files": count} for key, count in skipped]
    if plan.is_own or fit != "squash":
        provenance["fit"] = fit if image_size else ""
    record = {"version": VERSION, "name": dataset, "title": source.title, "classes": listing.classes}
    record["counts"] = {part: len(rows) for part, rows in parts.items()}
    channels = channels or plan.dataset.channels
    to = partial(to_pixels, size=image_size, channels=channels, fit=fit, sixteen_bit=sixteen_bit)
    with _replacing(output) as folder:
        oblong, shape = _write_images(folder, listing, parts, to)
        if plan.is_own and image_size:
            provenance["oblong"] = oblong
        _write_labels(folder, listing, parts)
        mean, std = _pixel_statistics(folder / "train-images.npy")
        # (C, H, W); mean and deviation of each channel over the training part, in 0 ... 255
        record |= {"shape": shape, "mean": mean, "std": std, "provenance": provenance}
        with (folder / "dataset.json").open("w", newline="\n", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            _sync(file)
    return output


def _check_arguments(
    image_size: int | None, fit: str, validation: float, test: float, limit: int | None, channels: int | None
) -> None:
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is a side in pixels, at least 1, got {image_size}")
    if fit not in FITS:
        raise ValueError(f"fit is one of {', '.join(FITS)}, got {fit!r}")
    if not (0 < validation < 1 and 0 < test < 1):
        raise ValueError(f"validation and test are shares between 0 and 1, got {validation} and {test}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of images, at least 1, got {limit}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is 1 (grey) or 3 (RGB), got {channels}")


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `output` at the end; an error leaves nothing of it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    with FileLock(output.with_name(f".{output.name}.lock")):
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left
        temporary.mkdir()
        try:
            yield temporary
            _replace(temporary, output)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check(plan: sources.Plan, source: sources.Source, listing: Listing) -> None:
    """Whether a source holds what it should: the table's counts and classes, or at least two classes of one's own."""
    file = source.files[0].name
    counts = dict(Counter(listing.splits))
    if source.counts and counts != source.counts:
        raise ValueError(f"{source.title} has {source.counts} images, but {file} holds {counts}")
    classes = len(listing.classes)
    if plan.dataset.num_classes not in (None, classes):
        raise ValueError(f"{source.title} has {plan.dataset.num_classes} classes, but {file} holds {classes}")
    if classes < 2:
        raise ValueError(
            f"{file} holds one class, {listing.classes[0]}; a classifier needs at least two to choose from"
        )
    if not 0 <= min(listing.labels) <= max(listing.labels) < classes:
        raise ValueError(
            f"labels are 0 ... {classes - 1}, but {file} holds {min(listing.labels)} ... {max(listing.labels)}"
        )


def _split(listing: Listing, *, validation: float, test: float, seed: int, limit: int | None) -> dict[str, np.ndarray]:
    """The source's indices of each part, in the order of rows."""
    draw = random.Random(seed)  # noqa: S311 (no secret) its random() gives the same numbers in every version of Python
    choice, order = (np.array([draw.random() for _ in listing.labels]) for _ in range(2))
    labels, splits = np.array(listing.labels), np.array(listing.splits)
    parts = {part: np.flatnonzero(splits == part) for part in PARTS}
    for part, share in (("test", test), ("validation", validation)):
        if len(parts[part]) == 0:
            rows = parts["train"][_stratify(labels[parts["train"]], choice[parts["train"]])]
            count = max(1, round(share * len(rows)))
            if count >= len(rows):
                raise ValueError(f"{part}={share} of {len(rows)} training images leaves none to train on; supply more images")
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
    folder: Path, listing: Listing, parts: dict[str, np.ndarray], to: Callable[..., np.ndarray]
) -> tuple[int, tuple[int, int, int]]:
    """Decode each wanted image and write it at its row.

    Written by file position and not through a memory map, whose pages would count as this process's memory.

    Args:
        to: makes pixels (C, H, W) of (picture, name, box).

    Returns:
        How many images are not square, and (C, H, W).

    Raises:
        ValueError: images that cannot be used; names all of them.
    """
    place = {int(index): (part, row) for part, rows in parts.items() for row, index in enumerate(rows)}
    wanted = len(place)
    bar = tqdm(total=wanted, desc="prepare", unit=" images", file=sys.stderr)
    files, first_row, shape, oblong, refused, sizes = {}, {}, None, 0, [], ""
    with bar, ExitStack() as stack:
        for index, pixels, refusal, is_oblong in _decode(listing, list(place), to):
            part, row = place.pop(index)
            bar.update()
            if refusal:
                refused.append(refusal)
                continue
            oblong += is_oblong
            if shape is None:
                shape = pixels.shape
                for name, rows in parts.items():
                    file = files[name] = stack.enter_context((folder / f"{name}-images.npy").open("wb"))
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    first_row[name] = file.tell()
            if pixels.shape != shape:
                sizes = sizes or (
                    f"{listing.names[index]} is {pixels.shape[2]} x {pixels.shape[1]} pixels, others are {shape[2]} x "
                    f"{shape[1]}; give image_size, the side in pixels to which all are resized"
                )
            elif not refused:
                files[part].seek(first_row[part] + row * pixels.size)
                files[part].write(pixels)
        if place:
            raise ValueError(f"the source ended {len(place):,} images early; it is damaged")
        if refused:
            raise ValueError(refusals(refused, wanted))
        if sizes:
            raise ValueError(sizes)
        for file in files.values():
            _sync(file)
    return oblong, shape


def _decode(
    listing: Listing, wanted: list[int], to: Callable[..., np.ndarray]
) -> Iterator[tuple[int, np.ndarray | None, str, bool]]:
    """(index, pixels, why it is refused, whether it is not square) of the wanted images in the source's order.

    Only a bounded number of them is in memory.
    """

    def decode(index: int, picture: Picture) -> tuple[int, np.ndarray | None, str, bool]:
        box = None if listing.boxes is None else listing.boxes[index]
        try:
            return index, to(picture, listing.names[index], box=box), "", is_oblong(picture)
        except ValueError as error:
            return index, None, str(error), False

    def decode_all(chunk: list[tuple[int, Picture]]) -> list[tuple[int, np.ndarray | None, str, bool]]:
        return [decode(*each) for each in chunk]

    with ThreadPoolExecutor(WORKERS) as pool:
        pending = deque()
        for chunk in _chunks(listing.stream(wanted)):
            pending.append(pool.submit(decode_all, chunk))
            if len(pending) > 2 * WORKERS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _chunks(pictures: Iterator[tuple[int, Picture]]) -> Iterator[list[tuple[int, Picture]]]:
    chunk, held = [], 0
    for index, picture in pictures:
        chunk.append((index, picture))
        held += len(picture) if isinstance(picture, bytes) else picture.nbytes
        if len(chunk) == CHUNK or held > CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


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


def _write_labels(folder: Path, listing: Listing, parts: dict[str, np.ndarray]) -> None:
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
