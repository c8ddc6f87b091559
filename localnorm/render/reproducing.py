"""The tables of REPRODUCING.md: what to expect of each primary comparison, how far it may lie off, and what each experiment takes."""

import json

import pandas as pd

from localnorm import paths
from localnorm.arms import METRICS
from localnorm.compare import tolerances
from localnorm.render.readme import replace_between
from localnorm.render.verdicts import verdict_words
from localnorm.tables import read_table
from localnorm.words import difference, scored_images

__all__ = ["expected", "hardware", "write"]


def expected(compared: pd.DataFrame) -> str:
    """One row per experiment and primary comparison: command, figure, estimate, verdict, and the tolerance of another run in points."""
    lines = [
        "| | data set | compared | expected (points) | verdict | another run may differ by | command |",
        "|---|---|---|---|---|--:|---|",
    ]
    for name, rows in compared[compared.primary != ""].groupby("experiment", sort=False):
        within = tolerances(name)
        for row in rows.itertuples():
            what = f"{row.first} - {row.second}, {METRICS[row.metric].label}"
            off = within.get((row.first, row.second, row.metric, row.source))
            lines.append(
                f"| {row.primary} | {row.title} | {what} | {difference(row)} | "
                f"{verdict_words(row)} | {'-' if off is None else f'{100 * off:.1f}'} | `dvc repro "
                f"comparisons@{name}` |"
            )
    return "\n".join(lines) + "\n"


def hardware(abouts: dict[str, dict]) -> str:
    """One row per experiment: data, test images, networks, epochs, device, torch, and how long all its trainings took together."""
    lines = [
        "| experiment | data | test images | seeds | epochs | hardware | torch | training |",
        "|---|---|--:|--:|--:|---|---|--:|",
    ]
    for name, about in abouts.items():
        lines.append(
            f"| `{name}` | {about['title']} | {scored_images(about)} | {about['seeds']} | {about['epochs']} | "
            f"{', '.join(about['devices'])} | {', '.join(about['torch'])} | {about['minutes']:.0f} min |"
        )
    return "\n".join(lines) + "\n"


def blocks() -> dict[str, str]:
    """Name of a block of REPRODUCING.md -> its text."""
    abouts = json.loads((paths.results("published") / "about.json").read_text(encoding="utf-8"))
    compared = read_table("comparisons", "published")
    ordered = {name: abouts[name] for name in dict.fromkeys(compared.experiment)}
    return {"expected": expected(compared), "hardware": hardware(ordered)}


def write() -> None:
    """Put the tables into REPRODUCING.md."""
    file = paths.project() / "REPRODUCING.md"
    text = file.read_text(encoding="utf-8")
    for name, block in blocks().items():
        text = replace_between(text, name, "reproducing", block)
    paths.write(file, text)
