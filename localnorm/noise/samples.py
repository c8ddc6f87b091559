"""What the noises draw: one value for each pixel and channel, in the shape, dtype and on the device of the images."""

import torch
from torch import Tensor


def uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def normal(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
