"""Put LocalNorm into a trained network, and back.

A conversion is exact or refused: a norm layer whose behaviour would be lost (a subclass with behaviour of its own,
hooks, a FrozenBatchNorm) is named in one error, before anything is changed. A converted network shares no tensor
with the original, unless ``inplace=True``; nor does it run any of its layers: what a copy would still reach in the
original, through a closure, is refused by name.
"""

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from localnorm._replica import HOOKS, copy_network, describe, held_outside, place, unwrapped
from localnorm.layers import LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d, LocalNormAct2d, is_altered
from localnorm.training_statistics import (
    STATISTICS,
    at_least_one,
    check_places,
    estimate_statistics,
    keeps,
    norm_layers,
)

__all__ = [
    "convert_state_dict",
    "convert_to_batchnorm",
    "convert_to_localnorm",
    "param_groups",
]

FROZEN = "its statistics are frozen"
_LOCAL_OF = {
    nn.BatchNorm1d: LocalNorm1d,
    nn.BatchNorm2d: LocalNorm2d,
    nn.BatchNorm3d: LocalNorm3d,
    nn.SyncBatchNorm: LocalNorm,  # both take any rank
}
_BATCH_OF = {local: batch for batch, local in _LOCAL_OF.items()}


@torch.inference_mode(False)  # parameters that are made in that mode cannot be trained
def convert_to_localnorm(
    model: nn.Module,
    num_groups: int = 8,
    *,
    assignment: str = "interleaved",
    track_running_stats: bool = False,
    exclude: Iterable[str] = (),
    inplace: bool = False,
    one_value: str = "refuse",
    fuse_relu: bool = False,
) -> nn.Module:
    """Replace every BatchNorm of a network by LocalNorm with the BatchNorm's affine in each group.

    In training mode each group of a batch then gets what the original gives that group alone. SyncBatchNorm is
    converted too (its groups become those of one process); timm's BatchNormAct2d becomes a :class:`LocalNormAct2d`, with
    the same ``drop``, ``act`` and keys.

    Args:
        model: any network; BatchNorm may be its root or appear in several places.
        num_groups, assignment: of the new layers.
        track_running_stats: keep training statistics, starting from the BatchNorm's own in each group.
        exclude: patterns of qualified names (``"layer4"``, ``"*.downsample"``) that stay as they are, with all below them; of a network
            that is held in a plain attribute (a teacher in a list) the attribute's name.
        inplace: change ``model`` itself instead of a copy. Optimisers hold the old parameters then: build them
            afterwards.
        one_value: of the new layers: ``"fixed"`` lets those with one value per channel in a group (an image-pooling
            branch with 1 x 1 maps) take their stored statistics there, in training too; it needs ``track_running_stats=True``.
        fuse_relu: compute an ``nn.ReLU`` that directly follows a BatchNorm2d in an ``nn.Sequential`` with the norm. The two
            become one :class:`LocalNormAct2d` and an ``nn.Identity``, so names, indices and keys stay. A pair is left as it is
            where one of the two is excluded or stands in a second place, or the ReLU has hooks. A forward that takes the
            norm's result out of the Sequential, by its index, gets it after the ReLU.

    Raises:
        ValueError: there is nothing to convert, or with ``fuse_relu`` to fuse; a pattern matches nothing; a layer cannot be
            converted faithfully; the network cannot be copied.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> convert_to_localnorm(net, num_groups=2)[1]
        LocalNorm2d(4, num_groups=2, eps=1e-05, affine=True, assignment='interleaved')
    """
    excluded = _excluded(model, [exclude] if isinstance(exclude, str) else list(exclude))
    _refuse(model, _BatchNorm, excluded, "; exclude them by name to leave them as they are")
    model = model if inplace else copy_network(model, (), "convert with inplace=True")
    relus = _relus_of_norms(model, excluded) if fuse_relu else {}
    made = {}

    def to_local(module: nn.Module) -> nn.Module | None:
        if module in relus.values():
            return nn.Identity().train(module.training)
        options = {"assignment": assignment, "one_value": one_value}
        if module in relus or _has_fused_activation(module):
            kind = LocalNormAct2d
            options |= {"act": relus[module]} if module in relus else {"act": module.act, "drop": module.drop}
        elif type(module) in _LOCAL_OF:
            kind = _LOCAL_OF[type(module)]
        else:
            return None
        local = _localnorm_from(module, kind, num_groups, track_running_stats, made, options)
        if module in relus:
            local.of_pair = True
        return local

    return _replaced(model, to_local, "BatchNorm", excluded)


@torch.inference_mode(False)
def convert_to_batchnorm(model: nn.Module, loader: Iterable, *, inplace: bool = False) -> nn.Module:
    """Replace every LocalNorm by BatchNorm with the mean of its groups' affines, and estimate the running statistics.

    Tools that fold a norm into the convolution before it (timm's ``reparameterize_model``, torch's ``fuse_conv_bn_eval``) take
    the result; on LocalNorm layers they raise, since K groups do not fold into one kernel. Pairs of norm and ReLU that
    ``convert_to_localnorm(fuse_relu=True)`` made one layer are pairs again, unless what follows the norm has changed: it becomes
    timm's BatchNormAct2d then, as every other :class:`LocalNormAct2d` does.

    Args:
        model: a network with LocalNorm layers.
        loader: batches of images, or of tuples that start with them, for :func:`estimate_statistics`.
        inplace: change ``model`` itself instead of a copy.

    Raises:
        ValueError: there is nothing to convert, a layer cannot be converted faithfully, the network cannot be copied, or
            the loader is empty.
    """
    batches = at_least_one(loader)
    _refuse(model, LocalNorm)
    check_places(model)
    done = convert_to_batchnorm(model, batches) if inplace else None  # what fails leaves the network as it was
    model = model if inplace else copy_network(model, (), "use localnorm.use_mode and the network's own forward")
    identities = _identities_of_pairs(model)
    relus = {identity: norm.act for norm, identity in identities.items()}
    made = {}

    def to_batch(module: nn.Module) -> nn.Module | None:
        if module in relus:
            return relus[module]
        if module in identities:
            kind = nn.BatchNorm2d
        elif type(module) is LocalNormAct2d:
            kind = _batchnorm_act()
        elif type(module) in _BATCH_OF:
            kind = _BATCH_OF[type(module)]
        else:
            return None
        options = {"eps": module.eps, "momentum": module.momentum, "affine": module.affine, **_placement(module)}
        batch = kind(module.num_features, **options)
        if kind not in _LOCAL_OF:
            batch.drop, batch.act = module.drop, module.act
        return _with_affine(batch, module, lambda t: t.mean(0), made)  # (K, C) -> (C,)

    converted = _replaced(model, to_batch, "LocalNorm", set())
    if done is None:
        estimate_statistics(converted, batches)
    else:
        for norm, estimated in zip(norm_layers(converted), norm_layers(done), strict=True):
            norm.load_state_dict(estimated.state_dict())
    return converted


def param_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict]:
    """A network's parameters in the two groups that an optimiser needs: kernels are decayed, norms and biases are not.

    A LocalNorm's weight is a matrix (K, C), which rules by the number of dimensions take for a kernel. The second group
    also has ``use_fallback=True``: timm's Muon optimisers then update norms and biases by AdamW, and every other optimiser
    of torch or timm ignores it. torch.optim.Muon takes matrices of the first group alone.

    Args:
        weight_decay: of the first group.

    Returns:
        Two dicts for any optimiser of torch or timm, with ``weight_decay`` and 0; parameters that do not require
        gradients are in neither, and a group without parameters is left out.

    Example:
        >>> net = convert_to_localnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), num_groups=2)
        >>> [[tuple(p.shape) for p in group["params"]] for group in param_groups(net, weight_decay=1e-4)]
        [[(4, 3, 3, 3)], [(4,), (2, 4), (2, 4)]]
        >>> optimizer = torch.optim.SGD(param_groups(net, weight_decay=1e-4), lr=0.1)
    """
    exempt = set()
    for norm in norm_layers(model):
        own = [norm.parameters(recurse=False)]
        if is_parametrized(norm):  # there what is trained lies one level lower
            own.append(norm.parametrizations.parameters())
        exempt |= {id(parameter) for parameter in itertools.chain(*own)}
    for part in unwrapped(model).modules():
        if callable(listed := getattr(part, "no_weight_decay", None)):  # timm's networks list what is not to be decayed
            names = set(listed())
            exempt |= {id(parameter) for name, parameter in part.named_parameters() if name in names}
    decayed, others = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (others if parameter.ndim < 2 or id(parameter) in exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0, "use_fallback": True},
    ]
    return [group for group in groups if group["params"]]


def convert_state_dict(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A BatchNorm network's state dict for the same network with LocalNorm: each group gets the BatchNorm's affine and statistics.

    ``model.load_state_dict(convert_state_dict(state_dict, model))`` gives what :func:`convert_to_localnorm` would have made of
    the BatchNorm network. Statistics are taken along where the model's layers store them, and left out elsewhere.

    Raises:
        ValueError: a tensor of a LocalNorm layer that is neither (C,) nor (K, C); the state dict is a LocalNorm network's and the model
            has BatchNorm, for which :func:`convert_to_batchnorm` needs images.
        TypeError: ``state_dict`` is none, but say a file's name.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> local = convert_to_localnorm(net, num_groups=2)
        >>> local.load_state_dict(convert_state_dict(net.state_dict(), local))
        <All keys matched successfully>
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict maps names to tensors, got {type(state_dict).__name__}; give torch.load(file, weights_only=True)"
        )
    converted = OrderedDict(state_dict)
    if hasattr(state_dict, "_metadata"):  # the versions of layers, which torch reads when it loads them
        converted._metadata = state_dict._metadata
    for name, norm in model.named_modules(remove_duplicate=False):
        if not isinstance(norm, LocalNorm | _BatchNorm):
            continue
        for tensor_name in ("weight", "bias", *STATISTICS, "spread"):
            key = place(name, tensor_name)
            given = converted.get(key)
            if given is None:
                continue
            if isinstance(norm, _BatchNorm):
                if given.dim() == 2:
                    raise ValueError(
                        f"{key} has shape {tuple(given.shape)}, a LocalNorm's, and the model has a BatchNorm there; load it into "
                        "the LocalNorm network and go back by convert_to_batchnorm(model, loader)"
                    )
            elif tensor_name in (*STATISTICS, "spread") and not norm.track_running_stats:
                del converted[key]
            elif tensor_name not in ("num_batches_tracked", "spread"):
                shape = (norm.num_groups, norm.num_features)
                if given.shape not in (shape, shape[1:]):
                    raise ValueError(
                        f"{key} has shape {tuple(given.shape)}; this LocalNorm takes {shape}, or a BatchNorm's {shape[1:]}"
                    )
                converted[key] = given.expand(shape).clone()
    return converted


def refusals(model: nn.Module, kind: type[nn.Module] = _BatchNorm) -> dict[str, str]:
    """The norm layers of a kind (BatchNorm or LocalNorm) that cannot be converted faithfully: name -> reason."""
    names = {module: name for name, module in model.named_modules()}
    reasons = {name: why for module, name in names.items() if (why := _refusal(module, kind))}
    for module, key, held, _ in held_outside(model):
        if isinstance(held, nn.Module):
            where = place(names[module], key)
            for norm in [held] if held in names else held.modules():
                if isinstance(norm, kind):
                    how = "runs it" if key in HOOKS else "holds it in a plain attribute"
                    why = f"{where} {how}, which would keep it; use nn.ModuleList or nn.ModuleDict"
                    reasons.setdefault(names.get(norm, where), why)
    return reasons


def _refuse(model: nn.Module, kind: type[nn.Module], excluded: Iterable[str] = (), instead: str = "") -> None:
    refused = {name: why for name, why in refusals(model, kind).items() if name not in excluded}
    if refused:
        raise ValueError(f"cannot convert faithfully: {describe(refused)}{instead}")


def _excluded(model: nn.Module, patterns: list[str]) -> set[str]:
    """Names of the modules that match a pattern, and of all below them; of attributes that hold other modules."""
    modules = list(model.named_modules(remove_duplicate=False))
    names = {module: name for name, module in modules}
    outside = {
        place(names[module], key)
        for module, key, held, _ in held_outside(model)
        if patterns and _is_foreign(held, names)
    }
    stay, kept = set(), set()
    for pattern in patterns:
        matched = [module for name, module in modules if fnmatchcase(name, pattern)]
        attributes = {name for name in outside if fnmatchcase(name, pattern)}
        if not matched and not attributes:
            raise ValueError(f"exclude={pattern!r} matches no module of the network; see model.named_modules()")
        stay.update(below for module in matched for below in module.modules())
        kept |= attributes
    return {name for name, module in modules if module in stay} | kept


def _is_foreign(held: object, names: dict[nn.Module, str]) -> bool:
    return isinstance(held, nn.Module) and held not in names


def _refusal(module: nn.Module, kind: type[nn.Module]) -> str | None:
    if kind is _BatchNorm:
        if isinstance(module, torch.jit.ScriptModule):
            return "a TorchScript module"
        if "FrozenBatchNorm" in type(module).__name__:  # torchvision's and timm's: buffers, no BatchNorm subclass
            return FROZEN
    if not isinstance(module, kind):
        return None
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "it does not know its channels yet; run the network once on a batch before it is converted"
    known = type(module) in _LOCAL_OF or type(module) in _BATCH_OF or type(module) is LocalNormAct2d
    if not known and not _has_fused_activation(module):
        return f"{type(module).__name__} is a subclass with behaviour of its own"
    if "forward" in vars(module):
        return "its forward is set on the instance, and would be lost"
    if is_altered(module):
        return "it has hooks, which would be lost"
    if module.affine and (module.weight is None or module.bias is None):
        return "it has one of weight and bias, and its counterpart would have both"
    return None


def _batchnorm_act() -> type[_BatchNorm]:
    try:
        from timm.layers import BatchNormAct2d
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a LocalNormAct2d goes back to timm's BatchNormAct2d; pip install timm") from error
    return BatchNormAct2d


def _has_fused_activation(norm: nn.Module) -> bool:
    return type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.startswith("timm.")


def _localnorm_from(
    norm: _BatchNorm, kind: type[LocalNorm], num_groups: int, track: bool, made: dict, options: dict
) -> LocalNorm:
    track = track and keeps(norm)
    options |= {"eps": norm.eps, "affine": norm.affine, "momentum": norm.momentum, **_placement(norm)}
    local = kind(norm.num_features, num_groups, track_running_stats=track, **options)
    if track:
        for name in STATISTICS:
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


def _followers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Module -> the one that runs directly after it in an nn.Sequential, where both stand in one place alone."""
    places = Counter(child for module in model.modules() for child in module._modules.values())
    followers = {}
    for module in model.modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            for first, second in itertools.pairwise(module):
                if places[first] == places[second] == 1 and "forward" not in vars(module):
                    followers[first] = second
    return followers


def _relus_of_norms(model: nn.Module, excluded: set[str]) -> dict[nn.Module, nn.Module]:
    """BatchNorm2d -> the ReLU after it that can be computed with it."""
    names = {module: name for name, module in model.named_modules()}
    relus = {
        norm: act
        for norm, act in _followers(model).items()
        if type(norm) is nn.BatchNorm2d and type(act) is nn.ReLU and not is_altered(act)
        if excluded.isdisjoint((names[norm], names[act]))
    }
    if not relus:
        raise ValueError(
            "fuse_relu=True needs a BatchNorm2d directly followed by nn.ReLU in an nn.Sequential, each in one place and without "
            "hooks, and the network has none; leave fuse_relu out"
        )
    return relus


def _identities_of_pairs(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """LocalNormAct2d of a pair -> the Identity in the place of its ReLU."""
    names = {module: name for name, module in model.named_modules()}
    identities = {
        norm: after
        for norm, after in _followers(model).items()
        if type(norm) is LocalNormAct2d and norm.of_pair
        if type(norm.drop) is nn.Identity and type(after) is nn.Identity
    }
    refused = {
        names[after]: f"the ReLU of {names[norm]} goes back there, and its hooks would be lost"
        for norm, after in identities.items()
        if is_altered(after)
    }
    if refused:
        raise ValueError(f"cannot convert faithfully: {describe(refused)}; remove them first")
    return identities


def _replaced(model: nn.Module, replace: Callable, kind: str, excluded: set[str]) -> nn.Module:
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
