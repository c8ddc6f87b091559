"""What is drawn anew for each training step: the images per group, or how far images share their statistics."""

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from localnorm.modes import use_mode
from localnorm.networks import NETWORKS
from localnorm.settings import Shrinkage, TrainConfig

__all__ = ["Draw", "draw", "group_sizes"]


@dataclass(frozen=True)
class Draw:
    """The statistics of one training step.

    Args:
        size: images per group; None where LocalNorm layers group the batch as they are built.
        prior: n0 in positions, () or (B,), or (layers, 1) where each layer has its own; None where images do not shrink.
        per_layer: whether the first dimension of `prior` is the layers'.
    """

    size: int | None = None
    prior: Tensor | None = None
    per_layer: bool = False

    def statistics(self) -> contextlib.AbstractContextManager[None]:
        """The block in which LocalNorm layers take these statistics."""
        if self.prior is not None:
            return use_mode("batch", prior=iter(self.prior).__next__ if self.per_layer else self.prior)
        return use_mode("batch", group_size=self.size) if self.size else contextlib.nullcontext()


def group_sizes(config: TrainConfig, network: str) -> list[int]:
    """The numbers of images per group that a training step draws from; empty where groups are as the layers are built."""
    about = NETWORKS[network]
    if about.layer != "LN" or about.training == "shrunk":
        return []
    if about.training == "drawn" and not config.group_sizes:
        most = config.batch_size // config.num_groups
        return [size for size in range(1, most + 1) if config.batch_size % size == 0]
    return config.group_sizes


def draw(config: TrainConfig, network: str, layers: int, progress: float, generator: torch.Generator) -> Draw:
    """What one step of a network with so many LocalNorm layers takes.

    Args:
        progress: of the training, from 0 to 1.
    """
    if sizes := group_sizes(config, network):
        return Draw(size=sizes[torch.randint(len(sizes), (), generator=generator)])
    if NETWORKS[network].training != "shrunk":
        return Draw()
    about = Shrinkage(**config.shrunk)
    shape = {"step": (), "image": (config.batch_size,), "layer": (layers, 1)}[about.drawn_per]
    low, high = math.log(about.lowest), math.log(about.highest)
    if progress < about.ramp:
        low = high + (low - high) * progress / about.ramp
    prior = torch.exp(low + (high - low) * torch.rand(shape, generator=generator))
    plain = torch.rand(shape, generator=generator) < about.plain
    return Draw(prior=prior.masked_fill(plain, math.inf), per_layer=about.drawn_per == "layer")
