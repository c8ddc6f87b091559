"""A way to evaluate that stays with a network: for deployment, where nobody calls predict."""

import warnings
from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm._replica import named
from localnorm.layers import LocalNorm, check_spread
from localnorm.modes import MIXING, STORED, checked_mode, whole

__all__ = ["set_eval_mode"]


def set_eval_mode(
    model: nn.Module, mode: str = "batch", *, group: int = 0, prior: float | None = None, fixed_last: int = 0
) -> nn.Module:
    """Let a network evaluate in this mode from now on: ``model.eval()(images)`` takes its statistics from there.

    The mode stays with the network's LocalNorm layers: in copies, pickles, ``state_dict()`` (one tensor ``eval_mode`` of three
    numbers per layer), compiled and exported forms, and in every thread. Training is as before, and inside their blocks
    :func:`localnorm.use_mode` and :func:`localnorm.predict` win. In ``single``, ``prior``, ``gated`` and ``fixed`` a LocalNorm's output
    for an image does not depend on the images beside it. Set it after training: averages of a network (EMA) that were begun before
    do not know it; set it on the average.

    Args:
        model: a network, or a part of one.
        mode, group, prior: as of :func:`localnorm.use_mode`; ``"batch"``, the default of the method, takes a set mode back.
        fixed_last: how many LocalNorm layers at the end, in the order of ``model.modules()``, take the stored training
            statistics instead; not for ``batch``.

    Returns:
        The same network.

    Raises:
        ValueError: no LocalNorm; a wrong mode or option; a group that a layer lacks; statistics that were never stored, or a spread
            that was not learned for ``gated``; BatchNorm layers, which would stay at their stored statistics.

    Example:
        >>> import torch
        >>> from localnorm import LocalNorm2d
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), LocalNorm2d(4, num_groups=2, track_running_stats=True))
        >>> _ = net(torch.randn(8, 3, 6, 6))  # a forward in training stores statistics
        >>> _ = set_eval_mode(net, "prior", prior=512).eval()
        >>> image, others = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 6, 6)
        >>> torch.allclose(net(image)[0], net(torch.cat([image, others]))[0], atol=1e-5)
        True
    """
    wanted = checked_mode(mode, group, prior)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, LocalNorm)}
    if not norms:
        raise ValueError(
            "set_eval_mode needs a LocalNorm, and the network has none; put them in by localnorm.convert_to_localnorm"
        )
    if not 0 <= whole("fixed_last", fixed_last) <= len(norms) or (fixed_last and mode == "batch"):
        raise ValueError(
            f"fixed_last is from 0 to {len(norms)}, the LocalNorm layers of this network, and 0 in mode 'batch'; got {fixed_last}"
        )
    others = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if others and wanted.name in ("single", *MIXING):
        raise ValueError(
            f"mode={mode!r} reaches LocalNorm layers alone, and {named(others)} are BatchNorm; convert them too, "
            "convert_to_localnorm(model, 1, track_running_stats=True, inplace=True)"
        )
    fewest = min((norm.num_groups for norm in norms.values() if norm.num_groups > 1), default=1)
    if wanted.group >= fewest:
        raise ValueError(f"group={group} needs more than {group} groups, got num_groups={fewest}")
    modes = dict.fromkeys(norms, wanted)
    modes |= dict.fromkeys(list(norms)[len(norms) - fixed_last :], replace(wanted, name="fixed", prior=0.0))
    takers = [name for name in norms if modes[name].name in STORED]
    without = [name for name in takers if not norms[name].track_running_stats or norms[name].is_untouched()]
    never = [name for name in without if not norms[name].track_running_stats]
    if never or (without and without == takers):
        raise ValueError(
            f"mode={mode!r} with fixed_last={fixed_last} needs stored training statistics, and {named(never or without)} have none; "
            "call localnorm.estimate_statistics(model, loader) once"
        )
    if wanted.name == "gated":
        check_spread(norms.values())
    if without:
        warnings.warn(
            f"{named(without)} have the statistics of a new layer, mean 0 and variance 1; unless evaluation does not run them, "
            "call localnorm.estimate_statistics(model, loader)",
            stacklevel=2,
        )
    for name, norm in norms.items():
        norm.eval_mode = modes[name]
    return model
