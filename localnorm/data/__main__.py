"""The data package on the command line: list, fetch, verify, prepare, changed; progress and errors go to stderr."""

import argparse
import sys
from pathlib import Path

from localnorm import paths
from localnorm.data import fetch, sources
from localnorm.data.dataset import load
from localnorm.data.images import FITS
from localnorm.data.prepare import prepare
from localnorm.data.report import changed, report


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
        "--fit", choices=FITS, default="squash", help="how an oblong image becomes a square (default: %(default)s)"
    )
    command.add_argument("--sixteen-bit", action="store_true", help="take grey images with 16 bits, by the upper 8")
    command.add_argument(
        "--validation", type=float, default=0.1, help="share of the training images (default: %(default)s)"
    )
    command.add_argument("--test", type=float, default=0.1, help="the same, where the source has no test images")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--limit", type=int, help="at most so many images per part")
    command.add_argument("--channels", type=int, choices=(1, 3))
    command = commands.add_parser("changed", help="which prepared experiments are not of the images that lie here now")
    command.add_argument("experiments", nargs="*", metavar="experiment", help="default: all that are prepared")
    options = vars(parser.parse_args(arguments))
    try:
        _COMMANDS[options.pop("command")](**options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _list() -> None:
    for name, dataset in sources.DATASETS.items():
        plan = sources.plan(name)
        print(f"{name}: {dataset.num_classes} classes, licence: {dataset.licence}")
        for source in dataset.sources:
            marks = [source.format, "lossy copy" if source.lossy else "", source.note]
            if source is plan.source:
                marks.append(f"used, from {plan.files[0].parent}")
            elif source.fetchable:
                marks.append("can be downloaded")
            print(f"  {source.title} ({', '.join(mark for mark in marks if mark)})")
            for file in source.files:
                size = f", {file.size:,} bytes" if file.size else ""
                print(f"    {file.name}{size}{f', {file.checksum}' if file.checksum else ''}")


def _fetch(dataset: str) -> None:
    source, found = fetch.obtain(sources.plan(dataset))
    for path in found:
        print(f"{source.title}: {path}")


def _verify(dataset: str) -> None:
    plan = sources.plan(dataset)
    if plan.source is None:
        raise sources.missing(plan.dataset, [])
    digest = sources.verify(plan.source, plan.files)
    checked = "as published" if all(file.checksum for file in plan.source.files) else "no checksum is published"
    print(f"{plan.source.title}: {digest} ({checked})")


def _prepare(dataset: str, output: Path, **options) -> None:
    print(f"{report(load(prepare(dataset, output, **options)))}\nin {output}")


def _changed(experiments: list[str]) -> None:
    there = paths.prepared("").iterdir() if paths.prepared("").is_dir() else ()
    names = experiments or sorted(folder.name for folder in there if not folder.name.startswith("."))
    if found := changed(names):
        raise ValueError("\n".join(found.values()))


_COMMANDS = {"list": _list, "fetch": _fetch, "verify": _verify, "prepare": _prepare, "changed": _changed}

if __name__ == "__main__":
    sys.exit(main())
