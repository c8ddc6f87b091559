"""The data package on the command line: list, fetch, verify, prepare; progress and errors go to stderr."""

import argparse
import sys
from pathlib import Path

from localnorm.data import fetch, sources
from localnorm.data.dataset import load
from localnorm.data.prepare import prepare


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m localnorm.data",
        description="Find, download, check and prepare data sets.",
        epilog=f"Local data is looked for in the folders of {sources.VARIABLE}, then in data/raw.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every built-in data set, its sources, and which of them lies here")
    for name, help in (
        ("fetch", "download a data set into data/raw, unless it lies here"),
        ("verify", "check the files of a data set that lies here"),
    ):
        commands.add_parser(name, help=help).add_argument("dataset")
    command = commands.add_parser("prepare", help="write a data set's uint8 tensors into a folder")
    command.add_argument("dataset", help="a built-in name, or that of your own image folder or archive")
    command.add_argument("output", type=Path)
    command.add_argument("--image-size", type=int, help="side in pixels (default: the images' own)")
    command.add_argument(
        "--validation", type=float, default=0.1, help="share of the training images (default: %(default)s)"
    )
    command.add_argument("--test", type=float, default=0.1, help="the same, where the source has no test images")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--limit", type=int, help="at most so many images a part")
    command.add_argument("--channels", type=int, choices=(1, 3))
    options = vars(parser.parse_args(arguments))
    try:
        _COMMANDS[options.pop("command")](**options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _list() -> None:
    for name, dataset in sources.DATASETS.items():
        here = sources.find(name)
        print(f"{name}: {dataset.num_classes} classes, licence: {dataset.licence}")
        for source in dataset.sources:
            marks = [source.format, "lossy copy" if source.lossy else "", source.note]
            if here is not None and here[0] is source:
                marks.append(f"used, from {here[1][0].parent}")
            elif source.fetchable:
                marks.append("can be downloaded")
            print(f"  {source.title} ({', '.join(mark for mark in marks if mark)})")
            for file in source.files:
                size = f", {file.size:,} bytes" if file.size else ""
                print(f"    {file.name}{size}{f', {file.checksum}' if file.checksum else ''}")


def _fetch(dataset: str) -> None:
    source, found = fetch.obtain(dataset)
    for path in found:
        print(f"{source.title}: {path}")


def _verify(dataset: str) -> None:
    here = sources.find(dataset)
    if here is None:
        raise sources.missing(dataset, [])
    source, found = here
    digest = sources.verify(source, found)
    checked = "as published" if all(file.checksum for file in source.files) else "no checksum is published"
    print(f"{source.title}: {digest} ({checked})")


def _prepare(dataset: str, output: Path, **options) -> None:
    data = load(prepare(dataset, output, **options))
    counts = ", ".join(f"{count:,} {part}" for part, count in data.counts.items())
    print(
        f"{data.title}: {counts} images of {' x '.join(map(str, data.shape))}, {data.num_classes} classes, in {output}"
    )


_COMMANDS = {"list": _list, "fetch": _fetch, "verify": _verify, "prepare": _prepare}

if __name__ == "__main__":
    sys.exit(main())
