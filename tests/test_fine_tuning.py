"""Fine-tuning for one image: what a BatchNorm network becomes, and what the table of it says."""

import copy

import pytest
import torch
from conftest import ASKED
from torch import nn

from localnorm import LocalNorm2d, controls, fine_tuning
from localnorm.settings import ControlsConfig, FineTuningConfig, TrainConfig

WAYS = ControlsConfig(networks=["bn"], prior=[4, 64], gated=[8], images=[4], chance=[2])


@pytest.mark.parametrize(
    ("network", "groups"), [("bn", None), ("bn_shrunk", 1), ("ln", 4), ("ln_drawn", 4), ("ln_shrunk", 4)]
)
def test_the_network_starts_as_the_batchnorm_network_that_it_was(pair, network, groups):
    batchnorm = pair["bn"].eval()
    before = copy.deepcopy(batchnorm.state_dict())
    made = fine_tuning.convert(batchnorm, network, 4)
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d | LocalNorm2d)]
    assert {getattr(norm, "num_groups", None) for norm in norms} == {groups}
    images = torch.randn(16, 1, 8, 8).repeat(4, 1, 1, 1)  # whose groups, 16 in a row, are equal
    torch.testing.assert_close(made.train()(images), batchnorm.train()(images))
    batchnorm.load_state_dict(before)
    assert not {id(tensor) for tensor in made.parameters()} & {id(tensor) for tensor in batchnorm.parameters()}


def test_each_way_of_training_is_asked_in_each_way_and_the_network_stays_as_it_was(digits, pair, project):
    batchnorm = pair["bn"]
    before = copy.deepcopy(batchnorm.state_dict())
    config = FineTuningConfig(networks=["bn", "ln_shrunk"])
    train = TrainConfig("small", epochs=4, batch_size=64, num_groups=4, shrunk={"lowest": 4, "highest": 64}, threads=1)
    table = fine_tuning.run("digits-small", batchnorm, digits, train, ASKED, WAYS, config)
    assert list(table) == fine_tuning.COLUMNS
    assert set(table.epochs) == {1}
    assert set(table.control[table.network == "ln_shrunk"]) == {"fixed", "prior", "gated"}
    assert all(torch.equal(before[key], value) for key, value in batchnorm.state_dict().items())
    as_it_was = controls.measure({"bn": batchnorm}, digits, ASKED, WAYS)
    merged = table[table.network == "bn"].merge(as_it_was, on=["part", "control", "strength"])
    assert (merged.clean_x != merged.clean_y).any(), "an epoch changes something"
    assert table.clean.max() > 0.8, "and does not ruin the network"
    fine_tuning.save_table("digits-small", table)


@pytest.mark.parametrize(
    ("block", "named"),
    [({"networks": ["rn"]}, "rn"), ({"networks": [], "epochs": 0}, "epochs"), ({"networks": [], "rate": -1.0}, "rate")],
)
def test_a_block_that_cannot_work_is_refused(block, named):
    with pytest.raises(ValueError, match=named):
        FineTuningConfig.from_params(block)


def test_a_layer_that_batchnorm_does_not_become_is_refused(pair):
    with pytest.raises(ValueError, match="layer BN or LN, not 'gn'"):
        fine_tuning.convert(pair["bn"], "gn", 4)
