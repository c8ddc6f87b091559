"""Copies of a network that run none of its own layers.

The contract: a network reaches its layers as modules of its own (attributes, ModuleList, ModuleDict), from methods of
its class. Then a deep copy is a network by itself. A function or a bound method that is set on an instance, or a layer
in a plain list, would lead the copy back to the original, so it is refused by name before anything runs.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, SimpleNamespace

import torch
from torch import Tensor, nn

CALL_THEM = "call them as modules of the network (self.norm(x)), not through what is none of its attributes"
_PLAIN = (int, float, str, type(None))
# attributes that torch itself keeps: parameters, children, hooks, and what model.compile() made, which no copy takes along
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
# of these the hooks of a forward and its gradient may reach other modules
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network without torch.compile, DataParallel and DistributedDataParallel around it: those of one process would wait for others."""
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel
    while isinstance(
        inner := getattr(model, "_orig_mod", None) or (model.module if isinstance(model, parallel) else None), nn.Module
    ):
        model = inner
    return model


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of a network whose parameters are the network's own; modules, flags and buffers are new."""
    return copy_network(model, model.parameters(), "use localnorm.use_mode and the network's own forward")


def copy_network(model: nn.Module, shared: Iterable[Tensor], instead: str) -> nn.Module:
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
            back[place(name, "forward")] = "set on the instance; write it into the class"
    # what a module keeps of its last forward, or weight_norm's weight, cannot be copied and is made anew by the next
    kept = [tensor for tensor in model.buffers() if not tensor.is_leaf]
    for module, key, held, copied in held_outside(model):
        if isinstance(held, Tensor) and copied and not held.is_leaf:
            kept.append(held)
        if isinstance(held, nn.Module) and not copied and not _copies_itself(module) and _has_tensors(held):
            back.setdefault(place(names[module], key), "a function over a module; make it a method of the class")
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
                        f"the network cannot be copied because of {place(name, key)} ({type(value).__name__}); "
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


def place(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def held_outside(model: nn.Module) -> Iterator[tuple[nn.Module, str, object, bool]]:
    """What modules hold in attributes of their own and in hooks, not as parameter, buffer or child: (module, attribute, object, copied).

    `copied` is whether a deep copy of the module has a copy of the object.
    """
    for module in model.modules():
        for key, value in vars(module).items():
            if (key in HOOKS and value) or (key not in _OF_EVERY_MODULE and not isinstance(value, _PLAIN)):
                for held, copied in _inside(value, True, set()):
                    yield module, key, held, copied


def _inside(value: object, copied: bool, seen: set[int]) -> Iterator[tuple[object, bool]]:
    """The objects in nested lists, tuples, sets, dicts, dataclasses, namespaces, partials, methods and functions."""
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
    elif isinstance(value, SimpleNamespace):
        inner = list(vars(value).values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
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


def named(names: list[str]) -> str:
    """Three modules by name, and how many more there are."""
    shown = ", ".join(name or "the network itself" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def describe(refused: dict[str, str]) -> str:
    return "; ".join(f"{name or 'the network itself'} ({why})" for name, why in refused.items())
