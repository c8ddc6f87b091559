"""The tables of REPRODUCING.md: what each primary comparison should give, how far another run may differ, and what was trained on what."""

import json
from collections.abc import Sequence

import pandas as pd

from localnorm import paths
from localnorm.arms import METRICS
from localnorm.compare import tolerances
from localnorm.params import load_params
from localnorm.render.readme import replace_between
from localnorm.render.verdicts import verdict_words
from localnorm.tables import read_about, read_table
from localnorm.words import difference, scored_images

__all__ = ["expected", "hardware", "write"]


def expected(compared: pd.DataFrame) -> str:
    """A Markdown table of the primary comparisons of each experiment, and below it the command that makes each experiment's rows.

    Args:
        compared: the published comparisons.

    Returns:
        One row per experiment and primary comparison: estimate with its interval, verdict, and how far another run may differ, in points.
    """
    lines = [
        "| | data set | compared | expected (points) | verdict | another run may differ by |",
        "|---|---|---|---|---|--:|",
    ]
    for name, rows in compared[compared.primary != ""].groupby("experiment", sort=False):
        within = tolerances(name)
        for row in rows.itertuples():
            what = f"{row.first} - {row.second}, {METRICS[row.metric].label}"
            off = within.get((row.first, row.second, row.metric, row.source))
            lines.append(
                f"| {row.primary} | {row.title} | {what} | {difference(row)} | "
                f"{verdict_words(row)} | {'-' if off is None else f'{100 * off:.1f}'} |"
            )
    titles = dict(zip(compared.title, compared.experiment, strict=True))
    commands = [
        f"`dvc repro --single-item comparisons@{name}` makes the rows of {title}." for title, name in titles.items()
    ]
    return "\n".join([*lines, "", *commands]) + "\n"


def hardware(abouts: dict[str, dict]) -> str:
    """A Markdown table with one row per experiment: data, test images, seeds, epochs, hardware, torch, and minutes of training.

    Args:
        abouts: name of the experiment -> what `localnorm.tables.read_about` gives.
    """
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


def blocks(lengths: Sequence[str] = ()) -> dict[str, str]:
    """The generated blocks of REPRODUCING.md: name -> text.

    Args:
        lengths: experiments that differ in how long they train; those that are not published stand below the published.
    """
    abouts = json.loads((paths.results("published") / "about.json").read_text(encoding="utf-8"))
    compared = read_table("comparisons", "published")
    ordered = {name: abouts[name] for name in dict.fromkeys(compared.experiment)}
    longer = {name: read_about(name) for name in lengths if name not in ordered}
    return {"expected": expected(compared), "hardware": hardware(ordered | longer)}


def write() -> None:
    """Put the tables into REPRODUCING.md."""
    file = paths.project() / "REPRODUCING.md"
    text = file.read_text(encoding="utf-8")
    for name, block in blocks(load_params().get("lengths", [])).items():
        text = replace_between(text, name, "reproducing", block)
    paths.write(file, text)
