"""The generated tables of the README: which way of normalising to use in which situation, and the claims with their marks."""

import math
from collections.abc import Sequence

import pandas as pd

from localnorm import paths, scores, stats
from localnorm.arms import ARMS, METRICS, STATISTICS
from localnorm.comparisons import CLAIMS, verdict
from localnorm.evaluators import COSTS, cost_summary
from localnorm.params import load_params
from localnorm.render.verdicts import MARKS
from localnorm.tables import read_longest, read_table
from localnorm.words import percent

__all__ = ["between", "blocks", "blocks_of_params", "claims", "replace_between", "situations", "write"]

MARKERS = "<!-- {0}: written by `python -m localnorm.render {1}` -->", "<!-- /{0} -->"
# (situation, arm, one line of code); an empty situation is that of the row above. The first arm of a situation is the one to use: a
# test holds it against the others.
SITUATIONS = (
    ("many test images of one condition", "BN batch", 'predict(model, images, "batch", batch_size=B)'),
    ("", "LN batch", 'predict(model, images, "batch", batch_size=B)'),
    ("one image at a time, a BatchNorm network", "BN gated", 'predict(model, image, "gated", prior=n0)'),
    ("", "BN prior", 'predict(model, image, "prior", prior=n0)'),
    ("one image at a time, retraining possible", "LN shrunk gated", 'predict(model, image, "gated", prior=n0)'),
    ("", "BN shrunk gated", 'predict(model, image, "gated", prior=n0)'),
    ("", "LN prior", 'predict(model, image, "prior", prior=n0)'),
    ("", "LN drawn single", 'predict(model, image, "single")'),
    ("a stream of mixed conditions", "BN shrunk prior", 'predict(model, image, "prior", prior=n0)'),
    ("", "LN shrunk prior", 'predict(model, image, "prior", prior=n0)'),
    ("", "LN prior", 'predict(model, image, "prior", prior=n0)'),
    ("", "BN prior", 'predict(model, image, "prior", prior=n0)'),
    ("", "LN drawn single", 'predict(model, image, "single")'),
    ("", "BN batch", 'predict(model, images, "batch", batch_size=B)'),
    ("clean images alone", "BN fixed", "model.eval()(images)"),
)
STREAM = "a stream of mixed conditions"
UNTESTED = "-"
# claims without a primary comparison -> what is said of them: first and second arm, metric, and epochs of fine-tuning of a conversion
DESCRIBED = {
    "C2": (("BN batch", "BN fixed", "noisy", ""), ("BN fixed", "BN batch", "clean", "")),
    "C6": (("LN prior", "BN fixed", "dark", ""), ("LN prior", "BN prior", "dark", "")),
    "C9": (("LN batch", "BN fixed", "clean", "0"), ("LN batch", "BN batch", "noisy", "0")),
}
COST_WORDS = {"step": "time", "memory": "memory", "single": "time of images alone"}  # as a multiple of BatchNorm's


def situations(summary: pd.DataFrame, streams: dict[str, pd.DataFrame]) -> str:
    """A Markdown table: one row per situation and arm, the code, and per experiment clean and noisy accuracy in percent.

    The arm to use in a situation is bold, and below it stand others that it was compared with.

    Args:
        summary: columns title, arm, metric and estimate.
        streams: title -> its study of test batches, for the rows of mixed conditions.
    """
    titles = list(dict.fromkeys(summary.title))
    value = summary.set_index(["title", "arm", "metric"]).estimate
    lines = [
        f"| you have | way | code | {' | '.join(f'{each}: clean / noisy' for each in titles)} |",
        f"|---|---|---|{'--:|' * len(titles)}",
    ]
    block = shown = above = best = ""
    for situation, arm, code in SITUATIONS:
        if situation:
            block, best = situation, arm
        if block == STREAM:
            pairs = [_in_stream(streams[each], arm) for each in titles]
        else:
            pairs = [[value.get((each, arm, metric), math.nan) for metric in ("clean", "noisy")] for each in titles]
        if all(math.isnan(number) for pair in pairs for number in pair):
            continue  # no experiment ran the arm
        cells = [" / ".join(map(percent, pair)) for pair in pairs]
        known = block == shown  # what the row above says is not said again
        said = "" if known and code == above else f"`{code}`"
        shown_arm = f"**{arm}**" if arm == best else arm
        lines.append(f"| {'' if known else block} | {shown_arm} | {said} | {' | '.join(cells)} |")
        shown, above = block, code
    return "\n".join(lines) + "\n"


def _in_stream(table: pd.DataFrame, label: str) -> list[float]:
    """Clean and noisy accuracy on a mixed stream: an arm of one image in batches of one, another in the largest batches."""
    arm = ARMS[label]
    alone = STATISTICS[arm.statistics].one_image
    statistics = (
        "batch" if arm.statistics == "single" else arm.statistics
    )  # a batch of one image has that image's statistics
    rows = table[(table.composition == "mixed") & (table.network == arm.network) & (table.statistics == statistics)]
    rows = rows[rows.batch_size == (rows.batch_size.min() if alone else rows.batch_size.max())]
    return [scores.per_seed(rows, metric, ["seed"]).mean() for metric in ("clean", "noisy")]


def claims(compared: pd.DataFrame, shifts: dict[str, pd.DataFrame], costs: pd.DataFrame) -> str:
    """A Markdown table with one row per claim: what was measured, and the differences in points per experiment.

    Differences of primary comparisons have their mark, unless they are of few seeds.

    Args:
        compared: comparisons of one experiment or more, with the columns experiment and title.
        shifts: experiment -> its shifts, where they were measured.
        costs: the table of costs.
    """
    names = dict(zip(compared.experiment, compared.title, strict=True))  # in order, each once
    lines = [f"| claim | measured | {' | '.join(names.values())} |", f"|---|---|{'---|' * len(names)}"]
    for key, claim in CLAIMS.items():
        if key in COSTS:
            what, cells = _costs(costs, key), [""] * len(names)
        elif key == "C1":
            what, cells = "noises and levels that do", [_shifted(shifts.get(name)) for name in names]
        else:
            what, cells = _found(key, compared, list(names))
        ours = " (ours)" if claim.ours else ""
        lines.append(
            f"| [**{key}**](REPRODUCING.md#what-to-expect){ours} {claim.statement} | {what} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _found(key: str, compared: pd.DataFrame, names: list[str]) -> tuple[str, list[str]]:
    """What was compared, and one cell per experiment: the primary comparisons of a claim, or those of DESCRIBED."""
    columns = ["first", "second", "metric", "value"]
    rows = compared[compared.claim == key]
    chosen = DESCRIBED.get(key) or rows.loc[rows.primary != "", columns].drop_duplicates().itertuples(
        index=False, name=None
    )
    said, cells = [], [[] for _ in names]
    for each in chosen:
        first, second, metric, epochs = each
        said.append(f"{first} - {second}, {METRICS[metric].label}{f', {epochs} epochs later' if epochs else ''}")
        for name, cell in zip(names, cells, strict=True):
            own = rows[(rows.experiment == name) & (rows[columns] == list(each)).all(axis=1) & (rows.seeds > 0)]
            for row in own.itertuples():
                tested = row.primary and not math.isnan(row.low)  # few seeds have no interval and no verdict
                cell.append(f"{MARKS[verdict(row)] + ' ' if tested else ''}{100 * row.estimate:+.1f}")
            if own.empty:
                cell.append(UNTESTED)
    return "<br>".join(said), ["<br>".join(cell) for cell in cells]


def _shifted(shifts: pd.DataFrame | None) -> str:
    if shifts is None:
        return UNTESTED
    beyond = stats.beyond_clean(shifts)
    return f"{int(beyond.sum())} of {len(beyond)}"


def _costs(costs: pd.DataFrame, claim: str) -> str:
    """The range of the ratio to BatchNorm over networks and settings, on CPUs and on GPUs."""
    table = cost_summary(costs)
    said = []
    for measure, words in COST_WORDS.items():
        rows = table[(table.claim == claim) & (table.measure == measure)]
        for where, on in (("CPU", rows.device == "cpu"), ("GPU", rows.device != "cpu")):
            if on.any():
                said.append(f"{words}, {where}: {rows.lowest[on].min():.2f} to {rows.highest[on].max():.2f}")
    return "<br>".join(said) or UNTESTED


def replace_between(text: str, name: str, renderer: str, block: str) -> str:
    """A text with the block between two markers replaced.

    Raises:
        ValueError: the markers are not there.
    """
    first, last = (marker.format(name, renderer) for marker in MARKERS)
    if first not in text or last not in text:
        raise ValueError(f"the text needs the lines {first} and {last}, between which the stage {renderer!r} writes")
    before, _, rest = text.partition(first)
    return f"{before}{first}\n{block}{last}{rest.partition(last)[2]}"


def between(text: str, name: str, renderer: str) -> str:
    """The block that a text has between the markers now."""
    first, last = (marker.format(name, renderer) for marker in MARKERS)
    return text.partition(f"{first}\n")[2].partition(last)[0]


def blocks(lengths: Sequence[str] = (), controlled: Sequence[str] = ()) -> dict[str, str]:
    """The generated blocks of README.md: name -> text.

    Args:
        lengths: experiments that differ in how long they train. How long changes the picture, so accuracies are those of the longest, and
            its differences stand beside the published.
        controlled: those whose published networks were asked in more ways, on the images and noises of their answers.
    """
    summary, compared = read_table("summary", "published"), read_table("comparisons", "published")
    shifts = {
        name: read_table("shifts", name)
        for name in compared.experiment.unique()
        if (paths.results(name) / "shifts.csv").is_file()
    }
    if lengths:
        longest, name = read_longest(lengths, controlled)
        compared = pd.concat(
            [compared, read_table("comparisons", name).assign(experiment=name, title=longest.title[0])]
        )
        summary = pd.concat([summary[~summary.experiment.isin(lengths)], longest.assign(experiment=name)])
    streams = {
        row.title: read_table("streams", row.experiment) for row in summary.drop_duplicates("title").itertuples()
    }
    return {"situations": situations(summary, streams), "claims": claims(compared, shifts, read_table("cost"))}


def blocks_of_params() -> dict[str, str]:
    """The blocks of the experiments that params.yaml lists."""
    params = load_params()
    return blocks(params.get("lengths", []), params.get("controlled", []))


def write() -> None:
    """Put the blocks into README.md."""
    readme = paths.project() / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, block in blocks_of_params().items():
        text = replace_between(text, name, "readme", block)
    paths.write(readme, text)
