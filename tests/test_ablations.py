"""Ablations: each variant differs from the experiment in what it names alone, and an interrupted run continues."""

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from localnorm import ablations, machine, paths
from localnorm.ablations import (
    FINE_TUNING,
    FIXED_BATCH,
    FIXED_SIZE,
    FULL_LENGTH,
    NORM,
    TRAINED_SIZES,
    AblationConfig,
    run,
    save_table,
    variants,
)
from localnorm.data import load, prepare
from localnorm.evaluate import SweepConfig, sweep
from localnorm.train import TrainConfig, fit

TRAIN = TrainConfig("small", epochs=4, batch_size=64, num_groups=4, threads=1)
SWEEP = SweepConfig(noises={}, modes={}, batch_size=64)
CONFIG = AblationConfig(
    seeds=[0],
    noises={"named": ["contrast"]},
    max_levels=2,
    images=128,
    groups_at_fixed_batch=[1, 64],
    groups_at_fixed_group_size=[2],
    group_sizes=[[1, 16]],
    fine_tuning_epochs=[0, 1],
    norms=["batch", "group"],
)


def test_a_variant_changes_one_thing():
    made = {(variant.ablation, variant.value): variant for variant in variants(CONFIG, TRAIN)}
    assert list(made) == [
        (FIXED_BATCH, "1"), (FIXED_BATCH, "64"), (FIXED_SIZE, "2"), (TRAINED_SIZES, "1 or 16"),
        (FINE_TUNING, "0"), (FINE_TUNING, "1"), (NORM, "batch"), (NORM, "group"),
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
    table = run("digits-small", digits, TRAIN, SWEEP, CONFIG)
    assert set(table.value) == {"1", "64", "2", "1 or 16", "0", "batch", "group"}
    clean = table[(table.level == 0) & (table["mode"] == "batch")].set_index(["ablation", "value"]).accuracy
    assert clean[FIXED_BATCH, "1"] > 0.8
    assert clean[FINE_TUNING, "0"] > 0.7, "a converted network works as it is"
    single = table[(table.level == 0) & (table["mode"] == "single")].set_index(["ablation", "value"]).accuracy
    assert single[FIXED_BATCH, "64"] > single[FIXED_BATCH, "1"] + 0.03, (
        "one image a group in training serves a single image"
    )

    assert (set(table.device), set(table.precision)) == ({machine.device_name(torch.device("cpu"))}, {"32-true"})
    seconds = table.set_index(["ablation", "value"]).train_seconds
    assert (seconds[FINE_TUNING, "0"] == 0).all(), "a conversion trains nothing"
    assert (seconds.drop((FINE_TUNING, "0")) > 0).all()

    kept = kept_files()
    assert len(kept) == len(variants(CONFIG, TRAIN))
    for file in kept[::2]:
        os.unlink(file)
    trained = count_trainings(monkeypatch)
    again = run("digits-small", digits, TRAIN, SWEEP, CONFIG)
    assert kept_files() == kept, "what was lost is trained again"
    assert 0 < len(trained) <= len(kept[::2]) + 1, "and what was kept is not, but for what fine-tuning starts from"
    varying = ["accuracy", "train_seconds"]
    assert again.drop(columns=varying).equals(table.drop(columns=varying))
    assert again.accuracy.to_numpy() == pytest.approx(table.accuracy.to_numpy(), abs=1e-5)

    save_table("digits-small", again)
    pd.testing.assert_frame_equal(pd.read_csv(paths.ablations("digits-small"), dtype={"value": str}), again)
    assert not list(paths.checkpoint("x").parent.iterdir()), "nothing is kept once the table is written"


def test_groups_at_full_length_are_trained_and_scored_like_the_experiments_own_networks(digits, project):
    noises, modes = {"named": ["contrast", "brightness"]}, {"local": ["batch", "prior"]}
    choice = {"prior": [4, 64], "prior_noises": {"named": {"gaussian_multiplicative": 0.5}}}
    sweep_config = SweepConfig(noises, modes, batch_size=64, max_levels=3, images=192, clean_images=256, **choice)
    config = AblationConfig(
        seeds=[1], noises={"named": ["contrast"]}, max_levels=2, images=32, train={"epochs": 1},
        groups_at_fixed_batch=[2], groups_at_full_length=[2],
    )  # fmt: skip
    train = replace(TRAIN, epochs=2)
    table = run("digits-small", digits, train, sweep_config, config)
    full = table[table.ablation == FULL_LENGTH]
    assert set(table[table.ablation == FIXED_BATCH].noise) == {"contrast"}
    assert set(full["mode"]) == {"batch", "single", "prior"}

    network = fit(digits, replace(train, num_groups=2), "local", 1).model
    own, _ = sweep(network, digits, sweep_config, "local")
    for mode in ("batch", "prior"):
        expected, found = (rows[rows["mode"] == mode].reset_index() for rows in (own, full))
        keys = ["suite", "noise", "level", "images"]
        assert found[keys].equals(expected[keys])
        assert found.accuracy.to_numpy() == pytest.approx(expected.accuracy.to_numpy(), abs=1e-5)


def test_the_experiments_own_number_of_groups_is_not_trained_again_at_full_length():
    with pytest.raises(ValueError, match="groups_at_full_length: K = 4 is the experiment's own num_groups"):
        variants(replace(CONFIG, groups_at_full_length=[2, 4]), TRAIN)


def kept_files() -> list[Path]:
    return sorted(paths.checkpoint("x").parent.rglob("*.*"))


def count_trainings(monkeypatch) -> list[str]:
    """A list that gets the norm of every network that is trained."""
    trained = []

    def counted(dataset, config, norm, *arguments, **options):
        trained.append(norm)
        return fit(dataset, config, norm, *arguments, **options)

    monkeypatch.setattr(ablations, "fit", counted)
    return trained


ONE = AblationConfig(seeds=[0], noises={"named": ["contrast"]}, max_levels=2, images=32, norms=["group"])
SHORT = replace(TRAIN, epochs=1)


def test_kept_variants_of_other_code_images_settings_or_seeds_are_trained_anew(project, monkeypatch):
    trained = count_trainings(monkeypatch)
    code = project / "data" / "sources" / "ablations.py"

    def trains(config=ONE, train=SHORT, sweep=SWEEP, **prepared) -> bool:
        before = len(trained)
        data = load(prepare("digits", project / "prepared", **{"limit": 100, "seed": 0} | prepared))
        run("digits-small", data, train, sweep, config)
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
    assert trains(sweep=replace(SWEEP, seed=1))
    assert trains(config=replace(ONE, seeds=[1]))


def test_a_training_that_was_cut_off_under_other_code_is_not_continued(digits, project, monkeypatch):
    code = paths.write(project / "data" / "sources" / "ablations.py", "x = 1\n")

    def cut_off(dataset, config, norm, seed, *, checkpoint):
        fit(dataset, SHORT, norm, seed, checkpoint=checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(ablations, "fit", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run("digits-small", digits, SHORT, SWEEP, ONE)
    resumed = []
    monkeypatch.setattr(
        ablations, "fit", lambda *given, checkpoint: resumed.append(checkpoint.is_file()) or fit(*given)
    )
    paths.write(code, "x = 2\n")
    run("digits-small", digits, SHORT, SWEEP, ONE)
    paths.write(code, "x = 1\n")
    run("digits-small", digits, SHORT, SWEEP, ONE)
    assert resumed == [False, True]
