"""The texts at the top do what they say: code runs, files and commands are there, and they stay short."""

import re

import pytest
from conftest import ROOT

from localnorm.comparisons import HOLDS, UNDECIDED, verdict
from localnorm.params import load_params
from localnorm.scores import per_seed
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


def batchnorm_comes_close() -> bool:
    """On one image within 2.5 points of LocalNorm with a prior, under noise and on clean images, where BatchNorm with a prior is not."""
    of = ways()

    def close(arm: str) -> bool:
        return all(of[arm, metric] > of["LN prior", metric] - 0.025 for metric in ("clean", "noisy"))

    return close("BN gated") and close("BN shrunk prior") and not close("BN prior")


def drawn_sizes_help_on_cifar(rows) -> bool:
    """Better than BatchNorm with a prior by the primary comparison, no better than gated in its seeds, worse than fixed on clean images."""
    cifar = load_params()["published"][0]
    (primary,) = rows[(rows.experiment == cifar) & (rows.primary == "P6")].itertuples()
    (clean,) = rows[
        (rows.experiment == cifar)
        & (rows["first"] == "LN drawn single")
        & (rows.second == "BN fixed")
        & (rows.metric == "clean")
    ].itertuples()
    table = read_table("scores", cifar)
    by_seed = {metric: per_seed(table, metric).unstack("arm") for metric in ("clean", "noisy")}
    ahead = [(scores["LN drawn single"] - scores["BN gated"]).dropna() for scores in by_seed.values()]
    return verdict(primary) == HOLDS and clean.high < 0 and all(len(each) and (each < 0).all() for each in ahead)


FOUND = {  # the sentence of the README, clause by clause, and what must hold in the published comparisons for it to be true
    "in test batches, their statistics make BatchNorm at least as robust as LocalNorm.": lambda rows: (
        statistics_bring_nearly_all(rows) and localnorm_adds_none(rows)
    ),
    "One image is enough if its statistics are mixed with the training set's (*prior*); BatchNorm networks, as they are, do better still "
    "if unusual images count more (*gated*, ours).": lambda rows: (
        helps(rows, "BN prior", "BN fixed")
        and helps(rows, "LN prior", "BN fixed")
        and helps(rows, "BN gated", "BN prior")
    ),
    "With a prior LocalNorm resists noise better on Stanford Cars; CIFAR-10 is undecided.": prior_helps_localnorm_on_cars_alone,
    "BatchNorm comes close to it on Cars gated, or trained for such mixing (*shrunk*, ours).": lambda rows: (
        batchnorm_comes_close()
    ),
    "LocalNorm with random group sizes (*drawn*, ours) beats BatchNorm's prior under noise on CIFAR-10, not BatchNorm gated, at a price on "
    "clean images.": drawn_sizes_help_on_cifar,
}


def test_bold_is_what_lies_within_a_point_of_the_best_of_its_situation():
    """By the mean of clean and noisy accuracy, in each column; what is rounded to a tenth may err by as much."""
    cells, of_situation = {}, ""
    for line in re.findall(r"^\|.*\d / \d.*\|$", README, re.M):
        situation, _, _, *columns = (cell.strip() for cell in line.strip("|").split("|"))
        of_situation = situation or of_situation
        for column, cell in enumerate(columns):
            if cell != "-":
                mean = sum(map(float, re.findall(r"\d+\.\d", cell))) / 2
                cells.setdefault((of_situation, column), []).append((mean, cell.startswith("**")))
    assert len(cells) == 10
    for found in cells.values():
        bold, rest = ([mean for mean, is_bold in found if is_bold == wanted] for wanted in (True, False))
        assert max(bold) - min(bold) < 1.15
        assert max(rest, default=0) < max(bold) - 0.85


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
        "At twice the learning rate, LocalNorm's best in a pilot, control, C4 and prior are undecided on Cars" in README
    )
    table = read_table("own_rate", "cars-efficientnet_lite0-tuned")
    assert {row.claim for row in table.itertuples() if verdict(row) == UNDECIDED} == {"control", "C4", "prior"}


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
