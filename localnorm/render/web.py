"""Results as web pages: an article to read first; behind it a page per experiment, further figures, notebooks, and a demonstration.

The pages need no network and no server: style sheets and images lie beside them or within the page. nbconvert's own page templates fetch
scripts and fonts from the web, so only its basic one is used, inside a page that is written here.
"""

import re
import shutil
import subprocess
from html import escape
from importlib import resources
from pathlib import Path

import mistune
import nbformat
import yaml
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from localnorm import paths
from localnorm.arms import METRICS
from localnorm.params import load_params
from localnorm.render import readme
from localnorm.render.verdicts import verdict_words
from localnorm.tables import read_about, read_table
from localnorm.words import IN_BRACKETS, describe, difference, share, spread, title

__all__ = ["page", "write_site"]

TITLE = "LocalNorm, reproduced: results"  # the index's, by which a report is known again
HEADING = "LocalNorm, reproduced"
SUBTITLE = "What group statistics add to statistics of the test images"
# what lies in a report; the last is left there by the macOS Finder
OWN = {
    "index.html",
    "more.html",
    "demo.html",
    "style.css",
    "paper.pdf",
    "supplement.pdf",
    "notebooks",
    "figures",
    "tables",
    "demo",
}
OWN |= {".DS_Store"}
# of the article, each with the heading above it
MAIN_FIGURES = {
    "groups": "How LocalNorm works",
    "levels": "How fast accuracy falls",
    "forest": "In test batches",
    "one-image": "One image at a time",
    "length": "What longer training changes",
}
FIGURES = (
    "accuracy",
    "streams",
    "calibration",
    "ablations",
    "poor-light",
    "poor-light-published",
    "front",
)  # of an experiment, in this order


def page(title: str, body: str, up: str = "", style: str = "style.css") -> str:
    """A whole HTML page around `body`; `up` is the address of the index, empty on the index itself."""
    link = f'<nav><a href="{up}">{HEADING}</a></nav>' if up else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="stylesheet" href="{style}">\n</head>\n'
        f"<body>\n{link}\n{body}\n</body>\n</html>\n"
    )


def write_site(output: Path) -> Path:
    """Write the pages of the results in this folder; earlier pages at `output` are replaced once the new ones are whole.

    Returns:
        The index page.

    Raises:
        FileNotFoundError: no experiment has results here.
        ValueError: `output` holds something else than such pages; nothing of it is touched.
    """
    params = load_params()
    there = [name for name in params["experiments"] if (paths.results(name) / "comparisons.csv").is_file()]
    if not there:
        raise FileNotFoundError("no experiment has results here; make some with `make quickstart`")
    if foreign := _foreign(output):
        raise ValueError(
            f"the pages replace only earlier ones or an empty folder, and {output} holds {foreign[0]}, which they did "
            "not write; choose another folder, or move that away"
        )
    published = [name for name in params["published"] if name in there]
    there = [*published, *(name for name in there if name not in published)]
    new = output.with_name(f".{output.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    try:
        style = (resources.files("localnorm.render") / "pages" / "style.css").read_text(encoding="utf-8")
        paths.write(new / "style.css", style + HtmlFormatter(style="default").get_style_defs(".highlight"))
        notebooks = _write_notebooks(new)
        _copy_figures(new)
        for name in there:
            body = _experiment(name, _title(name, there), new, _notebooks_of(name, there, notebooks))
            paths.write(new / f"results-{name}.html", page(_title(name, there), body, "index.html"))
        paths.write(new / "more.html", page("More figures and notebooks", _more(new, there, notebooks), "index.html"))
        demonstrated = _write_demonstration(new)
        paths.write(new / "index.html", page(TITLE, _article(new, there, bool(published), demonstrated)))
        shutil.rmtree(output, ignore_errors=True)
        new.rename(output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return output / "index.html"


def _foreign(output: Path) -> list[str]:
    """What lies at `output` and would be lost with it: everything but earlier pages, for other pages have an index.html too."""
    names = sorted(file.name for file in output.iterdir()) if output.exists() else []
    index = output / "index.html"
    if index.is_file() and f"<title>{TITLE}</title>" in index.read_text(encoding="utf-8", errors="replace"):
        return [name for name in names if name not in OWN and not re.fullmatch(r"results-.+\.html", name)]
    return names


def _copy_figures(folder: Path) -> None:
    source = paths.paper() / "figures"
    for file in sorted(source.rglob("*.p[dn][fg]")):
        target = folder / "figures" / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


# ---------------------------------------------------------------------------------------------------------------- the article


def _article(folder: Path, there: list[str], published: bool, demonstrated: bool) -> str:
    """What to read first: the README's summary, its tables of the results in this folder, and the main figures."""
    text = _readme(published)
    summary, results, claims = (_section(text, *ends) for ends in README_PARTS)
    tables = [
        "<h2>What to use</h2>" if results else "",
        results,
        *(f"<h2>{heading}</h2>{figure}" for stem, heading in MAIN_FIGURES.items() if (figure := _figure(stem, folder))),
        "<h2>The claims of the original</h2>" if claims else "",
        claims,
    ]
    parts = [
        f'<h1>{HEADING}</h1><p class="subtitle">{SUBTITLE}</p>',
        _buttons(folder, demonstrated),
        f'<div class="abstract">{summary}</div>' if summary else "",
        _figure("teaser", folder),
        _invitation() if demonstrated else "",
        *(tables if published else []),
        "<h2>All results</h2>",
        _list_of_pages(there),
    ]
    return "\n".join(parts)


README_PARTS = (  # of the README: the line before, the line after
    ("# localnorm", "```bash"),
    ("## Results", "More: "),
    ("## The claims", "## What is where"),
)


def _readme(published: bool) -> str:
    """The README with the tables of this folder's results; empty where there is none, in a project that is no checkout."""
    file = paths.project() / "README.md"
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8")
    for name, block in readme.blocks().items() if published else ():
        text = readme.replace_between(text, name, "readme", block)
    return text


def _section(text: str, start: str, end: str) -> str:
    """Lines between two of the README as HTML. Of its links none leads to a page here, so their words stay."""
    inside, found, _ = text.partition(f"{start}\n")[2].partition(f"\n{end}")
    if text and not found:
        raise ValueError(
            f"README.md has no line {start!r} with a line {end!r} after it, between which the web pages read"
        )
    inside = re.sub(r"<!--.*?-->", "", inside)
    inside = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", inside)
    return mistune.create_markdown(plugins=["table"], escape=False)(inside)


def _buttons(folder: Path, demonstrated: bool) -> str:
    links = {"demo.html": "Try it on your own image"} if demonstrated else {}
    for name, words in {"paper.pdf": "Paper", "supplement.pdf": "Supplement"}.items():
        if (paths.paper() / name).is_file():
            shutil.copyfile(paths.paper() / name, folder / name)
            links[name] = f"{words} (PDF)"
    links["#all-results"] = "All results"
    return '<nav class="buttons">' + "".join(f'<a href="{to}">{words}</a>' for to, words in links.items()) + "</nav>"


def _invitation() -> str:
    return (
        "<aside><h2>See it happen</h2><p>Disturb a photograph, yours or one of ours, and watch what three networks make of it. "
        'They run in the page, and need no network.</p><p><a class="button" href="demo.html">Open the demonstration</a></p></aside>'
    )


def _list_of_pages(there: list[str]) -> str:
    """Links to the pages behind the article, with one line on each."""
    rows = [
        f'<li><a href="results-{name}.html">{escape(_title(name, there))}</a>: {escape(read_about(name)["model"])}, every arm and '
        "comparison, figures, tables, notebooks</li>"
        for name in there
    ]
    return '<ul id="all-results">' + "".join(rows) + '<li><a href="more.html">More figures and notebooks</a></li></ul>'


def _title(name: str, there: list[str]) -> str:
    abouts = {each: read_about(each) for each in there}
    return title(abouts[name], abouts.values())


def _write_demonstration(folder: Path) -> bool:
    """Write demo.html, or say in one line why there is none."""
    from localnorm.render import demo  # here: it needs torch, and the other pages do not

    try:
        body = demo.write_demo(folder)
    except (demo.NoDemonstration, ValueError, RuntimeError) as reason:  # a damaged network costs no other page
        shutil.rmtree(folder / "demo", ignore_errors=True)
        print(f"no demonstration among the pages: {reason}")
        return False
    paths.write(folder / "demo.html", page("Try LocalNorm on your own image", body, "index.html"))
    return True


# ---------------------------------------------------------------------------------------------------------------- behind it


def _more(folder: Path, there: list[str], notebooks: dict[str, bool]) -> str:
    """Figures that are neither in the article nor of one experiment, and the notebooks of no experiment."""
    shown = {"teaser", *MAIN_FIGURES}
    stems = sorted(file.stem for file in (folder / "figures").glob("*.png") if file.stem not in shown)
    of_one = {name for experiment in there for name in _notebooks_of(experiment, there, notebooks)}
    rest = {name: ran for name, ran in notebooks.items() if name not in of_one}
    figures = [_figure(stem, folder) for stem in stems]
    return "\n".join(["<h1>More figures and notebooks</h1>", *figures, _notebook_list(rest)])


def _notebooks_of(experiment: str, there: list[str], notebooks: dict[str, bool]) -> dict[str, bool]:
    """The notebooks with an experiment's name in theirs; of two names the longer one counts."""

    def owner(name: str) -> str:
        return max((each for each in there if f"-{each}" in name), key=len, default="")

    return {name: ran for name, ran in notebooks.items() if owner(name) == experiment}


def _origin(experiment: str) -> str:
    """Whether the results of an experiment are those that git holds, or were made in this folder."""
    command = ["git", "status", "--porcelain", "--ignored", "--", f"data/results/{experiment}"]
    try:
        done = subprocess.run(command, cwd=paths.project(), capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "without git nobody can say whether these results were made here or came with the project"
    return (
        "these results were made in this folder and are in no git revision"
        if done.stdout.strip()
        else "these are the results that git holds"
    )


def _experiment(name: str, heading: str, folder: Path, notebooks: dict[str, bool]) -> str:
    about, summary, compared = read_about(name), read_table("summary", name), read_table("comparisons", name)
    tables = folder / "tables" / name
    tables.mkdir(parents=True)
    files = sorted(paths.results(name).iterdir())
    for file in files:
        shutil.copyfile(file, tables / file.name)
    value = summary.set_index(["arm", "metric"])
    rows = [
        [arm, *(share(value.loc[(arm, metric)]) for metric in ("clean", "noisy"))] for arm in dict.fromkeys(summary.arm)
    ]
    primary = [
        [
            row.primary,
            f"{row.first} - {row.second}, {METRICS[row.metric].label}",
            difference(row),
            verdict_words(row),
        ]
        for row in compared[compared.primary != ""].itertuples()
    ]
    report = f"report-{name}"
    parts = [
        f"<h1>{escape(heading)}</h1>",
        f'<p class="note">{escape(describe(about))}; {_origin(name)}.</p>',
        _table(["arm", "clean (%)", "noisy (%)"], rows),
        f'<p class="note">Mean {spread(summary.seeds, *IN_BRACKETS)}.</p>',
        "<h2>Primary comparisons (points)</h2>",
        _table(["", "compared", "difference", "verdict"], primary, "text"),
        "<h2>Figures</h2>",
        *(_figure(f"{name}/{stem}", folder) for stem in FIGURES),
        f"<p>Its notebook: {_link(report, notebooks)}.</p>" if report in notebooks else "",
        _notebook_list(notebooks),
        "<h2>Tables</h2><p>"
        + ", ".join(f'<a href="tables/{name}/{file.name}">{file.name}</a>' for file in files)
        + "</p>",
    ]
    return "\n".join(parts)


def _table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join([f'<table class="{kind}">', line(header, "th"), *(line(row, "td") for row in rows), "</table>"])


def _figure(stem: str, folder: Path) -> str:
    """A figure with its caption and its vector file; nothing where no stage made it. What all figures' captions say of
    data and devices is folded away."""
    if not (folder / "figures" / f"{stem}.png").is_file():
        return ""
    caption = (paths.paper() / "figures" / f"{stem}.txt").read_text(encoding="utf-8").strip()
    first, rest = _parted(caption)
    more = f"<details><summary>Data, networks and devices</summary>{escape(rest)}</details>" if rest else ""
    return (
        f'<figure><a href="figures/{stem}.pdf"><img loading="lazy" src="figures/{stem}.png" alt="{escape(first, quote=True)}"></a>'
        f"<figcaption>{escape(first)}{more}</figcaption></figure>"
    )


def _parted(caption: str) -> tuple[str, str]:
    """What a caption says of its figure, and the data, networks and devices behind it, which begin with a data set's title."""
    names = [name for name in load_params()["experiments"] if (paths.results(name) / "about.json").is_file()]
    titles = "|".join(re.escape(read_about(name)["title"]) for name in names)
    found = re.search(rf"(?<=\. )(?:{titles})", caption) if titles else None
    return (caption[: found.start()].strip(), caption[found.start() :]) if found else (caption, "")


# ---------------------------------------------------------------------------------------------------------------- notebooks


def _write_notebooks(folder: Path) -> dict[str, bool]:
    """A page per notebook that a stage ran: its name -> whether it ran to its end."""
    exporter = HTMLExporter(
        template_name="basic", anchor_link_text="", exclude_input_prompt=True, exclude_output_prompt=True
    )
    done = {}
    for name in _executed():
        notebook = nbformat.read(paths.project() / "data" / "executed" / f"{name}.ipynb", as_version=4)
        notebook.cells = [_without_progress(cell) for cell in notebook.cells]
        body, _ = exporter.from_notebook_node(notebook)
        paths.write(folder / "notebooks" / f"{name}.html", page(name, body, "../index.html", "../style.css"))
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        done[name] = all(output["output_type"] != "error" for output in outputs)
    return done


def _executed() -> list[str]:
    """Names of the executed notebooks that are here and that a stage of dvc.lock wrote, so not what somebody left there."""
    lock = paths.project() / "dvc.lock"
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
    outs = [paths.project() / out["path"] for stage in stages.values() for out in stage.get("outs", [])]
    return sorted(file.stem for file in outs if file.suffix == ".ipynb" and file.is_file())


def _without_progress(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A cell without progress bars (stderr with carriage returns, and the line end after), which say nothing at their end."""
    if cell["cell_type"] == "code":
        cell.outputs = [
            each
            for each in cell.outputs
            if not (each.get("name") == "stderr" and ("\r" in each.text or not each.text.strip()))
        ]
    return cell


def _link(name: str, notebooks: dict[str, bool]) -> str:
    failed = "" if notebooks[name] else ' <span class="failed">stopped with an error</span>'
    return f'<a href="notebooks/{name}.html">{name}</a>{failed}'


def _notebook_list(notebooks: dict[str, bool]) -> str:
    """All notebooks that ran here, those of single runs folded away."""
    if not notebooks:
        return ""
    single = [name for name in notebooks if re.search(r"-s\d+$", name)]
    rest = [name for name in notebooks if name not in single]

    def listed(names: list[str]) -> str:
        return '<ul class="runs">' + "".join(f"<li>{_link(name, notebooks)}</li>" for name in names) + "</ul>"

    folded = f"<details><summary>{len(single)} of single runs</summary>{listed(single)}</details>" if single else ""
    return f"<h2>Notebooks as they ran</h2>{listed(rest)}{folded}"
