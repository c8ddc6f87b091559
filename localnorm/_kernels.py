"""How a device computes the statistics of groups of images: the paths, and the one function that chooses among them.

The arithmetic is BatchNorm's own kernels. With image i in group i mod K, a contiguous batch (B, C, H, W) is a view
(B/K, K*C, H, W), and LocalNorm is BatchNorm over K*C channels: nothing is copied. Whatever has no such view
(channels_last, and the contiguous assignment) goes group by group on a CPU, and in one copy on every other device.

The layers check their input; nothing here checks it again.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from localnorm import _triton
from localnorm._cpu import GroupByGroup, moments_of_image, normalize_images
from localnorm._triton import use_triton

SMALLEST = 1e-12  # below any variance that matters: the logarithm of 0 does not exist
ROUNDING = 1e-8  # of a squared scale: what varies less among images varies by rounding
LARGE_IMAGE = 2**14  # activations; above, one kernel call per image costs less than two copies of the batch


def normalize_groups(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    assignment: str,
    eps: float,
    momentum: float = 0.0,
    alone: bool = False,
    relu: bool = False,
) -> Tensor:
    """Normalise each of `num_groups` groups of a batch by its own statistics; per-group tensors are (num_groups, C).

    Args:
        alone: each image is asked for by itself, so one group per image, and nothing is stored.
        relu: apply ReLU to the result, in the same kernels where those are Triton's.
    """
    if _size_stays_open() and not alone and running_mean is None:
        y = _any_batch_size(x, num_groups, weight, bias, assignment, eps)
        return rectify(y) if relu else y
    # A comparison: min() of a symbolic size defeats torch.compile's guards.
    groups = num_groups if x.shape[0] >= num_groups else x.shape[0]
    check_values(x, groups)
    stored = (running_mean, running_var)
    if use_triton(x, assignment):
        weight, bias = (None if t is None else _shared_row(t) for t in (weight, bias))
        options = {"assignment": assignment, "eps": eps, "momentum": momentum}
        return _triton.local_norm(x, groups, weight, bias, *stored, relu=relu, **options)
    y = _by_torch(x, groups, weight, bias, *stored, assignment, eps, momentum, alone)
    return rectify(y) if relu else y


def rectify(y: Tensor) -> Tensor:
    """ReLU of a result that nothing else holds, in place: the gradient of no path needs the path's result.

    Not in place where something follows what runs, nor in a view, see `_in_shape`.
    """
    return F.relu(y, inplace=runs_eagerly() and not y._is_view())


def _by_torch(x, groups, weight, bias, running_mean, running_var, assignment, eps, momentum, alone):
    """`normalize_groups` by torch's kernels, for at most as many groups as images."""
    batch, channels = x.shape[:2]
    size, larger = (batch // groups, batch % groups) if batch else (0, 0)
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
        return _equal_groups(part, stop - start, *rows, assignment, eps, momentum, alone)

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


def group_of_each_image(batch: int, num_groups: int, assignment: str, device: torch.device) -> Tensor:
    """(batch,): image i is in group i mod K, or in the last group that starts at or before it."""
    image = torch.arange(batch, device=device)
    if assignment == "interleaved":
        return image % num_groups
    group = torch.arange(num_groups, device=device)
    starts = group * (batch // num_groups) + group.clamp(
        max=batch % num_groups
    )  # (K,); those without images at the end
    return (image[:, None] >= starts).sum(1) - 1


def _shared_row(t: Tensor) -> Tensor:
    """(1, C) of rows (N, C) that are one, expanded."""
    return t[:1] if t.stride(0) == 0 else t


def _is_float_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0 and runs_eagerly()


def has_one_value(x: Tensor, groups: int) -> bool:
    """Whether the smallest of these groups of a batch has one value per channel, so no variance."""
    return bool(x.shape[0]) and x.shape[0] // groups * math.prod(x.shape[2:]) == 1


def check_values(x: Tensor, groups: int) -> None:
    """Refuse groups that have no variance."""
    if has_one_value(x, groups):
        raise ValueError(
            f"a group needs more than 1 value per channel, got input {tuple(x.shape)} in {groups} groups; "
            "use a larger batch or fewer groups, predict with mode 'prior', 'gated', 'companions' or 'fixed', or let such layers take "
            "their stored statistics there by one_value='fixed'"
        )


def normalize_with_stored(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    prior: float | None,
    spread: Tensor | None = None,
    eps: float,
    relu: bool = False,
) -> Tensor:
    """Normalise each image by stored statistics, mixed with its own if a prior weighs the two.

    Args:
        mean, var, weight, bias: (C,), or (N, C) with a row for each image.
        spread: of training images, (4, C) or (N, 4, C): see `how_unusual`. Positions then weigh against the prior as the image is unusual.
        relu: as of `normalize_groups`.
    """
    if prior is not None and spread is None and use_triton(x, differentiable=False):
        rows = [None if t is None else t.view(-1, x.shape[1]) for t in (weight, bias, mean, var)]
        return _triton.prior_norm(x, *rows, prior, eps=eps, relu=relu)
    y = _with_stored_by_torch(x, mean, var, weight, bias, prior, spread, eps)
    return rectify(y) if relu else y


def _with_stored_by_torch(x, mean, var, weight, bias, prior, spread, eps):
    # One image is two kernel calls on a CPU, which several images in one call would take longer by. With a prior they have no gradient.
    alone = prior is None or (x.shape[0] == 1 and not torch.is_grad_enabled())
    alone = alone and mean.dim() == 1 and _is_float_on_cpu(x) and (weight is None or weight.dtype == x.dtype)
    work = x if alone else x.to(torch.promote_types(x.dtype, torch.float32))
    # a layer without affine does not know the network's precision when its statistics are stored
    if mean.dtype != work.dtype:
        mean, var = mean.to(work.dtype), var.to(work.dtype)
    if prior is not None:
        image_mean, image_var = moments_of_image(x) if alone else moments_of_each_image(work)
        positions = math.prod(x.shape[2:])
        if spread is not None:
            positions = positions * how_unusual(image_mean, image_var, spread)  # (N, 1)
        a = prior / (prior + positions)
        between = mean - image_mean
        var = torch.lerp(image_var, var, a).addcmul(between, between * (a * (1 - a)))
        mean = torch.lerp(image_mean, mean, a)
    if alone and x.shape[0] == 1 and torch.is_grad_enabled():  # see _PlainGradient
        y = F.batch_norm(x.contiguous(), mean, var, weight, bias, training=False, eps=eps)
        return _PlainGradient.apply(y).contiguous(memory_format=_memory_format(x))
    if alone:
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    scale = torch.rsqrt(var + eps)
    shift = -mean * scale
    if weight is not None:
        scale, shift = scale * weight, shift * weight + bias
    ones = (1,) * (x.dim() - 2)
    scale, shift = (t.view(-1, x.shape[1], *ones) for t in (scale, shift))
    return torch.addcmul(shift, work, scale).to(x.dtype)


# Choosing the path


def _size_stays_open() -> bool:
    """Whether what is computed now will be run at other batch sizes, with no guard that asks for another trace."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _equal_groups(x, groups, weight, bias, running_mean, running_var, assignment, eps, momentum, alone):
    """A batch that `groups` divides, by the path that suits device, layout and who follows the computation."""
    layout = _memory_format(x)
    x = x.contiguous(memory_format=layout)
    # Apple's MPS is known to normalise wrongly what starts inside another tensor, as the groups of an uneven batch do.
    if x.device.type not in ("cpu", "cuda") and x.storage_offset():
        x = x.clone(memory_format=layout)
    path = _choose_path(x, groups, assignment, layout, alone)
    return path(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum)


def _choose_path(
    x: Tensor, groups: int, assignment: str, layout: torch.memory_format, alone: bool
) -> Callable[..., Tensor]:
    """The one place that decides how a batch is computed. Every path takes the same arguments and gives the same values."""
    eager_on_cpu = x.device.type == "cpu" and runs_eagerly()
    plain = layout == torch.contiguous_format
    # group_norm's kernel is the fastest for single images on a CPU; it keeps half statistics in half precision.
    if alone and eager_on_cpu and x.dtype in (torch.float32, torch.float64):
        if not torch.is_grad_enabled() and (groups == 1 or not plain):
            if groups == 1:
                return _as_batchnorm  # in any layout, without a copy
            return _image_by_image if x[0].numel() > LARGE_IMAGE else _where_they_lie
        return _as_groupnorm
    # Not for one image: torch 2.14 gets the gradient of a channels_last batch of one with a short batch stride wrong.
    if groups == 1 < x.shape[0]:
        return _as_batchnorm
    # Small images in groups of one take two copies in channels_last, and so does whatever traces the layer.
    if groups == x.shape[0] and (plain or not eager_on_cpu or x[0].numel() <= LARGE_IMAGE):
        return _as_view
    if assignment == "interleaved" and plain:
        return _as_view
    # One kernel call per group takes an accelerator longer than laying all groups out for one call.
    if x.device.type != "cpu":
        return _through_a_copy
    return GroupByGroup.apply if eager_on_cpu else _group_by_group


def runs_eagerly() -> bool:
    """Whether nothing follows what runs: no torch.compile, torch.func, dual level or torch.jit.trace (ONNX's older exporter)."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _memory_format(x: Tensor) -> torch.memory_format:
    if torch._C._are_functorch_transforms_active():
        return torch.contiguous_format  # vmap cannot be asked for another layout
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == rank and x.is_contiguous(memory_format=layout) and not x.is_contiguous():
            return layout
    return torch.contiguous_format


# The paths


def _flat(*rows: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.reshape(-1) for t in rows]


def _as_batchnorm(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
    """One group is BatchNorm."""
    flat = _flat(running_mean, running_var, weight, bias)
    return F.batch_norm(x, *flat, training=True, momentum=momentum, eps=eps)


def _as_view(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
    """BatchNorm over K*C channels of the same memory; images outside plain memory are copied into it and back."""
    layout = _memory_format(x)
    # Under vmap what calls itself contiguous may have no view.
    view = x.contiguous().reshape(x.shape[0] // groups, groups * x.shape[1], *x.shape[2:])  # (B/K, K*C, H, W)
    flat = _flat(running_mean, running_var, weight, bias)
    y = F.batch_norm(view, *flat, training=True, momentum=momentum, eps=eps)
    if view.shape[0] == 1:
        in_place = torch.compiler.is_compiling() or runs_eagerly()
        y = (_PlainGradient if in_place else _PlainGradientOfCopy).apply(y)
    return _in_shape(y, x.shape).contiguous(memory_format=layout)


def _in_shape(y: Tensor, shape: torch.Size) -> Tensor:
    """y, which nothing else holds, in another shape.

    Not as a view: autograd answers what overwrites a view, as an inplace ReLU does, with copies of the whole gradient.
    """
    return torch.ops.aten._unsafe_view(y, shape) if runs_eagerly() and y.is_contiguous() else y.reshape(shape)


def _through_a_copy(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
    """All groups beside one another as channels, in one copy."""
    layout = _memory_format(x)
    view = _groups_as_channels(x, groups, assignment, layout)  # (B/K, K*C, H, W)
    flat = _flat(running_mean, running_var, weight, bias)
    y = F.batch_norm(view, *flat, training=True, momentum=momentum, eps=eps)
    return _channels_as_groups(y, groups, assignment, layout)


def _any_batch_size(x, num_groups, weight, bias, assignment, eps):
    """The formula without a view or a branch that depends on the batch: an exported graph is right at every size."""
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    group = group_of_each_image(x.shape[0], num_groups, assignment, x.device)  # (B,)
    belongs = (group[:, None] == torch.arange(num_groups, device=x.device)).to(work.dtype)  # (B, K)
    share = belongs / belongs.sum(0).clamp(min=1)  # (B, K)
    positions = tuple(range(2, x.dim()))
    ones = (1,) * len(positions)

    def mean_of_groups(t: Tensor) -> Tensor:
        """(B, C, ...) -> (K, C). No matrix product, which autocast would take in half precision."""
        return (share[..., None] * (t.mean(positions) if positions else t)[:, None]).sum(0)

    def of_each_image(rows: Tensor) -> Tensor:
        return rows[group].unflatten(1, (-1, *ones))  # (K, C) -> (B, C, 1, ...)

    centred = work - of_each_image(mean_of_groups(work))
    values = belongs.sum(0) * math.prod(x.shape[2:])  # (K,) per channel
    # nan where a group has one value, which the layer refuses in eager mode
    var = mean_of_groups(centred.square()) / (values != 1)[:, None]
    scale = torch.rsqrt(var + eps)
    y = centred * of_each_image(scale if weight is None else scale * weight)
    return (y if bias is None else y + of_each_image(bias)).to(x.dtype)


def _groups_as_channels(x: Tensor, groups: int, assignment: str, layout: torch.memory_format) -> Tensor:
    """(B, C, ...) as (B/K, K*C, ...) in one copy, in its own layout."""
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


def _image_by_image(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
    """One call of BatchNorm's kernel per image, into its place."""
    y = torch.empty_like(x)
    statistics = x.new_empty(2, x.shape[1])
    for i in range(x.shape[0]):
        own = [None if t is None else t[i] for t in (weight, bias)]
        torch.native_batch_norm(x[i : i + 1], *own, None, None, True, 0.0, eps, out=(y[i : i + 1], *statistics))
    return y


def _where_they_lie(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
    """Small images in channels_last, without two copies."""
    return normalize_images(x, *(None if t is None else _shared_row(t) for t in (weight, bias)), eps)


def _as_groupnorm(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
    """group_norm in plain memory: in channels_last itself torch 2.14's kernel of it subtracts E[x]^2 from E[x^2]."""
    layout = _memory_format(x)
    plain = x.contiguous()
    if weight is None or weight.stride(0) == 0:  # one affine for all images, expanded
        y = F.group_norm(plain, x.shape[1], *(None if t is None else t[0] for t in (weight, bias)), eps=eps)
    else:
        channels = x.shape[0] * x.shape[1]
        y = F.group_norm(plain.view(1, channels, *x.shape[2:]), channels, *_flat(weight, bias), eps=eps).view(x.shape)
    return y.contiguous(memory_format=layout)


def moments_of_each_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions of (N, C, ...), each (N, C).

    Two means, since torch's var_mean takes values one by one: ten times as long on a CPU.
    """
    positions = tuple(range(2, x.dim()))
    if not positions:
        return x, torch.zeros_like(x)
    mean = x.mean(positions, keepdim=True)
    return mean.flatten(1), (x - mean).square_().mean(positions)


def how_unusual(mean: Tensor, var: Tensor, spread: Tensor) -> Tensor:
    """How much farther images are from the training images than those are from one another, (N, 1): max(0, d - 1).

    d is the mean squared deviation of the image's means and log variances, all channels together, in units of the training images'
    own. What did not differ among training images (a dead channel, the variance of one value) tells nothing and is left out.

    Args:
        mean, var: of each image, (N, C).
        spread: (4, C) or (N, 4, C); mean and variance over training images of their means, then of their log variances.
    """
    mean_of_means, var_of_means, mean_of_logs, var_of_logs = spread.unbind(-2)
    differs = (var_of_means > ROUNDING * (mean_of_means.square() + mean_of_logs.exp()), var_of_logs > ROUNDING)
    off = (mean - mean_of_means).square(), (log_var(var) - mean_of_logs).square()
    # an infinite variance leaves a term out of sum and gradient; to mask the quotient would leave 0 / 0 in the gradient
    over = (
        torch.where(tells, each, math.inf) for tells, each in zip(differs, (var_of_means, var_of_logs), strict=True)
    )
    total = sum((each / own).sum(-1, keepdim=True) for each, own in zip(off, over, strict=True))
    count = sum(tells.sum(-1, keepdim=True) for tells in differs)
    return (total / count.clamp_min(1) - 1).clamp_min(0)


def log_var(var: Tensor) -> Tensor:
    return var.clamp_min(SMALLEST).log()


def _group(x: Tensor, k: int, groups: int, assignment: str) -> Tensor:
    size = x.shape[0] // groups
    return x[k::groups] if assignment == "interleaved" else x[k * size : (k + 1) * size]


def _group_by_group(x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
    done = []
    for k in range(groups):
        rows = (None if t is None else t[k] for t in (running_mean, running_var, weight, bias))
        part = _group(x, k, groups, assignment)  # (B/K, C, ...)
        done.append(F.batch_norm(part, *rows, training=True, momentum=momentum, eps=eps))
    y = torch.stack(done, 1).flatten(0, 1) if assignment == "interleaved" else torch.cat(done)
    return y.contiguous(memory_format=_memory_format(x))
