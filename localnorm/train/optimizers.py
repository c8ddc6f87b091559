"""The optimizers and learning rates of a train block."""

import math
from collections.abc import Sequence

import torch

from localnorm.settings import TrainConfig

__all__ = ["has_stalled", "learning_rate", "make_optimizer"]

FALLBACK_RATE = 0.3  # of Muon's learning rate, for what is no kernel of a convolution


def learning_rate(config: TrainConfig, epoch: float, validation: Sequence[float] = ()) -> float:
    """The learning rate at `epoch`, a float in [0, epochs]: a pure function, so a resumed run cannot drift.

    Args:
        config: the settings.
        epoch: how far training is.
        validation: the accuracy after each epoch so far, for the schedule "plateau".

    Returns:
        The rate of the next step.

    Example:
        >>> config = TrainConfig("small", epochs=8, batch_size=64, learning_rate=0.4)
        >>> [round(learning_rate(config, epoch), 3) for epoch in (0, 1, 2, 5, 8)]
        [0.04, 0.22, 0.4, 0.2, 0.0]
    """
    peak = config.learning_rate
    if config.schedule == "one_cycle":
        warm = config.epochs / 4
        return peak * (0.1 + 0.9 * epoch / warm) if epoch < warm else peak * (config.epochs - epoch) / (3 * warm)
    if config.schedule == "steps":
        return [peak, *(rate for start, rate in sorted(config.milestones.items()) if start <= epoch)][-1]
    if config.schedule == "exponential":
        return peak * config.decay ** (int(epoch) // config.decay_every)
    if config.schedule == "plateau":
        best, waited, rate = -math.inf, 0, peak
        for accuracy in validation:
            best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
            if waited == config.patience:
                rate, waited = rate * config.decay, 0
        return rate
    return peak


def has_stalled(config: TrainConfig, validation: Sequence[float]) -> bool:
    """Whether the validation accuracy, one value per epoch, has not risen for `stop_after` epochs."""
    if config.stop_after is None or len(validation) <= config.stop_after:
        return False
    return max(validation[-config.stop_after :]) <= max(validation[: -config.stop_after])


def make_optimizer(model: torch.nn.Module, config: TrainConfig, capturable: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a train block, with weight decay on kernels alone; a capturable one keeps its state on the GPU, for CUDA graphs."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1 and not _is_affine(model, parameter)]
    chosen = {id(parameter) for parameter in kernels}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, capturable=capturable)
    if config.optimizer == "muon":
        from timm.optim import Muon  # here, since timm is slow to import

        from localnorm.train.muon import BatchedMuon

        # the last layer is a kernel too, but Muon is for those between hidden layers
        hidden = [kernel for kernel in kernels if kernel.ndim > 2]
        rest = [kernel for kernel in kernels if kernel.ndim == 2]
        groups = [
            {"params": hidden, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": config.weight_decay, "use_fallback": True},
            {"params": others, "weight_decay": 0.0, "use_fallback": True},
        ]
        # on a CPU, which does not wait for calls, timm's own takes as long
        return (BatchedMuon if capturable else Muon)(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=True,
            fallback_lr_scale=FALLBACK_RATE,
            capturable=capturable,
        )
    return torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        fused=capturable,  # the only one that takes its learning rate from the GPU
    )


def _is_affine(model: torch.nn.Module, parameter: torch.nn.Parameter) -> bool:
    """Whether `parameter` is a gamma or beta; LocalNorm's are matrices (K, C), so the rank alone does not tell."""
    return any(
        parameter is own
        for module in model.modules()
        if not isinstance(module, torch.nn.Linear | torch.nn.modules.conv._ConvNd)
        for own in module.parameters(recurse=False)
    )
