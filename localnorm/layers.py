"""LocalNorm: BatchNorm whose training batch is split into K groups, each with its own statistics and its own affine.

Three decisions are taken here.

*Where the statistics come from* is a mode, never the training flag: ``model.train()`` and ``model.eval()`` normalise
alike. The mode is a context variable (:func:`use_mode`): it belongs to one thread and one block, and cannot stay
behind in a model.

*Every use is one function*, :func:`local_norm`: an image alone is a group of one, an image among companions a group
of S.

*The arithmetic is BatchNorm's own kernels.* With image i in group i mod K, a contiguous batch (B, C, H, W) is a view
(B/K, K*C, H, W), and LocalNorm is BatchNorm over K*C channels: nothing is copied. What has no such view (channels_last,
and the contiguous assignment) goes group by group on a CPU, and in one copy on a GPU.
"""

import contextlib
import math
import operator
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ASSIGNMENTS", "MODES", "LocalNorm", "LocalNorm1d", "LocalNorm2d", "LocalNorm3d", "local_norm", "use_mode"]

ASSIGNMENTS = ("interleaved", "contiguous")
LARGE_IMAGE = 2**14  # activations; above, a kernel call for an image costs less than two copies of it
MODES = ("batch", "single", "prior", "fixed")


@dataclass(frozen=True)
class Mode:
    """Where a LocalNorm takes its statistics from, and which affine each group of images gets."""

    name: str = "batch"
    group: int | Tensor = 0  # an affine for all, or one for each group of images, (G,)
    prior: float = 0.0  # positions
    group_size: int = 1  # images; more than one where predict adds companions, or training draws it
    assignment: str = "interleaved"  # of images to groups of more than one


BATCH = Mode()
_MODE: ContextVar[Mode] = ContextVar("localnorm_mode", default=BATCH)


@contextlib.contextmanager
def set_mode(mode: Mode) -> Iterator[None]:
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


def use_mode(
    mode: str, *, group: int = 0, prior: float | None = None, group_size: int | None = None
) -> contextlib.AbstractContextManager[None]:
    """Every LocalNorm that this thread runs inside the block takes its statistics from where ``mode`` says.

    ========== =============================================================== ===================
    mode       statistics                                                      affine
    ========== =============================================================== ===================
    ``batch``  each group of the batch, as in training (also outside a block)  each group's own
    ``single`` each image's own                                                that of ``group``
    ``prior``  each image's own, shrunk towards stored training statistics     that of ``group``
    ``fixed``  the stored training statistics of ``group``                     that of ``group``
    ========== =============================================================== ===================

    With h*w positions in the feature map and a prior of n0 positions, a = n0 / (n0 + h*w) and

        mean = a mean_train + (1 - a) mean_image
        var  = a var_train  + (1 - a) var_image  + a (1 - a) (mean_train - mean_image)^2

    so that ``prior=0`` is ``single`` and ``prior=math.inf`` is ``fixed``. A layer with one group serves every
    ``group``. The mode does not touch BatchNorm layers, the training flag, or other threads;
    :func:`localnorm.predict` handles those.

    With ``group_size``, a batch is split into groups of so many consecutive images, which take the K affines in turn and
    leave stored statistics alone. Drawn anew for each training step, from 1 to B/K, it trains a network for single images too.

    Activation checkpointing computes forwards again in the backward pass: after the block, or on a GPU in a thread of autograd's
    that the block does not reach. They then meet other groups, and gradients are silently wrong (``use_reentrant=True``)
    or torch raises a CheckpointError. Enter ``use_mode`` inside the checkpointed function, or give
    ``checkpoint(..., use_reentrant=False, context_fn=lambda: (nullcontext(), use_mode("batch", group_size=S)))``.

    Args:
        mode: one of :data:`MODES`.
        group: the group whose affine (and stored statistics) is used; not for ``mode="batch"``.
        prior: n0, in positions; for ``mode="prior"`` only.
        group_size: images a group, a divisor of the batch; for ``mode="batch"`` only, where None is as the layer is built.

    Raises:
        ValueError: unknown mode, negative group or prior, a prior missing or given to another mode, likewise a group or a group size; in
            the block, a group that a layer lacks, a batch that the group size does not divide.
        TypeError: a group or group size that is no integer (NumPy's are).

    Example:
        >>> layer = LocalNorm2d(3, num_groups=4)
        >>> image = torch.randn(1, 3, 8, 8)
        >>> with use_mode("single", group=2):
        ...     layer(image).shape
        torch.Size([1, 3, 8, 8])
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    group = operator.index(group)  # NumPy's integers too
    if group < 0:
        raise ValueError(f"group must be at least 0, got {group}")
    if group and mode == "batch":
        raise ValueError(
            f"group={group} belongs to the other modes, got mode='batch', in which each group has its own affine; drop it"
        )
    if group_size is not None:
        group_size = operator.index(group_size)
        if mode != "batch" or group_size < 1:
            raise ValueError(
                f"group_size, at least 1, belongs to mode='batch'; got group_size={group_size} and mode={mode!r}"
            )
        return set_mode(Mode("sized", group_size=group_size, assignment="contiguous"))
    return set_mode(with_prior(Mode(mode, group, check_prior(mode, prior))))


def check_prior(mode: str, prior: float | None) -> float:
    if mode != "prior":
        if prior is not None:
            raise ValueError(f"prior={prior} belongs to mode='prior', got mode={mode!r}; drop prior or change the mode")
        return 0.0
    if prior is None or not prior >= 0:
        raise ValueError(f"mode='prior' needs prior, a number of positions of at least 0 (math.inf too); got {prior}")
    return float(prior)


def with_prior(mode: Mode) -> Mode:
    """An infinite prior is the mode "fixed": so no layer has to ask, which torch.compile could not follow."""
    return replace(mode, name="fixed", prior=0.0) if mode.prior == math.inf else mode


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
    return _local_norm(x, num_groups, weight, bias, running_mean, running_var, **options)


def _local_norm(x, num_groups, weight, bias, running_mean=None, running_var=None, *, assignment, eps, momentum=0.0):
    """`local_norm` of what a layer has checked: torch.compile need not follow the checks."""
    batch, channels = x.shape[:2]
    # A comparison: min() of a symbolic size defeats torch.compile's guards.
    groups = num_groups if batch >= num_groups else batch
    size, larger = (batch // groups, batch % groups) if batch else (0, 0)
    if size * math.prod(x.shape[2:]) == 1:
        raise ValueError(
            f"a group needs more than 1 value per channel, got input {tuple(x.shape)} in {groups} groups; "
            "use a larger batch or fewer groups, or predict with mode 'prior', 'companions' or 'fixed'"
        )
    stored = (running_mean, running_var)
    # The kernels keep statistics in the precision of these tensors: float32 for half inputs, and never none of them.
    precision = torch.promote_types(x.dtype, torch.float32)
    if weight is None and x.dtype != precision:
        weight, bias = x.new_ones(groups, channels), x.new_zeros(groups, channels)
    weight, bias, running_mean, running_var = (
        None if t is None else t.to(precision) for t in (weight, bias, running_mean, running_var)
    )
    per_group = (weight, bias, running_mean, running_var)

    def block(part: Tensor, start: int, stop: int) -> Tensor:
        rows = (None if t is None else t[start:stop] for t in per_group)
        return _equal_groups(part, stop - start, *rows, assignment=assignment, eps=eps, momentum=momentum)

    if batch == 0:
        rows = (None if t is None else t[0] for t in (weight, bias))
        y = F.batch_norm(x, None, None, *rows, training=True, eps=eps)
    elif larger == 0:
        y = block(x, 0, groups)
    elif assignment == "contiguous":
        cut = larger * (size + 1)
        y = torch.cat([block(x[:cut], 0, larger), block(x[cut:], larger, groups)])
    else:
        rounds, tail = x[: size * groups].unflatten(0, (size, groups)), x[size * groups :]  # (S, K, ...), (larger, ...)
        first = block(torch.cat([rounds[:, :larger].flatten(0, 1), tail]), 0, larger)
        rest = block(rounds[:, larger:].flatten(0, 1), larger, groups)
        rounds = [first[: size * larger].unflatten(0, (size, larger)), rest.unflatten(0, (size, groups - larger))]
        y = torch.cat([torch.cat(rounds, 1).flatten(0, 1), first[size * larger :]])
        y = y.contiguous(memory_format=_memory_format(x))
    for kept, moved in zip(stored, (running_mean, running_var), strict=True):
        if kept is not moved:
            kept.copy_(moved)
    return y


def _runs_eagerly() -> bool:
    """Whether nothing follows what runs: no torch.compile, torch.func, dual level or torch.jit.trace (ONNX's older exporter)."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _runs_eagerly_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and _runs_eagerly()


def _memory_format(x: Tensor) -> torch.memory_format:
    if torch._C._are_functorch_transforms_active():
        return torch.contiguous_format  # vmap cannot be asked for another layout
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == rank and x.is_contiguous(memory_format=layout) and not x.is_contiguous():
            return layout
    return torch.contiguous_format


def _equal_groups(x, groups, weight, bias, running_mean, running_var, *, assignment, eps, momentum):
    """A batch that `groups` divides; per-group tensors are (groups, C)."""
    layout = _memory_format(x)
    x = x.contiguous(memory_format=layout)
    per_group = (running_mean, running_var, weight, bias)
    flat = [None if t is None else t.reshape(-1) for t in per_group]
    # Not for one image: torch 2.14 gets the gradient of a channels_last batch of one with a short batch stride wrong.
    if groups == 1 < x.shape[0]:
        return F.batch_norm(x, *flat, training=True, momentum=momentum, eps=eps)
    eager = _runs_eagerly_on_cpu(x)
    plain = layout == torch.contiguous_format
    # Small images in groups of one take two copies in channels_last, and so does what traces the layer.
    alone = groups == x.shape[0] and (plain or not eager or x[0].numel() <= LARGE_IMAGE)
    if alone or (assignment == "interleaved" and plain):
        # A view; under vmap what calls itself contiguous may have none.
        view = x.contiguous().reshape(x.shape[0] // groups, groups * x.shape[1], *x.shape[2:])  # (B/K, K*C, H, W)
        y = F.batch_norm(view, *flat, training=True, momentum=momentum, eps=eps)
        if view.shape[0] == 1:
            in_place = torch.compiler.is_compiling() or _runs_eagerly()
            y = (_PlainGradient if in_place else _PlainGradientOfCopy).apply(y)
        return y.reshape(x.shape).contiguous(memory_format=layout)
    if _launches_cost_more_than_copies(x):
        view = _groups_as_channels(x, groups, assignment, layout)  # (B/K, K*C, H, W)
        y = F.batch_norm(view, *flat, training=True, momentum=momentum, eps=eps)
        return _channels_as_groups(y, groups, assignment, layout)
    walk = _GroupByGroup.apply if eager else _group_by_group
    return walk(x, *per_group, groups, assignment, eps, momentum)


def _launches_cost_more_than_copies(x: Tensor) -> bool:
    """On a GPU a call of a kernel for each group takes longer than to lay all groups out for one call."""
    return x.is_cuda


def _groups_as_channels(x: Tensor, groups: int, assignment: str, layout: torch.memory_format) -> Tensor:
    """(B, C, ...) as (B/K, K*C, ...) in one copy, in the layout that it has."""
    split = (groups, -1) if assignment == "contiguous" else (-1, groups)
    apart = x.unflatten(0, split)
    if assignment == "contiguous":
        apart = apart.transpose(0, 1)  # (B/K, K, C, ...)
    if layout == torch.contiguous_format:
        return apart.flatten(1, 2)
    return apart.movedim((1, 2), (-2, -1)).flatten(-2).movedim(-1, 1)


def _channels_as_groups(y: Tensor, groups: int, assignment: str, layout: torch.memory_format) -> Tensor:
    """The way back: (B/K, K*C, ...) as (B, C, ...)."""
    apart = y.unflatten(1, (groups, -1))  # (B/K, K, C, ...)
    if assignment == "contiguous":
        apart = apart.transpose(0, 1)
    if layout == torch.contiguous_format:
        return apart.flatten(0, 1)
    return apart.movedim(2, -1).flatten(0, 1).movedim(-1, 1)


class _PlainGradient(torch.autograd.Function):
    """The identity, whose gradient is laid out anew: torch 2.14's batch_norm gets that of a batch of one wrong in any other layout."""

    @staticmethod
    def forward(y):
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_dirty(
            *inputs
        )  # the very tensor: a view of it could not be changed in place, as many an activation does

    @staticmethod
    def backward(ctx, grad):
        return grad.clone(memory_format=torch.contiguous_format)


class _PlainGradientOfCopy(_PlainGradient):
    """Of a copy, for torch.func, dual levels and torch.jit.trace, which do not take a tensor marked as overwritten.

    Not for torch.compile, which refuses to trace a tangent.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y):
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.view_as(tangent)


def _each_image(x: Tensor, weight: Tensor | None, bias: Tensor | None, group: int | Tensor, eps: float) -> Tensor:
    """`local_norm` of groups of one image, by the kernel that is fastest for them on a CPU.

    Large images in channels_last take a call of BatchNorm's kernel each, into their place. The rest is group_norm in
    plain memory: in channels_last itself torch 2.14's kernel of it subtracts E[x]^2 from E[x^2].
    """
    layout = _memory_format(x)
    rows = [None if t is None else t[group] for t in (weight, bias)]  # (C,), or (N, C) where each image has its own
    if layout != torch.contiguous_format and x[0].numel() > LARGE_IMAGE and not torch.is_grad_enabled():
        y = torch.empty_like(x)
        statistics = x.new_empty(2, x.shape[1])
        for i in range(x.shape[0]):
            own = rows if isinstance(group, int) else [None if t is None else t[i] for t in rows]
            torch.native_batch_norm(x[i : i + 1], *own, None, None, True, 0.0, eps, out=(y[i : i + 1], *statistics))
        return y
    plain = x.contiguous()
    if isinstance(group, int):
        y = F.group_norm(plain, x.shape[1], *rows, eps=eps)
    else:
        channels = x.shape[0] * x.shape[1]
        flat = (None if t is None else t.reshape(-1) for t in rows)
        y = F.group_norm(plain.view(1, channels, *x.shape[2:]), channels, *flat, eps=eps).view(x.shape)
    return y.contiguous(memory_format=layout)


def _moments_of_each_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions of (N, C, ...), each (N, C).

    Two means, since torch's var_mean takes values one by one: ten times as long on a CPU.
    """
    positions = tuple(range(2, x.dim()))
    if not positions:
        return x, torch.zeros_like(x)
    mean = x.mean(positions, keepdim=True)
    return mean.flatten(1), (x - mean).square_().mean(positions)


def _group(x: Tensor, k: int, groups: int, assignment: str) -> Tensor:
    size = x.shape[0] // groups
    return x[k::groups] if assignment == "interleaved" else x[k * size : (k + 1) * size]


def _group_by_group(x, running_mean, running_var, weight, bias, groups, assignment, eps, momentum):
    done = []
    for k in range(groups):
        rows = (None if t is None else t[k] for t in (running_mean, running_var, weight, bias))
        part = _group(x, k, groups, assignment)  # (B/K, C, ...)
        done.append(F.batch_norm(part, *rows, training=True, momentum=momentum, eps=eps))
    y = torch.stack(done, 1).flatten(0, 1) if assignment == "interleaved" else torch.cat(done)
    return y.contiguous(memory_format=_memory_format(x))


class _GroupByGroup(torch.autograd.Function):
    """`_group_by_group` without its copies: each group is read from and written to its place in the whole batch."""

    @staticmethod
    def forward(ctx, x, running_mean, running_var, weight, bias, groups, assignment, eps, momentum):
        layout = _memory_format(x)
        y = torch.empty_like(x)
        means, inverse_deviations = torch.empty(
            2, groups, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)
        )
        for k in range(groups):
            part = _group(x, k, groups, assignment).contiguous(memory_format=layout)
            rows = (None if t is None else t[k] for t in (weight, bias, running_mean, running_var))
            place = _group(y, k, groups, assignment)
            if place.is_contiguous(memory_format=layout):
                torch.native_batch_norm(part, *rows, True, momentum, eps, out=(place, means[k], inverse_deviations[k]))
            else:
                normalized, means[k], inverse_deviations[k] = torch.native_batch_norm(part, *rows, True, momentum, eps)
                place.copy_(normalized)
        ctx.save_for_backward(x, weight, means, inverse_deviations)
        ctx.options = groups, assignment, eps
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, means, inverse_deviations = ctx.saved_tensors
        groups, assignment, eps = ctx.options
        layout = _memory_format(x)
        grad_x = torch.empty_like(x)
        grad_rows = []
        for k in range(groups):
            part, grad_part = (_group(t, k, groups, assignment).contiguous(memory_format=layout) for t in (x, grad))
            row, has_affine = (None, False) if weight is None else (weight[k], True)
            saved = (means[k], inverse_deviations[k], True, eps)
            part_grads = torch.ops.aten.native_batch_norm_backward(
                grad_part, part, row, None, None, *saved, [True, has_affine, has_affine]
            )
            _group(grad_x, k, groups, assignment).copy_(part_grads[0])
            grad_rows.append(part_grads[1:])
        if weight is None:
            return grad_x, None, None, None, None, None, None, None, None
        grad_weight, grad_bias = (torch.stack(rows) for rows in zip(*grad_rows, strict=True))
        return grad_x, None, None, grad_weight, grad_bias, None, None, None, None


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
    ``model.eval()`` says; :func:`use_mode` and :func:`localnorm.predict` take them from elsewhere. With
    ``track_running_stats=True`` the layer also stores moving averages in training (of the mean and, as BatchNorm does,
    of the unbiased variance), a row for each group, which only the modes ``prior`` and ``fixed`` read. Half-precision
    input, also under autocast, has its statistics in float32. Under DistributedDataParallel each process has its own
    groups, and the gradients are averaged as always.

    Weight and bias are matrices, so a rule that decays whatever has two dimensions or more would decay them: leave
    them out by module, as BatchNorm's.

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
        device, dtype: of parameters and buffers.

    Shape:
        - Input: (N, C, ...), any N of at least 0
        - Output: as the input, in its memory format
        - weight, bias, running_mean, running_var: (K, C)

    Raises:
        ValueError: arguments out of range; an input of another rank or number of channels; one value per channel in
            a group.
        TypeError: input that is not floating.

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
    keeps_fixed = False  # whether predict lets this layer take the stored statistics in modes of one image, too

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
    ) -> None:
        super().__init__()
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
        shape = (num_groups, num_features)
        for name in ("weight", "bias"):
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, parameter)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, None)
        if track_running_stats:
            self.keep_running_stats(device, dtype)
        self.reset_parameters()

    def keep_running_stats(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """From now on store training statistics, one row a group; they start at mean 0 and variance 1.

        They lie where the affine does; ``device`` and ``dtype`` serve a layer without one.
        """
        if self.affine:
            device, dtype = self.weight.device, self.weight.dtype
        shape = (self.num_groups, self.num_features)
        self.running_mean = torch.zeros(shape, device=device, dtype=dtype)
        self.running_var = torch.ones(shape, device=device, dtype=dtype)
        self.num_batches_tracked = torch.tensor(0, device=device)
        self.track_running_stats = True

    def reset_running_stats(self) -> None:
        """Forget the stored training statistics."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, no training statistics."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def _load_from_state_dict(self, state_dict, prefix, *arguments) -> None:
        """A layer without training statistics takes those of a file that has them, as `estimate_statistics` would give."""
        if f"{prefix}running_mean" in state_dict and not self.track_running_stats:
            self.keep_running_stats()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        text = f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, affine={self.affine}"
        text += f", assignment={self.assignment!r}"
        return text + (f", track_running_stats=True, momentum={self.momentum}" if self.track_running_stats else "")

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        mode = _MODE.get()
        if mode.name == "batch":
            return self._normalize_batch(x)
        if mode.name == "sized":
            return self._normalize_sized(x, mode)
        if self.keeps_fixed:
            return self._normalize_with_stored(x, replace(mode, name="fixed"))
        if mode.name == "single":
            return self._normalize_alone(x, mode)
        return self._normalize_with_stored(x, mode)

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

    def _row(self, group: int | Tensor) -> int | Tensor:
        if self.num_groups == 1:
            return 0
        if isinstance(group, int) and group >= self.num_groups:
            raise ValueError(f"group={group} needs more than {group} groups, got num_groups={self.num_groups}")
        return group

    def _affine_of(self, t: Tensor | None, group: int | Tensor, count: int) -> Tensor | None:
        """Rows of a (K, C) tensor for `count` groups of images: (count, C)."""
        return None if t is None else t[self._row(group)].expand(count, -1)

    def _normalize_alone(self, x: Tensor, mode: Mode) -> Tensor:
        if x.shape[0] == 0:
            return self._normalize_batch(x)
        full = x.dtype in (torch.float32, torch.float64)
        if mode.group_size == 1 and full and x[:1, :1].numel() > 1 and _runs_eagerly_on_cpu(x):
            return _each_image(x, self.weight, self.bias, self._row(mode.group), self.eps)
        groups = x.shape[0] // mode.group_size
        weight, bias = (self._affine_of(t, mode.group, groups) for t in (self.weight, self.bias))
        return _local_norm(x, groups, weight, bias, assignment=mode.assignment, eps=self.eps)

    def _normalize_sized(self, x: Tensor, mode: Mode) -> Tensor:
        if x.shape[0] % mode.group_size:
            raise ValueError(f"group_size={mode.group_size} does not divide a batch of {x.shape[0]} images")
        affine = torch.arange(x.shape[0] // mode.group_size, device=x.device) % self.num_groups  # (B/S,)
        return self._normalize_alone(x, replace(mode, group=affine))

    def _normalize_batch(self, x: Tensor) -> Tensor:
        running_mean = running_var = None
        momentum = 0.0
        trains = self.training and self.affine and torch.is_grad_enabled()
        if trains and _runs_eagerly() and 0 < x.shape[0] < self.num_groups:
            warnings.warn(
                f"num_groups={self.num_groups} needs at least {self.num_groups} images in a training batch, got {x.shape[0]}: the other "
                "groups' weight and bias do not train on it; use larger batches, drop the tail (drop_last=True) or lower num_groups",
                stacklevel=2,
            )
        if self.training and self.track_running_stats:
            running_mean, running_var = self.running_mean, self.running_var
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return _local_norm(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            assignment=self.assignment,
            eps=self.eps,
            momentum=momentum,
        )

    def _normalize_with_stored(self, x: Tensor, mode: Mode) -> Tensor:
        if not self.track_running_stats:
            raise ValueError(
                f"mode={mode.name!r} needs stored training statistics, and this layer keeps none; build it with "
                "track_running_stats=True or call localnorm.estimate_statistics(model, loader) once"
            )
        n = x.shape[0]
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = self._affine_of(self.running_mean, mode.group, n)  # (N, C)
        var = self._affine_of(self.running_var, mode.group, n)
        if mode.name == "prior":
            positions = x[0, 0].numel() if n else 1
            a = mode.prior / (mode.prior + positions)
            image_mean, image_var = _moments_of_each_image(work)
            var = a * var + (1 - a) * image_var + a * (1 - a) * (mean - image_mean) ** 2
            mean = a * mean + (1 - a) * image_mean
        scale = torch.rsqrt(var + self.eps)
        shift = -mean * scale
        if self.affine:
            weight, bias = (self._affine_of(t, mode.group, n) for t in (self.weight, self.bias))
            scale, shift = scale * weight, shift * weight + bias
        ones = (1,) * (x.dim() - 2)
        scale, shift = (t.view(n, self.num_features, *ones) for t in (scale, shift))
        return torch.addcmul(shift, work, scale).to(x.dtype)


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
