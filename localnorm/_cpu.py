"""What a CPU computes fastest, in calls of torch's own BatchNorm kernels: groups one after the other, and one image alone.

What LocalNorm costs beside BatchNorm here is calls, not arithmetic: ten operators on a few numbers take as long as the
normalisation of a small feature map.
"""

import torch
from torch import Tensor

__all__ = ["GroupByGroup", "moments_of_image", "normalize_images"]


def _memory_format(x: Tensor) -> torch.memory_format:
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == rank and x.is_contiguous(memory_format=layout) and not x.is_contiguous():
            return layout
    return torch.contiguous_format


def _groups(t: Tensor, groups: int, assignment: str) -> tuple[Tensor, ...]:
    """Views of the groups' images, each (B/K, C, ...)."""
    if assignment == "contiguous":
        return t.split(t.shape[0] // groups)
    return t.unflatten(0, (-1, groups)).unbind(1)


def _rows(t: Tensor | None, groups: int) -> tuple[Tensor | None, ...]:
    return (None,) * groups if t is None else t.unbind()


class GroupByGroup(torch.autograd.Function):
    """BatchNorm in training of each group of a batch that `groups` divides; per-group tensors are (groups, C) or None.

    Each group is read from and written to its place in the batch. All slices are made before the first group, in one call
    per tensor.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, groups, assignment, eps, momentum):
        layout = _memory_format(x)
        y = torch.empty_like(x)
        statistics = x.new_empty(2, groups, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        means, inverse_deviations = statistics.unbind()
        for part, place, mean, inverse_deviation, *rows in zip(
            _groups(x, groups, assignment),
            _groups(y, groups, assignment),
            means.unbind(),
            inverse_deviations.unbind(),
            *(_rows(t, groups) for t in (weight, bias, running_mean, running_var)),
            strict=True,
        ):
            out = place if place.is_contiguous(memory_format=layout) else torch.empty_like(place, memory_format=layout)
            part = part.contiguous(memory_format=layout)
            torch.native_batch_norm(part, *rows, True, momentum, eps, out=(out, mean, inverse_deviation))
            if out is not place:
                place.copy_(out)
        ctx.save_for_backward(x, weight, means, inverse_deviations)
        ctx.options = groups, assignment, eps
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, means, inverse_deviations = ctx.saved_tensors
        groups, assignment, eps = ctx.options
        layout = _memory_format(x)
        grad_x = torch.empty_like(x)
        places = _groups(grad_x, groups, assignment)
        wanted = [True, weight is not None, weight is not None]
        grad_parts, grad_rows = [], []
        for place, part, grad_part, row, *saved in zip(
            places,
            *(_groups(t, groups, assignment) for t in (x, grad)),
            *(_rows(t, groups) for t in (weight, means, inverse_deviations)),
            strict=True,
        ):
            part, grad_part = (t.contiguous(memory_format=layout) for t in (part, grad_part))
            own, *rows = torch.ops.aten.native_batch_norm_backward.default(
                grad_part, part, row, None, None, *saved, True, eps, wanted
            )
            grad_rows.append(rows)
            if torch.is_grad_enabled():  # create_graph=True: the parts' own graphs are kept
                grad_parts.append(own)
            else:
                place.copy_(own)  # at once, while it is in the cache
        if grad_parts:
            grad_x = torch.cat(grad_parts) if assignment == "contiguous" else torch.stack(grad_parts, 1).flatten(0, 1)
        grads = (None, None) if weight is None else (torch.stack(rows) for rows in zip(*grad_rows, strict=True))
        return (grad_x, *grads, *[None] * 6)


def moments_of_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of one image, (1, C, ...): (C,) each, in one kernel call in any memory format, without a gradient."""
    return torch.batch_norm_update_stats(x, None, None, 0.0)


def normalize_images(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise each image of a batch by its own statistics, where they lie: for small images in channels_last.

    Two passes for the statistics and one in place, without a copy into plain memory and back. It has no gradient.

    Args:
        x: (N, C, ...) with at least one spatial dimension; float32 or float64.
        weight, bias: (N, C) or (1, C), or None.
    """
    positions = tuple(range(2, x.dim()))
    y = x - x.mean(positions, keepdim=True)
    scale = (y * y).mean(positions, keepdim=True).add_(eps).rsqrt_()
    if weight is None:
        return y.mul_(scale)
    weight, bias = (t.view(*t.shape, *[1] * len(positions)) for t in (weight, bias))
    return torch.addcmul(bias, y, scale * weight, out=y)
