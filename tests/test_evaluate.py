"""The sweep: the same noise for every network, every image scored, and scores that can be worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from localnorm import noise
from localnorm.evaluate import (
    SweepConfig,
    arm_label,
    calibration_error,
    choices,
    choose,
    conditions,
    load_predictions,
    noisy_images,
    save_sweep,
    sweep,
    sweep_batches,
    test_images,
)
from localnorm.prediction import majority_vote, predict
from localnorm.train import TrainConfig, fit

CONFIG = SweepConfig(
    noises={"released": ["bernoulli"], "named": ["gaussian", "contrast"]},
    modes={
        "batch": ["fixed", "batch", "single", "companions", "prior", "last_fixed"],
        "local": ["batch", "single", "vote", "companions", "prior", "last_fixed"],
    },
    batch_size=64,
    images=192,
    mode_images={"vote": 64, "companions": 64},
    max_levels=3,
    prior=[1, 16, 1e6],
    fixed_last=[1, 2],
    clean_images=256,
    prior_noises={"released": {"mnist_foreground": 1}},
    companions=15,
    batches={"sizes": [1, 4, 96], "conditions": {"named": {"gaussian": 0.3, "contrast": 0.9}}, "images": 96},
)


@pytest.fixture(scope="module")
def networks(digits):
    config = TrainConfig("small", epochs=4, batch_size=64, num_groups=4, augment={"shift": 0.125}, threads=1)
    return {norm: fit(digits, config, norm, seed=0).model for norm in ("batch", "local")}


@pytest.fixture(scope="module")
def tables(digits, networks):
    return {norm: sweep(network, digits, CONFIG, norm) for norm, network in networks.items()}


def test_a_row_for_every_mode_noise_and_level(tables):
    for norm, (table, classes) in tables.items():
        assert len(table) == len(classes) == len(CONFIG.modes[norm]) * len(conditions(CONFIG))
        assert not table.duplicated(["mode", "suite", "noise", "level"]).any()


def test_clean_images_are_right_and_noise_costs_accuracy(tables):
    for table, _ in tables.values():
        batch = table[table["mode"].isin(["fixed", "batch"])]
        clean = batch[batch.level == 0].accuracy
        assert clean.min() > 0.85
        assert batch[(batch.noise == "gaussian") & (batch.level == 0.5)].accuracy.max() < clean.min()


def test_statistics_of_the_test_batch_undo_a_loss_of_contrast_that_fixed_ones_cannot(tables):
    table, _ = tables["batch"]
    lost = table[(table.noise == "contrast") & (table.level == 0.95)].set_index("mode").accuracy
    assert lost["batch"] > lost["fixed"] + 0.2


def test_accuracy_is_that_of_the_stored_classes(tables, digits):
    _, labels = test_images(digits, CONFIG)
    for table, classes in tables.values():
        for row, predicted in zip(table.itertuples(), classes, strict=True):
            scored = predicted >= 0
            assert scored.sum() == row.images
            assert (predicted[scored] == labels.numpy()[scored]).mean() == pytest.approx(row.accuracy)


def test_vote_scores_only_the_images_it_was_given_and_its_members_disagree(tables):
    table, classes = tables["local"]
    vote = table[table["mode"] == "vote"]
    assert (vote.images == 64).all()
    assert (classes[vote.index][:, 64:] == -1).all()
    assert vote.disagreement.max() > 0
    assert (table[table["mode"] == "batch"].disagreement == 0).all()


def test_votes_are_counted_as_the_library_counts_them(digits, networks):
    """Four members tie often: the results break a tie as `localnorm.majority_vote` does."""
    config = replace(CONFIG, noises={"named": ["gaussian"]}, modes={"local": ["vote"]}, max_levels=2)
    table, classes = sweep(networks["local"], digits, config, "local")
    images, _ = test_images(digits, config)
    limits = noise.Extrema(torch.tensor([0.0]), torch.tensor([255.0]))
    ties = 0
    for row, predicted in zip(table.itertuples(), classes, strict=True):
        noisy = noisy_images(
            images[: 192 if row.level else None], digits, "named", row.noise, row.level, config, limits
        )
        members = predict(networks["local"], noisy[:64], "vote", batch_size=64, return_members=True)
        assert majority_vote(members).tolist() == predicted[:64].tolist()
        counts = torch.nn.functional.one_hot(members.argmax(-1), 10).sum(0)  # (N, num_classes)
        smallest = counts.argmax(-1)
        ties += (smallest.numpy() != predicted[:64]).sum()
    assert ties > 0, "a tie that goes to another class than the smallest"


def test_each_network_has_one_strength_of_the_candidates_in_each_mode_that_has_one(tables):
    for table, _ in tables.values():
        chosen = table.groupby("mode")[["prior", "fixed_last"]].agg(["nunique", "max"])
        assert chosen.loc["prior", "prior"].tolist() in [[1, prior] for prior in CONFIG.prior]
        assert chosen.loc["last_fixed", "fixed_last"].tolist() in [[1, count] for count in CONFIG.fixed_last]
        assert chosen.loc["last_fixed", ("prior", "nunique")] == 1
        assert table[~table["mode"].isin(["prior", "last_fixed"])].prior.isna().all()
        assert table[table["mode"] != "last_fixed"].fixed_last.isna().all()


def test_every_pair_of_strengths_is_measured_and_the_best_mean_of_clean_and_noisy_is_taken(digits, networks):
    table = choices(networks["batch"], digits, CONFIG, "batch")
    assert len(table) == 3 + 2 * 4, "three n0 alone, and n0 = 0 as well where last layers are fixed"
    assert table.clean.min() > 0.3
    assert table.clean.max() > table.noisy.min()
    for mode, rows in (("prior", table[table.fixed_last == 0]), ("last_fixed", table[table.fixed_last > 0])):
        taken = choose(table, mode)
        row = rows[(rows.prior == taken["prior"]) & (rows.fixed_last == taken["fixed_last"])].squeeze()
        assert row.clean + row.noisy == (rows.clean + rows.noisy).max()


def test_the_chosen_prior_looks_at_an_image_without_contrast_and_trusts_training_on_clean_ones(digits, networks):
    lost, clean = (replace(CONFIG, noises={}, prior_noises={"named": {"contrast": level}}) for level in (0.95, 0))
    assert choose(choices(networks["batch"], digits, lost, "batch"), "prior")["prior"] < 1e6
    assert choose(choices(networks["batch"], digits, clean, "batch"), "prior")["prior"] == 1e6


def test_the_strengths_are_chosen_on_validation_images_alone(digits, networks):
    chosen = choices(networks["batch"], digits, CONFIG, "batch")
    swapped = replace(digits, counts=digits.counts | {"test": 0})  # any look at the test part would fail
    assert choices(networks["batch"], swapped, CONFIG, "batch").equals(chosen)
    with pytest.raises(ValueError, match="test-images"):
        swapped.images("test")


def test_nothing_is_measured_where_nothing_is_chosen(digits, networks):
    table = choices(networks["batch"], digits, replace(CONFIG, prior=16, prior_noises={}, fixed_last=[2]), "batch")
    assert table[["clean", "noisy"]].isna().all(axis=None)
    assert choose(table, "prior") == {"prior": 16, "fixed_last": 0}
    assert choose(table, "last_fixed") == {"prior": 16, "fixed_last": 2}
    assert choices(networks["batch"], digits, replace(CONFIG, modes={"batch": ["fixed"]}), "batch").empty


def test_clean_accuracy_may_be_of_more_images_than_that_under_noise(tables):
    for table, classes in tables.values():
        whole = table[~table["mode"].isin(["vote", "companions"])]
        assert (whole[whole.level == 0].images == 256).all()
        assert (whole[whole.level > 0].images == 192).all()
        assert (classes[whole[whole.level == 0].index] >= 0).all()
        assert (classes[whole[whole.level > 0].index][:, 192:] == -1).all()


@pytest.mark.parametrize("norm", ["batch", "local"])
def test_companions_make_a_single_image_better_than_it_is_alone(tables, norm):
    table, _ = tables[norm]
    clean = table[table.level == 0].groupby("mode").accuracy.first()
    assert clean["companions"] > clean["single"] + 0.05


def test_with_the_last_norm_fixed_one_image_still_undoes_a_loss_of_contrast(digits, networks):
    alone = replace(CONFIG, noises={"named": ["contrast"]}, prior=0, fixed_last=[1], prior_noises={})
    table, _ = sweep(
        networks["batch"], digits, replace(alone, modes={"batch": ["fixed", "single", "last_fixed"]}), "batch"
    )
    lost = table[table.level == 0.95].set_index("mode").accuracy
    assert lost["last_fixed"] > lost["fixed"] + 0.1
    assert lost["last_fixed"] != lost["single"]


def test_larger_batches_give_better_statistics_and_clean_company_does_not_help_a_darkened_image(digits, networks):
    for norm, network in networks.items():
        table = sweep_batches(network, digits, CONFIG, norm)
        table = table[table["mode"] == "batch"]
        assert len(table) == 3 * 2 * 3  # sizes, compositions, conditions
        accuracy = table.set_index(["composition", "batch_size", "noise"]).accuracy
        assert accuracy["uniform", 96, "clean"] > accuracy["uniform", 1, "clean"] + 0.02
        assert accuracy["uniform", 96, "contrast"] > accuracy["mixed", 96, "contrast"] + 0.1
        # one image is its own company
        for condition in ("clean", "gaussian", "contrast"):
            assert accuracy["uniform", 1, condition] == accuracy["mixed", 1, condition]


def test_no_batch_moves_what_training_statistics_answer_and_they_stand_beside_every_batch(digits, networks):
    table = sweep_batches(networks["batch"], digits, CONFIG, "batch")
    fixed = table[table["mode"] == "fixed"]
    assert len(fixed) == 3 * 2 * 3  # sizes, compositions, conditions
    assert (fixed.groupby("noise").accuracy.nunique() == 1).all()
    assert fixed.groupby("noise").accuracy.first()["clean"] > 0.8
    # the sweep's answers to the same images
    config = replace(
        CONFIG,
        images=96,
        max_levels=None,
        noises={"named": ["contrast"]},
        modes={"batch": ["fixed"]},
        prior_noises={},
        prior=1,
    )
    swept, _ = sweep(networks["batch"], digits, config, "batch")
    assert fixed[fixed.noise == "contrast"].accuracy.iloc[0] == swept[swept.level == 0.9].accuracy.item()
    assert set(sweep_batches(networks["local"], digits, CONFIG, "local")["mode"]) == {"batch"}


def test_without_the_block_no_batches_are_studied(digits, networks):
    assert sweep_batches(networks["batch"], digits, replace(CONFIG, batches=None), "batch").empty


def test_noise_is_the_same_for_every_call_and_another_for_another_seed(digits):
    images, _ = test_images(digits, CONFIG)
    limits = noise.Extrema(torch.tensor([0.0]), torch.tensor([255.0]))
    args = digits, "named", "gaussian", 0.3
    first, again = (noisy_images(images, *args, CONFIG, limits) for _ in range(2))
    other = noisy_images(images, *args, SweepConfig(CONFIG.noises, CONFIG.modes, 64, seed=1), limits)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_rescaling_maps_the_noisy_set_onto_the_range_of_the_training_part(digits):
    images, _ = test_images(digits, CONFIG)
    limits = noise.Extrema(torch.tensor([0.0]), torch.tensor([255.0]))
    noisy = noisy_images(images, digits, "released", "gaussian_pos", 2.0, CONFIG, limits)
    (mean,), (std,) = digits.mean, digits.std
    assert noisy.min().item() == pytest.approx((0 - mean) / std, abs=1e-4)
    assert noisy.max().item() == pytest.approx((255 - mean) / std, abs=1e-4)


def test_the_released_noise_acts_on_pixels_of_the_domain(digits):
    images, _ = test_images(digits, CONFIG)
    limits = noise.Extrema(torch.tensor([0.0]), torch.tensor([255.0]))
    (mean,), (std,) = digits.mean, digits.std

    def moved(domain: str) -> float:
        """How far foreground noise of level 1 moves a pixel on average, in the range of a pixel."""
        config = SweepConfig(CONFIG.noises, CONFIG.modes, 64, domain=domain, rescale="none")
        noisy = noisy_images(images, digits, "released", "mnist_foreground", 1.0, config, limits)
        return ((noisy * std + mean - images) / 255).mean().item()

    assert moved("unit") == pytest.approx(1 / 2, rel=0.02)
    assert moved("raw") == pytest.approx(1 / 2 / 255, rel=0.02)
    assert moved("standardised") == pytest.approx(std / 2 / 255, rel=0.02)

    config = SweepConfig(CONFIG.noises, CONFIG.modes, 64, domain="unit", rescale="none")
    noisy = noisy_images(images, digits, "released", "mnist_background", 0.5, config, limits)
    pixels = (noisy * std + mean) / 255
    assert (pixels[images > 0] - 1).abs().max() < 1e-4, "the stroke is white"
    assert pixels[images == 0].mean().item() == pytest.approx(1 / 4, rel=0.02)


def test_images_of_a_batch_are_of_many_classes(digits):
    _, labels = test_images(digits, CONFIG)
    assert len(labels[:64].unique()) >= 8


def test_calibration_error_is_confidence_minus_accuracy_in_its_bins():
    sure = torch.tensor([[0.9, 0.1]] * 10)
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert calibration_error(sure, labels) == pytest.approx(0.3)
    mixed = torch.tensor([[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 5)
    assert calibration_error(mixed, torch.tensor([0] * 5 + [1] * 5)) == pytest.approx((0.1 + 0.4) / 2)


def test_scores_of_certain_and_uniform_predictions():
    from localnorm.evaluate import _score

    labels = torch.tensor([0, 1])
    assert _score(torch.eye(2), labels) == pytest.approx({"accuracy": 1, "nll": 0, "brier": 0, "ece": 0})
    uniform = _score(torch.full((2, 2), 0.5), labels)
    assert uniform["nll"] == pytest.approx(np.log(2))
    assert uniform["brier"] == pytest.approx(0.5)


def test_saved_sweep_comes_back(tables, digits, tmp_path):
    table, classes = tables["local"]
    _, labels = test_images(digits, CONFIG)
    save_sweep(table, classes, table.head(2), table.head(1), labels, tmp_path)
    again, stored, truth = load_predictions(tmp_path)
    assert again.accuracy.to_numpy() == pytest.approx(table.accuracy.to_numpy(), abs=1e-5)
    assert (stored == classes).all()
    assert (truth == labels.numpy()).all()


def test_the_sweep_leaves_the_network_as_it_was(digits, networks):
    before = {name: value.clone() for name, value in networks["batch"].state_dict().items()}
    sweep(networks["batch"], digits, CONFIG, "batch")
    assert all(torch.equal(value, before[name]) for name, value in networks["batch"].state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "log"}, "unknown domain 'log'; choose one of standardised, raw, unit"),
        ({"rescale": "batch"}, "unknown rescale 'batch'; choose one of set, image, none"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"images": -5}, "images must be a whole number of at least 1, got -5"),
        ({"fixed_last": [0]}, r"fixed_last must be numbers of layers of at least 1, got \[0\]"),
        ({"clean_images": 0}, "clean_images must be a whole number of at least 1, got 0"),
        ({"companions": 0}, "companions must be a whole number of at least 1, got 0"),
        ({"mode_images": {"vote": 0.5}}, "mode_images vote must be a whole number of at least 1, got 0.5"),
        ({"mode_images": {"LN votes": 8}}, "mode_images: unknown mode or arm 'LN votes'; choose of fixed, batch"),
        (
            {"batches": {"sizes": [8], "images": 8, "conditions": {}}},
            "batches: conditions must name at least one noise",
        ),
        ({"prior": -3}, "prior must be a number of positions of at least 0, got -3"),
        ({"prior": [64, float("nan")]}, "prior must be a number of positions of at least 0, got nan"),
        ({"prior": [1, 2]}, r"a choice of prior \[1, 2\] needs at least one value, and prior_noises to choose by"),
        (
            {"prior_noises": {"named": {"bernoulli": 1.2}}},
            r"'bernoulli' \(probability .*\) is at least 0 and at most 1, got 1.2",
        ),
        (
            {"noises": {"named": ["poisson"]}, "prior_noises": {"named": {"poisson": 0.2}}},
            r"poisson \(named\) is scored",
        ),
        ({"batches": {"sizes": [8]}}, "batches must have exactly sizes, conditions, images; it has sizes"),
        (
            {"batches": {"sizes": [9], "images": 8, "conditions": {}}},
            r"whole numbers from 1 to images=8, got \[9\]",
        ),
        (
            {"noises": {"released": ["mnist_background"]}, "domain": "raw"},
            "in the domain 'raw' no image is left; set domain: unit",
        ),
        ({"modes": {"local": ["fix"]}}, r"unknown arm \(local, fix\); norm and mode are one of \(batch, fixed\)"),
    ],
)
def test_wrong_settings_name_the_valid_ones(change, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**{"noises": {}, "modes": {}, "batch_size": 8} | change)


def test_images_of_an_arm_come_before_those_of_its_mode(digits, networks):
    config = replace(CONFIG, modes={"local": ["single"], "batch": ["single"]}, noises={"named": ["contrast"]})
    config = replace(config, mode_images={"single": 32, "LN single": 96})
    scored = {norm: sweep(networks[norm], digits, config, norm)[0].images.unique().tolist() for norm in networks}
    assert scored == {"batch": [32], "local": [96]}


def test_a_norm_without_modes_is_named(digits, networks):
    with pytest.raises(ValueError, match="names no modes for norm 'group', only for batch, local"):
        sweep(networks["batch"], digits, CONFIG, "group")
    with pytest.raises(ValueError, match=r"unknown arm \(batch, vote\)"):
        arm_label("batch", "vote")
