"""Ways to answer one image with a network as it is: each formula of others, and what a table of them says."""

import contextlib
import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import ASKED
from torch import nn

from localnorm import LocalNorm2d, convert_to_localnorm, estimate_statistics, set_eval_mode
from localnorm.answers import answer, training_batches
from localnorm.controls import COLUMNS, FORMULAS, Statistics, corrected, measure
from localnorm.settings import ControlsConfig


def network(seed: int = 0) -> nn.Module:
    """A small BatchNorm network with stored statistics and an affine of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    for layer in (model[1], model[4]):
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
    for _ in range(20):
        model(torch.randn(32, 3, 9, 9))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return network()


def image_and_stored() -> tuple[Statistics, Statistics]:
    return Statistics(torch.tensor([[3.0]]), torch.tensor([[5.0]])), Statistics(
        torch.tensor([[1.0]]), torch.tensor([[2.0]])
    )


def test_the_prior_by_images_weighs_every_layer_alike():
    taken = FORMULAS["images"](*image_and_stored(), 49, 3)  # a = 3 / 4
    assert (taken.mean.item(), taken.var.item()) == pytest.approx((1.5, 2.75))
    assert FORMULAS["images"](*image_and_stored(), 4, 3) == taken


def test_beyond_chance_moves_only_by_what_chance_does_not_explain():
    # standard errors: sqrt(2 / 8) = 0.5 of the mean, 2 sqrt(2 / 7) of the variance
    taken = FORMULAS["chance"](*image_and_stored(), 8, 2)
    assert taken.mean.item() == pytest.approx(1 + (2 - 2 * 0.5))
    assert taken.var.item() == pytest.approx(2 + (3 - 2 * 2 * math.sqrt(2 / 7)))
    image, stored = image_and_stored()
    below = FORMULAS["chance"](Statistics(stored.mean - 2, stored.var * 0.01), stored, 800, 2)
    assert below.mean < stored.mean
    assert 0 < below.var < stored.var
    within = FORMULAS["chance"](image, stored, 8, 100)
    assert (within.mean, within.var) == (stored.mean, stored.var)
    one = FORMULAS["chance"](image, stored, 1, 2)
    assert (one.mean, one.var) == (stored.mean, stored.var), "one value has no variance"


@pytest.mark.parametrize("control", FORMULAS)
def test_an_image_is_answered_as_if_it_were_alone(model, control):
    images = 3 * torch.randn(6, 3, 9, 9)
    with corrected(model, control, 2.0), torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("control", FORMULAS)
def test_with_all_strength_nothing_is_corrected_and_the_network_is_as_it_was_afterwards(model, control):
    images = 3 * torch.randn(6, 3, 9, 9)
    with torch.no_grad():
        fixed = model(images)
        with corrected(model, control, 1e12):
            torch.testing.assert_close(model(images), fixed, rtol=1e-4, atol=1e-5)
        with contextlib.suppress(ZeroDivisionError), corrected(model, control, 1.0):
            assert not torch.allclose(model(images), fixed)
            raise ZeroDivisionError
        assert torch.equal(model(images), fixed)


def test_a_table_has_every_strength_on_validation_images_and_the_best_on_test_images(digits, pair):
    config = ControlsConfig(networks=["bn", "ln"], prior=[1, 100], gated=[10, 30], images=[2], chance=[1])
    pair = {"bn": pair["bn"], "ln": copy.deepcopy(pair["ln"])}
    estimate_statistics(pair["ln"], training_batches(digits, ASKED.batch_size))
    table = measure(pair, digits, ASKED, config)
    assert list(table) == COLUMNS
    assert {*table[table.network == "ln"].control} == {"fixed", "prior", "gated"}, "others' ways are BatchNorm's"
    for network, rows in table.groupby("network", sort=False):
        tried, final = (rows[rows.part == part] for part in ("validation", "test"))
        assert list(tried[["control", "strength"]].itertuples(index=False, name=None)) == config.pairs(network)
        best = tried.loc[(tried.clean + tried.noisy).groupby(tried.control, sort=False).idxmax()]
        assert tried[tried.chosen].index.equals(best.index)
        assert final[["control", "strength"]].values.tolist() == best[["control", "strength"]].values.tolist()
    asked = replace(ASKED, statistics={"bn": ["fixed", "prior"], "ln": ["prior"]})
    for network, statistics in (("bn", "fixed"), ("bn", "prior"), ("ln", "prior")):
        row = table[(table.network == network) & (table.control == statistics) & (table.part == "test")].squeeze()
        strengths = {"prior": {"prior": row.strength, "fixed_last": 0}}
        answers = answer(pair[network], digits, asked, network, strengths=strengths).table
        answers = answers[answers.statistics == statistics]
        assert row.clean == pytest.approx((answers.right / answers.images)[answers.level == 0].item())
        assert row.images == answers.images[answers.level > 0].max()


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({"prior": []}, "prior"),
        ({"images": [0]}, "images"),
        ({"chance": [-1.0]}, "chance"),
        ({"networks": ["rn"]}, "rn"),
    ],
)
def test_a_block_that_cannot_work_is_refused(block, named):
    with pytest.raises(ValueError, match=named):
        ControlsConfig(**{"networks": ["bn"], "prior": [1], "gated": [1], "images": [1], "chance": [1]} | block)


@pytest.mark.parametrize("control", FORMULAS)
def test_localnorm_with_one_group_is_corrected_like_the_batchnorm_that_it_was(model, control):
    images = 3 * torch.randn(6, 3, 9, 9)
    converted = set_eval_mode(convert_to_localnorm(model, 1, track_running_stats=True).eval(), "prior", prior=8)
    with torch.no_grad():
        with corrected(model, control, 2.0):
            expected = model(images)
        with corrected(converted, control, 2.0):
            torch.testing.assert_close(converted(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [nn.Conv2d(3, 3, 1), LocalNorm2d(3, 2)])
def test_a_network_without_batchnorm_is_refused(model):
    with pytest.raises(ValueError, match="BatchNorm"), corrected(model, "images", 1.0):
        pass
