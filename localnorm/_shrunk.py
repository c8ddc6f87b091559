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
    if isinstance(prior, Tensor) and prior.dim() and len(prior) != len(x):
        raise ValueError(f"a prior for each image is (B,), here ({len(x)},); got {tuple(prior.shape)}")
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
    group_var = groups.of_each_image(groups.mean(torch.addcmul(var, off, off)))
    shrunk = share * off
    scale = torch.rsqrt(torch.lerp(torch.addcmul(var, shrunk, off), group_var, share) + eps)
    if weight is None:
        return scale, shrunk * scale
    scale = scale * groups.of_each_image(weight)
    return scale, torch.addcmul(groups.of_each_image(bias), shrunk, scale)


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
    """The same with a backward by hand: one reduction and one pass each way. The small part, on (B, C), is autograd's."""

    @staticmethod
    def forward(ctx, x, weight, bias, share, groups, eps):
        maps = _maps(x, share.dtype)
        mean, var = maps.moments()
        leaves = [t if t is None else t.detach().requires_grad_() for t in (mean, var, weight, bias)]
        with torch.enable_grad():
            scale, shift = _scale_and_shift(*leaves, share, groups, eps)
        ctx.save_for_backward(x, mean, weight, bias, share)
        ctx.small = leaves, scale, shift
        ctx.options = groups, eps
        ctx.mark_non_differentiable(mean, var)
        return maps.affine(mean, scale.detach(), shift.detach()), mean, var

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
        maps = _maps(x, share.dtype)
        g_scale, g_shift = maps.sums(grad, mean)
        small = [t for t in leaves if t is not None]
        d_mean, d_var, *rows = torch.autograd.grad((scale, shift), small, (g_scale, g_shift), retain_graph=True)
        if not ctx.needs_input_grad[0]:
            return None, *(rows or (None, None)), None, None, None
        positions, factor = x[0, 0].numel(), scale.detach()
        dx = maps.affine(mean, d_var * (2 / positions), (d_mean - factor * g_shift) / positions, grad, factor)
        return dx, *(rows or (None, None)), None, None, None


def _maps(x: Tensor, precision: torch.dtype) -> "_Maps":
    has_kernels = x.device.type == "cpu" and x.is_contiguous() and x.dim() > 2
    return (_MapsAsChannels if has_kernels else _Maps)(x, precision)


class _Maps:
    """Sums and passes over the feature maps of a batch, (B, C, ...), with one number of each kind per image and channel, (B, C).

    On a CPU, images are taken by parts that stay in its cache, into buffers that are used again: whole copies of a batch in new
    memory took four times as long as the arithmetic.
    """

    def __init__(self, x: Tensor, precision: torch.dtype):
        self.x, self.precision = x, precision
        self.positions = tuple(range(2, x.dim()))
        self.size = max(1, PART // x[0].numel()) if x.device.type == "cpu" else x.shape[0]
        self.buffers: dict[int, Tensor] = {}

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance."""
        mean, var = (self.x.new_empty(self.x.shape[:2], dtype=self.precision) for _ in range(2))
        for part, own_mean, own_var in self._parts(self.x, mean, var):
            if not self.positions:
                own_mean.copy_(part)
                own_var.zero_()
            else:
                work = self._read(part)
                torch.mean(work, self.positions, out=own_mean)
                centred = torch.sub(work, _as_maps(own_mean, part), out=self._buffer(0, part))
                torch.mean(centred.mul_(centred), self.positions, out=own_var)
        return mean, var

    def sums(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Of grad (x - mean), and of grad."""
        of_products, of_grad = torch.empty_like(mean), torch.empty_like(mean)
        for part, g_part, own_mean, to_products, to_grad in self._parts(self.x, grad, mean, of_products, of_grad):
            if not self.positions:
                to_grad.copy_(g_part)
                to_products.zero_()
            else:
                g = self._read(g_part)
                torch.sum(g, self.positions, out=to_grad)
                centred = torch.sub(self._read(part, 1), _as_maps(own_mean, part), out=self._buffer(1, part))
                torch.sum(centred.mul_(g), self.positions, out=to_products)
        return of_products, of_grad

    def affine(
        self, mean: Tensor, factor: Tensor, summand: Tensor, grad: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """factor (x - mean) + summand, and grad times a factor of its own where there is one."""
        y = torch.empty_like(self.x)
        summand = torch.addcmul(summand, mean, factor, value=-1)
        more = () if grad is None else (grad, times)
        for part, out, factors, summands, *added in self._parts(self.x, y, factor, summand, *more):
            work = out if out.dtype == self.precision else self._buffer(1, out)
            torch.addcmul(_as_maps(summands, part), self._read(part, 1), _as_maps(factors, part), out=work)
            if added:
                work.addcmul_(self._read(added[0]), _as_maps(added[1], part))
            if work is not out:
                out.copy_(work)
        return y

    def _parts(self, *tensors: Tensor):
        return zip(*(t.split(self.size) for t in tensors), strict=True)

    def _buffer(self, which: int, part: Tensor) -> Tensor:
        """Memory for a part, in at least float32."""
        if which not in self.buffers:
            self.buffers[which] = torch.empty_like(part, dtype=self.precision)
        return self.buffers[which][: len(part)]

    def _read(self, part: Tensor, which: int = 0) -> Tensor:
        """The part in at least float32: itself, or a copy in a buffer."""
        return part if part.dtype == self.precision else self._buffer(which, part).copy_(part)


class _MapsAsChannels(_Maps):
    """Contiguous maps on a CPU: to torch's kernels the batch is one image of B C channels, each with statistics of its own.

    They read a map in its own precision, and sum in at least float32.
    """

    def moments(self) -> tuple[Tensor, Tensor]:
        batch, channels = self.x.shape[:2]
        one, zero = (make(channels, dtype=self.precision) for make in (torch.ones, torch.zeros))
        # group_norm's kernel takes a seventh of the time of batch_norm's statistics, and its result costs little
        _, mean, inverse = torch.native_group_norm(
            self.x, one, zero, batch, channels, self.x[0, 0].numel(), channels, 0.0
        )
        return mean, inverse.pow(-2)  # 0 where the inverse deviation is infinite

    def sums(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(mean).flatten()
        _, of_products, of_grad = torch.ops.aten.native_batch_norm_backward.default(
            _as_channels(grad), _as_channels(self.x), ones, mean.flatten(), ones, None, None, False, 0.0, [False, True, True]
        )  # fmt: skip
        return of_products.view_as(mean), of_grad.view_as(mean)

    def affine(
        self, mean: Tensor, factor: Tensor, summand: Tensor, grad: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        if grad is None or self.x.dtype == self.precision:
            return _affine(self.x, mean, factor, summand, grad, times)
        y, more = torch.empty_like(self.x), (grad, mean, factor, summand, times)
        for part, out, g_part, *rows in self._parts(self.x, y, *more):  # in float32, and rounded once
            out.copy_(_affine(self._read(part), *rows[:3], self._read(g_part, 1), rows[3]))
        return y


def _affine(
    x: Tensor, mean: Tensor, factor: Tensor, summand: Tensor, grad: Tensor | None = None, times: Tensor | None = None
) -> Tensor:
    """As `_Maps.affine`, of contiguous maps."""
    rows = (t.flatten() for t in (factor, summand, mean, torch.ones_like(mean)))
    y = torch.empty_like(x)  # the result must not be a view, which an activation could not overwrite
    out = (_as_channels(y), mean.new_empty(0), mean.new_empty(0))
    torch.native_batch_norm(_as_channels(x), *rows, False, 0.0, 0.0, out=out)
    return y if grad is None else y.addcmul_(grad, _as_maps(times, y))


def _as_channels(x: Tensor) -> Tensor:
    """(B, C, ...) -> (1, B C, ...)"""
    return x.reshape(1, -1, *x.shape[2:])
