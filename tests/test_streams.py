"""Test batches of other sizes and mixed conditions."""

from dataclasses import replace

import pandas as pd
from conftest import ASKED

from localnorm.answers import answer
from localnorm.streams import answer_streams, save_streams

STRENGTHS = {"prior": {"prior": 16.0}}


def test_larger_batches_give_better_statistics_and_clean_company_does_not_help_a_darkened_image(digits, pair):
    for network, model in pair.items():
        table = answer_streams(model, digits, ASKED, network, STRENGTHS)
        table = table[table.statistics == "batch"]
        assert len(table) == 3 * 2 * 3  # sizes, compositions, conditions
        assert (table.images == 96).all()
        right = table.set_index(["composition", "batch_size", "noise"]).right
        assert right["uniform", 96, "clean"] > right["uniform", 1, "clean"] + 2
        assert right["uniform", 96, "contrast"] > right["mixed", 96, "contrast"] + 10
        # one image is its own company
        for condition in ("clean", "gaussian", "contrast"):
            assert right["uniform", 1, condition] == right["mixed", 1, condition]


def test_no_batch_moves_what_training_statistics_answer_and_they_stand_beside_every_batch(digits, pair):
    table = answer_streams(pair["bn"], digits, ASKED, "bn", STRENGTHS)
    fixed = table[table.statistics == "fixed"]
    assert len(fixed) == 3 * 2 * 3  # sizes, compositions, conditions
    assert (fixed.groupby("noise").right.nunique() == 1).all()
    assert fixed.groupby("noise").right.first()["clean"] > 0.8 * 96
    # the answers to the same images
    config = replace(ASKED, images=96, max_levels=None, noises={"named": ["contrast"]}, statistics={"bn": ["fixed"]})
    asked = answer(pair["bn"], digits, config, "bn").table
    assert fixed[fixed.noise == "contrast"].right.iloc[0] == asked[asked.level == 0.9].right.item()


def test_no_batch_moves_an_image_whose_statistics_are_its_own(digits, pair):
    table = answer_streams(pair["ln"], digits, ASKED, "ln", STRENGTHS)
    assert set(table.statistics) == {"batch", "single", "prior"}
    alone = table[table.statistics != "batch"]
    assert (alone.groupby(["statistics", "noise"]).right.nunique() == 1).all()
    of_one = table[(table.statistics == "batch") & (table.batch_size == 1)].groupby("noise").right.first()
    single = table[table.statistics == "single"].groupby("noise").right.first()
    assert (of_one == single).all(), "a batch of one image has that image's statistics, under the first group's affine"


def test_a_batch_that_the_test_images_cannot_fill_is_not_claimed(digits, pair):
    test = len(digits.labels("test"))
    config = replace(ASKED, streams={**ASKED.streams, "sizes": [8, 2 * test], "images": 2 * test})
    table = answer_streams(pair["bn"], digits, config, "bn", STRENGTHS)
    assert set(table.batch_size) == {8}


def test_without_the_block_or_a_batch_nothing_is_studied_and_the_file_has_its_columns(digits, pair, tmp_path):
    none = answer_streams(pair["bn"], digits, replace(ASKED, streams=None), "bn")
    assert none.empty
    assert answer_streams(pair["bn"], digits, replace(ASKED, statistics={"bn": ["companions"]}), "bn").empty
    save_streams(none, tmp_path)
    columns = ["statistics", "composition", "batch_size", "suite", "noise", "level", "images", "right"]
    assert pd.read_csv(tmp_path / "streams.csv").columns.tolist() == columns
