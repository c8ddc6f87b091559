"""What people read is the rendering of the tables: README's and REPRODUCING's blocks, the paper's numbers, LaTeX."""

import json
import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import typst
import yaml
from conftest import ROOT
from results_fixtures import EXPERIMENT, right_share, write_experiment, write_run

from localnorm import evaluators, paths, scores
from localnorm.arms import ARMS
from localnorm.comparisons import CLAIMS, COMPARISONS, evaluate
from localnorm.gather import collect, write_results
from localnorm.publish import publish
from localnorm.render import latex, numbers, readme, reproducing
from localnorm.render.verdicts import verdict_words
from localnorm.tables import read_history_end, read_table
from localnorm.words import difference, percent, share, spread, summary_text

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
PUBLISHED = PARAMS["published"]


@pytest.fixture
def toy(project):
    """A project with the published results of one toy experiment."""
    write_experiment(project)
    runs = collect(EXPERIMENT, ["bn", "ln"], list(range(6)))
    write_results(runs)
    evaluators.write(runs)
    publish([EXPERIMENT])
    (project / "data" / "results" / "cost.csv").write_bytes((ROOT / "data" / "results" / "cost.csv").read_bytes())
    (project / "paper" / "figures" / EXPERIMENT).mkdir(parents=True)
    (project / "paper" / "figures" / EXPERIMENT / "accuracy.txt").write_text("A caption, 5 % & more_.\n")
    return project


def test_the_blocks_of_readme_are_the_rendering_of_the_published_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, block in readme.blocks().items():
        assert readme.between(text, name, "readme") == block, f"{name}: python -m localnorm.render readme"


def test_the_blocks_of_reproducing_are_the_rendering_of_the_published_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "REPRODUCING.md").read_text(encoding="utf-8")
    for name, block in reproducing.blocks(PARAMS["lengths"]).items():
        assert readme.between(text, name, "reproducing") == block, f"{name}: python -m localnorm.render reproducing"


def test_the_papers_numbers_and_latex_are_the_rendering_of_the_published_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    collected = numbers.of_params()
    assert json.loads((ROOT / "paper" / "numbers.json").read_text(encoding="utf-8")) == collected
    assert (ROOT / "paper" / "numbers.tex").read_text(encoding="utf-8") == latex.commands(collected)
    written = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "paper" / "tables").glob("*.tex")}
    assert written == latex.tables(collected)


def test_the_published_tables_are_those_of_their_experiments(monkeypatch):
    monkeypatch.chdir(ROOT)
    summary = read_table("summary", "published")
    assert list(dict.fromkeys(summary.experiment)) == PUBLISHED
    stand_ins = 0
    for name in PUBLISHED:
        key = ["arm", "metric"]
        published = summary[summary.experiment == name].drop(columns=["experiment", "title", "change"]).set_index(key)
        own = read_table("summary", name).set_index(key)
        alike = own.index
        if name in PARAMS["controlled"]:  # its published networks were asked in more ways: more seeds, and no interval
            more = published.index[(published.seeds > own.seeds.reindex(published.index, fill_value=0)).to_numpy()]
            controls = read_table("controls", name)
            stand_ins += len(more)
            assert {arm.split()[-1] for arm, _ in more} <= set(controls.control)
            assert published.low[more].isna().all()
            alike = own.index.difference(more, sort=False)
        pd.testing.assert_frame_equal(published.loc[alike], own.loc[alike])
    assert stand_ins, "controls stand in for answers of Stanford Cars' first seed"


def test_scores_of_the_published_experiments_follow_from_their_answers(monkeypatch, tmp_path):
    """The committed runs, gathered again elsewhere, give the committed tables to the byte."""
    (tmp_path / "dvc.yaml").touch()
    name = PUBLISHED[-1]
    shutil.copytree(ROOT / "data" / "runs" / name, tmp_path / "data" / "runs" / name)
    monkeypatch.chdir(tmp_path)
    runs = collect(name, *(PARAMS[name].get(key, PARAMS[key]) for key in ("networks", "seeds")))
    write_results(runs)
    evaluators.write(runs)
    made = sorted(file.name for file in paths.results(name).iterdir())
    expected = (
        "about.json comparisons.csv mcnemar.csv ratio.json runs.csv scores.csv streams.csv strengths.csv summary.csv"
    )
    assert made == expected.split()
    for file in made:
        assert (paths.results(name) / file).read_bytes() == (ROOT / "data" / "results" / name / file).read_bytes(), file


def row(estimate, low=float("nan"), high=float("nan"), by_seed=""):
    return SimpleNamespace(estimate=estimate, low=low, high=high, by_seed=by_seed)


def test_a_share_and_a_difference_are_written_in_percent_and_points_with_their_interval():
    assert percent(0.8685) == "86.9"
    assert share(row(0.8685, 0.86, 0.88, "0.86 0.87 0.87 0.88")) == "86.9 [86.0, 88.0]"
    assert difference(row(-0.005, -0.02, 0.01)) == "-0.5 [-2.0, +1.0]"
    nothing = row(float("nan"))
    assert (percent(nothing.estimate), share(row(0.5, by_seed="0.5")), difference(nothing)) == ("-", "50.0", "-")


def test_few_seeds_are_written_themselves_where_an_interval_would_say_nothing():
    assert share(row(0.38, by_seed="0.352 0.408")) == "38.0 (35.2, 40.8)"
    assert difference(row(0.01, by_seed="-0.01 0.02 0.02")) == "+1.0 (-1.0, +2.0, +2.0)"
    assert spread([6]) == "with its 95 % interval"
    assert spread([2]) == "with each seed as a small dot"
    assert spread([6, 3, 1], "a", "b") == "with a or, of few seeds, b, where there is more than one seed"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_report_of_few_seeds_has_no_interval_in_any_text_and_each_seed_in_its_place(project, count):
    write_experiment(project, seeds=range(count))
    runs = collect(EXPERIMENT, ["bn", "ln"], list(range(count)))
    write_results(runs)
    evaluators.write(runs)
    publish([EXPERIMENT])
    (project / "data" / "results" / "cost.csv").write_bytes((ROOT / "data" / "results" / "cost.csv").read_bytes())
    of_seeds = [f"{100 * right_share('ln', 'batch', seed, 0):.1f}" for seed in range(count)]
    cell = f"({', '.join(of_seeds)})" if count > 1 else of_seeds[0]
    made = numbers.collect()
    texts = {
        "terminal": summary_text(read_table("summary", EXPERIMENT)),
        "latex": "".join([latex.commands(made), *latex.tables(made).values()]),
        "reproducing": reproducing.blocks()["expected"],
    }
    for name, text in texts.items():
        assert not re.search(r"\d \[[-+\d]", text), name
    assert cell in texts["terminal"]
    assert cell in texts["latex"]
    assert "no verdict: " in texts["reproducing"]
    assert "undecided" not in texts["reproducing"]
    (control,) = [each for each in made["experiments"][EXPERIMENT]["comparisons"] if each["primary"] == "P2"]
    assert (control["low"], control["high"]) == (None, None)
    assert len(control.get("by_seed", [])) == (count if count > 1 else 0)
    json.dumps(made, allow_nan=False)


def test_every_claim_has_a_row_and_what_was_not_run_says_so(toy):
    block = readme.blocks()["claims"]
    for claim in CLAIMS.values():
        assert claim.statement in block
    assert sum(line.endswith("| - |") for line in block.splitlines()) >= 3
    assert "| LN batch - BN fixed, noisy | ✓ +40.0 |" in block


def test_situations_set_every_arm_against_usual_practice_which_has_its_accuracies(toy):
    rows = readme.blocks()["situations"].splitlines()
    value = read_table("summary", "published").set_index(["arm", "metric"]).estimate
    usual, batch = (next(line for line in rows if f"| {arm} |" in line) for arm in ("BN fixed", "LN batch"))
    assert usual.endswith(f"| **{percent(value['BN fixed', 'clean'])} / {percent(value['BN fixed', 'noisy'])}** |")
    clean, noisy = (100 * (value["LN batch", metric] - value["BN fixed", metric]) for metric in ("clean", "noisy"))
    assert batch.endswith(f"| **{clean:+.1f} / {noisy:+.1f}** |")
    assert all(line.count("|") == rows[0].count("|") for line in rows)


def test_a_block_is_replaced_between_its_markers_and_nothing_else_moves():
    first, last = (marker.format("claims", "readme") for marker in readme.MARKERS)
    text = f"before\n{first}\nold\n{last}\nafter\n"
    assert readme.replace_between(text, "claims", "readme", "new\n") == f"before\n{first}\nnew\n{last}\nafter\n"
    with pytest.raises(ValueError, match="claims"):
        readme.replace_between("no markers", "claims", "readme", "new\n")


def test_an_undecided_verdict_says_what_is_excluded_or_that_training_was_too_short(toy):
    row = read_table("comparisons", EXPERIMENT).iloc[0].copy()
    row.p_holm, row.low, row.high = 0.5, -0.02, 0.03
    assert verdict_words(row).startswith("undecided")
    assert "-2.0" in verdict_words(row)
    assert "+3.0" in verdict_words(row)
    row.threshold = -0.01
    assert verdict_words(row).endswith("-1.0 is the threshold")
    row.p_holm, row.estimate, row.train_gap = 0.001, -0.1, -0.13
    assert "13.0 points behind" in verdict_words(row)
    row.seeds = 0
    assert verdict_words(row) == "not tested here"


def test_numbers_hold_numbers_and_name_what_was_not_measured_null(toy):
    made = numbers.collect()["experiments"][EXPERIMENT]
    assert made["arms"]["LN batch"]["noisy"]["estimate"] == pytest.approx(0.7, abs=0.01)
    assert len(made["comparisons"]) == sum(row.source != "conversion" for row in COMPARISONS)
    missing = next(row for row in made["comparisons"] if row["first"] == "LN prior" and row["primary"])
    assert (missing["estimate"], missing["seeds"], missing["verdict"]) == (None, 0, "")
    assert made["shifts"] is None


def test_numbers_compare_both_networks_under_a_prior_at_the_same_strength_over_the_seeds_that_have_both(toy):
    table = pd.DataFrame(
        [
            ("bn", 0, 8, 0.5), ("ln", 0, 8, 0.6), ("bn", 0, 64, 0.5), ("ln", 0, 64, 0.4),
            ("bn", 1, 8, 0.4), ("ln", 1, 8, 0.6), ("ln", 2, 8, 0.9),
        ],
        columns=["network", "seed", "prior", "noisy"],
    ).assign(statistics="prior", fixed_last=0, clean=0.9)  # fmt: skip
    paths.write_table(toy / "data" / "results" / EXPERIMENT / "strengths.csv", table)
    ahead = numbers.collect()["experiments"][EXPERIMENT]["strengths"]
    assert ahead == [{"prior": 8, "difference": pytest.approx(0.15)}, {"prior": 64, "difference": pytest.approx(-0.1)}]


def test_numbers_give_the_accuracy_of_each_arm_by_what_a_study_varied(toy):
    made = numbers.collect()["experiments"][EXPERIMENT]
    mixed = {"arm": "LN batch", "composition": "mixed", "batch_size": 8, "metric": "noisy"}
    (row,) = [row for row in made["streams"] if mixed.items() <= row.items()]
    assert row["estimate"] == pytest.approx(0.35, abs=0.01), "half of 0.7: see right_share"
    assert row["seeds"] == 6
    assert made["ablations"] == [], "this experiment has none"


def test_another_learning_rate_stands_beside_the_same_seeds_with_the_shared_one(toy, monkeypatch):
    results = toy / "data" / "results"
    shutil.copytree(results / EXPERIMENT, results / "toy-tuned")
    table = pd.read_csv(results / "toy-tuned" / "scores.csv")
    table = table[table.arm.str.startswith("LN") & (table.seed == 1)]
    table.assign(right=table.right + 2).to_csv(results / "toy-tuned" / "scores.csv", index=False)  # of 40 images
    for seed in range(6):
        write_run(toy, "ln", seed, ["batch", "single"], "toy-tuned")
    own_rate = evaluate(collect("toy-tuned", ["ln"], list(range(6)), {"bn": EXPERIMENT}))
    paths.write_table(results / "toy-tuned" / "own_rate.csv", own_rate)
    rates = {EXPERIMENT: 0.1, "toy-tuned": 0.2}
    monkeypatch.setattr(numbers, "load_params", lambda name: {"train": {"learning_rate": rates[name]}})
    made = numbers._tuned("toy-tuned", EXPERIMENT)
    assert (made["against"], made["learning_rate"], made["shared_rate"]) == (EXPERIMENT, 0.2, 0.1)
    with_rate = {row["arm"] for row in made["rows"] if row["estimate"] is not None}
    assert with_rate == {"LN batch", "LN single"}
    assert {row["arm"] for row in made["rows"]} - with_rate == {"BN fixed", "BN batch"}
    shared = scores.per_seed(read_table("scores", EXPERIMENT), "noisy")["LN batch", 1]
    (row,) = [row for row in made["rows"] if (row["arm"], row["metric"]) == ("LN batch", "noisy")]
    assert (row["shared"], row["estimate"]) == (pytest.approx(shared), pytest.approx(shared + 0.05))
    (first,) = [row for row in made["comparisons"] if row["primary"] == "P1"]
    assert first["estimate"] == pytest.approx(0.4, abs=0.01), "LN batch - BN fixed, noisy: see right_share"
    assert (first["seeds"], first["verdict"]) == (6, "holds")


def test_a_pilot_gives_every_network_the_same_rates_and_the_end_of_its_training(monkeypatch):
    monkeypatch.chdir(ROOT)
    pilots = numbers.of_params()["pilots"]
    assert pilots
    for name, pilot in pilots.items():
        rates = {network: [] for network in ("bn", "ln")}
        for row in pilot["chosen"]:
            rates[row["network"]].append(row["learning_rate"])
            kept = read_history_end(name, row["variant"], PARAMS[name]["study"]["seeds"][0])
            assert row["validation_accuracy"] == pytest.approx(kept["validation_accuracy"], abs=1e-5)
        assert sorted(rates["bn"]) == sorted(rates["ln"])
        assert len(set(rates["bn"])) == 3


def test_latex_names_hold_letters_only_and_its_own_characters_are_escaped(toy):
    text = latex.commands(numbers.collect())
    names = re.findall(r"\\newcommand\{\\(\w+)\}", text)
    assert names
    assert all(name.isalpha() for name in names)
    assert len(set(names)) == len(names)
    assert r"A caption, 5 \% \& more\_." in text
    primary = latex.tables(numbers.collect())[f"primary-{EXPERIMENT}"]
    assert re.search(r"& LN batch \$-\$ BN fixed, noisy & (\+|\$-\$)\d", primary)
    assert primary.count(r"\\") == 8, "a header and the seven that are asked of small images"


def test_the_paper_is_set_from_its_numbers_to_the_same_bytes(tmp_path):
    """Without the fonts of this machine: two machines give one file."""
    shutil.copytree(ROOT / "paper", tmp_path / "paper")
    for name in ("paper", "supplement"):
        made = typst.compile(tmp_path / "paper" / f"{name}.typ", ignore_system_fonts=True)
        assert made == (ROOT / "paper" / f"{name}.pdf").read_bytes(), f"dvc repro --single-item paper ({name})"


def test_the_paper_has_at_most_ten_pages():
    pages = typst.compile(ROOT / "paper" / "paper.typ", format="png", ppi=20, ignore_system_fonts=True)
    assert len(pages) <= 10


@pytest.mark.parametrize(
    "path", [("experiments", "cars-efficientnet_lite0-long", "arms"), ("figures", "teaser"), ("claims", "C3")]
)
def test_the_paper_is_not_set_where_a_number_is_missing(tmp_path, path):
    shutil.copytree(ROOT / "paper", tmp_path / "paper")
    file = tmp_path / "paper" / "numbers.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    place = whole
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    file.write_text(json.dumps(whole))
    with pytest.raises(Exception, match=r"(?s)."):
        typst.compile(tmp_path / "paper" / "paper.typ", ignore_system_fonts=True)


def test_every_figure_of_paper_and_supplement_comes_from_a_stage(monkeypatch):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = {next(iter(out)) for stage in stages.values() for out in stage.get("outs", []) if isinstance(out, dict)}
    made = {
        out.replace("${item.experiment}", name)
        for out in outs
        for name in PUBLISHED
        if out.startswith("paper/figures/")
    }
    there = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "paper" / "figures").rglob("*.pdf")
        if "digits" not in str(file.parent)
    }
    assert {name for name in there if name.split("/")[2] in PUBLISHED or name.count("/") == 2} <= made


def test_the_paper_is_made_again_when_any_of_its_figures_changes():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    figures = json.loads((ROOT / "paper" / "numbers.json").read_text(encoding="utf-8"))["figures"]
    assert {f"paper/figures/{name}.pdf" for name in figures} <= set(stages["paper"]["deps"])
    assert {f"paper/figures/{name}.txt" for name in figures} <= set(stages["numbers"]["deps"])


def test_texts_name_arms_as_the_vocabulary_does():
    """An arm of an earlier vocabulary in a text is a label that no table has."""
    for name in ("README.md", "REPRODUCING.md", "paper/paper.typ", "paper/supplement.typ"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "BN-batch" not in text, name
        assert not re.search(r"last_fixed\b.*\bmode", text)
    assert "BN batch" in ARMS
