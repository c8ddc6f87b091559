"""Neighbours of BatchNorm that are trained with statistics of single images, against their formulas and ours."""

import pytest
import torch
from torch import nn

from localnorm import LocalNorm2d, use_mode
from localnorm.neighbours import BatchInstanceNorm2d, TaskNorm2d


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(6, 3, 5, 4, dtype=torch.double) * torch.rand(6, 3, 1, 1, dtype=torch.double) + 1


def test_tasknorm_is_the_mixture_of_mode_prior_with_a_learned_weight(images):
    norm, ours = TaskNorm2d(3).double(), LocalNorm2d(3, num_groups=1).double()
    norm.offset.data.fill_(0.7)
    a = torch.tensor(0.7, dtype=torch.double).sigmoid().item()
    with use_mode("batch", prior=20 * a / (1 - a)):  # of 20 positions
        expected = ours(images)
    torch.testing.assert_close(norm(images), expected)


def test_batch_instance_norm_lies_between_batch_norm_and_instance_norm(images):
    norm = BatchInstanceNorm2d(3).double()
    norm.share.data.copy_(torch.tensor([1.5, -0.5, 0.25]))  # an optimizer's step may leave the interval
    batch, instance = nn.BatchNorm2d(3).double()(images), nn.InstanceNorm2d(3)(images)
    share = torch.tensor([1.0, 0.0, 0.25], dtype=torch.double).view(3, 1, 1)
    torch.testing.assert_close(norm(images), share * batch + (1 - share) * instance)


@pytest.mark.parametrize("make", [TaskNorm2d, BatchInstanceNorm2d])
def test_an_image_is_answered_alone_and_among_others_alike_by_what_training_stored(make, images):
    norm, batch = make(3).double(), nn.BatchNorm2d(3).double()
    for name, parameter in norm.named_parameters():
        parameter.data.copy_(torch.rand_like(parameter))
        if name in ("weight", "bias"):
            getattr(batch, name).data.copy_(parameter)
    norm(images), batch(images)
    torch.testing.assert_close((norm.running_mean, norm.running_var), (batch.running_mean, batch.running_var))
    norm.eval()
    torch.testing.assert_close(torch.cat([norm(image[None]) for image in images]), norm(images))


@pytest.mark.parametrize("make", [TaskNorm2d, BatchInstanceNorm2d])
def test_gradients_reach_the_learned_weight_and_two_forwards_may_share_a_backward(make, images):
    norm = make(3).double()
    (norm(images).sin().sum() + norm(images.flip(0)).cos().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in norm.parameters())


def test_half_precision_is_computed_in_float32(images):
    norm = TaskNorm2d(3)
    y = norm(images.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), norm(images.bfloat16().float()), atol=0.02, rtol=0.01)
