"""Results as web pages: the claims, the figures and tables of every experiment that has results here, and the notebooks as they ran.

The pages need no network and no server: style sheets and images lie beside them or within the page. nbconvert's own page templates fetch
scripts and fonts from the web, so only its basic one is used, inside a page that is written here.
"""

import re
import shutil
import subprocess
from html import escape
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
from localnorm.words import IN_BRACKETS, describe, difference, share, spread

__all__ = ["page", "write_site"]

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --quiet: #555; --line: #ddd; --code: #f6f6f6; --back: #fff; --link: #0059a8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --quiet: #aaa; --line: #444; --code: #262626; --back: #161616; --link: #7db7ff }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: var(--text); background: var(--back) }
h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
img, svg { max-width: 100%; height: auto; background: #fff } a { color: var(--link) }
nav, footer, .note { color: var(--quiet); font-size: .9rem }
pre { background: var(--code); padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.4 }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; margin: 1rem 0 }
table, th, td { border: 0 } th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th:first-child, td:first-child, .text td, .text th { text-align: left }
table:not([class]) :is(td, th):nth-child(2) { text-align: left; white-space: nowrap } /* a line there is a line in the next columns */
ul.runs { columns: 3 18rem; padding-left: 1.2rem } figure { margin: 1.5rem 0 } figcaption { font-size: .9rem; color: var(--quiet) }
.anchor-link { display: none } .output_subarea { margin: .4rem 0 .4rem 1rem } .output_subarea pre { background: none }
.failed { color: #c0392b; font-weight: bold }
"""
TITLE = "LocalNorm, reproduced: results"  # the index's, by which a report is known again
# what lies in a report; the last is left there by the macOS Finder
OWN = {"index.html", "style.css", "paper.pdf", "supplement.pdf", "notebooks", "figures", "tables", ".DS_Store"}
FIGURES = ("accuracy", "streams", "calibration", "ablations", "poor-light")


def page(title: str, body: str, up: str = "", style: str = "style.css") -> str:
    """A whole HTML page around `body`; `up` is the address of the index, empty on the index itself."""
    link = f'<nav><a href="{up}">All results</a></nav>' if up else ""
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
    new = output.with_name(f".{output.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    try:
        paths.write(new / "style.css", STYLE + HtmlFormatter(style="default").get_style_defs(".highlight"))
        notebooks = _write_notebooks(new)
        _copy_figures(new)
        body = [f"<h1>{TITLE}</h1>", _links(new), *(_published(new) if published else [])]
        body += [
            _experiment(name, new, notebooks)
            for name in (*published, *(name for name in there if name not in published))
        ]
        body += [_notebook_list(notebooks)]
        paths.write(new / "index.html", page(TITLE, "\n".join(body)))
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
        return [name for name in names if name not in OWN]
    return names


def _copy_figures(folder: Path) -> None:
    source = paths.paper() / "figures"
    for file in sorted(source.rglob("*.p[dn][fg]")):
        target = folder / "figures" / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _links(folder: Path) -> str:
    made = [name for name in ("paper.pdf", "supplement.pdf") if (paths.paper() / name).is_file()]
    for name in made:
        shutil.copyfile(paths.paper() / name, folder / name)
    links = " and ".join(f'<a href="{name}">{name}</a>' for name in made)
    return f"<p>Read in order: {links}.</p>" if links else ""


def _published(folder: Path) -> list[str]:
    """The published results of all data sets: the figures of the README and its claims."""
    # of the README's links none leads to a page here
    blocks = {name: re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", block) for name, block in readme.blocks().items()}
    markdown = mistune.create_markdown(plugins=["table"], escape=False)
    figures = [_figure(stem, folder) for stem in ("teaser", "forest", "one-image", "strengths", "cost")]
    return [
        "<h2>Published results</h2>",
        figures[0],
        markdown(blocks["situations"]),
        "<h3>Claims</h3>",
        markdown(blocks["claims"]),
        *figures[1:],
    ]


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


def _experiment(name: str, folder: Path, notebooks: dict[str, bool]) -> str:
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
        f'<h2 id="{name}">{escape(about["title"])}</h2>',
        f'<p class="note">{escape(describe(about))}; {_origin(name)}.</p>',
        _table(["arm", "clean (%)", "noisy (%)"], rows),
        f'<p class="note">Mean {spread(summary.seeds, *IN_BRACKETS)}.</p>',
        "<h3>Primary comparisons (points)</h3>",
        _table(["", "compared", "difference", "verdict"], primary, "text"),
        *(_figure(f"{name}/{stem}", folder) for stem in FIGURES),
        f"<p>Its notebook: {_link(report, notebooks)}.</p>" if report in notebooks else "",
        "<p>Tables: " + ", ".join(f'<a href="tables/{name}/{file.name}">{file.name}</a>' for file in files) + "</p>",
    ]
    return "\n".join(parts)


def _table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join([f'<table class="{kind}">', line(header, "th"), *(line(row, "td") for row in rows), "</table>"])


def _figure(stem: str, folder: Path) -> str:
    """A figure with its caption and its vector file; nothing where no stage made it."""
    if not (folder / "figures" / f"{stem}.png").is_file():
        return ""
    caption = (paths.paper() / "figures" / f"{stem}.txt").read_text(encoding="utf-8").strip()
    return (
        f'<figure><img loading="lazy" src="figures/{stem}.png" alt="{escape(stem, quote=True)}">'
        f'<figcaption>{escape(caption)} <a href="figures/{stem}.pdf">PDF</a></figcaption></figure>'
    )


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
