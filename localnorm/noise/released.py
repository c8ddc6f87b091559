"""The noises of the original scripts, one function each: (images, level, generator) -> noisy images; formulas in the catalogue.

They act on pixels in whatever domain the caller passes.
"""

import math

import torch
from torch import Tensor

from localnorm.noise.samples import uniform


def gaussian_pos(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return uniform(images, generator).mul_(level).add_(1).mul_(images)


def gaussian_neg(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return uniform(images, generator).sub_(0.5).mul_(level).add_(1).mul_(images)


def poisson(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    # All pixels have one rate, so a count is the inverse of one distribution function: twice as fast as torch.poisson.
    counts = torch.arange(math.ceil(level + 12 * level**0.5 + 12), dtype=torch.float64)
    below = torch.exp(counts * math.log(level) - level - torch.lgamma(counts + 1)).cumsum(0).to(images)  # P(n <= count)
    return torch.bucketize(uniform(images, generator), below, right=True, out_int32=True).add_(1) * images


def bernoulli(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    draw = uniform(images[:, :1], generator)  # (B, 1, H, W): one mask for all channels
    return images * (draw >= level)


def mnist_foreground(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return uniform(images, generator).mul_(level).add_(images)


def mnist_background(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return torch.where(images == 0, uniform(images, generator).mul_(level), 1.0)
