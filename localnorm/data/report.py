"""Describe a prepared data set: images of each class and part, what was left out, and what to be careful about."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from localnorm import paths
from localnorm.data import sources
from localnorm.data.dataset import Dataset
from localnorm.data.readers import describe_skipped

__all__ = ["changed", "report", "warnings"]

MAX_CLASSES = 40  # in a table


def _counts(data: Dataset) -> dict[str, np.ndarray]:
    return {part: np.bincount(data.labels(part).numpy(), minlength=data.num_classes) for part in data.counts}


def report(data: Dataset) -> str:
    """A prepared data set in words: its parts class by class, what was left out, and `warnings`."""
    counts = _counts(data)
    total = ", ".join(f"{count:,} {part}" for part, count in data.counts.items())
    lines = [f"{data.title}: {total} images of {' x '.join(map(str, data.shape))}, {data.num_classes} classes"]
    if data.num_classes <= MAX_CLASSES:
        width = max(len("class"), *map(len, data.classes))
        lines.append(f"  {'class':{width}}" + "".join(f"{part:>12}" for part in counts))
        for label, name in enumerate(data.classes):
            lines.append(f"  {name:{width}}" + "".join(f"{of_class[label]:>12,}" for of_class in counts.values()))
    else:
        lines += [f"  {part}: {n.min():,} to {n.max():,} images per class" for part, n in counts.items()]
    by_class: dict[str, Counter] = {}
    for row in data.provenance.get("skipped", []):
        by_class.setdefault(row["class"], Counter())[row["reason"], row["class"]] += row["files"]
    for label, skipped in sorted(by_class.items()):
        lines.append(f"  left out{f' of {label}' if label else ''}: {describe_skipped(skipped)}")
    return "\n".join([*lines, *(f"  warning: {text}" for text in warnings(data))])


def warnings(data: Dataset) -> list[str]:
    """What a prepared data set cannot show: classes without images in a part, and images whose shape was changed."""
    found = []
    for part, counts in _counts(data).items():
        consequence = {
            "train": "a network cannot learn them",
            "validation": "they have no say when a strength is chosen",
            "test": "they are never tested",
        }[part]
        if without := [data.classes[label] for label in np.flatnonzero(counts == 0)]:
            names = ", ".join(without[:10]) + (f" and {len(without) - 10} more" if len(without) > 10 else "")
            found.append(f"no {part} image of {names}: {consequence}")
    fit, oblong = data.provenance.get("fit"), data.provenance.get("oblong", 0)
    if oblong:
        done = {
            "squash": "squeezed to a square; `fit: crop` takes the square in the middle instead",
            "crop": "cut to the square in the middle; `fit: squash` squeezes the whole image instead",
        }[fit]
        found.append(f"{oblong:,} of {sum(data.counts.values()):,} images are not square and were {done}")
    return found


def changed(experiments: Iterable[str]) -> dict[str, str]:
    """Find prepared experiments whose images on this machine have changed since, and say how they differ.

    Experiments that were not prepared, or whose images are not here, are left out. Published files are recognised by their name alone,
    since their checksums were verified when they were prepared. Files of your own are read completely.

    Returns:
        Experiment -> the difference and the command that prepares it anew.
    """
    found = {}
    for experiment in experiments:
        if difference := _difference(paths.prepared(experiment)):
            command = f"dvc repro --force --single-item prepare@{experiment}"
            found[experiment] = f"{difference}; `{command}` takes what is there now"
    return found


def _difference(folder: Path) -> str:
    try:
        record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        prepared = record["provenance"]
        plan = sources.plan(record["name"])
    except (OSError, KeyError, ValueError):
        return ""
    if plan.source is None:
        return ""
    name = " + ".join(file.name for file in plan.source.files)
    if name != prepared["source"]:
        return f"{folder.name} was prepared from {prepared['source']}, and now {name} is found first, in {plan.files[0].parent}"
    if not plan.is_own or sources.verify(plan.source, plan.files) == prepared["checksum"]:
        return ""
    return f"{folder.name} was prepared from {name} as it was before; {plan.files[0]} holds other bytes now"
