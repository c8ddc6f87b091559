"""Muon in stacks: it updates as Muon one by one does."""

import copy

import pytest
import torch
from timm.optim import Muon

from localnorm.settings import TrainConfig
from localnorm.train.muon import BatchedMuon
from localnorm.train.optimizers import make_optimizer

CONFIG = TrainConfig(
    "small",
    epochs=1,
    batch_size=64,
    num_groups=4,
    optimizer="muon",
    learning_rate=0.01,
    momentum=0.95,
    weight_decay=0.05,
)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_updates_are_timms(memory_format, nesterov):
    """Two layers of one shape, others, a depthwise one that does not suit Muon, biases and a head; on a CPU, where it runs too."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            shapes = [(3, 8, 3), (8, 8, 3), (8, 8, 3), (8, 16, 1), (16, 16, 3)]
            self.layers = torch.nn.Sequential(*(torch.nn.Conv2d(a, b, side, bias=False) for a, b, side in shapes))
            self.depthwise = torch.nn.Conv2d(16, 16, 3, groups=16)
            self.head = torch.nn.Linear(16, 10)

    torch.manual_seed(0)
    start = Net().to(memory_format=memory_format)
    trained = {}
    for optimizer_class in (Muon, BatchedMuon):
        model = copy.deepcopy(start)
        optimizer = make_optimizer(model, CONFIG, capturable=optimizer_class is BatchedMuon)
        assert type(optimizer) is optimizer_class
        if optimizer_class is BatchedMuon:
            for group in optimizer.param_groups:
                group["capturable"] = False  # needs a GPU
            optimizer.defaults["capturable"] = False
        for group in optimizer.param_groups:
            group["nesterov"] = nesterov
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).contiguous(
                    memory_format=memory_format if parameter.ndim == 4 else torch.contiguous_format
                )
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(CONFIG.learning_rate)
            optimizer.step()
        trained[optimizer_class] = model, optimizer
    (theirs, one), (ours, other) = trained[Muon], trained[BatchedMuon]
    for (name, first), weight, expected in zip(
        start.named_parameters(), ours.parameters(), theirs.parameters(), strict=True
    ):
        moved = (expected - first).norm()
        assert moved > 0.01 * first.norm(), name
        # bf16 has eight bits
        assert (weight - expected).norm() < (1e-2 if name.startswith("layers") else 1e-6) * moved, name
        assert weight.stride() == expected.stride(), name
        if name.startswith("layers"):
            torch.testing.assert_close(
                *(found.state[parameter]["momentum_buffer"] for found, parameter in ((one, expected), (other, weight)))
            )
