"""The pages of a run: every link leads to a file that is there, and nothing is fetched from the web."""

import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from localnorm import html, numbers, paths

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
OUTPUTS = {
    "train-digits-small-batch-s0": [
        new_output("stream", name="stderr", text="train:  10%\rtrain: 100%"),
        new_output("stream", name="stderr", text="\n"),
        new_output("stream", name="stdout", text="12 epochs\n"),
    ],
    "statistics-digits-small": [
        new_output("execute_result", data={"text/html": "<table class='dataframe'><tr><td>0.98</td></tr></table>"})
    ],
    "figure-histograms": [new_output("display_data", data={"image/png": PIXEL})],
    "numbers": [new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[31mValueError\x1b[0m: no"])],
    "left-behind": [],
}


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.followed, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.update({given.get("id"), given.get("name")})
        if tag == "a" and "href" in given:
            self.followed.append(given["href"])
        self.loaded += [given["src"]] if "src" in given else []
        self.loaded += [given["href"]] if tag == "link" else []


def broken(folder):
    """Addresses of the pages in a folder that lead nowhere, or that a browser would fetch from the web."""
    found = []
    for file in folder.rglob("*.html"):
        links = Links(file.read_text(encoding="utf-8"))
        for address in [*links.followed, *links.loaded]:
            parts = urlsplit(address)
            if parts.scheme == "data" or (parts.scheme in ("http", "https") and address not in links.loaded):
                continue
            target = file.parent / unquote(parts.path) if parts.path else file
            anchors = Links(target.read_text(encoding="utf-8")).anchors if parts.fragment and target.is_file() else None
            if parts.scheme or not target.is_file() or (anchors is not None and unquote(parts.fragment) not in anchors):
                found.append(f"{file.name}: {address}")
    return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The committed results of the digits, with executed notebooks as papermill leaves them; one was left by somebody."""
    for name in ("data/statistics", "data/sweeps", "paper/figures"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("params.yaml", "dvc.yaml", "paper/paper.pdf"):
        shutil.copy(ROOT / name, tmp_path / name)
    stages = {}
    for name, outputs in OUTPUTS.items():
        path = f"data/executed/{name}.ipynb"
        cells = [
            new_markdown_cell(f"# Notebook {name}\n\n[the method](https://arxiv.org/abs/1902.06550), $x^2$"),
            new_code_cell("1 + 1", outputs=outputs),
        ]
        (tmp_path / "data" / "executed").mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=cells), tmp_path / path)
        if name != "left-behind":
            stages[name] = {"outs": [{"path": path}]}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_link_leads_to_a_file_and_no_page_fetches_anything(project):
    site = html.write_site(project / "data" / "html").parent
    pages = list(site.rglob("*.html"))
    assert len(pages) == 1 + len(OUTPUTS) - 1
    assert broken(site) == []
    for file in [*pages, site / "style.css"]:
        text = file.read_text(encoding="utf-8")
        assert "<script" not in text
        assert not re.search(r"@import|url\((?!['\"]?data:)", text), file


def test_the_check_of_links_sees_a_missing_file_a_missing_anchor_and_a_remote_image(tmp_path):
    body = '<a href="gone.html">x</a><a href="#gone">x</a><img src="https://example.org/x.png"><a href="https://example.org">x</a>'
    (tmp_path / "index.html").write_text(html.page("x", body))
    (tmp_path / "style.css").write_text("")
    assert broken(tmp_path) == ["index.html: gone.html", "index.html: #gone", "index.html: https://example.org/x.png"]


def test_the_index_says_what_ran_and_holds_the_numbers_of_the_tables(project):
    text = html.write_site(project / "site").read_text(encoding="utf-8")
    first = pd.read_csv(paths.statistics("digits-small") / "summary.csv").iloc[0]
    assert f"{first.seeds} seeds" in text
    assert f"{100 * first.noisy:.1f} [{100 * first.noisy_low:.1f}, {100 * first.noisy_high:.1f}]" in text
    for name in (
        "BN-batch",
        "C2",
        "figures/accuracy-digits-small.png",
        "paper.pdf",
        "tables/digits-small/sweep.csv",
    ):
        assert name in text


def test_notebooks_show_their_outputs_without_progress_bars_and_a_failed_one_says_so(project):
    index = html.write_site(project / "site")
    pages = {file.stem: file.read_text(encoding="utf-8") for file in (index.parent / "notebooks").iterdir()}
    assert "12 epochs" in pages["train-digits-small-batch-s0"]
    assert "train: 100%" not in pages["train-digits-small-batch-s0"]
    assert pages["train-digits-small-batch-s0"].count("output_stream") == 1, "no empty box"
    assert "0.98" in pages["statistics-digits-small"]
    assert PIXEL[:40] in pages["figure-histograms"]
    assert "left-behind" not in pages
    failed = re.findall(r'notebooks/([\w-]+)\.html">[^<]*</a> <span class="failed">', index.read_text(encoding="utf-8"))
    assert failed == ["numbers"]


def test_every_claim_that_was_tested_is_shown_with_its_verdict(project):
    text = html.write_site(project / "site").read_text(encoding="utf-8")
    tested = {claim["claim"]: claim["results"] for claim in numbers.collect_numbers()["claims"] if claim["results"]}
    assert len(tested) > 5
    for claim, rows in tested.items():
        assert len(re.findall(rf"<tr><td>{claim}</td>.*<td>[^<]*</td></tr>", text)) == len(rows)


def test_a_comparison_that_was_made_is_shown(project):
    paths.write(
        project / "data" / "comparison" / "report.md",
        "# Expected against obtained\n\n| a | b |\n|---|--:|\n| x | 7.5 |\n",
    )
    text = html.write_site(project / "site").read_text(encoding="utf-8")
    assert "<h2>Expected against obtained</h2>" in text
    assert re.search(r"<td[^>]*>7\.5</td>", text)


def test_a_new_report_replaces_an_old_one_and_leaves_no_page_of_it(project):
    site = project / "site"
    site.mkdir()
    html.write_site(site)
    (site / "notebooks" / "old.html").write_text("old")
    (site / ".DS_Store").touch()
    before = (site / "index.html").read_bytes()
    html.write_site(site)
    assert (site / "index.html").read_bytes() == before
    assert not (site / "notebooks" / "old.html").exists()


@pytest.mark.parametrize("index", ["hi", "LocalNorm: the results of a run", "\xff"])
def test_a_folder_with_an_index_of_ones_own_is_refused_and_stays_as_it_is(project, index):
    homepage = project / "homepage"
    (homepage / "thesis").mkdir(parents=True)
    (homepage / "thesis" / "chapter.txt").write_text("years")
    (homepage / "index.html").write_text(index, encoding="latin-1")
    with pytest.raises(SystemExit, match=r"an empty folder, and homepage holds index\.html, which no report wrote"):
        html.main(["homepage"])
    assert {file.name for file in homepage.rglob("*")} == {"thesis", "chapter.txt", "index.html"}
    assert (homepage / "index.html").read_text(encoding="latin-1") == index
    with pytest.raises(ValueError, match="paper holds figures, which no report wrote; choose another folder, or move"):
        html.write_site(project / "paper")
    assert (project / "paper" / "paper.pdf").is_file()


def test_what_somebody_put_beside_the_pages_of_a_report_is_not_lost_with_it(project):
    site = html.write_site(project / "site").parent
    (site / "thesis").mkdir()
    with pytest.raises(ValueError, match="site holds thesis, which no report wrote"):
        html.write_site(site)
    assert (site / "thesis").is_dir()


def test_without_results_the_message_names_the_command(project):
    shutil.rmtree(project / "data" / "statistics")
    with pytest.raises(FileNotFoundError, match="make quickstart"):
        html.write_site(project / "site")
