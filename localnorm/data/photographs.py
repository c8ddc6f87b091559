"""Photographs for networks that were trained on another data set: a folder of the user's own, or two that scikit-learn ships."""

from pathlib import Path
from typing import TYPE_CHECKING

from localnorm.data.archives import read, scan
from localnorm.data.images import IMAGE_SUFFIXES, to_pixels

if TYPE_CHECKING:
    import torch

__all__ = ["photographs"]


def photographs(
    folder: str | Path, shape: tuple[int, int, int], fit: str = "squash", most: int | None = None
) -> "tuple[list[str], torch.Tensor]":
    """Photographs of a folder as a network wants them: as large, and with as many channels, as its training images.

    Args:
        folder: or an archive; images are taken in the order of their names. Empty for scikit-learn's two photographs.
        shape: (C, H, W) of the training images.
        fit: how an oblong photograph becomes a square, see `localnorm.data.prepare`.
        most: so many photographs at most; None is all.

    Returns:
        The files' names and uint8 (N, C, H, W).

    Raises:
        ValueError: there is no such folder, or no image in it that can be read.
    """
    import torch  # here, as in `Dataset`: whoever checks or prepares images needs none of it

    pictures = _in_folder(Path(folder).expanduser(), most) if folder else _of_scikit_learn()
    channels, side, _ = shape
    pixels = {}
    for name, data in pictures.items():
        try:
            pixels[name] = torch.tensor(to_pixels(data, name, side, channels, fit=fit))
        except ValueError as error:
            print(f"left out: {error}")
    if not pixels:
        raise ValueError(f"no image of {str(folder)!r} can be read; the reasons stand above")
    names = sorted(pixels)
    return names, torch.stack([pixels[name] for name in names])


def _in_folder(folder: Path, most: int | None) -> dict[str, bytes]:
    if folder.is_dir():  # whatever else lies there, films and links, does no harm
        there = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    else:
        there = {entry.name: entry for entry in (scan(folder) if folder.exists() else [])}
    # macOS leaves a hidden ._name.jpg beside name.jpg
    names = [name for name in sorted(there) if name.lower().endswith(IMAGE_SUFFIXES) and Path(name).name[0] != "."][:most]
    if not names:
        raise ValueError(f"no images in {str(folder)!r}; give a folder with files in {', '.join(IMAGE_SUFFIXES)}")
    if folder.is_dir():
        return {name: there[name].read_bytes() for name in names}
    return {entry.name: data for entry, data in read(there[name] for name in names)}


def _of_scikit_learn() -> dict:
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    return {Path(name).name: pixels for name, pixels in zip(found.filenames, found.images, strict=True)}
