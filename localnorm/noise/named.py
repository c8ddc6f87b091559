"""Noises that are what their names say, one function each: (images in [0, 1], level, generator) -> noisy images, not yet clipped."""

import torch
from torch import Tensor

from localnorm.noise.released import bernoulli  # noqa: F401 (the same formula in both suites)
from localnorm.noise.samples import normal


def gaussian(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return normal(images, generator).mul_(level).add_(images)


def gaussian_multiplicative(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return normal(images, generator).mul_(level).add_(1).mul_(images)


def poisson(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    photons = level**-2
    return torch.poisson(images * photons, generator=generator).div_(photons)


def brightness(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return images * (1 - level)


def contrast(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return (images - 0.5).mul_(1 - level).add_(0.5)


def gamma(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return images ** (1 + level)


def haze(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return (images * (1 - level)).add_(level)
