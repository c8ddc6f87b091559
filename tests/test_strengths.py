"""Strengths: every candidate is measured on validation images, and the best mean of clean and noisy is taken."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
from conftest import ASKED

from localnorm.answers import answer
from localnorm.strengths import choose_strengths, measure_strengths, save_strengths


def test_every_pair_of_strengths_is_measured_and_the_best_mean_of_clean_and_noisy_is_taken(digits, pair):
    table = measure_strengths(pair["bn"], digits, ASKED, "bn")
    assert len(table) == 3 + 2 * 4, "three n0 alone, and n0 = 0 as well where last layers are fixed"
    assert table.clean.min() > 0.3
    assert table.clean.max() > table.noisy.min()
    assert (table.fixed_last[table.statistics == "prior"] == 0).all()
    for statistics, rows in table.groupby("statistics"):
        taken = choose_strengths(table)[statistics]
        row = rows[(rows.prior == taken["prior"]) & (rows.fixed_last == taken["fixed_last"])].squeeze()
        assert row.clean + row.noisy == (rows.clean + rows.noisy).max()


def test_a_gated_prior_has_candidates_of_its_own_on_a_network_of_either_layer(digits, pair):
    config = replace(ASKED, statistics={"bn": ["gated"], "ln": ["gated", "prior"]}, gated=[16, 2])
    for network, own in (("bn", 2), ("ln", 5)):
        model = copy.deepcopy(pair[network])
        table = measure_strengths(model, digits, config, network)
        assert len(table) == own
        gated = table[table.statistics == "gated"]
        assert list(gated.prior) == [2, 16]
        assert choose_strengths(table)["gated"]["prior"] in (2, 16)
        asked = {"gated": {"prior": 16, "fixed_last": 0}, "prior": {"prior": 16, "fixed_last": 0}}
        answers = answer(model, digits, config, network, asked).table
        assert (answers.prior == 16).all()
        assert (
            answers[(answers.statistics == "gated") & (answers.level == 0)].right > 0.5 * answers.images.min()
        ).all()


def test_the_chosen_prior_looks_at_an_image_without_contrast_and_trusts_training_on_clean_ones(digits, pair):
    lost, clean = (replace(ASKED, noises={}, prior_noises={"named": {"contrast": level}}) for level in (0.95, 0))
    assert choose_strengths(measure_strengths(pair["bn"], digits, lost, "bn"))["prior"]["prior"] < 1e6
    assert choose_strengths(measure_strengths(pair["bn"], digits, clean, "bn"))["prior"]["prior"] == 1e6


def test_the_strengths_are_chosen_on_validation_images_alone(digits, pair):
    chosen = measure_strengths(pair["bn"], digits, ASKED, "bn")
    swapped = replace(digits, counts=digits.counts | {"test": 0})  # any look at the test part would fail
    assert measure_strengths(pair["bn"], swapped, ASKED, "bn").equals(chosen)
    with pytest.raises(ValueError, match="test-images"):
        swapped.images("test")


def test_nothing_is_measured_where_nothing_is_chosen(digits, pair):
    config = replace(ASKED, prior=16, prior_noises={}, fixed_last=[2])
    table = measure_strengths(pair["bn"], digits, config, "bn")
    assert table[["clean", "noisy"]].isna().all(axis=None)
    assert choose_strengths(table) == {
        "prior": {"prior": 16, "fixed_last": 0},
        "last_fixed": {"prior": 16, "fixed_last": 2},
    }
    nothing = measure_strengths(pair["bn"], digits, replace(ASKED, statistics={"bn": ["fixed"]}), "bn")
    assert nothing.empty
    assert choose_strengths(nothing) == {}


def test_saved_strengths_come_back_and_may_be_none(digits, pair, tmp_path):
    table = measure_strengths(pair["ln"], digits, replace(ASKED, prior_noises={}, prior=16), "ln")
    save_strengths(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "strengths.csv"), table, check_dtype=False)
    save_strengths(table.head(0), tmp_path)
    assert pd.read_csv(tmp_path / "strengths.csv").columns.tolist() == [
        "statistics",
        "prior",
        "fixed_last",
        "clean",
        "noisy",
    ]
