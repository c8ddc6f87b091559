"""Answers: the same noise for every network, every image counted once, and scores that can be worked out by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ASKED

from localnorm import noise
from localnorm.answers import answer, calibration_error, noisy_images, save_answers, test_images
from localnorm.prediction import majority_vote, predict
from localnorm.settings import AnswersConfig, conditions
from localnorm.strengths import choose_strengths, measure_strengths

CONFIG = ASKED


@pytest.fixture(scope="module")
def strengths(digits, pair):
    return {
        network: choose_strengths(measure_strengths(model, digits, CONFIG, network)) for network, model in pair.items()
    }


@pytest.fixture(scope="module")
def answers(digits, pair, strengths):
    return {network: answer(model, digits, CONFIG, network, strengths[network]) for network, model in pair.items()}


def accuracy_of(table: pd.DataFrame) -> pd.Series:
    return table.right / table.images


def test_there_is_one_row_for_every_statistics_and_condition_and_clean_images_are_one_condition(answers):
    for network, found in answers.items():
        table = found.table
        assert len(table) == len(found.classes) == len(CONFIG.statistics[network]) * len(conditions(CONFIG))
        assert not table.duplicated(["statistics", "suite", "noise", "level"]).any()
        assert table[table.level == 0].groupby("statistics").size().unique().tolist() == [1]
        assert set(table[table.level == 0].noise) == {"clean"}


def test_clean_images_are_right_and_noise_costs_accuracy(answers):
    for found in answers.values():
        batch = found.table[found.table.statistics.isin(["fixed", "batch"])]
        clean = accuracy_of(batch[batch.level == 0])
        assert clean.min() > 0.85
        assert accuracy_of(batch[(batch.noise == "gaussian") & (batch.level == 0.5)]).max() < clean.min()


def test_statistics_of_the_test_batch_undo_a_loss_of_contrast_that_fixed_ones_cannot(answers):
    table = answers["bn"].table
    lost = accuracy_of(table[(table.noise == "contrast") & (table.level == 0.95)].set_index("statistics"))
    assert lost["batch"] > lost["fixed"] + 0.2


def test_right_answers_are_those_of_the_stored_classes(answers, digits):
    _, labels = test_images(digits, CONFIG)
    for found in answers.values():
        assert (found.labels == labels.numpy()).all()
        scored = found.classes >= 0
        assert (scored.sum(1) == found.table.images).all()
        assert ((found.classes == found.labels).sum(1) == found.table.right).all()


def test_a_vote_is_of_the_images_it_was_given_and_its_members_disagree(answers):
    table, classes = answers["ln"].table, answers["ln"].classes
    vote = table[table.statistics == "vote"]
    assert (vote.images == 64).all()
    assert (classes[vote.index][:, 64:] == -1).all()
    assert vote.disagreement.max() > 0
    assert (table[table.statistics == "batch"].disagreement == 0).all()


def test_votes_are_counted_as_the_library_counts_them(digits, pair):
    """Four members tie often: the answers break a tie as `localnorm.majority_vote` does."""
    config = replace(CONFIG, noises={"named": ["gaussian"]}, statistics={"ln": ["vote"]}, max_levels=2)
    found = answer(pair["ln"], digits, config, "ln")
    images, _ = test_images(digits, config)
    limits = noise.Extrema(torch.tensor([0.0]), torch.tensor([255.0]))
    ties = 0
    for row, predicted in zip(found.table.itertuples(), found.classes, strict=True):
        noisy = noisy_images(images[:192], digits, row.suite, row.noise, row.level, config, limits)
        members = predict(pair["ln"], noisy[:64], "vote", batch_size=64, return_members=True)
        assert majority_vote(members).tolist() == predicted[:64].tolist()
        counts = torch.nn.functional.one_hot(members.argmax(-1), 10).sum(0)  # (N, num_classes)
        smallest = counts.argmax(-1)
        ties += (smallest.numpy() != predicted[:64]).sum()
    assert ties > 0, "a tie that goes to another class than the smallest"


def test_strengths_are_those_that_were_given_and_stand_in_the_rows_that_have_them(answers, strengths):
    for network, found in answers.items():
        for statistics, rows in found.table.groupby("statistics"):
            given = strengths[network].get(statistics, {})
            assert rows.prior.dropna().unique().tolist() == ([given["prior"]] if given else [])
            layers = [given["fixed_last"]] if statistics == "last_fixed" else []
            assert rows.fixed_last.dropna().unique().tolist() == layers


def test_statistics_with_a_strength_are_not_asked_about_without_one(digits, pair):
    with pytest.raises(ValueError, match="statistics 'prior' need a strength"):
        answer(pair["bn"], digits, replace(CONFIG, statistics={"bn": ["prior"]}), "bn")


def test_clean_accuracy_may_be_of_more_images_than_that_under_noise(answers):
    for found in answers.values():
        table, classes = found.table, found.classes
        whole = table[~table.statistics.isin(["vote", "companions"])]
        assert (whole[whole.level == 0].images == 256).all()
        assert (whole[whole.level > 0].images == 192).all()
        assert (classes[whole[whole.level == 0].index] >= 0).all()
        assert (classes[whole[whole.level > 0].index][:, 192:] == -1).all()


@pytest.mark.parametrize("network", ["bn", "ln"])
def test_companions_make_a_single_image_better_than_it_is_alone(answers, network):
    table = answers[network].table
    clean = accuracy_of(table[table.level == 0].set_index("statistics"))
    assert clean["companions"] > clean["single"] + 0.05


def test_with_the_last_layer_fixed_one_image_still_undoes_a_loss_of_contrast(digits, pair):
    config = replace(CONFIG, noises={"named": ["contrast"]}, statistics={"bn": ["fixed", "single", "last_fixed"]})
    table = answer(pair["bn"], digits, config, "bn", {"last_fixed": {"prior": 0, "fixed_last": 1}}).table
    lost = accuracy_of(table[table.level == 0.95].set_index("statistics"))
    assert lost["last_fixed"] > lost["fixed"] + 0.1
    assert lost["last_fixed"] != lost["single"]


def test_a_layer_with_statistics_of_its_own_is_asked_under_those_alone(digits):
    from localnorm.train import TrainConfig, fit

    model = fit(digits, TrainConfig("small", epochs=1, batch_size=64, threads=1), "gn", 0).model
    config = replace(CONFIG, statistics={"gn": ["own"]}, noises={}, most_images={"own": 100, "GN": 50})
    table = answer(model, digits, config, "gn").table
    assert table[["statistics", "noise", "images"]].values.tolist() == [["own", "clean", 50]]
    assert table.right.item() > 15


def test_noise_is_the_same_for_every_call_and_another_for_another_seed(digits):
    images, _ = test_images(digits, CONFIG)
    limits = noise.Extrema(torch.tensor([0.0]), torch.tensor([255.0]))
    args = digits, "named", "gaussian", 0.3
    first, again = (noisy_images(images, *args, CONFIG, limits) for _ in range(2))
    other = noisy_images(images, *args, AnswersConfig(CONFIG.noises, {}, 64, seed=1), limits)
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
        config = AnswersConfig(CONFIG.noises, {}, 64, domain=domain, rescale="none")
        noisy = noisy_images(images, digits, "released", "mnist_foreground", 1.0, config, limits)
        return ((noisy * std + mean - images) / 255).mean().item()

    assert moved("unit") == pytest.approx(1 / 2, rel=0.02)
    assert moved("raw") == pytest.approx(1 / 2 / 255, rel=0.02)
    assert moved("standardised") == pytest.approx(std / 2 / 255, rel=0.02)

    config = AnswersConfig(CONFIG.noises, {}, 64, domain="unit", rescale="none")
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


def test_scores_of_certain_and_uniform_answers(digits, pair):
    class Says(torch.nn.Module):
        """The same logits for every image."""

        def __init__(self, logits: list[float]):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor(logits))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(len(images), -1)

    config = AnswersConfig({}, {"gn": ["own"]}, batch_size=64, images=200)
    share = (test_images(digits, config)[1] == 3).double().mean().item()
    certain, uniform = (
        answer(Says(logits), digits, config, "gn").table.iloc[0]
        for logits in ([0.0] * 3 + [99.0] + [0.0] * 6, [0.0] * 10)
    )
    assert certain.right == round(200 * share)
    assert (certain.brier, certain.ece) == pytest.approx((2 * (1 - share), 1 - share), abs=1e-6)
    assert uniform.nll == pytest.approx(np.log(10))
    assert uniform.brier == pytest.approx(0.9)


def test_saved_answers_come_back(answers, tmp_path):
    save_answers(answers["ln"], tmp_path)
    table = pd.read_csv(tmp_path / "answers.csv")
    pd.testing.assert_frame_equal(table, answers["ln"].table, rtol=1e-5, check_dtype=False)
    with np.load(tmp_path / "answers.npz", allow_pickle=False) as file:
        assert (file["classes"] == answers["ln"].classes).all()
        assert (file["labels"] == answers["ln"].labels).all()
        assert file["classes"].dtype == file["labels"].dtype == np.int16


def test_asking_leaves_the_network_as_it_was(digits, pair, strengths):
    before = {name: value.clone() for name, value in pair["bn"].state_dict().items()}
    answer(pair["bn"], digits, CONFIG, "bn", strengths["bn"])
    assert all(torch.equal(value, before[name]) for name, value in pair["bn"].state_dict().items())


def test_a_network_that_nothing_is_asked_of_is_named(digits, pair):
    with pytest.raises(ValueError, match="names no statistics for the network 'gn', only for bn, ln"):
        answer(pair["bn"], digits, CONFIG, "gn")
