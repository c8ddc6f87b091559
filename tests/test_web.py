"""The web pages: every link leads to a file, nothing is fetched, and what they say is what the tables say."""

import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from conftest import ROOT
from results_fixtures import EXPERIMENT, write_experiment

from localnorm import evaluators, paths
from localnorm.gather import collect, write_results
from localnorm.publish import publish
from localnorm.render import demo, web
from localnorm.render.web import write_site
from localnorm.tables import read_table
from localnorm.words import share


class Links(HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self):
        super().__init__()
        self.addresses, self.anchors = [], set()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.addresses += [given[key] for key in ("href", "src") if given.get(key)]
        self.anchors |= {given["id"]} if "id" in given else set()


def problems(folder: Path) -> list[str]:
    """Links of a folder's pages that lead nowhere or out of it; data: images stand in the page."""
    pages = {}
    for file in folder.rglob("*.html"):
        pages[file.resolve()] = Links()
        pages[file.resolve()].feed(file.read_text(encoding="utf-8"))
    found = []
    for file, links in pages.items():
        for address in links.addresses:
            place, _, anchor = unquote(address).partition("#")
            target = (file.parent / place).resolve() if place else file
            if address.startswith("data:"):
                continue
            if "://" in address or not target.exists() or not target.is_relative_to(folder.resolve()):
                found.append(f"{file.name}: {address}")
            elif anchor and anchor not in pages[target].anchors:
                found.append(f"{file.name}: no anchor {address}")
    return found


def results_of(index: Path) -> str:
    """The page of the toy experiment."""
    return (index.parent / f"results-{EXPERIMENT}.html").read_text(encoding="utf-8")


@pytest.fixture
def site(project):
    """A project with the results of a toy experiment, one notebook that ran and one that failed."""
    write_experiment(project)
    runs = collect(EXPERIMENT, ["bn", "ln"], list(range(6)))
    write_results(runs)
    evaluators.write(runs)
    publish([EXPERIMENT])
    for name in ("data/results/cost.csv", "README.md"):
        (project / name).write_bytes((ROOT / name).read_bytes())
    blocks = "{prepare: {}, train: {}, answers: {}}"
    (project / "params.yaml").write_text(
        f"experiments: [{EXPERIMENT}]\npublished: [{EXPERIMENT}]\n{EXPERIMENT}: {blocks}\n"
    )
    figures = project / "paper" / "figures" / EXPERIMENT
    figures.mkdir(parents=True)
    for stem in (figures / "accuracy", figures.parent / "teaser"):
        for suffix, content in ((".png", b"png"), (".pdf", b"pdf"), (".txt", b"A <caption>.\n")):
            stem.with_suffix(suffix).write_bytes(content)
    executed = project / "data" / "executed"
    executed.mkdir()
    ran = nbformat.v4.new_code_cell(
        "1 + 1", outputs=[nbformat.v4.new_output("stream", name="stderr", text="10 %\r20 %")]
    )
    ran.outputs.append(nbformat.v4.new_output("stream", name="stdout", text="the answer"))
    failed = nbformat.v4.new_code_cell(
        "1 / 0", outputs=[nbformat.v4.new_output("error", ename="E", evalue="v", traceback=["t"])]
    )
    names = {f"report-{EXPERIMENT}": ran, f"train-{EXPERIMENT}-ln-s0": failed}
    for name, cell in names.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), executed / f"{name}.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[]), executed / "somebody-left-this.ipynb")
    outs = "".join(f"    - path: data/executed/{name}.ipynb\n" for name in names)
    (project / "dvc.lock").write_text(f"stages:\n  all:\n    outs:\n{outs}")
    return project


def test_every_link_leads_to_a_file_and_no_page_fetches_anything(site):
    index = write_site(site / "data" / "html")
    assert problems(index.parent) == []
    (index.parent / "notebooks" / f"report-{EXPERIMENT}.html").unlink()
    assert problems(index.parent), "the check sees a missing file"


def test_the_article_holds_the_readmes_summary_its_tables_and_captions_as_text(site):
    text = write_site(site / "data" / "html").read_text(encoding="utf-8")
    assert "<strong>Found:</strong>" in text
    assert "you have" in text
    assert text.count("<td>-</td>") >= 3, "the claims of this folder's results, not those of the README's"
    assert "<!--" not in text
    assert "A &lt;caption&gt;." in text


def test_the_article_takes_three_parts_of_the_committed_readme_and_none_of_its_code():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    summary, results, claims = (web._section(text, *ends) for ends in web.README_PARTS)
    assert "Found" in summary
    assert "<table>" in results
    assert "C9" in claims
    assert not [part for part in (summary, results, claims) if "<pre>" in part]
    with pytest.raises(ValueError, match="README"):
        web._section(text, "## Results", "no such line")


def test_the_page_of_an_experiment_holds_the_numbers_of_the_tables(site):
    text = results_of(write_site(site / "data" / "html"))
    value = read_table("summary", EXPERIMENT).set_index(["arm", "metric"])
    assert share(value.loc["LN batch", "noisy"]) in text
    assert "A &lt;caption&gt;." in text


def test_without_published_networks_one_line_says_why_there_is_no_demonstration(site, capsys):
    index = write_site(site / "data" / "html")
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "no demonstration" in told
    assert "data/networks" in told
    assert "demo.html" not in index.read_text(encoding="utf-8")
    assert not (index.parent / "demo.html").exists()


def test_a_demonstration_is_linked_from_the_article(site, monkeypatch):
    monkeypatch.setattr(demo, "write_demo", lambda folder: "<h1>Try it</h1>")
    index = write_site(site / "data" / "html")
    assert 'href="demo.html"' in index.read_text(encoding="utf-8")
    assert problems(index.parent) == []
    assert problems(write_site(index.parent).parent) == [], "and replaced with the other pages"


def test_an_experiments_page_says_whether_results_were_made_here_or_came_with_git(site):
    run = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "results"]):
        subprocess.run([*run, *command], cwd=site, check=True, capture_output=True)
    assert "the results that git holds" in results_of(write_site(site / "data" / "html"))
    (paths.results(EXPERIMENT) / "scores.csv").write_text("changed")
    assert "made in this folder" in results_of(write_site(site / "data" / "html"))


def test_notebooks_show_outputs_without_progress_bars_and_a_failed_one_says_so(site):
    index = write_site(site / "data" / "html")
    page = (index.parent / "notebooks" / f"report-{EXPERIMENT}.html").read_text(encoding="utf-8")
    assert "the answer" in page
    assert "20 %" not in page
    assert results_of(index).count('class="failed"') == 1
    assert not (index.parent / "notebooks" / "somebody-left-this.html").exists()


def test_new_pages_replace_old_ones_and_nothing_else(site):
    index = write_site(site / "data" / "html")
    (index.parent / "notebooks" / "old.html").write_text("old")
    write_site(index.parent)
    assert not (index.parent / "notebooks" / "old.html").exists()
    (index.parent / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        write_site(index.parent)
    assert (index.parent / "notes.txt").read_text() == "mine"
    other = site / "other"
    other.mkdir()
    (other / "index.html").write_text("<title>A page of mine</title>")
    with pytest.raises(ValueError, match=r"index\.html"):
        write_site(other)


def test_without_results_the_message_names_the_command(project):
    (project / "params.yaml").write_text("experiments: [digits-small]\npublished: []\ndigits-small: {}\n")
    with pytest.raises(FileNotFoundError, match="make quickstart"):
        write_site(project / "html")
