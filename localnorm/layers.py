"""LocalNorm: BatchNorm whose training batch is split into K groups, each with its own statistics and its own affine.

Two decisions are taken here. *Where the statistics come from* is a mode (:mod:`localnorm.modes`), never the training
flag alone. *Every use is one function*, :func:`local_norm`: an image alone is a group of one, an image among
companions a group of S. How a device computes it stands in ``_kernels``.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from localnorm._kernels import (
    check_values,
    group_of_each_image,
    has_one_value,
    normalize_groups,
    normalize_with_stored,
    runs_eagerly,
)
from localnorm._shrunk import normalize_shrunk
from localnorm.modes import BATCH, MIXING, MODES, Mode, check_one_value, check_shrinkage, mode_of_block, use_mode, whole

__all__ = [
    "ASSIGNMENTS",
    "MODES",
    "LocalNorm",
    "LocalNorm1d",
    "LocalNorm2d",
    "LocalNorm3d",
    "LocalNormAct2d",
    "local_norm",
    "use_mode",
]

ASSIGNMENTS = ("interleaved", "contiguous")
NEEDS_SPREAD = (
    "mode='gated' needs to know how training images differ; call localnorm.learn_spread(model, loader) once, after training; "
    "it takes LocalNorm layers"
)
OUTDATED_SPREAD = (
    "mode='gated' needs to know how training images differ, and the network was trained after it learned that; call "
    "localnorm.learn_spread(model, loader) again"
)


def local_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    assignment: str = "interleaved",
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> Tensor:
    """Normalise each group of a batch by its own mean and biased variance: what the layers compute, as a function.

    Group sizes differ by at most one, the first groups being the larger; fewer images than groups make that many
    groups.

    Args:
        x: (B, C, ...), floating; the result keeps its dtype and memory format.
        num_groups: K.
        weight, bias: (K, C) or None.
        running_mean, running_var: (K, C), moved in place by ``momentum`` towards each group's mean and unbiased
            variance.
        assignment: ``interleaved`` (image i in group i mod K) or ``contiguous``.

    Raises:
        ValueError: K below 1, an unknown assignment, tensors of another shape than (K, C), one of a pair without the other, or
            a group that would have one value per channel, so no variance.
        TypeError: x is not floating.

    Example:
        >>> x = torch.randn(6, 2, 4, 4)
        >>> y = local_norm(x, num_groups=3, assignment="contiguous")
        >>> torch.allclose(y[:2].mean((0, 2, 3)), torch.zeros(2), atol=1e-6)  # images 0 and 1 are group 0
        True
    """
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}; got {assignment!r}")
    if not x.is_floating_point():
        raise TypeError(f"local_norm takes floating input, got {x.dtype}; convert with x.float()")
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, other in (("weight", "bias"), ("running_mean", "running_var")):
        if (given[name] is None) != (given[other] is None):
            raise ValueError(f"{name} and {other} come together; got one of them")
    for name, rows in given.items():
        if rows is not None and rows.shape != (num_groups, x.shape[1]):
            raise ValueError(
                f"{name} is (num_groups, channels), here ({num_groups}, {x.shape[1]}); got {tuple(rows.shape)}"
            )
    options = {"assignment": assignment, "eps": eps, "momentum": momentum}
    return normalize_groups(x, num_groups, weight, bias, running_mean, running_var, **options)


class LocalNorm(nn.Module):
    r"""LocalNorm over inputs of any rank of at least 2, (N, C, ...).

    Use :class:`LocalNorm1d`, :class:`LocalNorm2d` or :class:`LocalNorm3d` where the rank is known; they check it.
    The method of `LocalNorm: Robust Image Classification through Dynamically Regularized Normalization
    <https://arxiv.org/abs/1902.06550>`__ (Yin, Schaafsma, Corporaal, Scholte, Bohte, 2019).

    A batch is split into K groups. For group k and channel c,

    .. math::
        y = \gamma_{k,c} \frac{x - \mathrm{E}_{k,c}[x]}{\sqrt{\mathrm{Var}_{k,c}[x] + \epsilon}} + \beta_{k,c}

    Mean and variance run over the group's images and all positions; the variance is the biased one, as BatchNorm's in
    training. So K = 1 is BatchNorm in training, and one image a group is InstanceNorm with an affine for each group.

    The same formula holds in training and in evaluation: the statistics come from the data at hand, whatever
    ``model.eval()`` says. :func:`localnorm.set_eval_mode` gives a network another way to evaluate, which stays with it; inside
    their block, :func:`use_mode` and :func:`localnorm.predict` win over both. With ``track_running_stats=True`` the
    layer also stores moving averages in training (of the mean and, as BatchNorm does, of the unbiased variance), one
    row per group, which only the modes ``prior``, ``gated`` and ``fixed`` read. Statistics are computed and stored in float32 for
    half-precision input and layers, also under autocast. Under DistributedDataParallel each process has its own
    groups, and the gradients are averaged as always.

    Weight and bias are matrices, so a rule that decays whatever has two dimensions or more would decay them:
    :func:`localnorm.param_groups` gives optimisers the right groups.

    Under a shuffled batch the two assignments are equal in distribution. Contiguous memory (NCHW) is fastest
    interleaved, channels_last with the contiguous assignment.

    Args:
        num_features: C.
        num_groups: K. A batch that K does not divide has groups that differ by one image; fewer images than K make a
            group each, and in training a warning that the other groups do not train.
        eps: added to the variance.
        affine: whether there are weight and bias, which start at 1 and 0.
        assignment: ``"interleaved"`` (image i in group i mod K) or ``"contiguous"`` (each B/K images in a row, as
            released).
        track_running_stats: whether training statistics are stored.
        momentum: weight of the newest batch in them; None is the plain average over all batches, each of which
            should have an image for every group: one count serves them all.
        device, dtype: of parameters and buffers; stored statistics have at least float32.
        one_value: what to do where a group has one value per channel, so no variance (1 x 1 maps with one image per group):
            ``"refuse"``, or ``"fixed"`` to take the group's stored statistics there.

    Shape:
        - Input: (N, C, ...), any N of at least 0
        - Output: as the input, in its memory format
        - weight, bias, running_mean, running_var: (K, C)

    Raises:
        ValueError: arguments out of range; an input of another rank or number of channels; one value per channel in
            a group.
        TypeError: input that is not floating; a num_features or num_groups that is no integer.

    Examples:
        >>> layer = LocalNorm2d(16, num_groups=4)
        >>> layer.weight.shape
        torch.Size([4, 16])
        >>> images = torch.randn(8, 16, 5, 5) + 3
        >>> y = layer(images)
        >>> y[[1, 5]].mean().abs() < 1e-5  # images 1 and 5 are group 1
        tensor(True)
        >>> y[[1, 2]].mean().abs() < 1e-5  # images 1 and 2 are not a group
        tensor(False)
        >>> LocalNorm2d(16, 4)(torch.randn(3, 16, 5))
        Traceback (most recent call last):
        ValueError: LocalNorm2d takes input (N, C, H, W), got shape (3, 16, 5)
    """

    ranks: tuple[int, ...] = ()
    shapes = "(N, C, ...)"
    eval_mode: Mode = BATCH  # what localnorm.set_eval_mode has set
    one_value: str = "refuse"
    from_end: float = math.inf  # 1 for a network's last norm layer, where predict counts them for fixed_last

    def __init__(
        self,
        num_features: int,
        num_groups: int = 8,
        eps: float = 1e-5,
        affine: bool = True,
        assignment: str = "interleaved",
        track_running_stats: bool = False,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        one_value: str = "refuse",
    ) -> None:
        super().__init__()
        num_features, num_groups = whole("num_features", num_features), whole("num_groups", num_groups)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}; num_groups=1 is BatchNorm on the batch")
        if assignment not in ASSIGNMENTS:
            raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}; got {assignment!r}")
        self.num_features = num_features
        self.num_groups = num_groups
        self.eps = eps
        self.affine = affine
        self.assignment = assignment
        self.track_running_stats = False
        self.momentum = momentum
        self.one_value = check_one_value(one_value)
        self.eval_mode = BATCH
        shape = (num_groups, num_features)
        for name in ("weight", "bias"):
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, parameter)
        for name in ("running_mean", "running_var", "num_batches_tracked", "spread"):
            self.register_buffer(name, None)
        if track_running_stats:
            self.keep_running_stats(device, dtype)
        self.reset_parameters()

    def keep_running_stats(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """From now on store training statistics, one row per group; they start at mean 0 and variance 1.

        They lie where the affine does; ``device`` and ``dtype`` serve a layer without one.
        """
        if self.affine:
            device, dtype = self.weight.device, self.weight.dtype
        shape = (self.num_groups, self.num_features)
        dtype = _at_least_float32(dtype or torch.get_default_dtype())
        self.running_mean = torch.zeros(shape, device=device, dtype=dtype)
        self.running_var = torch.ones(shape, device=device, dtype=dtype)
        self.num_batches_tracked = torch.tensor(0, device=device)
        self.track_running_stats = True

    def knows_spread(self) -> bool:
        """Whether it was learned, and of the network as it is."""
        return self.spread is not None and not bool(self.spread.isnan().any())

    def keep_spread(self) -> None:
        """Make room for how single training images differ, (K, 4, C): see `localnorm.learn_spread`."""
        shape = (self.num_groups, 4, self.num_features)
        self.spread = torch.zeros(shape, device=self.running_mean.device, dtype=self.running_mean.dtype)

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        self._buffers.setdefault("spread", None)  # a layer that was pickled before there was one

    def is_untouched(self) -> bool:
        """Whether the stored statistics are those of a new layer. (Old BatchNorm files have statistics and no count.)"""
        return bool(not self.num_batches_tracked and not self.running_mean.any() and (self.running_var == 1).all())

    def reset_running_stats(self) -> None:
        """Forget the stored training statistics."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()
            self.spread = None

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, no training statistics."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        """`half()` and `to(torch.bfloat16)` leave stored statistics in float32: a moving average in half precision stalls."""
        wide = {name: t for name in ("running_mean", "running_var", "spread") if (t := self._buffers[name]) is not None}
        super()._apply(fn, recurse)
        for name, before in wide.items():
            after = self._buffers[name]
            if after.dtype != _at_least_float32(after.dtype):
                self._buffers[name] = before.to(after.device)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        """An evaluation mode that was set is a plain tensor of three numbers in the file, and nothing of the state that moves."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        mode = self.eval_mode
        if mode != BATCH:
            numbers = [MODES.index(mode.name), mode.group, mode.prior]
            destination[f"{prefix}eval_mode"] = torch.tensor(numbers, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
        """A layer takes training statistics and an evaluation mode from a file that has them; other files leave its own.

        How training images differ belongs to the weights: a file without it takes it away.
        """
        key = f"{prefix}weight" if self.affine else f"{prefix}running_mean"
        given = state_dict.get(key)
        if given is not None and given.shape == (self.num_features,):
            errors.append(
                f"{key} has shape {tuple(given.shape)}, a BatchNorm's, and this LocalNorm has {(self.num_groups, self.num_features)}; "
                "load localnorm.convert_state_dict(state_dict, model), or load before convert_to_localnorm"
            )
            return
        numbers = state_dict.pop(f"{prefix}eval_mode", None)  # of the copy that load_state_dict makes
        if numbers is not None:
            number, group, prior = numbers.tolist()
            self.eval_mode = Mode(MODES[int(number)], int(group), prior)
        if f"{prefix}running_mean" in state_dict and not self.track_running_stats:
            self.keep_running_stats(dtype=state_dict[f"{prefix}running_mean"].dtype)
        if f"{prefix}running_mean" in state_dict:  # BatchNorm's old files have no count
            count = torch.zeros((), dtype=torch.long, device=state_dict[f"{prefix}running_mean"].device)
            state_dict.setdefault(f"{prefix}num_batches_tracked", count)
        spread = state_dict.get(f"{prefix}spread")
        self.spread = None
        if spread is not None and self.track_running_stats and spread.shape == (self.num_groups, 4, self.num_features):
            self.keep_spread()
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if self.track_running_stats:  # load_state_dict(assign=True) keeps the file's precision
            for name, t in self._buffers.items():
                if t is not None and t.is_floating_point():
                    self._buffers[name] = t.to(_at_least_float32(t.dtype))

    def extra_repr(self) -> str:
        text = f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, affine={self.affine}"
        text += f", assignment={self.assignment!r}"
        text += f", track_running_stats=True, momentum={self.momentum}" if self.track_running_stats else ""
        text += f", one_value={self.one_value!r}" if self.one_value != "refuse" else ""
        mode = self.eval_mode
        shown = {"group": mode.group, "prior": mode.prior}
        options = "".join(f" {name}={value}" for name, value in shown.items() if value)
        return text + (f", eval_mode={mode.name!r}{options}" if mode != BATCH else "")

    def forward(self, input: Tensor) -> Tensor:  # BatchNorm's name of it
        if isinstance(input, Proxy):
            return _leaf(self, input)
        return self._normalize(input)

    def _normalize(self, x: Tensor, relu: bool = False) -> Tensor:
        """What the layer computes, with ReLU after it if `relu`."""
        self._check_input(x)
        mode = mode_of_block()
        if mode is None:
            mode = BATCH if self.training else self.eval_mode
        if self.training and self.spread is not None and mode.name != "gated":
            self.spread.fill_(
                math.nan
            )  # it was of the network before this step; None would shift the buffers that averages pair by place
        if mode.name in ("batch", "shrunk"):
            return self._normalize_batch(x, mode, relu)
        if mode.name == "pooled":
            return self._normalize_pooled(x, mode, relu)
        if mode.name == "sized":
            return self._normalize_sized(x, mode, relu)
        if mode.name == "single" and self.from_end > mode.fixed_last:
            return self._normalize_alone(x, mode, relu)
        return self._normalize_with_stored(x, mode, relu)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() < 2 or (self.ranks and x.dim() not in self.ranks):
            raise ValueError(f"{type(self).__name__} takes input {self.shapes}, got shape {tuple(x.shape)}")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"num_features={self.num_features} needs {self.num_features} channels in dimension 1, "
                f"got shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{type(self).__name__} takes floating input, got {x.dtype}; convert with x.float()")

    def _rows(self, t: Tensor | None, group: int | Tensor) -> Tensor | None:
        """The row of a (K, C) tensor for one group, (C,), or the rows for several, (N, C)."""
        if t is None:
            return None
        if self.num_groups == 1:
            group = 0
        elif isinstance(group, int) and group >= self.num_groups:
            raise ValueError(f"group={group} needs more than {group} groups, got num_groups={self.num_groups}")
        return t[group]

    def falls_back(self, x: Tensor, groups: int, mode: Mode) -> bool:
        """Whether a batch in these groups is normalised by stored statistics, for want of a variance."""
        return "fixed" in (self.one_value, mode.one_value) and has_one_value(x, min(groups, x.shape[0]))

    def _normalize_batch(self, x: Tensor, mode: Mode, relu: bool) -> Tensor:
        if self.falls_back(x, self.num_groups, mode):
            groups = min(self.num_groups, x.shape[0])
            group = group_of_each_image(x.shape[0], groups, self.assignment, x.device)
            return self._normalize_with_stored(x, replace(mode, name="fixed", group=group), relu)
        running_mean = running_var = None
        momentum = 0.0
        trains = self.training and self.affine and torch.is_grad_enabled()
        if trains and runs_eagerly() and 0 < x.shape[0] < self.num_groups:
            warnings.warn(
                f"num_groups={self.num_groups} needs at least {self.num_groups} images in a training batch, got {x.shape[0]}: the other "
                "groups' weight and bias do not train on it; use larger batches, drop the tail (drop_last=True) or lower num_groups",
                stacklevel=2,
            )
        if self.training and self.track_running_stats and (x.shape[0] or not runs_eagerly()):
            running_mean, running_var = self.running_mean, self.running_var
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        normalize = normalize_groups
        if mode.name == "shrunk" and x.shape[0]:
            prior = mode.prior
            if callable(prior):
                check_shrinkage(prior := prior())
            normalize = partial(normalize_shrunk, prior=prior)
        per_group = (self.weight, self.bias, running_mean, running_var)
        options = {"assignment": self.assignment, "eps": self.eps, "momentum": momentum, "relu": relu}
        return normalize(x, self.num_groups, *per_group, **options)

    def _normalize_pooled(self, x: Tensor, mode: Mode, relu: bool) -> Tensor:
        """All images by one mean and variance, each with the affine of its group."""
        if self.num_groups == 1 or not x.shape[0]:
            return self._normalize_batch(x, mode, relu)
        if self.falls_back(x, 1, mode):
            return self._normalize_with_stored(x, replace(mode, name="fixed"), relu)
        check_values(x, 1)
        group = group_of_each_image(x.shape[0], min(self.num_groups, x.shape[0]), self.assignment, x.device)
        affine = (None if t is None else t[group] for t in (self.weight, self.bias))  # (N, C)
        work, over = x.to(_at_least_float32(x.dtype)), (0, *range(2, x.dim()))
        mean = work.mean(over, keepdim=True)
        var = (work - mean).square_().mean(over)[None]  # (1, C)
        return normalize_with_stored(x, mean.view(1, -1), var, *affine, prior=None, eps=self.eps, relu=relu)

    def _normalize_sized(self, x: Tensor, mode: Mode, relu: bool) -> Tensor:
        if x.shape[0] % mode.group_size:
            raise ValueError(f"group_size={mode.group_size} does not divide a batch of {x.shape[0]} images")
        affine = torch.arange(x.shape[0] // mode.group_size, device=x.device) % self.num_groups  # (B/S,)
        return self._normalize_alone(x, replace(mode, group=affine), relu)

    def _normalize_alone(self, x: Tensor, mode: Mode, relu: bool) -> Tensor:
        if x.shape[0] == 0:
            return self._normalize_batch(x, mode, relu)
        groups = x.shape[0] // mode.group_size
        if self.falls_back(x, groups, mode):
            return self._normalize_with_stored(x, replace(mode, name="fixed"), relu)
        rows = (self._rows(t, mode.group) for t in (self.weight, self.bias))
        weight, bias = (None if t is None else t.expand(groups, -1) for t in rows)
        options = {"assignment": mode.assignment, "eps": self.eps, "relu": relu}
        return normalize_groups(x, groups, weight, bias, alone=mode.group_size == 1, **options)

    def _normalize_with_stored(self, x: Tensor, mode: Mode, relu: bool) -> Tensor:
        if not self.track_running_stats:
            raise ValueError(
                f"mode={mode.name!r} needs stored training statistics, and this layer keeps none; build it with "
                "track_running_stats=True or call localnorm.estimate_statistics(model, loader) once"
            )
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        rows = [self._rows(t, mode.group) for t in tensors]  # (C,) or (N, C)
        mixes = mode.name in MIXING and self.from_end > mode.fixed_last
        options = {"prior": mode.prior if mixes else None, "eps": self.eps, "relu": relu}
        if mixes and mode.name == "gated":
            if self.spread is None:
                raise ValueError(NEEDS_SPREAD)
            # a GPU is not waited for: there the answer is nan
            if self.spread.device.type == "cpu" and runs_eagerly() and not self.knows_spread():
                raise ValueError(OUTDATED_SPREAD)
            options["spread"] = self._rows(self.spread, mode.group)
        return normalize_with_stored(x, *rows, **options)


def check_spread(norms: Iterable[LocalNorm]) -> None:
    """Refuse the mode "gated" where no layer knows how training images differ, or one was trained after it learned it.

    A layer that an evaluation does not run, as an auxiliary head's, never learned it.
    """
    known = [norm for norm in norms if norm.spread is not None]
    if not known:
        raise ValueError(NEEDS_SPREAD)
    if not all(norm.knows_spread() for norm in known):
        raise ValueError(OUTDATED_SPREAD)


class LocalNorm1d(LocalNorm):
    """:class:`LocalNorm` over (N, C) or (N, C, L).

    >>> LocalNorm1d(3, num_groups=2)(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)
    shapes = "(N, C) or (N, C, L)"


class LocalNorm2d(LocalNorm):
    """:class:`LocalNorm` over (N, C, H, W)."""

    ranks = (4,)
    shapes = "(N, C, H, W)"


class LocalNorm3d(LocalNorm):
    """:class:`LocalNorm` over (N, C, D, H, W)."""

    ranks = (5,)
    shapes = "(N, C, D, H, W)"


class LocalNormAct2d(LocalNorm2d):
    """:class:`LocalNorm2d`, then dropout, then an activation: what becomes of timm's BatchNormAct2d, under the same names.

    An ``nn.ReLU`` without dropout is computed with the norm: in the same Triton kernels where those run, and elsewhere in
    the memory of the norm's result. Values and gradients are those of norm and ReLU one after the other. The modules ``act``
    and ``drop`` are not called then; with hooks on one of them, they are.

    Args:
        num_features, num_groups, **options: of :class:`LocalNorm2d`.
        act, drop: modules; none is the identity.

    >>> LocalNormAct2d(3, num_groups=2, act=nn.ReLU())(torch.randn(4, 3, 5, 5)).min() == 0
    tensor(True)
    """

    of_pair: bool = False  # whether `act` comes from the module after it, which convert_to_localnorm made an Identity

    def __init__(
        self,
        num_features: int,
        num_groups: int = 8,
        *,
        act: nn.Module | None = None,
        drop: nn.Module | None = None,
        **options,
    ) -> None:
        super().__init__(num_features, num_groups, **options)
        self.drop = drop or nn.Identity()
        self.act = act or nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return _leaf(self, input)
        act, drop = self.act, self.drop
        if type(act) is nn.ReLU and type(drop) is nn.Identity and not is_altered(act) and not is_altered(drop):
            return self._normalize(input, relu=True)
        return act(drop(self._normalize(input)))


def is_altered(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's forward: it has hooks, or a forward of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _leaf(layer: nn.Module, x: Proxy) -> Proxy:
    """The layer as one node of a symbolic trace, as torch.fx treats torch's own layers: its choices depend on the data's layout."""
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(layer), (x,), {})
