"""A folder of one's own images on its way into the pipeline: packed into data/raw under the name of a data set."""

import io
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from localnorm import paths
from localnorm.data.archives import IMAGE_SUFFIXES, SPLITS

__all__ = ["pack_folder", "write_sample_folder"]


def pack_folder(folder: str | Path) -> str:
    """Pack a folder of images into data/raw/<name>.zip, where `prepare` finds it, and return the name.

    The folder is laid out as class/file, or as split/class/file with the splits of `localnorm.data`. Without splits all images
    are training images, of which `prepare` cuts off a test and a validation part. The folder itself stays as it is; images are
    stored as they are, so the archive is as large as they are together.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: no images, or neither of the two layouts; names the first file that does not fit.
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
    if (paths.raw() / name).is_dir():
        name += "-packed"  # a folder there would be found before the archive
    _write_archive(paths.raw() / f"{name}.zip", {"/".join(p if split else ("train", *p)): f for p, f in found.items()})
    return name


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES and not hidden


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
