"""Ablations: each variant differs from the experiment in what it names alone, and an interrupted run continues."""

import os

import pytest

from localnorm import paths
from localnorm.ablations import FINE_TUNING, FIXED_BATCH, FIXED_SIZE, NORM, TRAINED_SIZES, AblationConfig, run, variants
from localnorm.evaluate import SweepConfig
from localnorm.train import TrainConfig

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

    kept = sorted(paths.checkpoint("x").parent.glob("*.csv"))
    assert len(kept) == len(variants(CONFIG, TRAIN))
    for file in kept[::2]:
        os.unlink(file)
    again = run("digits-small", digits, TRAIN, SWEEP, CONFIG)
    assert all(file.is_file() for file in kept), "what was lost is trained again"
    assert again.drop(columns="accuracy").equals(table.drop(columns="accuracy"))
    assert again.accuracy.to_numpy() == pytest.approx(table.accuracy.to_numpy(), abs=1e-5)
