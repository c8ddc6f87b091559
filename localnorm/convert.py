"""Put LocalNorm into a trained network, and back.

A conversion is exact or refused: a norm layer whose behaviour would be lost (a subclass with behaviour of its own,
hooks, a FrozenBatchNorm) is named in one error, before anything is changed. A converted network shares no tensor
with the original, unless ``inplace=True``.
"""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm.layers import BATCH, LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d, set_mode

__all__ = ["convert_to_batchnorm", "convert_to_localnorm", "estimate_statistics"]

FROZEN = "its statistics are frozen"
_LOCAL_OF = {
    nn.BatchNorm1d: LocalNorm1d,
    nn.BatchNorm2d: LocalNorm2d,
    nn.BatchNorm3d: LocalNorm3d,
    nn.SyncBatchNorm: LocalNorm,  # both take any rank
}
_BATCH_OF = {local: batch for batch, local in _LOCAL_OF.items()}
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def convert_to_localnorm(
    model: nn.Module,
    num_groups: int = 8,
    *,
    assignment: str = "interleaved",
    track_running_stats: bool = False,
    exclude: Iterable[str] = (),
    inplace: bool = False,
) -> nn.Module:
    """Replace every BatchNorm of a network by LocalNorm with the BatchNorm's affine in each group.

    In training mode each group of a batch then gets what the original gives that group alone. SyncBatchNorm is
    converted too (its groups become those of one process); timm's BatchNormAct2d becomes a Sequential of norm, drop
    and act.

    Args:
        model: any network; BatchNorm may be its root or appear in several places.
        num_groups, assignment: of the new layers.
        track_running_stats: keep training statistics, starting from the BatchNorm's own in each group.
        exclude: patterns of qualified names (``"layer4.*"``) that stay as they are.
        inplace: change ``model`` itself instead of a copy. Optimisers hold the old parameters then: build them
            afterwards.

    Raises:
        ValueError: there is nothing to convert, a pattern matches nothing, or a layer cannot be converted faithfully.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> convert_to_localnorm(net, num_groups=2)[1]
        LocalNorm2d(4, num_groups=2, eps=1e-05, affine=True, assignment='interleaved')
    """
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"exclude={pattern!r} matches no module of the network; see model.named_modules()")

    def excluded(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    refused = {name: why for name, why in refusals(model).items() if not excluded(name)}
    if refused:
        raise ValueError(
            f"cannot convert faithfully: {describe(refused)}; exclude them by name to leave them as they are"
        )

    def to_local(norm: nn.Module) -> nn.Module | None:
        if _has_fused_activation(norm):
            local = _localnorm_from(norm, LocalNorm2d, num_groups, assignment, track_running_stats)
            return nn.Sequential(OrderedDict(norm=local, drop=norm.drop, act=norm.act))
        if type(norm) in _LOCAL_OF:
            return _localnorm_from(norm, _LOCAL_OF[type(norm)], num_groups, assignment, track_running_stats)
        return None

    return _replaced(model, to_local, "BatchNorm", excluded, inplace)


def convert_to_batchnorm(model: nn.Module, loader: Iterable, *, inplace: bool = False) -> nn.Module:
    """Replace every LocalNorm by BatchNorm with the mean of its groups' affines, and estimate the running statistics.

    Args:
        model: a network with LocalNorm layers.
        loader: batches of images, or of tuples that start with them, for :func:`estimate_statistics`.
        inplace: change ``model`` itself instead of a copy.

    Raises:
        ValueError: there is nothing to convert, or the loader is empty.
    """
    batches = _at_least_one(loader)

    def to_batch(local: nn.Module) -> nn.Module | None:
        if type(local) not in _BATCH_OF:
            return None
        options = {"eps": local.eps, "momentum": local.momentum, "affine": local.affine, **_placement(local)}
        batch = _BATCH_OF[type(local)](local.num_features, **options)
        return _with_affine(batch, local, lambda t: t.mean(0))  # (K, C) -> (C,)

    converted = _replaced(model, to_batch, "LocalNorm", lambda name: False, inplace)
    estimate_statistics(converted, batches)
    return converted


def estimate_statistics(model: nn.Module, loader: Iterable) -> None:
    """Store training statistics in every LocalNorm and BatchNorm: the plain average over a loader's batches.

    Batches are normalised by their own statistics, as in training, and everything else (dropout) runs as in evaluation.
    A batch with fewer images than groups has none for some of them and is left out.
    The model changes only after the last batch. A LocalNorm without stored statistics has them from then on.

    Args:
        model: on the device that is to be used.
        loader: batches of images, or of tuples that start with them, of the size used in training.

    Raises:
        ValueError: the network has no such layer, the loader is empty, or no batch has an image for every group.
    """
    batches = _at_least_one(loader)
    if not _norms(model):
        raise ValueError("the network has neither a LocalNorm nor a BatchNorm to store statistics in")
    device = device_of(model)
    replica = share_parameters(model).eval()
    for norm in _norms(replica):
        norm.train()
        norm.momentum = None  # torch's way to say plain average
        if isinstance(norm, LocalNorm):
            norm.keep_running_stats(device)
        norm.reset_running_stats()
    most_groups = max((norm.num_groups for norm in _norms(replica) if isinstance(norm, LocalNorm)), default=1)
    sizes = []
    with torch.no_grad(), set_mode(BATCH):
        for batch in batches:
            images = batch if isinstance(batch, Tensor) else batch[0]
            sizes.append(len(images))
            if len(images) >= most_groups:
                replica(images.to(device))
    if max(sizes) < most_groups:
        raise ValueError(
            f"statistics of num_groups={most_groups} groups need batches of at least {most_groups} images, got at most {max(sizes)}; "
            "take those of the training"
        )
    for norm, estimated in zip(_norms(model), _norms(replica), strict=True):
        if isinstance(norm, LocalNorm) and not norm.track_running_stats:
            norm.keep_running_stats(device)
        if norm.track_running_stats:
            for name in _STATISTICS:
                getattr(norm, name).copy_(getattr(estimated, name))


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of a network whose parameters are the network's own; modules, flags and buffers are new."""
    # what a module keeps of its last forward, or weight_norm's weight, cannot be copied and is made anew by the next
    kept = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    shared = [*model.parameters(), *(tensor for tensor in kept if not tensor.is_leaf)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def device_of(model: nn.Module) -> torch.device:
    return next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0)).device


def refusals(model: nn.Module) -> dict[str, str]:
    """The norm layers that cannot be converted faithfully: name -> reason."""
    reasons = {name: _refusal(module) for name, module in model.named_modules()}
    return {name: why for name, why in reasons.items() if why}


def describe(refused: dict[str, str]) -> str:
    return "; ".join(f"{name or 'the network itself'} ({why})" for name, why in refused.items())


def _refusal(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module"
    if "FrozenBatchNorm" in type(module).__name__:  # torchvision's and timm's: buffers, no BatchNorm subclass
        return FROZEN
    if not isinstance(module, _BatchNorm):
        return None
    if type(module) not in _LOCAL_OF and not _has_fused_activation(module):
        return f"{type(module).__name__} is a subclass with behaviour of its own"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which would be lost"
    return None


def _has_fused_activation(norm: nn.Module) -> bool:
    return type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.startswith("timm.")


def _localnorm_from(
    norm: _BatchNorm, kind: type[LocalNorm], num_groups: int, assignment: str, track: bool
) -> LocalNorm:
    track = track and norm.track_running_stats
    options = {"eps": norm.eps, "affine": norm.affine, "momentum": norm.momentum, **_placement(norm)}
    local = kind(norm.num_features, num_groups, assignment=assignment, track_running_stats=track, **options)
    if track:
        for name in _STATISTICS:
            getattr(local, name).copy_(getattr(norm, name))  # (C,) -> every row of (K, C)
    return _with_affine(local, norm, lambda t: t)


def _with_affine(new: nn.Module, old: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    for name in ("weight", "bias") if old.affine else ():
        source, target = getattr(old, name), getattr(new, name)
        with torch.no_grad():
            target.copy_(convert(source))
        target.requires_grad_(source.requires_grad)
    return new.train(old.training)


def _placement(norm: nn.Module) -> dict:
    tensor = next((t for t in (norm.weight, norm.running_mean) if t is not None), None)
    return {} if tensor is None else {"device": tensor.device, "dtype": tensor.dtype}


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, LocalNorm | _BatchNorm)]


def _at_least_one(loader: Iterable) -> Iterable:
    batches = iter(loader)
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError("the statistics need at least one batch, got an empty loader") from None
    return itertools.chain([first], batches)


def _replaced(model: nn.Module, replace: Callable, kind: str, excluded: Callable, inplace: bool) -> nn.Module:
    model = model if inplace else copy.deepcopy(model)
    new = {}
    for name, module in model.named_modules():
        if not excluded(name) and (replacement := replace(module)) is not None:
            new[module] = replacement
    if not new:
        raise ValueError(f"the network has no {kind} to convert")
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # named_children leaves out a second place of the same layer
            if child in new:
                setattr(module, name, new[child])
    return new.get(model, model)
