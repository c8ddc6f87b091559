"""The texts at the top do what they say: code runs, files and commands are there, and they stay short."""

import re

import pytest
from conftest import ROOT

from localnorm.comparisons import UNDECIDED, verdict
from localnorm.params import load_params
from localnorm.render.readme import SITUATIONS, STREAM
from localnorm.scores import REFERENCE
from localnorm.tables import read_lengths, read_table
from localnorm.words import seed_values

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:all 9 candidates")  # of choose_prior: the example's network is not trained
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
    """Whether one arm is more accurate under noise than another in every published experiment, by the interval, or by each of few seeds."""
    found = rows[(rows["first"] == first) & (rows.second == second) & (rows.metric == "noisy")]
    return len(found) == rows.experiment.nunique() and all(
        row.low > 0 if row.low == row.low else min(seed_values(row)) > 0 for row in found.itertuples()
    )


def statistics_bring_nearly_all(rows) -> bool:
    """Statistics of the test batch alone bring at least what LocalNorm's groups bring, and nine tenths of what any arm in batches does."""
    gains = rows[(rows.second == "BN fixed") & (rows.metric == "noisy")].set_index(["experiment", "first"]).estimate
    share = gains.xs("BN batch", level="first") / gains.xs("LN batch", level="first")
    of = ways()
    most = max(of[arm, "noisy"] for arm, metric in of if metric == "noisy" and arm.endswith(("batch", "pooled")))
    whole = (of["BN batch", "noisy"] - of["BN fixed", "noisy"]) / (most - of["BN fixed", "noisy"])
    return helps(rows, "BN batch", "BN fixed") and bool((share >= 1).all()) and whole > 0.9


def ways() -> dict[tuple[str, str], float]:
    """(arm, metric) -> accuracy in the README's last column."""
    table = read_table("summary", "published")
    return table[table.experiment == table.experiment.iloc[-1]].set_index(["arm", "metric"]).estimate.to_dict()


def localnorm_adds_none(rows) -> bool:
    """In batches LocalNorm is nowhere more robust than BatchNorm, not even in the mean."""
    found = rows[rows.primary == "P2"]
    return len(found) == rows.experiment.nunique() and bool((found.estimate < 0).all())


def prior_helps_localnorm_on_cars_alone(rows) -> bool:
    """More robust there than BatchNorm with a prior: by the interval, or in each of few seeds; the other comparison decides nothing."""
    cifar, cars = (rows[rows.experiment == name] for name in load_params()["published"])
    (undecided,) = cifar[(cifar.primary == "P5") & (cifar.metric == "noisy")].itertuples()
    return helps(cars, "LN prior", "BN prior") and verdict(undecided) == UNDECIDED


def localnorm_helps_gated_on_cars(rows) -> bool:
    return helps(rows[rows.experiment == load_params()["published"][1]], "LN gated", "BN gated")


def undecided_at_own_rate() -> set[str]:
    table = read_table("own_rate", "cars-efficientnet_lite0-tuned")
    return {row.claim for row in table.itertuples() if verdict(row) == UNDECIDED}


def nothing_beats_fixed_on_clean_images() -> bool:
    """No arm of the README's table is better there than BatchNorm as usual, in any published experiment."""
    table = read_table("summary", "published")
    shown = {arm for situation, arms in SITUATIONS.items() if situation != STREAM for arm, _ in arms}
    clean = table[table.arm.isin(shown - {REFERENCE}) & (table.metric == "clean")]
    return len(clean) > 10 and bool((clean.change < 0).all())


FOUND = {  # the sentences of the README, and what must hold in the published comparisons for them to be true
    "In test batches it is their statistics that help: BatchNorm with them is as robust as LocalNorm with those of its "
    "groups.": lambda rows: statistics_bring_nearly_all(rows) and localnorm_adds_none(rows),
    "One image helps too if its statistics are mixed with the training set's (*prior*), and more if unusual images get a "
    "larger share (*gated*, ours). Both need no retraining.": lambda rows: (
        helps(rows, "BN prior", "BN fixed")
        and helps(rows, "LN prior", "BN fixed")
        and helps(rows, "BN gated", "BN prior")
    ),
    "On single images of Stanford Cars LocalNorm resists noise better than BatchNorm, with prior and gated; with prior that is undecided "
    "on CIFAR-10, and on Cars at LocalNorm's best learning rate.": lambda rows: (
        prior_helps_localnorm_on_cars_alone(rows)
        and localnorm_helps_gated_on_cars(rows)
        and "prior" in undecided_at_own_rate()
    ),
    "On clean images BatchNorm as usual stays ahead.": lambda rows: nothing_beats_fixed_on_clean_images(),
}


def test_bold_is_what_lies_within_a_point_of_the_best_of_its_situation():
    """By the mean of clean and noisy change, in each column; what is rounded to a tenth may err by as much."""
    cells, of_situation = {}, ""
    for line in re.findall(r"^\|.*\d / .*\d.*\|$", README, re.M):
        situation, arm, _, *columns = (cell.strip() for cell in line.strip("|").split("|"))
        of_situation = situation or of_situation
        for column, cell in enumerate(columns):
            if cell != "-":
                values = [0.0, 0.0] if arm == "BN fixed" else map(float, re.findall(r"[-+]\d+\.\d", cell))
                cells.setdefault((of_situation, column), []).append((sum(values) / 2, cell.startswith("**")))
    assert len(cells) == 10
    for found in cells.values():
        bold, rest = ([mean for mean, is_bold in found if is_bold == wanted] for wanted in (True, False))
        assert max(bold) - min(bold) < 1.15
        assert max(rest, default=-99) < max(bold) - 0.85


def test_what_the_readme_says_was_found_follows_from_the_published_comparisons(monkeypatch):
    monkeypatch.chdir(ROOT)
    (said,) = re.findall(r"^\*\*Found:\*\* (.*?)\n\n", README, re.M | re.S)
    assert said.split() == " ".join(FOUND).split(), "reworded: state in FOUND what each clause follows from"
    rows = read_table("comparisons", "published")
    rows = rows[rows.source == "answers"]
    assert not [clause for clause, holds in FOUND.items() if not holds(rows)]


def test_what_is_undecided_at_the_rate_that_localnorm_prefers_is_what_the_readme_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (
        "At twice the learning rate, which suits LocalNorm best, the claims control, C4 and prior are undecided on Cars"
        in README
    )
    assert undecided_at_own_rate() == {"control", "C4", "prior"}


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
