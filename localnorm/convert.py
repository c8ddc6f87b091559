"""Put LocalNorm into a trained network, and back.

A conversion is exact or refused: a norm layer whose behaviour would be lost (a subclass with behaviour of its own,
hooks, a FrozenBatchNorm) is named in one error, before anything is changed. A converted network shares no tensor
with the original, unless ``inplace=True``; nor does it run any of its layers: what a copy would still reach in the
original, through a closure, is refused by name.
"""

import contextlib
import copy
import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm.layers import LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d
from localnorm.modes import BATCH, set_mode

__all__ = ["convert_to_batchnorm", "convert_to_localnorm", "estimate_statistics"]

FROZEN = "its statistics are frozen"
CALL_THEM = "call them as modules of the network (self.norm(x)), not through what is none of its attributes"
_LOCAL_OF = {
    nn.BatchNorm1d: LocalNorm1d,
    nn.BatchNorm2d: LocalNorm2d,
    nn.BatchNorm3d: LocalNorm3d,
    nn.SyncBatchNorm: LocalNorm,  # both take any rank
}
_BATCH_OF = {local: batch for batch, local in _LOCAL_OF.items()}
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_PLAIN = (int, float, str, type(None))
# attributes that torch itself keeps: parameters, children, hooks, and what model.compile() made, which no copy takes along
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}


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
        exclude: patterns of qualified names (``"layer4"``, ``"*.downsample"``) that stay as they are, with all below them.
        inplace: change ``model`` itself instead of a copy. Optimisers hold the old parameters then: build them
            afterwards.

    Raises:
        ValueError: there is nothing to convert, a pattern matches nothing, a layer cannot be converted faithfully, or the
            network cannot be copied.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> convert_to_localnorm(net, num_groups=2)[1]
        LocalNorm2d(4, num_groups=2, eps=1e-05, affine=True, assignment='interleaved')
    """
    excluded = _excluded(model, [exclude] if isinstance(exclude, str) else list(exclude))
    _refuse(model, _BatchNorm, excluded, "; exclude them by name to leave them as they are")
    made = {}

    def to_local(norm: nn.Module) -> nn.Module | None:
        if _has_fused_activation(norm):
            local = _localnorm_from(norm, LocalNorm2d, num_groups, assignment, track_running_stats, made)
            return nn.Sequential(OrderedDict(norm=local, drop=norm.drop, act=norm.act))
        if type(norm) in _LOCAL_OF:
            return _localnorm_from(norm, _LOCAL_OF[type(norm)], num_groups, assignment, track_running_stats, made)
        return None

    return _replaced(model, to_local, "BatchNorm", excluded, inplace)


def convert_to_batchnorm(model: nn.Module, loader: Iterable, *, inplace: bool = False) -> nn.Module:
    """Replace every LocalNorm by BatchNorm with the mean of its groups' affines, and estimate the running statistics.

    Args:
        model: a network with LocalNorm layers.
        loader: batches of images, or of tuples that start with them, for :func:`estimate_statistics`.
        inplace: change ``model`` itself instead of a copy.

    Raises:
        ValueError: there is nothing to convert, a layer cannot be converted faithfully, the network cannot be copied, or
            the loader is empty.
    """
    batches = _at_least_one(loader)
    _refuse(model, LocalNorm)
    _check_places(model)
    made = {}

    def to_batch(local: nn.Module) -> nn.Module | None:
        if type(local) not in _BATCH_OF:
            return None
        options = {"eps": local.eps, "momentum": local.momentum, "affine": local.affine, **_placement(local)}
        batch = _BATCH_OF[type(local)](local.num_features, **options)
        return _with_affine(batch, local, lambda t: t.mean(0), made)  # (K, C) -> (C,)

    converted = _replaced(model, to_batch, "LocalNorm", set(), inplace)
    estimate_statistics(converted, batches)
    return converted


def estimate_statistics(model: nn.Module, loader: Iterable) -> None:
    """Store training statistics in every LocalNorm and BatchNorm: the plain average over a loader's batches.

    Batches are normalised by their own statistics, as in training, and everything else (dropout) runs as in evaluation.
    A batch with fewer images than groups has none for some of them and is left out. Half-precision statistics are
    averaged in float32, and rounded once.
    The model changes only after the last batch. A LocalNorm without stored statistics has them from then on; a layer that
    evaluation does not run (an auxiliary head) keeps what it has.

    Args:
        model: on the device that is to be used.
        loader: batches of images, or of tuples that start with them, of the size used in training.

    Raises:
        ValueError: the network has no such layer, or none that its forward runs; a BatchNorm has
            ``track_running_stats=False``; the network cannot be copied; the loader is empty, or no batch has an image for
            every group; statistics that are not finite.
    """
    batches = _at_least_one(loader)
    if not _norms(model):
        raise ValueError("the network has neither a LocalNorm nor a BatchNorm to store statistics in")
    _check_places(model)
    device = device_of(model)
    replica = share_parameters(model).eval()
    for norm in _norms(replica):
        norm.train()
        norm.momentum = None  # torch's way to say plain average
        if isinstance(norm, LocalNorm):
            norm.keep_running_stats(device)
        norm.reset_running_stats()
        _widen(norm)
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
    if not any(estimated.num_batches_tracked for estimated in _norms(replica)):
        raise ValueError(f"the network's forward ran none of its norm layers, so there are no statistics; {CALL_THEM}")
    if not all(getattr(norm, name).isfinite().all() for norm in _norms(replica) for name in _STATISTICS):
        raise ValueError(
            "the statistics are not finite: a batch of the loader, or a weight, is inf or nan, or overflows"
        )
    for norm, estimated in zip(_norms(model), _norms(replica), strict=True):
        if isinstance(norm, LocalNorm) and not norm.track_running_stats:
            norm.keep_running_stats(device)
        if estimated.num_batches_tracked:
            for name in _STATISTICS:
                getattr(norm, name).copy_(getattr(estimated, name))


def _check_places(model: nn.Module) -> None:
    without = [name for name, norm in model.named_modules() if isinstance(norm, _BatchNorm) and not _keeps(norm)]
    if without:
        raise ValueError(
            f"a BatchNorm with track_running_stats=False has no place for statistics: {', '.join(map(repr, without))}; "
            "build it with track_running_stats=True"
        )


def _keeps(norm: _BatchNorm) -> bool:
    return norm.track_running_stats and norm.running_mean is not None


def _widen(norm: nn.Module) -> None:
    """Give a replica's layer float32 tensors for half ones: an average in half precision stalls."""
    for name, tensor in [*norm._parameters.items(), *norm._buffers.items()]:
        if tensor is not None and tensor.dtype in (torch.half, torch.bfloat16):
            wide = tensor.detach().float()
            setattr(norm, name, nn.Parameter(wide) if name in norm._parameters else wide)


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of a network whose parameters are the network's own; modules, flags and buffers are new."""
    return _copy(model, model.parameters(), "use localnorm.use_mode and the network's own forward")


def _copy(model: nn.Module, shared: Iterable[Tensor], instead: str) -> nn.Module:
    """A deep copy that keeps the tensors `shared`, and runs none of the network's own layers.

    Raises:
        ValueError: an attribute that would lead the copy back to the network, or that cannot be copied, by name.
    """
    names = {module: name for name, module in model.named_modules()}
    back = {}
    for module, name in names.items():
        forward = vars(module).get("forward")
        own = isinstance(forward, MethodType) and forward.__self__ is module
        if forward is not None and not own and not _copies_itself(module):
            back[_place(name, "forward")] = "set on the instance; write it into the class"
    # what a module keeps of its last forward, or weight_norm's weight, cannot be copied and is made anew by the next
    kept = [tensor for tensor in model.buffers() if not tensor.is_leaf]
    for module, key, held, copied in _held_outside(model):
        if isinstance(held, Tensor) and copied and not held.is_leaf:
            kept.append(held)
        if isinstance(held, nn.Module) and not copied and not _copies_itself(module) and _has_tensors(held):
            back.setdefault(_place(names[module], key), "a function over a module; make it a method of the class")
    if back:
        raise ValueError(
            f"a copy of the network would run the original's layers through {describe(back)}; or {instead}"
        )
    memo = {id(tensor): tensor for tensor in shared} | {id(tensor): tensor.detach().clone() for tensor in kept}
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:
        memo |= {id(module): module for module in names}
        for module, name in names.items():
            for key, value in vars(module).items():
                if not _can_be_copied(value, memo):
                    raise ValueError(
                        f"the network cannot be copied because of {_place(name, key)} ({type(value).__name__}); "
                        f"clear it, or {instead}"
                    ) from error
        raise


def _can_be_copied(value: object, memo: dict) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _copies_itself(module: nn.Module) -> bool:
    """Whether its class says how it is copied, as torch.compile's and TorchScript's do."""
    return hasattr(module, "__deepcopy__") or type(module).__getstate__ is not nn.Module.__getstate__


def _place(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _held_outside(model: nn.Module) -> Iterator[tuple[nn.Module, str, object, bool]]:
    """What modules hold in attributes of their own, not as parameter, buffer or child: (module, attribute, object, copied).

    `copied` is whether a deep copy of the module has a copy of the object.
    """
    for module in model.modules():
        for key, value in vars(module).items():
            if key not in _OF_EVERY_MODULE and not isinstance(value, _PLAIN):  # most are: this is for speed alone
                for held, copied in _inside(value, True, set()):
                    yield module, key, held, copied


def _inside(value: object, copied: bool, seen: set[int]) -> Iterator[tuple[object, bool]]:
    """The objects in nested lists, tuples, sets, dicts, partials, methods and functions."""
    if isinstance(value, FunctionType):
        copied = False  # deepcopy leaves a function as it is, with all that it closes over
        inner = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                inner.append(cell.cell_contents)
    elif isinstance(value, MethodType):
        inner = [value.__func__] if copied else [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        inner = [each for each in value if not isinstance(each, _PLAIN)]
    else:
        yield value, copied
        return
    if id(value) not in seen:
        seen.add(id(value))
        for each in inner:
            yield from _inside(each, copied, seen)


def device_of(model: nn.Module) -> torch.device:
    return next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0)).device


def _has_tensors(model: nn.Module) -> bool:
    return any(True for _ in itertools.chain(model.parameters(), model.buffers()))


def refusals(model: nn.Module, kind: type[nn.Module] = _BatchNorm) -> dict[str, str]:
    """The norm layers of a kind (BatchNorm or LocalNorm) that cannot be converted faithfully: name -> reason."""
    names = {module: name for name, module in model.named_modules()}
    reasons = {name: why for module, name in names.items() if (why := _refusal(module, kind))}
    for module, key, held, _ in _held_outside(model):
        if isinstance(held, nn.Module):
            place = _place(names[module], key)
            for norm in [held] if held in names else held.modules():
                if isinstance(norm, kind):
                    why = f"{place} holds it in a plain attribute, which would keep it; use nn.ModuleList or nn.ModuleDict"
                    reasons.setdefault(names.get(norm, place), why)
    return reasons


def _refuse(model: nn.Module, kind: type[nn.Module], excluded: Iterable[str] = (), instead: str = "") -> None:
    refused = {name: why for name, why in refusals(model, kind).items() if name not in excluded}
    if refused:
        raise ValueError(f"cannot convert faithfully: {describe(refused)}{instead}")


def _excluded(model: nn.Module, patterns: list[str]) -> set[str]:
    """Names of the modules that match a pattern, and of all below them."""
    modules = list(model.named_modules(remove_duplicate=False))
    stay = set()
    for pattern in patterns:
        matched = [module for name, module in modules if fnmatchcase(name, pattern)]
        if not matched:
            raise ValueError(f"exclude={pattern!r} matches no module of the network; see model.named_modules()")
        stay.update(below for module in matched for below in module.modules())
    return {name for name, module in modules if module in stay}


def describe(refused: dict[str, str]) -> str:
    return "; ".join(f"{name or 'the network itself'} ({why})" for name, why in refused.items())


def _refusal(module: nn.Module, kind: type[nn.Module]) -> str | None:
    if kind is _BatchNorm:
        if isinstance(module, torch.jit.ScriptModule):
            return "a TorchScript module"
        if "FrozenBatchNorm" in type(module).__name__:  # torchvision's and timm's: buffers, no BatchNorm subclass
            return FROZEN
    if not isinstance(module, kind):
        return None
    if type(module) not in _LOCAL_OF and type(module) not in _BATCH_OF and not _has_fused_activation(module):
        return f"{type(module).__name__} is a subclass with behaviour of its own"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which would be lost"
    if "forward" in vars(module):
        return "its forward is set on the instance, and would be lost"
    if module.affine and (module.weight is None or module.bias is None):
        return "it has one of weight and bias, and its counterpart would have both"
    return None


def _has_fused_activation(norm: nn.Module) -> bool:
    return type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.startswith("timm.")


def _localnorm_from(
    norm: _BatchNorm, kind: type[LocalNorm], num_groups: int, assignment: str, track: bool, made: dict
) -> LocalNorm:
    track = track and norm.track_running_stats
    options = {"eps": norm.eps, "affine": norm.affine, "momentum": norm.momentum, **_placement(norm)}
    local = kind(norm.num_features, num_groups, assignment=assignment, track_running_stats=track, **options)
    if track:
        for name in _STATISTICS:
            getattr(local, name).copy_(getattr(norm, name))  # (C,) -> every row of (K, C)
    return _with_affine(local, norm, lambda t: t, made)


def _with_affine(new: nn.Module, old: nn.Module, convert: Callable[[Tensor], Tensor], made: dict) -> nn.Module:
    """Convert weight and bias; `made`, old parameter -> new one, keeps layers tied that were."""
    for name in ("weight", "bias") if old.affine else ():
        source, target = getattr(old, name), getattr(new, name)
        if source in made:
            setattr(new, name, made[source])
            continue
        with torch.no_grad():
            target.copy_(convert(source))
        target.requires_grad_(source.requires_grad)
        made[source] = target
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


def _replaced(model: nn.Module, replace: Callable, kind: str, excluded: set[str], inplace: bool) -> nn.Module:
    model = model if inplace else _copy(model, (), "convert with inplace=True")
    new = {}
    for name, module in model.named_modules():
        if name not in excluded and (replacement := replace(module)) is not None:
            new[module] = replacement
    if not new:
        raise ValueError(f"the network has no {kind} to convert{', but for what is excluded' if excluded else ''}")
    _refuse_ties_to_what_stays(model, new)
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # named_children leaves out a second place of the same layer
            if child in new:
                setattr(module, name, new[child])
    return new.get(model, model)


def _refuse_ties_to_what_stays(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    owner = {
        id(parameter): name
        for name, module in model.named_modules()
        if module in new
        for parameter in module._parameters.values()
        if parameter is not None
    }
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if module not in new and id(parameter) in owner:
                raise ValueError(
                    f"cannot convert faithfully: {owner[id(parameter)]} shares a parameter with {name}, which is not "
                    "converted; exclude it, or give it a parameter of its own"
                )
