"""The generated tables of the README: which way of normalising to use in which situation, and the claims with their marks."""

import json

import pandas as pd

from localnorm import paths, scores, stats
from localnorm.arms import METRICS
from localnorm.comparisons import CLAIMS, verdict
from localnorm.evaluators import COSTS, cost_summary
from localnorm.render.verdicts import MARKS
from localnorm.scores import REFERENCE
from localnorm.tables import read_table
from localnorm.words import percent

__all__ = ["between", "blocks", "claims", "replace_between", "situations", "write"]

STREAM = "a stream of mixed conditions"
MARKERS = "<!-- {0}: written by `python -m localnorm.render {1}` -->", "<!-- /{0} -->"
# situation -> (arm, one line of code); in each, what needs least comes first among the best: bold tells which those are
GATED, PRIOR, BATCH = (
    'predict(model, image, "gated", prior=n0)',
    'predict(model, image, "prior", prior=n0)',
    'predict(model, images, "batch", batch_size=B)',
)
SITUATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "clean images (baseline)": ((REFERENCE, "model.eval()(images)"),),
    "many test images of one condition": (
        ("BN batch", BATCH),
        ("LN batch", BATCH),
        ("LN pooled", 'predict(model, images, "pooled", batch_size=B)'),
    ),
    "one image at a time": (
        ("BN gated", GATED),
        ("BN prior", PRIOR),
        ("LN gated", GATED),
        ("LN prior", PRIOR),
    ),
    "one image, retraining possible": (
        ("BN shrunk gated", GATED),
        ("LN shrunk gated", GATED),
        ("LN drawn single", 'predict(model, image, "single")'),
    ),
    STREAM: (
        (REFERENCE, "model.eval()(images)"),
        ("BN gated", GATED),
        ("BN shrunk gated", GATED),
        ("LN prior", PRIOR),
        ("BN batch", BATCH),
    ),
}
NEAR = 0.01  # seeds of one arm lie farther apart than that, so nothing here tells such arms from each other
UNTESTED = "-"
# claims without a primary comparison -> what is said of them: first and second arm, metric, and epochs after a conversion, "0" for none
DESCRIBED = {
    "C2": (("BN batch", "BN fixed", "noisy", ""), ("BN fixed", "BN batch", "clean", "")),
    "C6": (
        ("LN prior", "BN fixed", "dark", ""),
        ("LN prior", "BN prior", "dark", ""),
        ("LN drawn single", "BN prior", "dark", ""),
    ),
    "C9": (("LN batch", "BN fixed", "clean", "0"), ("LN batch", "BN batch", "noisy", "0")),
}
# multiples of BatchNorm's
COST_WORDS = {"step": "time", "memory": "memory", "single": "single", "prior": "prior", "gated": "gated"}


def situations(summary: pd.DataFrame, streams: dict[str, pd.DataFrame], headings: dict[str, str]) -> str:
    """A Markdown table: one row per situation and arm, the code, and per experiment what it brings on clean images and under noise.

    Usual practice, `localnorm.scores.REFERENCE`, has its accuracies in percent; every other arm has the points that it gains or loses
    against it on the seeds that both have. Bold is an arm whose mean of both lies within a point of the best in its situation and
    experiment. An arm of fewer seeds than its experiment says how many.

    Args:
        summary: columns experiment, arm, metric, seeds, estimate and change.
        streams: experiment -> its study of test batches, for the rows of mixed conditions.
        headings: experiment -> the words above its column.
    """
    asked = {each: summary[summary.experiment == each] for each in headings}
    mixed = {each: scores.mixed_stream(streams[each]).rename(columns={"accuracy": "estimate"}) for each in headings}
    most = {each: table.seeds.max() for each, table in asked.items()}
    lines = [
        f"| you have | way | code | {' | '.join(f'{each}: clean / noisy' for each in headings.values())} |",
        f"|---|---|---|{'--:|' * len(headings)}",
    ]
    for situation, arms in SITUATIONS.items():
        of_arm = {
            each: (mixed if situation == STREAM else asked)[each].set_index(["arm", "metric"]) for each in headings
        }
        found = {arm: {each: _of(of_arm[each], arm) for each in headings} for arm, _ in arms}
        best = {
            each: max((rows[each].change.mean() for rows in found.values() if len(rows[each])), default=0.0)
            for each in headings
        }
        said = ""
        for arm, code in arms:
            if any(len(rows) for rows in found[arm].values()):  # else no experiment ran the arm
                cells = [_cell(found[arm][each], most[each], best[each] - NEAR, arm == REFERENCE) for each in headings]
                lines.append(f"| {' | '.join((situation if not said else '', arm, f'`{code}`', *cells))} |")
                said = situation
    return "\n".join(lines) + "\n"


def _of(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The rows of an arm on clean and noisy images; none where it was not run."""
    return table.loc[[key for metric in ("clean", "noisy") if (key := (arm, metric)) in table.index]]


def _cell(found: pd.DataFrame, most: int, good: float, absolute: bool) -> str:
    """ "-1.3 / +22.3", of fewer seeds than others "-1.3 / +22.3 (2 seeds)", bold where the mean is good; a dash where it was not run."""
    if found.empty:
        return UNTESTED
    seeds = int(found.seeds.min())
    fewer = "" if seeds == most else " (one seed)" if seeds == 1 else f" ({seeds} seeds)"
    both = " / ".join(map(percent, found.estimate) if absolute else [f"{100 * each:+.1f}" for each in found.change])
    return (f"**{both}**" if found.change.mean() >= good else both) + fewer


def claims(
    compared: pd.DataFrame, shifts: dict[str, pd.DataFrame], costs: pd.DataFrame, headings: dict[str, str]
) -> str:
    """A Markdown table with one row per claim: what was measured, and the differences in points per experiment.

    Differences of primary comparisons have the mark of their verdict.

    Args:
        compared: comparisons of one experiment or more, with the column experiment.
        shifts: experiment -> its shifts, where they were measured.
        costs: the table of costs.
        headings: experiment -> the words above its column.
    """
    lines = [f"| claim | measured | {' | '.join(headings.values())} |", f"|---|---|{'---|' * len(headings)}"]
    for key, claim in CLAIMS.items():
        if key in COSTS:
            what, cells = _costs(costs, key), [""] * len(headings)
        elif key == "C1":
            what, cells = "noises and levels that do", [_shifted(shifts.get(name)) for name in headings]
        else:
            what, cells = _found(key, compared, list(headings))
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
        later = ", converted (short trainings)" if epochs else ""  # of the ablations
        said.append(f"{first} - {second}, {METRICS[metric].label}{later}")
        for name, cell in zip(names, cells, strict=True):
            own = rows[(rows.experiment == name) & (rows[columns] == list(each)).all(axis=1) & (rows.seeds > 0)]
            for row in own.itertuples():
                word = verdict(row)
                cell.append(f"{MARKS[word] + ' ' if word else ''}{100 * row.estimate:+.1f}")
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


def blocks() -> dict[str, str]:
    """The generated blocks of README.md, from the published tables: name -> text."""
    summary, compared = read_table("summary", "published"), read_table("comparisons", "published")
    abouts = json.loads((paths.results("published") / "about.json").read_text(encoding="utf-8"))
    titles = dict(zip(summary.experiment, summary.title, strict=True))  # in order, each once
    headings = {
        name: f"{each}, {abouts[name]['epochs']} epochs, {abouts[name]['seeds']} seeds" for name, each in titles.items()
    }
    streams = {name: read_table("streams", name) for name in headings}
    shifts = {name: read_table("shifts", name) for name in headings if (paths.results(name) / "shifts.csv").is_file()}
    return {
        "situations": situations(summary, streams, headings),
        "claims": claims(compared, shifts, read_table("cost"), headings),
    }


def write() -> None:
    """Put the blocks into README.md."""
    readme = paths.project() / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, block in blocks().items():
        text = replace_between(text, name, "readme", block)
    paths.write(readme, text)
