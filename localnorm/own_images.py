"""Bring a folder of your own images into the pipeline: ``python -m localnorm.own_images ~/photos/flowers``.

It packs the folder into data/raw, and prints the block of settings for params.yaml that makes an experiment of it.
"""

import argparse
import io
import json
import os
import re
import shutil
import sys
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from localnorm import paths
from localnorm.data import sources
from localnorm.data.archives import MAX_FILE_BYTES
from localnorm.data.images import FITS, IMAGE_SUFFIXES, check_image, refusals, why_unread
from localnorm.data.readers import SPLITS, is_hidden, read_image_folder
from localnorm.settings.rules import check_choice, check_count
from localnorm.settings.train import MODELS

__all__ = ["experiment_block", "experiment_name", "pack_folder", "write_sample_folder"]

WORKERS = 2  # threads that decode, as in `prepare`


def pack_folder(folder: str | Path) -> str:
    """Pack a folder of images into the archive data/raw/<name>.zip, where the stage `prepare` finds it.

    The folder is laid out as class/file, or as split/class/file with the splits of `localnorm.data`. Without splits all images are
    training images, and `prepare` takes a test and a validation part from them. Every image is decoded once first, so that nothing is
    written if one is damaged. Images are stored unchanged. Other files are stored without their content, so that `prepare` can count
    them. The folder itself is not changed.

    Calling this again after the folder changed replaces its archive.

    Args:
        folder: the folder of images.

    Returns:
        The name of the data set: that of the folder, or `<folder>-packed` where the folder's name already belongs to a built-in data
        set or to a folder in one of the searched places.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: the folder holds no images, has neither of the two layouts, has a class without images or links to folders, or holds
            images that cannot be read, which are all named. Or there is an archive of that name with other images, which was not
            packed from this folder.
            Nothing is written in any of these cases.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; give one that holds class/file or split/class/file")
    name = re.sub(r"[^\w-]+", "-", folder.name, flags=re.ASCII).strip("-_")
    if not name:
        raise ValueError(f"a data set needs letters or digits in its name, got the folder {folder.name!r}; rename it")
    # both would be found before the archive; a file system may take Digits for digits
    if name.lower() in sources.DATASETS or any((place / name).is_dir() for place in sources.search_path()):
        name += "-packed"
    members = _members(folder)
    plan = sources.plan(name)
    archive = paths.raw() / f"{name}.zip"
    if plan.source is None or (plan.files == (archive,) and _packed_from(archive) == str(folder)):
        if plan.source is None or not _holds(archive, members):
            _check_images(folder, members)
            _write_archive(archive, members, folder)
    elif not _holds(plan.files[0], members):
        raise ValueError(
            f"the name {name!r} must lead to the images of {folder}, but {plan.files[0]} has it and holds others; rename the "
            "folder, or remove that one if it is an older copy of the folder"
        )
    return name


def _members(folder: Path) -> dict[str, Path]:
    """Name in the archive (split/class/file) -> the file. Empty folders are among them; their names end in "/"."""
    every = {file.relative_to(folder): file for file in sorted(folder.rglob("*"))}
    if links := [name.as_posix() for name, file in every.items() if file.is_symlink() and file.is_dir()]:
        raise ValueError(
            f"{folder} has links to folders, which are not followed: {', '.join(links)}; put the folders themselves there, or "
            f"pack a copy that `cp -rL` made"
        )
    if unwritable := [str(name) for name in every if not _is_text(str(name))]:
        raise ValueError(
            f"{folder} has names that are not UTF-8: {', '.join(map(ascii, unwritable))}; rename those files"
        )
    images = [name for name, file in every.items() if file.is_file() and _is_image(name)]
    if not images:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}) as class/file or split/class/file")
    split = {name.parts[0] for name in images} <= set(SPLITS) and all(len(name.parts) == 3 for name in images)
    for name in images:
        if not split and len(name.parts) != 2:
            raise ValueError(
                f"{folder} is laid out neither as class/file nor as split/class/file with splits of {', '.join(SPLITS)} (in small "
                f"letters): {name.as_posix()}; give the folder that holds the classes or splits, and let all images lie at one depth"
            )
    before = "" if split else "train/"
    files = {f"{before}{name.as_posix()}": file for name, file in every.items() if file.is_file()}
    empty = {
        f"{before}{name.as_posix()}/": file for name, file in every.items() if file.is_dir() and not any(file.iterdir())
    }
    return files | empty


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # bytes of another encoding, which Python keeps as surrogates
        return False


def _is_image(name: Path) -> bool:
    return not is_hidden(name.as_posix()) and not why_unread(name.as_posix())


def _content(name: str, file: Path) -> bytes | Path:
    """What the archive holds of a file: all of it if it is an image, otherwise nothing."""
    return file if not name.endswith("/") and _is_image(Path(name)) else b""


def _check_images(folder: Path, members: dict[str, Path]) -> None:
    """Decode every image once, to see that it can be read.

    Raises:
        ValueError: some images cannot be used; all of them are named.
    """
    images = [file for name, file in members.items() if isinstance(_content(name, file), Path)]

    def refusal(file: Path) -> str:
        try:
            if (size := file.stat().st_size) > MAX_FILE_BYTES:
                return f"{file.relative_to(folder)} has {size:,} bytes, at most {MAX_FILE_BYTES:,} are allowed"
            check_image(file.read_bytes(), str(file.relative_to(folder)))
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(tqdm(pool.map(refusal, images), "check", len(images), unit=" images", file=sys.stderr))
    if refused := [reason for reason in found if reason]:
        raise ValueError(f"{folder}: {refusals(refused, len(images))}")


def _packed_from(archive: Path) -> str:
    """The folder that an archive was packed from; empty if the archive was changed since, or was not packed here."""
    try:
        origin = json.loads(_origin(archive).read_text(encoding="utf-8"))
        there = archive.stat()
    except (OSError, ValueError):
        return ""
    return origin["folder"] if (origin["bytes"], origin["changed"]) == (there.st_size, there.st_mtime_ns) else ""


def _origin(archive: Path) -> Path:
    """The file that says where an archive came from. It lies beside the archive, whose checksum must depend on the images alone."""
    return archive.with_name(f".{archive.name}.origin")


def _holds(path: Path, members: dict[str, Path]) -> bool:
    """Whether a zip holds exactly these files under these names; dates do not matter."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
    except (zipfile.BadZipFile, IsADirectoryError):
        return False
    return held.keys() == members.keys() and all(held[name] == _summary(name, file) for name, file in members.items())


def _summary(name: str, file: Path) -> tuple[int, int]:
    content = _content(name, file)
    data = content.read_bytes() if isinstance(content, Path) else content
    return len(data), zlib.crc32(data)


def _write_archive(path: Path, members: dict[str, Path], folder: Path) -> None:
    """Write the files to a zip under these names, completely or not at all. Files are streamed, since photographs are large.

    Raises:
        ValueError: `prepare` would refuse the archive; see `localnorm.data.readers.read_image_folder`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.zip")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:  # stored: images are compressed already
            for name, file in members.items():
                # of the file's metadata its date alone: the provenance gives the newest
                info = zipfile.ZipInfo(name, max(time.gmtime(file.stat().st_mtime)[:6], (1980, 1, 1, 0, 0, 0)))
                content = _content(name, file)
                with archive.open(info, "w") as target:
                    if isinstance(content, Path):
                        with content.open("rb") as source:
                            shutil.copyfileobj(source, target)
        try:
            read_image_folder([temporary])
        except ValueError as error:
            raise ValueError(str(error).replace(str(temporary), str(folder))) from None
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    there = path.stat()
    origin = {"folder": str(folder), "bytes": there.st_size, "changed": there.st_mtime_ns}
    paths.write(_origin(path), json.dumps(origin))


# model -> the settings that suit it; "small" is for pictures of at most 32 pixels
_SUITED = {
    "small": "epochs: 12\n    batch_size: 64 # B\n    num_groups: 4 # K, so 16 images per group\n    learning_rate: 0.1",
    "resnet32": "epochs: 30\n    batch_size: 64 # B\n    num_groups: 4 # K, so 16 images per group\n    learning_rate: 0.1",
    None: "pretrained: true # start from ImageNet weights, fetched once\n    epochs: 5\n    batch_size: 16 # B\n"
    "    num_groups: 2 # K, so 8 images per group\n    learning_rate: 0.02",
}
_BLOCK = """{experiment}:
  networks: [bn, ln] # BatchNorm and LocalNorm; ln_drawn too, with a line under `statistics`
  seeds: [0, 1, 2] # enough for a first look; verdicts need six
  prepare:
    dataset: {dataset}
    image_size: {size} # pixels a side, to which all images are resized
    fit: {fit} # crop takes the square in the middle; squash: squeezes the whole image to a square
    validation: 0.1 # share of the training images
    test: 0.2 # share of the images, where there is no folder `test`
    seed: 0
  train:
    model: {model}
    {suited} # peak of the one-cycle schedule
    augment: {{flip: {flip}, shift: 0.1}} # shift: share of the side
  answers:
    noises: {{named: [gaussian, brightness, contrast]}}
    statistics:
      bn: [fixed, batch, prior]
      ln: [batch, single, prior]
    batch_size: {batch} # test images together
    prior: {prior} # n0 in positions of a feature map
    max_levels: 3
    images: 384 # test images per condition at most
    streams: # test batches of other sizes, of one noise and of several
      sizes: [1, 8, {batch}]
      conditions: {{named: {{gaussian: 0.3, contrast: 0.9, brightness: 0.6}}}}
      images: {stream_images}
"""


def experiment_name(name: str, model: str) -> str:
    """<name>-<model>, with "-" for dots: DVC takes a dot in a name of params.yaml for a step into a block."""
    return f"{name}-{model}".replace(".", "-")


def experiment_block(
    name: str, model: str = "resnet18", image_size: int = 128, fit: str = "crop", epochs: int | None = None
) -> str:
    """The block of settings for params.yaml that makes an experiment of your own images: two networks with three seeds, for a first look.

    Args:
        name: name of the data set in data/raw, as `pack_folder` returns it.
        model: a key of `localnorm.settings.MODELS`. All but "small" and "resnet32" start from ImageNet weights.
        image_size: side in pixels to which the images are resized.
        fit: how an oblong image becomes a square, "crop" or "squash"; see `localnorm.data.prepare`.
        epochs: of training; None is what suits the model.

    Returns:
        Text in YAML with comments. The experiment is named as `experiment_name` says.

    Raises:
        ValueError: a model, a size or a fit that cannot be.
    """
    check_choice("model", model, MODELS)
    check_choice("fit", fit, FITS)
    check_count("image_size", image_size)
    suited = _SUITED.get(model, _SUITED[None])
    if model == "efficientnet_lite0":
        suited = f"eps: null # the network's own, which its weights need\n    {suited}"
    batch = re.search(r"batch_size: (\d+)", suited)[1]
    if epochs is not None:
        check_count("epochs", epochs)
        suited = re.sub(r"epochs: \d+", f"epochs: {epochs}", suited)
    flip, prior = ("false", 16) if image_size < 32 else ("true", 512)
    return _BLOCK.format(
        experiment=experiment_name(name, model),
        dataset=name if yaml.safe_load(name) == name else json.dumps(name),  # 2024 would be a number
        model=model,
        fit=fit,
        size=image_size,
        suited=suited,
        batch=batch,
        stream_images=2 * int(batch),
        flip=flip,
        prior=prior,
    )


def write_sample_folder(folder: Path, images: int = 600, size: int = 16) -> Path:
    """Write scikit-learn's digits as a folder of colour PNG files, class/file, to try things with.

    Args:
        folder: where to write them.
        images: how many digits, from the first on.
        size: side in pixels; the originals have 8.

    Returns:
        `folder`.
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


def _named(images: str) -> str:
    """The name of the data set that is meant: a folder here is packed, before anything in data/raw is looked for.

    Raises:
        ValueError: `prepare` would refuse what the name leads to.
    """
    is_name = re.fullmatch(r"[\w.-]+", images) and not Path(images).is_dir() and sources.plan(images).source is not None
    name = images if is_name else pack_folder(images)
    found = sources.plan(name)
    if found.is_own and len(classes := read_image_folder(list(found.files)).classes) < 2:
        raise ValueError(f"{images} holds one class, {classes[0]}; a classifier needs at least two to choose from")
    return name


def main(arguments: list[str] | None = None) -> int:
    """Pack a folder and print its block of settings; returns the exit status.

    Args:
        arguments: those of the command line; None takes this process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m localnorm.own_images",
        description="Print the block of params.yaml that puts images of your own through the pipeline.",
    )
    parser.add_argument("images", help="a folder of images, which is packed into data/raw, or a name that lies there")
    parser.add_argument("--model", default="resnet18", choices=MODELS, help="default: %(default)s")
    parser.add_argument("--image-size", type=int, default=128, help="pixels a side (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        name = _named(given.images)
        block = experiment_block(name, given.model, given.image_size)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    experiment = experiment_name(name, given.model)
    print(block, end="")
    print(
        f"add {experiment} to the list `experiments` of params.yaml and the block above at its end; "
        f"then: make quickstart EXPERIMENT={experiment}",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
