"""Each image's statistics, shrunk towards those of its group in the batch: how a network is trained for one image at a time.

One reduction over the batch gives mean and variance of each image; those of the groups follow from them without another look at
the images. One pass then writes the result. The backward is the same: two sums, one pass.
"""

import torch
from torch import Tensor

from localnorm._kernels import check_values, group_of_each_image, rectify, runs_eagerly

__all__ = ["normalize_shrunk"]

Prior = float | Tensor
PART = 2**18  # numbers of a batch that are worked on at a time, a megabyte in float32


def normalize_shrunk(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    prior: Prior,
    assignment: str,
    eps: float,
    momentum: float = 0.0,
    relu: bool = False,
) -> Tensor:
    """Normalise each image by its own statistics, shrunk towards those of its group; per-group tensors are (K, C).

    With P positions and a = prior / (prior + P):

        mean = a mean_group + (1 - a) mean_image
        var  = a var_group  + (1 - a) var_image  + a (1 - a) (mean_group - mean_image)^2

    Args:
        x: (B, C, ...) of at least one image.
        prior: positions, from 0 to infinity; a number, or a tensor () or (B,) on x's device.
        relu: apply ReLU to the result.
    """
    groups = _Groups(x.shape[0], num_groups, assignment, x.device)
    check_values(x, groups.count)
    positions = x[0, 0].numel()
    share = torch.as_tensor(prior, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    share = 1 / (1 + positions / share)  # a; right at 0 and at infinity
    share = share.reshape(-1, 1)  # (1, 1) or (B, 1)
    wide = [None if t is None else t.to(share.dtype) for t in (weight, bias)]
    shrink = _Shrunk.apply if runs_eagerly() else _formula
    y, mean, var = shrink(x, *wide, share, groups, eps)
    if running_mean is not None:
        _move(running_mean, running_var, mean.detach(), var.detach(), groups, positions, momentum)
    return rectify(y) if relu else y


class _Groups:
    """Which image is in which group, as sums over images: (B, C) of images to (K, C) of groups, and back."""

    def __init__(self, batch: int, num_groups: int, assignment: str, device: torch.device):
        self.count = min(num_groups, batch)
        self.even = batch % self.count == 0
        self.assignment, self.size = assignment, batch // self.count  # images per group, or (K, 1) of them
        if not self.even:
            group = group_of_each_image(batch, self.count, assignment, device)  # (B,)
            self.belongs = group[:, None] == torch.arange(self.count, device=device)  # (B, K)
            self.size = self.belongs.sum(0)[:, None]

    def mean(self, t: Tensor) -> Tensor:
        """(B, C) -> (K, C)"""
        if not self.even:
            return (self.belongs[..., None] * t[:, None]).sum(0) / self.size
        if self.assignment == "contiguous":
            return t.unflatten(0, (self.count, self.size)).mean(1)
        return t.unflatten(0, (self.size, self.count)).mean(0)

    def of_each_image(self, rows: Tensor) -> Tensor:
        """(K, C) -> (B, C); rows of groups without images are left out."""
        if self.count == 1:
            return rows[:1]  # (1, C), which serves all
        rows = rows[: self.count]
        if not self.even:
            return (self.belongs[..., None] * rows).sum(1)
        if self.assignment == "contiguous":
            return rows[:, None].expand(-1, self.size, -1).flatten(0, 1)
        return rows[None].expand(self.size, -1, -1).flatten(0, 1)


def _formula(x, weight, bias, share, groups, eps):
    """The result, and mean and variance of each image, in operators that torch differentiates and traces."""
    mean, var, centred = _moments(x.to(share.dtype))
    scale, shift = _scale_and_shift(mean, var, weight, bias, share, groups, eps)
    return torch.addcmul(_as_maps(shift, x), centred, _as_maps(scale, x)).to(x.dtype), mean, var


def _moments(work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each image, (B, C), and the images without their means."""
    positions = tuple(range(2, work.dim()))
    if not positions:
        return work, torch.zeros_like(work), torch.zeros_like(work)
    mean = work.mean(positions, keepdim=True)
    centred = work - mean
    return mean.flatten(1), (centred * centred).mean(positions), centred


def _scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, share: Tensor, groups: _Groups, eps: float
) -> tuple[Tensor, Tensor]:
    """What (x - mean) of each image is multiplied by, and what is added: (B, C) each."""
    off = mean - groups.of_each_image(groups.mean(mean))  # differences of means alone, so no digits are lost
    group_var = groups.of_each_image(groups.mean(var + off * off))
    scale = torch.rsqrt(share * group_var + (1 - share) * (var + share * off * off) + eps)
    shift = share * off * scale
    if weight is None:
        return scale, shift
    weight, bias = groups.of_each_image(weight), groups.of_each_image(bias)
    return scale * weight, shift * weight + bias


def _move(running_mean, running_var, mean, var, groups: _Groups, positions: int, momentum: float) -> None:
    """Stored statistics towards the groups' means and unbiased variances."""
    group_mean = groups.mean(mean)
    off = mean - groups.of_each_image(group_mean)
    values = groups.size * positions
    group_var = groups.mean(var + off * off) * (values / (values - 1))
    running_mean[: groups.count].lerp_(group_mean.to(running_mean.dtype), momentum)
    running_var[: groups.count].lerp_(group_var.to(running_var.dtype), momentum)


def _as_maps(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(*t.shape, *[1] * (x.dim() - 2))


class _Shrunk(torch.autograd.Function):
    """The same with a backward by hand: one reduction and one pass each way. The small part, on (B, C), is autograd's.

    On a CPU, images are taken by parts that stay in its cache, into buffers that are used again: whole copies of a batch in new
    memory took four times as long as the arithmetic.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, share, groups, eps):
        mean, var = (share.new_empty(*x.shape[:2]) for _ in range(2))
        over, parts = tuple(range(2, x.dim())), _Parts(x)
        for part, own_mean, own_var in parts.of(x, mean, var):
            work = parts.read(part)
            if not over:
                own_mean.copy_(work)
                own_var.zero_()
                continue
            torch.mean(work, over, out=own_mean)
            centred = torch.sub(work, _as_maps(own_mean, x), out=parts.buffer(0, part))
            torch.mean(centred.mul_(centred), over, out=own_var)
        leaves = [t if t is None else t.detach().requires_grad_() for t in (mean, var, weight, bias)]
        with torch.enable_grad():
            scale, shift = _scale_and_shift(*leaves, share, groups, eps)
        factor, summand = scale.detach(), torch.addcmul(shift.detach(), mean, scale.detach(), value=-1)
        y = torch.empty_like(x)
        for part, out, factors, summands in parts.of(x, y, factor, summand):
            factors, summands = _as_maps(factors, x), _as_maps(summands, x)
            parts.write(out, torch.addcmul(summands, parts.read(part), factors, out=parts.place(0, out)))
        ctx.save_for_backward(x, mean, weight, bias, share)
        ctx.small = leaves, scale, shift
        ctx.options = groups, eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx, grad, *_):
        x, mean, weight, bias, share = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: differentiate the formula, which torch can do again
            groups, eps = ctx.options
            y = _formula(x, weight, bias, share, groups, eps)[0]
            wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return *(next(grads) if needed else None for needed in ctx.needs_input_grad[:3]), None, None, None
        leaves, scale, shift = ctx.small
        over, parts = tuple(range(2, x.dim())), _Parts(x)
        g_scale, g_shift = torch.empty_like(mean), torch.empty_like(mean)
        for part, g_part, own_mean, to_scale, to_shift in parts.of(x, grad, mean, g_scale, g_shift):
            g = parts.read(g_part)
            if not over:
                to_shift.copy_(g)
                to_scale.zero_()
                continue
            torch.sum(g, over, out=to_shift)
            centred = torch.sub(parts.read(part, 1), _as_maps(own_mean, x), out=parts.buffer(1, part))
            torch.sum(centred.mul_(g), over, out=to_scale)
        small = [t for t in leaves if t is not None]
        d_mean, d_var, *rows = torch.autograd.grad((scale, shift), small, (g_scale, g_shift), retain_graph=True)
        if not ctx.needs_input_grad[0]:
            return None, *(rows or (None, None)), None, None, None
        factor = scale.detach()
        positions = x[0, 0].numel()
        slope = d_var * (2 / positions)  # of the gradient, in x
        constant = (d_mean - factor * g_shift) / positions - mean * slope
        dx = torch.empty_like(x)
        for part, g_part, out, *rest in parts.of(x, grad, dx, factor, slope, constant):
            factors, slopes, constants = (_as_maps(t, x) for t in rest)
            work = torch.addcmul(constants, parts.read(part, 1), slopes, out=parts.place(1, out))
            parts.write(out, work.addcmul_(parts.read(g_part), factors))
        return dx, *(rows or (None, None)), None, None, None


class _Parts:
    """Consecutive images of a batch, so many at a time as a CPU's cache holds, and two buffers for them; elsewhere all at once."""

    def __init__(self, x: Tensor):
        self.size = max(1, PART // x[0].numel()) if x.device.type == "cpu" else x.shape[0]
        self.precision = torch.promote_types(x.dtype, torch.float32)
        self.buffers: dict[int, Tensor] = {}

    def of(self, *tensors: Tensor):
        """The parts of several tensors together."""
        return zip(*(t.split(self.size) for t in tensors), strict=True)

    def buffer(self, which: int, part: Tensor) -> Tensor:
        """Memory for a part, in at least float32."""
        if which not in self.buffers:
            self.buffers[which] = torch.empty_like(part, dtype=self.precision)
        return self.buffers[which][: len(part)]

    def read(self, part: Tensor, which: int = 0) -> Tensor:
        """The part in at least float32: itself, or a copy in a buffer."""
        return part if part.dtype == self.precision else self.buffer(which, part).copy_(part)

    def place(self, which: int, out: Tensor) -> Tensor:
        """Where a result is computed: its own memory, or a buffer from which `write` rounds it."""
        return out if out.dtype == self.precision else self.buffer(which, out)

    def write(self, out: Tensor, result: Tensor) -> None:
        if result is not out:
            out.copy_(result)
