"""A folder of one's own images on its way into the pipeline: packed into data/raw under the name of a data set."""

import io
import os
import re
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from localnorm import paths
from localnorm.data import sources
from localnorm.data.archives import IMAGE_SUFFIXES, SPLITS

__all__ = ["pack_folder", "write_sample_folder"]


def pack_folder(folder: str | Path) -> str:
    """Pack a folder of images into data/raw/<name>.zip, where `prepare` finds it, and return the name.

    The folder is laid out as class/file, or as split/class/file with the splits of `localnorm.data`. Without splits all images
    are training images, of which `prepare` cuts off a test and a validation part. The folder itself stays as it is; images are
    stored as they are, so the archive is as large as they are together. An archive that holds the same images is left as it is.

    The name is the folder's, or `<folder>-packed` where that of the folder would lead to other data: to a built-in data set, or to
    a folder in one of the searched places.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: no images, or neither of the two layouts; names the first file that does not fit. Or other images have the name
            already, in data/raw or where LOCALNORM_DATA points; names them. Nothing is written then.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; give one that holds class/file or split/class/file")
    name = re.sub(r"[^\w-]+", "-", folder.name, flags=re.ASCII).strip("-_")
    if not name:
        raise ValueError(f"a data set needs letters or digits in its name, got the folder {folder.name!r}; rename it")
    found = {file.relative_to(folder).parts: file for file in sorted(folder.rglob("*")) if _is_image(file, folder)}
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}) as class/file or split/class/file")
    split = {parts[0] for parts in found} <= set(SPLITS) and all(len(parts) == 3 for parts in found)
    for parts in found:
        if not split and len(parts) != 2:
            raise ValueError(
                f"{folder} is laid out neither as class/file nor as split/class/file with splits of {', '.join(SPLITS)}: "
                f"{'/'.join(parts)}; move the images so that all lie at one depth"
            )
    # both would be found before the archive; a file system may take Digits for digits
    if name.lower() in sources.DATASETS or any((place / name).is_dir() for place in sources.search_path()):
        name += "-packed"
    members = {"/".join(parts if split else ("train", *parts)): file for parts, file in found.items()}
    there = sources.find(name)
    if there is None:
        _write_archive(paths.raw() / f"{name}.zip", members)
    elif not _holds(there[1][0], members):
        raise ValueError(
            f"the name {name!r} must lead to the images of {folder}, but {there[1][0]} has it and holds others; rename the "
            "folder, or remove that one if it is an older copy of the folder"
        )
    return name


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _holds(path: Path, members: dict[str, Path]) -> bool:
    """Whether a zip holds these files under their names and nothing else, whatever their dates.

    The images are compared and not where they came from: a path in the archive would change its checksum, by which runs of several
    machines are told to be of the same images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
    except (zipfile.BadZipFile, IsADirectoryError):
        return False
    return held.keys() == members.keys() and all(
        held[name] == (file.stat().st_size, zlib.crc32(file.read_bytes())) for name, file in members.items()
    )


def _write_archive(path: Path, members: dict[str, Path]) -> None:
    """Write a zip of files under their names in it, whole or not at all; streamed, since photographs are many and large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:  # stored: images are compressed already
            for name, file in members.items():
                # of the file's metadata its date alone: the provenance gives the newest
                info = zipfile.ZipInfo(name, max(time.gmtime(file.stat().st_mtime)[:6], (1980, 1, 1, 0, 0, 0)))
                with file.open("rb") as source, archive.open(info, "w") as target:
                    shutil.copyfileobj(source, target)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_sample_folder(folder: Path, images: int = 600, size: int = 16) -> Path:
    """Write scikit-learn's digits as class/file, PNG files in colour, to try things with; returns `folder`.

    Args:
        images: how many, the first ones.
        size: side in pixels; the digits have 8.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:images], digits.target[:images], strict=True)):
        picture = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, format="PNG")
        paths.write(folder / f"{label}" / f"{number:04}.png", buffer.getvalue())
    return folder
