"""Ablations: each variant differs from the experiment in what it names alone, and an interrupted run continues."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from localnorm import ablations, machine, paths
from localnorm.ablations import run, save_table
from localnorm.answers import answer
from localnorm.data import load, prepare
from localnorm.settings import (
    FINE_TUNING,
    FIXED_BATCH,
    FIXED_SIZE,
    FULL_LENGTH,
    NETWORK,
    TRAINED_SIZES,
    AblationConfig,
    AnswersConfig,
    TrainConfig,
)
from localnorm.settings.ablations import variants
from localnorm.strengths import choose_strengths, measure_strengths
from localnorm.train import fit

TRAIN = TrainConfig("small", epochs=4, batch_size=64, num_groups=4, threads=1)
ASKED = AnswersConfig(noises={}, statistics={}, batch_size=64)
CONFIG = AblationConfig(
    seeds=[0],
    noises={"named": ["contrast"]},
    max_levels=2,
    images=128,
    groups_at_fixed_batch=[1, 64],
    groups_at_fixed_group_size=[2],
    group_sizes=[[1, 16]],
    fine_tuning_epochs=[0, 1],
    networks=["bn", "gn"],
)


def test_a_variant_changes_one_thing():
    made = {(variant.ablation, variant.value): variant for variant in variants(CONFIG, TRAIN)}
    assert list(made) == [
        (FIXED_BATCH, "1"), (FIXED_BATCH, "64"), (FIXED_SIZE, "2"), (TRAINED_SIZES, "1 or 16"),
        (FINE_TUNING, "0"), (FINE_TUNING, "1"), (NETWORK, "bn"), (NETWORK, "gn"),
    ]  # fmt: skip
    assert made[FIXED_BATCH, "64"].train.batch_size == 64
    smaller = made[FIXED_SIZE, "2"].train
    assert (smaller.batch_size, smaller.num_groups) == (32, 2)
    assert smaller.learning_rate == TRAIN.learning_rate / 2
    assert made[FINE_TUNING, "1"].fine_tuning.learning_rate == pytest.approx(0.1 * TRAIN.learning_rate)


def test_more_groups_than_images_are_refused_before_any_training():
    with pytest.raises(
        ValueError, match="num_groups=128 needs at least 128 images in a training batch, got batch_size=64"
    ):
        variants(AblationConfig([0], {}, 2, 8, groups_at_fixed_batch=[128]), TRAIN)


def test_settings_of_the_ablations_replace_those_of_the_train_block_but_at_full_length():
    config = replace(CONFIG, train={"epochs": 1, "weight_decay": 0.1}, groups_at_full_length=[8])
    made = {(variant.ablation, variant.value): variant.train for variant in variants(config, TRAIN)}
    assert {(made.pop((FULL_LENGTH, "8"))).epochs} == {4}
    assert {(train.epochs, train.weight_decay) for train in made.values()} == {(1, 0.1)}
    assert {train.batch_size for train in made.values()} == {32, 64}  # nothing else


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 1}, "unknown key epoch in the ablations' train block; it knows model, epochs, "),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
    ],
)
def test_settings_of_the_ablations_that_no_training_has_are_refused_before_any(settings, message):
    with pytest.raises(ValueError, match=message):
        variants(replace(CONFIG, train=settings), TRAIN)


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown key seed in the ablations block; it knows seeds, "):
        AblationConfig.from_params({"seed": 1, "noises": {}, "max_levels": 2, "images": 8})


def test_the_table_has_every_variant_and_an_interrupted_run_ends_with_the_same(digits, project, monkeypatch):
    answers = run("digits-small", digits, TRAIN, ASKED, CONFIG)
    table = answers.table
    assert set(table.value) == {"1", "64", "2", "1 or 16", "0", "bn", "gn"}
    assert set(table[table.network == "gn"].statistics) == {"own"}
    assert not table.duplicated(["ablation", "value", "seed", "statistics", "suite", "noise", "level"]).any()
    accuracy = (table.right / table.images)[table.level == 0]
    accuracy.index = pd.MultiIndex.from_frame(table.loc[accuracy.index, ["statistics", "ablation", "value"]])
    assert accuracy["batch", FIXED_BATCH, "1"] > 0.8
    assert accuracy["batch", FINE_TUNING, "0"] > 0.7, "a converted network works as it is"
    alone, together = (accuracy["single", FIXED_BATCH, groups] for groups in ("64", "1"))
    assert alone > together + 0.03, "groups of one image in training serve a single image"

    assert (set(table.device), set(table.precision)) == ({machine.device_name(torch.device("cpu"))}, {"32-true"})
    seconds = table.set_index(["ablation", "value"]).train_seconds
    assert (seconds[FINE_TUNING, "0"] == 0).all(), "a conversion trains nothing"
    assert (seconds.drop((FINE_TUNING, "0")) > 0).all()

    kept = kept_files()
    assert len(kept) == 2 * len(variants(CONFIG, TRAIN)), "a table and the answers of each"
    lost = {file.stem for file in kept[::4]}
    for file in kept:
        if file.stem in lost:
            os.unlink(file)
    trained = count_trainings(monkeypatch)
    again = run("digits-small", digits, TRAIN, ASKED, CONFIG)
    assert kept_files() == kept, "what was lost is trained again"
    assert 0 < len(trained) <= len(lost) + 1, "and what was kept is not, but for what fine-tuning starts from"
    assert again.table.drop(columns="train_seconds").equals(table.drop(columns="train_seconds"))
    assert (again.classes == answers.classes).all()

    save_table("digits-small", again)
    written = paths.results("digits-small") / "ablations.csv"
    pd.testing.assert_frame_equal(pd.read_csv(written, dtype={"value": str}), again.table)
    with np.load(project / "data" / "runs" / "digits-small-ablations" / "answers.npz", allow_pickle=False) as file:
        assert ((file["classes"] == file["labels"]).sum(1) == again.table.right).all()
        assert ((file["classes"] >= 0).sum(1) == again.table.images).all()
    assert not list(paths.checkpoint("x").parent.iterdir()), "nothing is kept once the table is written"


def test_groups_at_full_length_are_trained_and_asked_like_the_experiments_own_networks(digits, project):
    noises, statistics = {"named": ["contrast", "brightness"]}, {"ln": ["batch", "prior"]}
    choice = {"prior": [4, 64], "prior_noises": {"named": {"gaussian_multiplicative": 0.5}}}
    asked = AnswersConfig(noises, statistics, batch_size=64, max_levels=3, images=192, clean_images=256, **choice)
    config = AblationConfig(
        seeds=[1], noises={"named": ["contrast"]}, max_levels=2, images=32, train={"epochs": 1},
        groups_at_fixed_batch=[2], groups_at_full_length=[2],
    )  # fmt: skip
    train = replace(TRAIN, epochs=2)
    answers = run("digits-small", digits, train, asked, config)
    full = answers.table[answers.table.ablation == FULL_LENGTH]
    assert set(answers.table[answers.table.ablation == FIXED_BATCH].noise) == {"clean", "contrast"}
    assert set(full.statistics) == {"batch", "single", "prior"}

    model = fit(digits, replace(train, num_groups=2), "ln", 1).model
    own = answer(model, digits, asked, "ln", choose_strengths(measure_strengths(model, digits, asked, "ln")))
    for kind in ("batch", "prior"):
        expected, found = (rows[rows.statistics == kind] for rows in (own.table, full))
        keys = ["suite", "noise", "level", "images", "right"]
        assert found[keys].values.tolist() == expected[keys].values.tolist()
        assert (answers.classes[found.index] == own.classes[expected.index]).all()


def test_the_experiments_own_number_of_groups_is_not_trained_again_at_full_length():
    with pytest.raises(ValueError, match="groups_at_full_length: K = 4 is the experiment's own num_groups"):
        variants(replace(CONFIG, groups_at_full_length=[2, 4]), TRAIN)


def kept_files() -> list[Path]:
    return sorted(paths.checkpoint("x").parent.rglob("*.*"))


def count_trainings(monkeypatch) -> list[str]:
    """A list that gets the key of every network that is trained."""
    trained = []

    def counted(dataset, config, network, *arguments, **options):
        trained.append(network)
        return fit(dataset, config, network, *arguments, **options)

    monkeypatch.setattr(ablations, "fit", counted)
    return trained


ONE = AblationConfig(seeds=[0], noises={"named": ["contrast"]}, max_levels=2, images=32, networks=["gn"])
SHORT = replace(TRAIN, epochs=1)


def test_kept_variants_of_other_code_images_settings_or_seeds_are_trained_anew(project, monkeypatch):
    trained = count_trainings(monkeypatch)
    code = project / "data" / "sources" / "ablations.py"

    def trains(config=ONE, train=SHORT, asked=ASKED, **prepared) -> bool:
        before = len(trained)
        data = load(prepare("digits", project / "prepared", **{"limit": 100, "seed": 0} | prepared))
        run("digits-small", data, train, asked, config)
        return len(trained) > before

    assert trains()
    assert not trains(), "kept for an interrupted run"
    assert trains(image_size=4)
    assert trains(seed=1), "another split of the same archive"
    paths.write(code, "x = 1\n")
    assert trains()
    paths.write(code, "x = 2\n")
    assert trains()
    assert not trains()
    assert trains(train=replace(SHORT, weight_decay=1e-3))
    assert trains(asked=replace(ASKED, seed=1))
    assert trains(config=replace(ONE, seeds=[1]))


def test_a_training_that_was_cut_off_under_other_code_is_not_continued(digits, project, monkeypatch):
    code = paths.write(project / "data" / "sources" / "ablations.py", "x = 1\n")

    def cut_off(dataset, config, network, seed, *, checkpoint):
        fit(dataset, SHORT, network, seed, checkpoint=checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(ablations, "fit", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run("digits-small", digits, SHORT, ASKED, ONE)
    resumed = []
    monkeypatch.setattr(
        ablations, "fit", lambda *given, checkpoint: resumed.append(checkpoint.is_file()) or fit(*given)
    )
    paths.write(code, "x = 2\n")
    run("digits-small", digits, SHORT, ASKED, ONE)
    paths.write(code, "x = 1\n")
    run("digits-small", digits, SHORT, ASKED, ONE)
    assert resumed == [False, True]
