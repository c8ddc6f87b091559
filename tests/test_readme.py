"""The texts at the top do what they say: code runs, files and commands are there, and they stay short."""

import re

import pytest
from conftest import ROOT

from localnorm.comparisons import HOLDS, verdict
from localnorm.params import load_params
from localnorm.tables import read_lengths, read_table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_of_the_readme_runs_and_has_the_shapes_that_it_says():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(code, names)
    assert names["logits"].shape == (8, 1000)
    assert names["one"].shape == (1, 1000)
    assert all(parameter.grad is not None for parameter in names["model"].parameters())


@pytest.mark.parametrize("name", ["README.md", "REPRODUCING.md", "data/README.md", "paper/README.md"])
def test_every_link_and_every_make_target_is_there(name):
    text, folder = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (folder / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_file_of_the_readmes_tree_is_there():
    names = re.findall(r"^ {6}([\w./]+?) {2}", README, re.M)
    assert len(names) >= 10
    for name in names:
        assert (ROOT / "localnorm" / name).exists(), name


@pytest.mark.parametrize(("name", "most"), [("README.md", 1500), ("REPRODUCING.md", 2500)])
def test_a_text_stays_short_enough_to_be_read(name, most):
    """Generated tables among it; what holds no letter or digit is no word."""
    assert sum(bool(re.search(r"\w", word)) for word in (ROOT / name).read_text(encoding="utf-8").split()) <= most


# ------------------------------------------------------------------------------------------------------------ what was found


def helps(rows, first: str, second: str) -> bool:
    """Whether one arm is more accurate under noise than another in every published experiment, by the interval."""
    found = rows[(rows["first"] == first) & (rows.second == second) & (rows.metric == "noisy")]
    return len(found) == rows.experiment.nunique() and bool((found.low > 0).all())


def statistics_bring_most(rows) -> bool:
    """Taking statistics from the test batch alone brings more than half of what LocalNorm in batches brings."""
    gains = rows[(rows.second == "BN fixed") & (rows.metric == "noisy")].set_index(["experiment", "first"]).estimate
    share = gains.xs("BN batch", level="first") / gains.xs("LN batch", level="first")
    return helps(rows, "BN batch", "BN fixed") and bool((share > 0.5).all())


def a_gate_helps_batchnorm() -> bool:
    """Of a trained BatchNorm network, on test images: better under noise than with a prior, and within a point on clean images."""
    for name in load_params()["controlled"]:
        table = read_table("controls", name)
        ways = table[(table.part == "test") & (table.network == "bn")].set_index("control")
        if ways.noisy["gated"] <= ways.noisy["prior"] or ways.clean["gated"] < ways.clean["prior"] - 0.01:
            return False
    return True


FOUND = {  # the sentence of the README, clause by clause, and what must hold in the published comparisons for it to be true
    "statistics of the test images bring most of the robustness, and any BatchNorm network can use them.": (
        statistics_bring_most
    ),
    "In test batches LocalNorm is not shown to add to that.": lambda rows: (
        not any(verdict(row) == HOLDS for row in rows[rows.primary == "P2"].itertuples())
    ),
    "For one image, a prior from the training set helps BatchNorm too,": lambda rows: (
        helps(rows, "BN prior", "BN fixed") and helps(rows, "LN prior", "BN fixed")
    ),
    "more so where unusual images count more (*gated*, ours; one seed).": lambda rows: a_gate_helps_batchnorm(),
    "*LN drawn* beats the prior under noise on CIFAR-10 only, and costs clean accuracy.": lambda rows: (
        [row.experiment for row in rows[rows.primary == "P6"].itertuples() if verdict(row) == HOLDS]
        == ["cifar10-resnet32"]
        and bool(
            (
                rows[(rows["first"] == "LN drawn single") & (rows.second == "BN fixed") & (rows.metric == "clean")].high
                < 0
            ).all()
        )
    ),
}


def test_what_the_readme_says_was_found_follows_from_the_published_comparisons(monkeypatch):
    monkeypatch.chdir(ROOT)
    (said,) = re.findall(r"^\*\*Found:\*\* (.*?)\n\n", README, re.M | re.S)
    assert said.split() == " ".join(FOUND).split(), "reworded: state in FOUND what each clause follows from"
    rows = read_table("comparisons", "published")
    rows = rows[rows.source == "answers"]
    assert not [clause for clause, holds in FOUND.items() if not holds(rows)]


def test_localnorm_gains_more_from_longer_training_as_the_readme_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "gains more than BatchNorm from [more epochs]" in README
    table, abouts = read_lengths(load_params()["lengths"])
    noisy = table[table.metric == "noisy"].set_index(["arm", "epochs"]).estimate
    gain = {
        arm: noisy[arm, max(abouts)] - noisy[arm, min(abouts)]
        for arm in ("BN batch", "LN batch", "BN prior", "LN prior")
    }
    assert gain["LN batch"] > gain["BN batch"]
    assert gain["LN prior"] > gain["BN prior"]
