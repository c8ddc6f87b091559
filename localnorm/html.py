"""A finished run as web pages: the notebooks as they ran, figures, tables and the paper behind one index.

The pages need no network and no server: styles lie beside them, and images are files or stand in the page. nbconvert's own page
templates fetch scripts and fonts from the web, so only its bare one is used, inside a page that is written here.
"""

import argparse
import json
import re
import shutil
import sys
from html import escape
from pathlib import Path

import mistune
import nbformat
import pandas as pd
import yaml
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from localnorm import paths
from localnorm.figures.captions import seed_count
from localnorm.numbers import collect_numbers, estimate_text
from localnorm.params import load_params
from localnorm.tables import read_table

__all__ = ["page", "write_site"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc }
img, svg { max-width: 100%; height: auto } a { color: #0059a8 } nav, footer, .note { color: #555; font-size: .9rem }
pre { background: #f6f6f6; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.4 }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; margin: 1rem 0 }
table, th, td { border: 0 } th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child, .text td, .text th { text-align: left }
ul.runs { columns: 3 18rem; padding-left: 1.2rem } figure { margin: 1.5rem 0 } figcaption { font-size: .9rem; color: #333 }
.anchor-link { display: none } .output_subarea { margin: .4rem 0 .4rem 1rem }
.output_subarea pre { background: none } .failed { color: #b00020; font-weight: bold }
"""
TITLE = "LocalNorm: the results of a run"  # the index's, by which a report is known again
# what lies in a report; the last is left there by the macOS Finder
OWN = {"index.html", "style.css", "paper.pdf", "notebooks", "figures", "tables", ".DS_Store"}
RUN = re.compile(r"-s\d+$")  # a notebook of one training run


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
    """Write the pages of what has run in this folder; an earlier report at `output` is replaced once the new pages are whole.

    Returns:
        The index page.

    Raises:
        FileNotFoundError: no experiment has results here.
        ValueError: `output` holds something else than such pages; nothing of it is touched.
    """
    experiments = [name for name in load_params()["experiments"] if (paths.statistics(name) / "summary.csv").is_file()]
    if not experiments:
        raise FileNotFoundError("no experiment has results here; make some with `make quickstart`")
    if foreign := _foreign(output):
        raise ValueError(
            f"a report replaces only an earlier one or an empty folder, and {output} holds {foreign[0]}, which no report wrote; "
            "choose another folder, or move that away"
        )
    numbers = collect_numbers()
    new = output.with_name(f".{output.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    try:
        paths.write(new / "style.css", STYLE + HtmlFormatter(style="default").get_style_defs(".highlight"))
        notebooks = _write_notebooks(new)
        figures = _copy(paths.paper() / "figures", new / "figures", "*.*")
        body = [
            f"<h1>{TITLE}</h1>",
            f"<p>Made by the pipeline on this machine; {_paper_link(new)}every figure and table below is a file that a stage wrote."
            "</p>",
            *(_experiment(name, numbers, new, notebooks, figures) for name in experiments),
            _other_figures(experiments, numbers, figures),
            _comparison(),
            _remaining(notebooks),
        ]
        paths.write(new / "index.html", page(TITLE, "\n".join(body)))
        shutil.rmtree(output, ignore_errors=True)
        new.rename(output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return output / "index.html"


def _foreign(output: Path) -> list[str]:
    """What lies at `output` and would be lost with it: all but an earlier report, for other pages have an index.html too."""
    names = sorted(file.name for file in output.iterdir()) if output.exists() else []
    index = output / "index.html"
    if index.is_file() and f"<title>{TITLE}</title>" in index.read_text(encoding="utf-8", errors="replace"):
        return [name for name in names if name not in OWN]
    return names


def _copy(source: Path, target: Path, pattern: str) -> list[str]:
    """Copy the files of a folder; their names."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(file for file in source.glob(pattern) if file.is_file())
    for file in files:
        shutil.copyfile(file, target / file.name)
    return [file.name for file in files]


def _paper_link(folder: Path) -> str:
    paper = paths.paper() / "paper.pdf"
    if not paper.is_file():
        return ""
    shutil.copyfile(paper, folder / "paper.pdf")
    return '<a href="paper.pdf">the paper</a> tells it in order; '


# ---------------------------------------------------------------------------------------------------------------- notebooks


def _write_notebooks(folder: Path) -> dict[str, bool]:
    """A page a notebook that a stage ran: its name -> whether it ran to its end."""
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
    if cell["cell_type"] != "code":
        return cell
    cell.outputs = [
        each
        for each in cell.outputs
        if not (each.get("name") == "stderr" and ("\r" in each.text or not each.text.strip()))
    ]
    return cell


def _link(name: str, notebooks: dict[str, bool]) -> str:
    failed = "" if notebooks[name] else ' <span class="failed">stopped with an error</span>'
    return f'<a href="notebooks/{name}.html">{name}</a>{failed}'


# -------------------------------------------------------------------------------------------------------------------- index


def _experiment(name: str, numbers: dict, folder: Path, notebooks: dict[str, bool], figures: list[str]) -> str:
    source = paths.statistics(name)
    about = json.loads((source / "about.json").read_text(encoding="utf-8"))
    runs, summary = (read_table(kind, name) for kind in ("runs", "summary"))
    tables = folder / "tables" / name
    kept = [*_copy(source, tables, "*.csv"), *_copy(source, tables, "about.json")]
    shutil.copyfile(paths.sweep(name), tables / "sweep.csv")
    lossy = ", a lossy copy of the original" if about["provenance"]["lossy"] else ""
    caption = (
        f"{about['title']}{lossy}: {about['counts']['train']:,} training and {about['counts']['test']:,} test images; "
        f"{runs.model[0]}, {runs.epochs[0]} epochs, {seed_count(runs.seed.nunique())}, on {', '.join(sorted(set(runs.device)))}. "
        f"Accuracy in % with 95 % intervals over seeds; noisy is the mean over all noises and levels. "
        f"A verdict needs the interval over seeds and what the test images leave open (images)."
    )
    own = [notebook for notebook in notebooks if re.search(rf"-{re.escape(name)}(-|$)", notebook)]
    single = [_link(notebook, notebooks) for notebook in own if not RUN.search(notebook)]
    per_run = [f"<li>{_link(notebook, notebooks)}</li>" for notebook in own if RUN.search(notebook)]
    files = [f'<a href="tables/{name}/{file}">{file}</a>' for file in [*kept, "sweep.csv"]]
    parts = [
        f'<h2 id="{name}">{escape(about["title"])}: {name}</h2>',
        f"<p>{escape(caption)}</p>",
        _summary_table(summary),
        _claims_table(numbers, name),
        *(_figure(stem, figures) for stem in sorted({Path(f).stem for f in figures}) if stem.endswith(f"-{name}")),
        f"<p>Notebooks as they ran: {', '.join(single)}.</p>" if single else "",
        f'<details><summary>{len(per_run)} notebooks of single runs</summary>\n<ul class="runs">{"".join(per_run)}</ul></details>'
        if per_run
        else "",
        f"<p>Tables: {', '.join(files)}.</p>",
    ]
    return "\n".join(part for part in parts if part)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f}" + ("" if pd.isna(low) else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _summary_table(summary: pd.DataFrame) -> str:
    rows = [
        [
            row.arm,
            _percent(row.clean, row.clean_low, row.clean_high),
            _percent(row.noisy, row.noisy_low, row.noisy_high),
        ]
        for row in summary.itertuples()
    ]
    return _table(["arm", "clean", "noisy"], rows)


def _claims_table(numbers: dict, experiment: str | None) -> str:
    """What an experiment says of each claim, or what the bench says of the costs; empty where it says nothing."""
    rows = [
        [
            claim["claim"],
            " ".join([*([] if experiment else [f"{row['on']}:"]), row["what"]]),
            f"{row['first']} against {row['second']}, {row['part']}",
            estimate_text(row),
            f"±{row['over_images']}" if row["over_images"] else "",
            row["verdict"],
        ]
        for claim in numbers["claims"]
        for row in claim["results"]
        if row["experiment"] == experiment
    ]
    header = ["claim", "what", "arms", "estimate", "images", "verdict"]
    return "<h3>Claims</h3>\n" + _table(header, rows, "text") if rows else ""


def _table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join([f'<table class="{kind}">', line(header, "th"), *(line(row, "td") for row in rows), "</table>"])


def _figure(stem: str, figures: list[str]) -> str:
    """A figure with its caption, where a stage wrote one beside it, and its vector file."""
    if f"{stem}.png" not in figures:
        return ""
    text = paths.paper() / "figures" / f"{stem}.txt"
    caption = text.read_text(encoding="utf-8").strip() if text.is_file() else stem
    vector = f' <a href="figures/{stem}.pdf">PDF</a>' if f"{stem}.pdf" in figures else ""
    return (
        f'<figure><img src="figures/{stem}.png" alt="{escape(stem, quote=True)}">'
        f"<figcaption>{escape(caption)}{vector}</figcaption></figure>"
    )


def _other_figures(experiments: list[str], numbers: dict, figures: list[str]) -> str:
    stems = sorted({Path(name).stem for name in figures if name.endswith(".png")})
    others = [stem for stem in stems if not any(stem.endswith(f"-{name}") for name in experiments)]
    return (
        "\n".join(
            [
                "<h2>Of no single experiment</h2>",
                _claims_table(numbers, None),
                *(_figure(stem, figures) for stem in others),
            ]
        )
        if others
        else ""
    )


def _comparison() -> str:
    """What `localnorm.compare` last wrote, if it ran."""
    file = paths.project() / "data" / "comparison" / "report.md"
    if not file.is_file():
        return ""
    text = re.sub(r"^#", "##", file.read_text(encoding="utf-8"), flags=re.M)
    return mistune.create_markdown(plugins=["table"])(text)  # comes with nbconvert


def _remaining(notebooks: dict[str, bool]) -> str:
    """Notebooks that belong to no experiment: figures of none, numbers, paper."""
    names = load_params()["experiments"]
    rest = [each for each in notebooks if not any(re.search(rf"-{re.escape(name)}(-|$)", each) for name in names)]
    links = "".join(f"<li>{_link(name, notebooks)}</li>" for name in rest)
    return f'<h2>Other notebooks</h2>\n<ul class="runs">{links}</ul>' if rest else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.html", description=__doc__.split("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, help="folder; default: data/html")
    given = parser.parse_args(arguments)
    try:
        index = write_site(given.output or paths.project() / "data" / "html")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"open {index}")


if __name__ == "__main__":
    main()
