"""From runs to the paper's numbers: nothing is lost on the way, and the manuscript uses no number that no stage makes."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pytest
import torch
import typst
import yaml
from conftest import ROOT

from localnorm import numbers as numbers_of
from localnorm import paths, results, stats
from localnorm.ablations import FIXED_BATCH, FULL_LENGTH
from localnorm.convert import convert_to_localnorm
from localnorm.evaluate import SweepConfig, choices, save_sweep, sweep, sweep_batches, test_images
from localnorm.models import make_model
from localnorm.prediction import predict
from localnorm.shifts import write_shifts
from localnorm.train import TrainConfig, fit, save_run

SWEEP = SweepConfig(
    noises={"named": ["gaussian", "contrast"]},
    modes={"batch": ["fixed", "batch"], "local": ["batch", "single"]},
    batch_size=64,
    images=128,
    batches={"sizes": [8], "conditions": {"named": {"gaussian": 0.3}}, "images": 64},
    max_levels=2,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory, digits):
    """A project with two seeds of two networks, trained and swept."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "dvc.yaml").write_text("")
    (folder / "params.yaml").write_text(
        "experiments: [digits-small, cifar10-resnet32]\n"
        + "".join(
            f"{name}: {{prepare: {{}}, train: {{}}, sweep: {{}}, statistics: {{}}}}\n"
            for name in ("digits-small", "cifar10-resnet32")
        )
    )
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    paths.prepared("digits-small").parent.mkdir(parents=True)
    paths.prepared("digits-small").symlink_to(digits.folder)
    config = TrainConfig("small", epochs=1, batch_size=64, num_groups=4, threads=1)
    for norm in ("batch", "local"):
        for seed in (0, 1):
            run = paths.run_name("digits-small", norm, seed)
            trained = fit(digits, config, norm, seed)
            save_run(trained, paths.model("digits-small", run), paths.run("digits-small", run))
            choice = choices(trained.model, digits, SWEEP, norm)
            table, classes = sweep(trained.model, digits, SWEEP, norm, choice=choice)
            batches = sweep_batches(trained.model, digits, SWEEP, norm)
            labels = test_images(digits, SWEEP)[1]
            save_sweep(table, classes, batches, choice, labels, paths.run("digits-small", run))
    gathered = results.collect_runs("digits-small", ["batch", "local"], [0, 1])
    results.write_tables(
        gathered,
        stats.summary(gathered.sweep),
        stats.claims(gathered.sweep, gathered.about["num_classes"], margin=0.01, ratio=3, runs=gathered.predictions),
    )
    yield folder
    patch.undo()


def test_the_tidy_table_has_every_row_of_every_run(project):
    table = pd.read_csv(paths.sweep("digits-small"))
    assert len(table) == 2 * 2 * 2 * 4  # norms, seeds, modes, conditions
    assert not table.duplicated(["norm", "seed", "mode", "suite", "noise", "level"]).any()
    assert table.accuracy.between(0, 1).all()


def test_a_missing_run_is_said_and_nothing_is_left_out_silently(project):
    with pytest.raises(
        FileNotFoundError, match="no seed of digits-small has been trained and swept with each of local"
    ):
        results.collect_runs("digits-small", ["local"], [7])


@pytest.fixture
def copied(project, tmp_path, monkeypatch):
    """The runs alone, as a clone has them: no images, no weights."""
    shutil.copytree(project / "data" / "runs", tmp_path / "data" / "runs")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "runs" / "digits-small"


def test_the_tables_come_from_the_kept_runs_without_images_and_weights(project, copied):
    again = results.collect_runs("digits-small", ["batch", "local"], [0, 1])
    pd.testing.assert_frame_equal(again.sweep, pd.read_csv(project / "data" / "sweeps" / "digits-small.csv"), atol=1e-6)
    about = json.loads((project / "data" / "statistics" / "digits-small" / "about.json").read_text())
    assert again.about == about
    assert about["counts"]["test"] == 449


def test_a_third_norm_costs_the_pair_no_seeds_and_joins_when_it_has_them_all(copied, capsys):
    def drawn(seed):
        shutil.copytree(copied / f"digits-small-local-s{seed}", copied / f"digits-small-drawn-s{seed}")

    for norms in ([], [0]):
        for seed in norms:
            drawn(seed)
        found = results.collect_runs("digits-small", ["batch", "local", "drawn"], [0, 1])
        assert found.sweep.groupby("norm").seed.nunique().to_dict() == {"batch": 2, "local": 2}
        assert "left out: drawn, which has not all of these seeds yet" in capsys.readouterr().out
    drawn(1)
    found = results.collect_runs("digits-small", ["batch", "local", "drawn"], [0, 1])
    assert found.sweep.groupby("norm").seed.nunique().to_dict() == {"batch": 2, "local": 2, "drawn": 2}


def test_runs_of_other_settings_or_images_do_not_join(copied):
    file = copied / "digits-small-local-s1" / "record.json"
    record = json.loads(file.read_text())
    for part, key, value in (("train", "epochs", 2), ("data", "counts", {"test": 1})):
        file.write_text(json.dumps(record | {part: record[part] | {key: value}}))
        with pytest.raises(
            ValueError, match=rf"digits-small-batch-s0 and digits-small-local-s1 differ in {part}.{key}; run"
        ):
            results.collect_runs("digits-small", ["batch", "local"], [0, 1])


def test_runs_swept_over_other_noises_do_not_join(copied):
    file = copied / "digits-small-batch-s1" / "sweep.csv"
    table = pd.read_csv(file)
    table.loc[table.noise == "gaussian", "level"] += 0.01
    table.to_csv(file, index=False)
    with pytest.raises(
        ValueError, match=r"only one of digits-small-batch-s0 and digits-small-batch-s1 has named gaussian at"
    ):
        results.collect_runs("digits-small", ["batch", "local"], [0, 1])


def test_verdicts_in_short_name_what_differs_and_keep_the_controls_and_what_is_ours_apart():
    def row(on, first, second, part, verdict):
        return {"on": on, "first": first, "second": second, "part": part, "verdict": verdict}

    one = [row("Digits", "LN batch", "BN fixed", part, "holds") for part in ("noisy", "clean")]
    assert numbers_of.verdicts_of(one) == [
        {"ours": False, "against": "", "found": {"Digits": {"holds": ["noisy", "clean"]}}}
    ]
    assert numbers_of.verdicts_of(one[:1]) == [
        {"ours": False, "against": "", "found": {"Digits": {"holds": ["noisy"]}}}
    ]
    two = [
        row("Digits", "LN single", "BN fixed", "noisy", "holds"),
        row("Digits", "LN single", "BN single", "noisy", "undecided"),
        row("Cars", "LN prior", "BN fixed", "noisy", "does not hold here"),
        row("Cars", "LN prior", "BN prior", "noisy", "holds"),
        row("Cars", "LN drawn single", "BN prior", "noisy", "undecided"),
    ]
    assert [(row["against"], row["ours"], row["found"]) for row in numbers_of.verdicts_of(two)] == [
        ("BN fixed", False, {"Digits": {"holds": ["LN single"]}}),
        ("BN in the same mode", False, {"Digits": {"undecided": ["LN single"]}}),
        ("BN fixed", True, {"Cars": {"does not hold here": ["LN prior"]}}),
        ("BN in the same mode", True, {"Cars": {"holds": ["LN prior"]}}),
        ("BN prior", True, {"Cars": {"undecided": ["LN drawn single"]}}),
    ]


def test_the_readme_says_every_verdict_and_calls_those_of_few_seeds_provisional(project):
    numbers = numbers_of.collect_numbers()
    digits = [
        {"holds": ["noisy", "clean"], "undecided": ["ratio"]},
        {"holds": ["LN prior"]},
        {"undecided": ["LN single"]},
    ]

    def claim(name, statement, *verdicts):
        rows = [{"ours": ours, "against": against, "found": found} for ours, against, found in verdicts]
        return {"claim": name, "statement": statement, "verdicts": rows}

    numbers["claims"] = [
        claim("C2", "It fails.", (False, "", {"Digits": digits[0]})),
        claim("C5", "It works.", (False, "BN fixed", {"Digits": digits[2]}), (True, "BN fixed", {"Digits": digits[1]}),
              (True, "BN in the same mode", {"Digits": digits[1]})),
        claim("C6", "It sees."),
        claim("C7", "It is cheap.", (False, "", {"resnet32": {"holds": ["time"]}})),
        claim("drawn", "It draws.", (True, "", {"Digits": digits[1]})),
        claim("C9", "It fits.", (False, "", {"Digits": {"holds": ["noisy"]}})),
    ]  # fmt: skip
    numbers["claims"] = [{"results": [], **claim} for claim in numbers["claims"]]
    numbers["claims"][-1]["results"] = [{"on": "Digits", "experiment": "digits-small", "seeds": 3}]
    table = numbers_of.readme_table(numbers)
    assert "| claim | Digits, 2 seeds (provisional) |\n|---|---|\n" in table
    assert "| **C2** It fails. | **holds**: noisy, clean; **undecided**: ratio |\n" in table
    original, ours = table.split("| of what is ours | Digits, 2 seeds (provisional) |\n|---|---|\n")
    assert "| **C5** It works. *Against BN fixed:* | **undecided**: LN single |\n" in original
    assert "LN prior" not in original[original.index("| claim |") :]
    assert ours == (
        "| **C5** It works. *Against BN fixed:* | **holds**: LN prior |\n"
        "| *Against BN in the same mode:* | **holds**: LN prior |\n"
        "| **drawn** It draws. | **holds**: LN prior |\n"
    )
    assert "| **C6** It sees. | not tested here |\n" in table
    assert "\n- **C7** It is cheap. `resnet32` **holds**: time\n" in table
    assert "| **C9** It fits. (Networks of the ablations: Digits 3 seeds.) | **holds**: noisy |\n" in table
    numbers["experiments"]["digits-small"]["training"]["seeds"] = 6
    assert "| claim | Digits, 6 seeds |\n" in numbers_of.readme_table(numbers)


def test_the_readme_sets_every_arm_on_every_data_set_side_by_side(project):
    numbers = numbers_of.collect_numbers()
    digits = numbers["experiments"]["digits-small"]
    *fewer, last = digits["arms"]
    numbers["experiments"]["cars"] = {**digits, "label": "Cars", "arms": {arm: digits["arms"][arm] for arm in fewer}}
    (control,) = [claim for claim in numbers["claims"] if claim["claim"] == "control"]
    control["results"][0] |= {"text": "-0.8 [-1.3, -0.1]", "verdict": "undecided"}
    table = numbers_of.readme_table(numbers)
    assert "| arm | Digits: clean<br>noisy | Cars: clean<br>noisy |\n|---|--:|--:|\n" in table
    shown = "<br>".join(digits["arms"][last]["text"][part] for part in ("clean", "noisy"))
    assert f"| {last} | {shown} | not run |\n" in table
    assert ", noisy, points* | -0.8 [-1.3, -0.1]: **undecided** | not tested here |\n" in table
    assert [table.index(f"\n| {arm} |") for arm in digits["arms"]] == sorted(
        table.index(f"\n| {arm} |") for arm in digits["arms"]
    )


def test_arms_that_always_answer_alike_are_named(project):
    folder = paths.statistics("digits-small")
    answers = pd.read_csv(folder / "answers.csv")
    assert answers.commonest.between(0.1, 0.6).all()
    assert numbers_of.collect_numbers()["experiments"]["digits-small"]["constant"] == []
    kept = (folder / "answers.csv").read_text()
    constant = (answers.norm == "local") & (answers["mode"] == "single")
    answers.assign(commonest=answers.commonest.where(~constant, 0.95)).to_csv(folder / "answers.csv", index=False)
    try:
        assert numbers_of.collect_numbers()["experiments"]["digits-small"]["constant"] == ["LN single"]
    finally:
        (folder / "answers.csv").write_text(kept)


def test_arms_are_set_side_by_side_where_a_statistic_has_as_many_images():
    table = pd.DataFrame(
        {"norm": norm, "mode": "batch", "seed": 0, "composition": "uniform", "batch_size": size, "suite": "named",
         "noise": "gaussian", "level": level, "accuracy": size / 100 - level, "images": 99}
        for norm in ("batch", "local") for size in (1, 4, 16, 64) for level in (0.0, 0.01)
    )  # fmt: skip
    four, sixteen = numbers_of._equal_images(table, num_groups=4)
    assert four["images"] == 4  # so LN batch takes 16 images, and BN-batch 4
    assert (four["LN batch"]["clean"], four["BN-batch"]["clean"]) == ("16.0", "4.0")
    assert (sixteen["images"], sixteen["LN batch"]["noisy"]) == (16, "63.0")
    assert four["noisy_difference"] == {"text": "+12.0", "p": None}  # of one seed, so without an interval
    two = pd.concat(
        [table, table.assign(seed=1, accuracy=table.accuracy.where(table.norm == "local", table.accuracy - 0.02))]
    )
    found = numbers_of._equal_images(two, num_groups=4)[0]["noisy_difference"]
    assert (found["text"][:8], found["p"]) == ("+13.0 [+", "0.500")
    assert numbers_of._equal_images(table, num_groups=8) == []


def test_the_best_number_of_groups_is_set_against_the_experiments_own_and_against_batchnorm():
    def rows(ablation, value, norm, clean, noisy):
        levels = {0.0: clean, 0.1: noisy}
        return [
            {"ablation": ablation, "value": value, "seed": seed, "norm": norm, "mode": "batch", "suite": "named",
             "noise": "gaussian", "level": level, "accuracy": accuracy + seed / 100}
            for level, accuracy in levels.items() for seed in (0, 1)
        ]  # fmt: skip

    table = pd.DataFrame(
        rows("groups at fixed batch", "1", "local", 0.9, 0.8)  # BatchNorm itself, so no answer
        + rows("groups at fixed batch", "2", "local", 0.6, 0.7)
        + rows("groups at fixed batch", "4", "local", 0.7, 0.5)
        + rows("norm", "batch", "batch", 0.9, 0.75)
    )
    found = numbers_of._best_groups(table, num_groups=4)
    assert (found["best"], found["tried"], found["seeds"]) == (2, "2, 4", 2)
    assert found["against"] == [
        {"arm": "K = 4", "clean": "-10.0 [-10.0, -10.0]", "noisy": "+20.0 [+20.0, +20.0]"},
        {"arm": "BN-batch", "clean": "-30.0 [-30.0, -30.0]", "noisy": "-5.0 [-5.0, -5.0]"},
    ]
    itself = numbers_of._best_groups(table, num_groups=2)
    assert [row["arm"] for row in itself["against"]] == ["BN-batch"]
    alone = table[(table.ablation == "norm") | (table.value == "2")]
    assert numbers_of._best_groups(alone, num_groups=2) is None  # one K is no choice


def test_groups_and_their_affines_are_told_apart_by_groups_under_one_affine():
    accuracies = {
        ("groups at fixed batch", "4", "local"): 0.6,
        ("norm", "ghost", "ghost"): 0.7,
        ("norm", "batch", "batch"): 0.9,
    }
    table = pd.DataFrame(
        {"ablation": ablation, "value": value, "seed": seed, "norm": norm, "mode": "batch", "suite": "named", "noise": "gaussian",
         "level": level, "accuracy": accuracy - level + seed / 100}
        for (ablation, value, norm), accuracy in accuracies.items() for level in (0.0, 0.1) for seed in (0, 1)
    )  # fmt: skip
    both = dict.fromkeys(("clean", "noisy"), "-20.0 [-20.0, -20.0]")
    assert numbers_of._shared_affine(table, num_groups=4) == {
        "seeds": 2,
        "groups": both,
        "affines": dict.fromkeys(both, "-10.0 [-10.0, -10.0]"),
    }
    assert numbers_of._shared_affine(table, num_groups=8) is None
    assert numbers_of._shared_affine(table[table.norm != "ghost"], num_groups=4) is None


def test_a_prior_is_compared_at_the_same_strength_without_fixed_layers():
    table = pd.DataFrame(
        {"norm": norm, "seed": seed, "prior": prior, "fixed_last": fixed, "clean": 0.9, "noisy": 0.5 + ahead + seed / 100 + fixed}
        for norm, ahead in (("batch", 0.0), ("local", 0.1)) for prior in (4, 16) for fixed in (0, 1) for seed in (0, 1)
        if (norm, prior) != ("local", 16)
    )  # fmt: skip
    (row,) = numbers_of._equal_strengths(table)
    assert row["n0"] == "4"
    assert (row["LN prior"], row["BN prior"]) == (
        {"clean": "90.0", "noisy": "60.5"},
        {"clean": "90.0", "noisy": "50.5"},
    )
    assert (row["clean_difference"], row["noisy_difference"]) == ("+0.0 [+0.0, +0.0]", "+10.0 [+10.0, +10.0]")
    assert numbers_of._equal_strengths(table[table.norm == "local"]) == []


def test_what_test_statistics_bring_where_pixels_keep_theirs_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(numbers_of.paths, "statistics", lambda name: tmp_path / name)
    (tmp_path / "x-shifts.csv").touch()
    conditions = [("clean", "clean", 0.0), *(("named", "gaussian", level) for level in (0.1, 0.2, 0.3))]
    shifts = pd.DataFrame(conditions, columns=["suite", "noise", "level"]).assign(
        low=[0, 0.1, 0.2, 0.6], high=[0.5, 0.6, 0.7, 0.9]
    )
    monkeypatch.setattr(numbers_of, "read_table", lambda *_: shifts)
    sweep = pd.DataFrame(
        {"arm": arm, "suite": suite, "noise": name, "level": level, "seed": seed, "accuracy": 0.5 + (arm == "BN-batch") * level}
        for arm in ("BN fixed", "BN-batch") for suite, name, level in conditions for seed in (0, 1)
    )  # fmt: skip
    assert numbers_of._unmoved("x", sweep) == {
        "conditions": 2,  # the third lies beyond clean batches
        "mean": "+15.0",
        "most": "+20.0",
        "condition": "Additive Gaussian (named, level 0.2)",
    }
    assert numbers_of._unmoved("x", sweep[sweep.arm == "BN fixed"]) is None


def test_the_committed_results_follow_from_one_another():
    """What a stage of dvc.lock was made from is what the stage before it made: dvc.lock may be mended stage by stage."""
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    made = {out["path"]: (name, out["md5"]) for name, stage in stages.items() for out in stage.get("outs", [])}
    older = {
        (name, dep["path"])
        for name, stage in stages.items()
        for dep in stage.get("deps", [])
        if dep["path"] in made and made[dep["path"]][1] != dep["md5"]
    }
    # REPRODUCING.md says of this figure that it is older: its networks' weights are not at hand
    known = {("figure-poor-light@cars-efficientnet_lite0", f"data/{what}") for what in
             ("statistics/cars-efficientnet_lite0", "sweeps/cars-efficientnet_lite0.csv")}  # fmt: skip
    assert older <= known
    assert len(made) > 300


def test_what_is_left_of_accuracy_under_noise_where_a_test_batch_holds_several_noises():
    table = pd.DataFrame(
        {"composition": composition, "batch_size": size, "seed": seed, "norm": norm, "mode": "batch", "suite": "named",
         "noise": "gaussian", "level": level, "accuracy": accuracy + seed / 100 - (norm == "batch") / 10}
        for composition, own in (("uniform", 0.7), ("mixed", 0.5))
        for size, accuracy in ((8, own / 2), (32, own))
        for norm in ("local", "batch") for level in (0.0, 0.3) for seed in (0, 1)
    )  # fmt: skip
    found = numbers_of._mixed_batches(table)
    assert found["size"] == 32
    assert found["arms"]["LN batch"] == {"uniform": "70.5", "mixed": "50.5", "difference": "-20.0 [-20.0, -20.0]"}
    assert found["arms"]["BN-batch"]["mixed"] == "40.5"
    assert found["fixed"] is None
    alone = table[table.norm == "batch"].assign(mode="fixed", accuracy=0.45 + table.seed / 100)
    beside = numbers_of._mixed_batches(pd.concat([table, alone]))["fixed"]
    assert beside == {"accuracy": "45.5", "BN-batch": "-5.0 [-5.0, -5.0]", "LN batch": "+5.0 [+5.0, +5.0]"}
    assert numbers_of._mixed_batches(table[table.level == 0]) is None


def test_layers_that_are_exchanged_without_fine_tuning_are_batchnorm_in_smaller_batches():
    """In numbers, and in a network: K groups of a batch, each with BatchNorm's affine, are BatchNorm in batches of B / K."""
    rows = [
        {"norm": "batch", "mode": mode, "seed": seed, "composition": "uniform", "batch_size": size, "suite": "named",
         "noise": "gaussian", "level": level, "images": 99, "accuracy": (0.5 if mode == "fixed" else size / 100) - level}
        for mode in ("fixed", "batch") for seed in (0, 1) for size in (1, 16, 64) for level in (0.0, 0.1)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    found = numbers_of._exchanged(table, num_groups=4, batch_size=64)
    assert (found["images"], found["seeds"], found["accuracy"]) == (16, 2, {"clean": "16.0", "noisy": "6.0"})
    fixed, batch = found["against"]
    assert fixed == {
        "arm": "BN fixed", "size": None, "clean": "-34.0 [-34.0, -34.0]", "noisy": "-34.0 [-34.0, -34.0]",
    }  # fmt: skip
    assert (batch["arm"], batch["size"], batch["noisy"]) == ("BN-batch", 64, "-48.0 [-48.0, -48.0]")
    assert numbers_of._exchanged(table, num_groups=8, batch_size=64) is None  # nothing was asked in batches of 8
    assert numbers_of._exchanged(table[table["mode"] == "batch"], num_groups=4, batch_size=64) is None

    torch.manual_seed(0)
    network = make_model("small", "batch", num_classes=10, in_channels=1).eval()
    images = torch.randn(64, 1, 8, 8)
    exchanged = convert_to_localnorm(network, 4, assignment="contiguous")
    torch.testing.assert_close(predict(exchanged, images, "batch"), predict(network, images, "batch", batch_size=16))


def test_another_number_of_groups_at_full_length_is_set_against_the_same_seeds_and_images():
    def rows(norm, mode, noisy, seeds, images=384, **more):
        return pd.DataFrame(
            {"seed": seed, "norm": norm, "mode": mode, "suite": "named", "noise": "gaussian", "level": level,
             "images": images, "accuracy": accuracy + seed / 100, **more}
            for level, accuracy in ((0.0, 0.9), (0.1, noisy)) for seed in seeds
        )  # fmt: skip

    sweep = pd.concat(
        [
            rows("local", "batch", 0.5, range(6)),
            rows("batch", "batch", 0.65, range(6)),
            rows("batch", "fixed", 0.2, range(6)),
            rows("local", "single", 0.3, range(6)),
            rows("batch", "single", 0.1, range(6), images=128),
        ]
    )
    mine = {"ablation": FULL_LENGTH, "value": "2"}
    table = pd.concat(
        [
            rows("local", "batch", 0.6, (1, 2), **mine),
            rows("local", "single", 0.3, (1, 2), **mine),
            rows("local", "batch", 0.1, (1, 2), ablation=FIXED_BATCH, value="2"),
        ]
    )
    batch, single = numbers_of._full_length(table, sweep, num_groups=4)
    assert (batch["groups"], batch["arm"], batch["seeds"]) == (2, "LN batch", 2)
    assert batch["accuracy"] == {"clean": "91.5", "noisy": "61.5"}
    assert {row["arm"]: row["noisy"] for row in batch["against"]} == {
        "LN batch, K = 4": "+10.0 [+10.0, +10.0]",
        "BN-batch": "-5.0 [-5.0, -5.0]",
        "BN fixed": "+40.0 [+40.0, +40.0]",
    }
    assert [row["arm"] for row in single["against"]] == ["LN single, K = 4", "BN fixed"], "BN single has other images"
    fewer, _ = numbers_of._full_length(table, sweep[sweep.seed < 2], num_groups=4)
    assert (fewer["seeds"], fewer["accuracy"]["noisy"], fewer["against"][0]["noisy"]) == (1, "61.0", "+10.0")
    assert numbers_of._full_length(table, sweep[sweep.seed == 0], num_groups=4) == []


def test_runs_that_scored_other_test_images_do_not_join(copied):
    file = copied / "digits-small-local-s1" / "sweep.csv"
    table = pd.read_csv(file)
    table.loc[table["mode"] == "single", "images"] = 64
    table.to_csv(file, index=False)
    with pytest.raises(
        ValueError, match="in the mode single digits-small-local-s0 scored 128 and digits-small-local-s1 64; run"
    ):
        results.collect_runs("digits-small", ["batch", "local"], [0, 1])


def test_numbers_are_those_of_the_tables_and_experiments_without_results_are_left_out(project):
    numbers = numbers_of.collect_numbers()
    assert list(numbers["experiments"]) == ["digits-small"]
    experiment = numbers["experiments"]["digits-small"]
    table = pd.read_csv(paths.sweep("digits-small"))
    chosen = table[(table.norm == "local") & (table["mode"] == "batch") & (table.level == 0)]
    assert experiment["arms"]["LN batch"]["clean"] == pytest.approx(
        chosen.groupby("seed").accuracy.mean().mean(), abs=1e-5
    )
    assert experiment["training"]["seeds"] == 2
    assert experiment["test_images"] == "128"


def test_latex_numbers_are_valid_commands_with_the_same_values(project):
    numbers = numbers_of.collect_numbers()
    commands = dict(re.findall(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}", numbers_of.latex_numbers(numbers)))
    assert (
        commands["LNdigitssmallLNbatchclean"]
        == numbers["experiments"]["digits-small"]["arms"]["LN batch"]["text"]["clean"]
    )
    numbers_of.write_latex_tables(numbers)
    table = (paths.paper() / "tables" / "summary-digits-small.tex").read_text()
    assert table.count(r"\\") == 1 + len(numbers["experiments"]["digits-small"]["arms"])


def test_the_table_for_the_terminal_has_an_interval_for_every_accuracy(project):
    text = results.summary_text("digits-small")
    for arm in ("BN fixed", "BN-batch", "LN batch", "LN single"):
        assert re.search(rf"{arm} +\d+\.\d \[\d+\.\d, \d+\.\d\] +\d+\.\d \[\d+\.\d, \d+\.\d\]", text), arm


def test_a_conversion_is_compared_with_the_network_that_it_came_from():
    def rows(ablation, value, norm, mode, clean, noisy):
        return [
            {"ablation": ablation, "value": value, "norm": norm, "mode": mode, "seed": seed, "suite": "named",
             "noise": "gaussian", "level": level, "accuracy": accuracy + seed / 100}
            for seed in (0, 1, 2) for level, accuracy in ((0.0, clean), (0.5, noisy))
        ]  # fmt: skip

    tuning = "fine-tuning epochs after conversion"
    table = pd.DataFrame(
        rows("norm", "batch", "batch", "fixed", 0.95, 0.4) + rows("norm", "batch", "batch", "batch", 0.94, 0.8)
        + rows(tuning, "0", "local", "batch", 0.9, 0.6) + rows(tuning, "0", "local", "single", 0.1, 0.1)
        + rows(tuning, "10", "local", "batch", 0.945, 0.7) + rows(tuning, "2", "local", "batch", 0.5, 0.5)
    )  # fmt: skip
    found = [(row["part"], round(row["estimate"], 3), row["verdict"]) for row in numbers_of.conversion(table, 0.01)]
    assert found == [
        ("noisy after 0 epochs", 0.2, "holds"),
        ("clean after 0 epochs", -0.05, "does not hold here"),
        ("noisy after 0 epochs", -0.2, "does not hold here"),
        ("noisy after 10 epochs", 0.3, "holds"),
        ("clean after 10 epochs", -0.005, "holds"),
        ("noisy after 10 epochs", -0.1, "does not hold here"),
    ]
    assert numbers_of.conversion(table[table.ablation == tuning], 0.01) == []


def test_every_claim_is_there_and_one_without_a_run_has_no_results(project):
    claims = {claim["claim"]: claim["results"] for claim in numbers_of.collect_numbers()["claims"]}
    assert list(claims) == ["C1", "C2", "C3", "control", "C4", "C5", "C6", "drawn", "C7", "C8", "C9"]
    assert [row["on"] for row in claims["C5"]] == ["Digits"]
    assert not any(claims[claim] for claim in ("C6", "drawn", "C7", "C8", "C9")), (
        "brightness, drawn, cost and ablations were not run"
    )


def test_a_cost_holds_only_where_every_setting_is_within_its_bound(project):
    like = pd.read_csv(ROOT / "data" / "sweeps" / "cost.csv", nrows=1).iloc[0].to_dict()
    rows = [
        like | {"subject": subject, "measure": measure, "bound": 1.05, "shape": "8x3x32x32"}
        | {"ratio": ratio, "lower_quartile": ratio - 0.005, "upper_quartile": ratio + 0.005}
        for subject, measure, ratio in (
            ("layer", "step", 9.0), ("net", "step", 1.0), ("net", "step", 1.04), ("net", "memory", 1.0), ("net", "memory", 1.2),
            ("near", "step", 1.049), ("most", "step", 1.049), ("most", "step", 1.1), ("most", "step", 1.1),
            ("half", "step", 1.049), ("half", "step", 1.1),
            ("net", "single", 1.3),
        )
    ]  # fmt: skip
    rows = pd.DataFrame(rows)

    def found(rows):
        rows.to_csv(paths.sweep("cost"), index=False)
        return {claim["claim"]: claim["results"] for claim in numbers_of.collect_numbers()["claims"]}

    try:
        claims = found(rows.assign(device="cpu"))
        on_both = found(
            pd.concat([rows.assign(device="cpu"), rows.assign(device="a GPU", ratio=1.0, upper_quartile=1.0)])
        )
    finally:
        paths.sweep("cost").unlink()
    assert [row["on"] for row in claims["C8"]] == ["net"]
    assert [(row["on"], row["verdict"]) for row in on_both["C8"]] == [
        ("net on CPU", "does not hold here"),
        ("net on a GPU", "holds"),
    ]
    assert [(row["text"], row["verdict"]) for row in claims["C7"]][:2] == [
        ("1.00 to 1.04", "holds"),
        ("1.00 to 1.20", "holds in part"),
    ]
    assert [(row["on"], row["verdict"]) for row in claims["C7"]][2:] == [
        ("near", "undecided"),  # the bound lies within the quartiles
        ("most", "does not hold here"),
        ("half", "undecided"),
    ]
    assert [(row["what"], row["part"], row["verdict"]) for row in claims["C8"]] == [
        ("LN over BN at most 1.05: kept in 0 of 1 settings, missed in 1", "8 images, each alone", "does not hold here")
    ]


def test_noise_shifts_statistics_only_as_far_as_noises_lie_beyond_clean_batches(project):
    def result(*low):
        table = pd.DataFrame(
            {"level": [0, 0.5, 1], "distance": [0.1, 0.5, 0.7], "low": [0.05, *low], "high": [0.2, 1, 1]}
        )
        table = table.assign(suite="named", noise="gaussian", images=64, batch_size=16)
        table.loc[0, ["suite", "noise"]] = "clean"
        write_shifts(table, "digits-small")
        return next(claim["results"] for claim in numbers_of.collect_numbers()["claims"] if claim["claim"] == "C1")

    try:
        assert [(row["on"], row["part"], row["text"], row["verdict"]) for row in result(0.21, 0.6)] == [
            ("Digits", "2 of 2 noises and levels", "0.60, clean 0.10", "holds")
        ]
        assert result(0.2, 0.6)[0]["part"] == "1 of 2 noises and levels"
        assert result(0.2, 0.6)[0]["verdict"] == "holds in part"
        assert result(0.1, 0.1)[0]["verdict"] == "does not hold here"
    finally:
        paths.statistics("digits-small-shifts.csv").unlink()
    assert numbers_of.collect_numbers()["claims"][0]["results"] == []


def test_text_for_latex_has_no_character_that_latex_reads_as_its_own():
    numbers = {"experiments": {}, "figures": {"a-1": "95 % of x_1 & {y} #2 $ ~ ^ \\z"}}
    (command,) = re.findall(r"\\newcommand\{\\LNcaptionaone\}\{(.*)\}", numbers_of.latex_numbers(numbers))
    assert command == r"95 \% of x\_1 \& \{y\} \#2 \$ \textasciitilde{} \textasciicircum{} \textbackslash{}z"


# ------------------------------------------------------------------------------------------------------- the manuscript

MANUSCRIPT = (ROOT / "paper" / "paper.typ").read_text()
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
EXPERIMENTS = yaml.safe_load((ROOT / "params.yaml").read_text())["experiments"]
DRAWN = {
    name + ("-${item.experiment}" if each else "")
    for name, each in re.findall(r'#?drawn\("([\w-]+)"(, experiment: name)?', MANUSCRIPT)
}
# every file that a figure stage makes, as dvc.yaml names it
MADE = {
    next(iter(out)).removeprefix("paper/figures/")
    for stage in STAGES.values()
    for out in stage["outs"]
    if isinstance(out, dict) and next(iter(out)).startswith("paper/figures/")
}


def test_the_manuscript_has_no_result_typed_by_hand():
    prose = re.sub(r"//.*|#set .*|#show .*|#let .*|https?://\S+|\$[^$]*\$", "", MANUSCRIPT)
    prose = re.sub(r"width: \d+%|95 % (BCa|interval)|95 %|[\d.]+(em|pt|fr|cm)|C\d", "", prose)
    assert not re.findall(r"\d+\.\d+|\d+ ?%|\d+ (points|times|seeds|epochs)", prose)


def test_every_citation_is_in_the_references_and_every_reference_is_cited():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "paper" / "references.bib").read_text()))
    cited = {key for key in re.findall(r"@(\w+)", MANUSCRIPT) if re.search(r"\d{4}", key)}
    assert cited == known


def test_the_manuscript_draws_every_figure_that_a_stage_makes_and_no_other():
    assert len(DRAWN) > 8
    readme = {"teaser"}  # the README's figure; the manuscript has its panels in the accuracy figures
    assert {f"{name}.{suffix}" for name in DRAWN | readme for suffix in ("pdf", "png", "txt")} == MADE
    assert set(re.findall(r'see\("([\w-]+)"', MANUSCRIPT)) <= {
        name.removesuffix("-${item.experiment}") for name in DRAWN
    }
    assert "image(" in MANUSCRIPT
    assert MANUSCRIPT.count("image(") == 1, "figures go through `drawn`, which knows those that were made"


def test_every_figure_in_the_tree_comes_from_a_stage_and_has_its_caption(committed_results):
    known = {file.replace("${item.experiment}", experiment) for file in MADE for experiment in EXPERIMENTS}
    there = {file.name for file in (ROOT / "paper" / "figures").iterdir() if not file.name.startswith(".")}
    assert there <= known, sorted(there - known)
    numbers = json.loads((ROOT / "paper" / "numbers.json").read_text())
    for name, caption in numbers["figures"].items():
        assert {f"{name}.pdf", f"{name}.png"} <= there
        assert (ROOT / "paper" / "figures" / f"{name}.txt").read_text().strip() == caption
    assert {name for name in there if name.endswith(".txt")} == {f"{name}.txt" for name in numbers["figures"]}


def test_committed_numbers_are_those_of_the_committed_tables(monkeypatch, committed_results):
    monkeypatch.chdir(ROOT)
    written = json.loads((ROOT / "paper" / "numbers.json").read_text())
    assert written == json.loads(json.dumps(numbers_of.collect_numbers()))


@pytest.fixture
def paper(tmp_path):
    """A copy of the paper's folder, to be broken."""
    return shutil.copytree(ROOT / "paper", tmp_path / "paper")


def test_the_paper_is_set_from_the_numbers_and_says_what_was_not_tested(paper):
    assert typst.compile(paper / "paper.typ").startswith(b"%PDF")
    numbers = json.loads((paper / "numbers.json").read_text())
    for experiment in numbers["experiments"].values():  # nothing but the small table of each
        experiment["claims"] = []
    numbers |= {"figures": {}, "claims": [claim | {"results": [], "verdicts": []} for claim in numbers["claims"]]}
    (paper / "numbers.json").write_text(json.dumps(numbers))
    shutil.rmtree(paper / "figures")
    assert typst.compile(paper / "paper.typ").startswith(b"%PDF")


@pytest.mark.parametrize("figures", [True, False])
@pytest.mark.parametrize("tables", [True, False])
def test_the_paper_is_set_from_one_experiment_with_and_without_what_it_may_lack(paper, figures, tables):
    numbers = json.loads((paper / "numbers.json").read_text())
    experiment = numbers["experiments"]["digits-small"]
    numbers["experiments"] = {"digits-small": experiment}
    if not tables:
        experiment |= {
            "ablations": [],
            "groups": None,
            "full_length": [],
            "mixed": None,
            "exchanged": None,
            "equal": [],
            "strengths": [],
            "equal_strengths": [],
            "unmoved": None,
            "affines": None,
            "mcnemar": None,
            "constant": ["LN single"],
        }
        del experiment["arms"]["LN batch"]
    if not figures:
        numbers["figures"] = {}
    (paper / "numbers.json").write_text(json.dumps(numbers))
    assert typst.compile(paper / "paper.typ").startswith(b"%PDF")


@pytest.mark.parametrize("key", ["source", "conditions", "arms", "training", "about"])
def test_the_paper_is_not_set_where_a_number_is_missing(paper, key):
    numbers = json.loads((paper / "numbers.json").read_text())
    for experiment in numbers["experiments"].values():
        del experiment[key]
    (paper / "numbers.json").write_text(json.dumps(numbers))
    with pytest.raises(typst.TypstError, match=f'does not contain key "{key}"'):
        typst.compile(paper / "paper.typ")


def test_the_paper_is_not_set_where_a_figure_is_missing(paper):
    (paper / "figures" / "groups.pdf").unlink()
    with pytest.raises(typst.TypstError, match="file not found"):
        typst.compile(paper / "paper.typ")


def test_numbers_tables_and_figures_go_into_a_latex_document_as_the_readme_says(paper):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here; Debian has it in texlive-latex-recommended and texlive-latex-extra")
    (example,) = re.findall(r"```latex\n(.*?)```", (paper / "README.md").read_text(), re.DOTALL)
    more = [f"\\input{{paper/tables/{table.stem}}}" for table in sorted((paper / "tables").glob("*.tex"))]
    numbers = json.loads((paper / "numbers.json").read_text())
    captions = re.findall(r"\\newcommand\{(\\LNcaption\w+)\}", (paper / "numbers.tex").read_text())
    assert len(captions) == len(numbers["figures"])
    figures = [f"\\includegraphics[width=2cm]{{paper/figures/{name}}}" for name in numbers["figures"]]
    lines = "\n\n".join([*more, *figures, *(f"{caption}{{}}" for caption in captions)])
    (paper.parent / "main.tex").write_text(example.replace("\\bibliographystyle", f"{lines}\n\\bibliographystyle"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run(command, cwd=paper.parent, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (paper.parent / "main.pdf").stat().st_size > 10_000
