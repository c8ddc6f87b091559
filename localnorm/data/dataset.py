"""Reads the folder that `prepare` writes. It stands alone, so that training does not depend on how the data was fetched."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from localnorm import paths

if TYPE_CHECKING:
    import torch

__all__ = ["PARTS", "Dataset", "load"]

PARTS = ("train", "validation", "test")
VERSION = 1  # of the prepared folder


@dataclass(frozen=True)
class Dataset:
    """A prepared data set. Images stay on disk until they are used.

    Attributes:
        folder: where it lies.
        title: the name for tables and captions.
        classes: names in label order.
        shape: (C, H, W) of an image.
        mean, std: of each channel over the training part, in 0 ... 255.
        counts: part -> number of images.
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

    def images(self, part: str) -> "torch.Tensor":
        """uint8 (N, C, H, W), mapped from disk; writing to it changes this process's copy, never the file."""
        return self._tensor(part, "images", (*self.shape,), np.uint8)

    def labels(self, part: str) -> "torch.Tensor":
        """int64 (N,)."""
        return self._tensor(part, "labels", (), np.int64)

    def _tensor(self, part: str, kind: str, shape: tuple[int, ...], dtype: type) -> "torch.Tensor":
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
        import torch  # here: to check params.yaml and to prepare images needs none of it, and it takes seconds

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
        raise FileNotFoundError(f"no prepared data set in {folder}; make one with `{_command(folder)}`") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'dataset.json'} is damaged ({error!r}); prepare it again") from error
    for part in data.counts:
        data.images(part)
        data.labels(part)
    return data


def _command(folder: Path) -> str:
    """What makes a prepared folder: an experiment's is its stage's, since without its settings the split is another."""
    try:
        if folder.resolve() == paths.prepared(folder.name):
            return f"dvc repro prepare@{folder.name}"
    except FileNotFoundError:  # the caller is in no project
        pass
    return f"python -m localnorm.data prepare NAME {folder}"
