"""LocalNorm: BatchNorm whose training batch is split into K groups, each with its own statistics and its own affine.

Two decisions are taken here. *Where the statistics come from* is a mode (:mod:`localnorm.modes`), never the training
flag alone. *Every use is one function*, :func:`local_norm`: an image alone is a group of one, an image among
companions a group of S. How a device computes it stands in ``_kernels``.
"""

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from localnorm._kernels import normalize_groups, normalize_with_stored, runs_eagerly
from localnorm.modes import BATCH, MODES, Mode, mode_of_block, use_mode

__all__ = ["ASSIGNMENTS", "MODES", "LocalNorm", "LocalNorm1d", "LocalNorm2d", "LocalNorm3d", "local_norm", "use_mode"]

ASSIGNMENTS = ("interleaved", "contiguous")


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
        mode = mode_of_block()
        if mode is None:
            mode = BATCH
        if mode.name == "batch":
            return self._normalize_batch(x)
        if mode.name == "sized":
            return self._normalize_sized(x, mode)
        if mode.name == "single" and self.from_end > mode.fixed_last:
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

    def _rows(self, t: Tensor | None, group: int | Tensor, count: int) -> Tensor | None:
        """Rows of a (K, C) tensor for `count` groups of images: (count, C)."""
        if t is None:
            return None
        if self.num_groups == 1:
            group = 0
        elif isinstance(group, int) and group >= self.num_groups:
            raise ValueError(f"group={group} needs more than {group} groups, got num_groups={self.num_groups}")
        return t[group].expand(count, -1)

    def _normalize_batch(self, x: Tensor) -> Tensor:
        running_mean = running_var = None
        momentum = 0.0
        trains = self.training and self.affine and torch.is_grad_enabled()
        if trains and runs_eagerly() and 0 < x.shape[0] < self.num_groups:
            warnings.warn(
                f"num_groups={self.num_groups} needs at least {self.num_groups} images in a training batch, got {x.shape[0]}: the other "
                "groups' weight and bias do not train on it; use larger batches, drop the tail (drop_last=True) or lower num_groups",
                stacklevel=2,
            )
        if self.training and self.track_running_stats:
            running_mean, running_var = self.running_mean, self.running_var
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return normalize_groups(
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

    def _normalize_sized(self, x: Tensor, mode: Mode) -> Tensor:
        if x.shape[0] % mode.group_size:
            raise ValueError(f"group_size={mode.group_size} does not divide a batch of {x.shape[0]} images")
        affine = torch.arange(x.shape[0] // mode.group_size, device=x.device) % self.num_groups  # (B/S,)
        return self._normalize_alone(x, replace(mode, group=affine))

    def _normalize_alone(self, x: Tensor, mode: Mode) -> Tensor:
        if x.shape[0] == 0:
            return self._normalize_batch(x)
        groups = x.shape[0] // mode.group_size
        weight, bias = (self._rows(t, mode.group, groups) for t in (self.weight, self.bias))
        options = {"assignment": mode.assignment, "eps": self.eps, "alone": mode.group_size == 1}
        return normalize_groups(x, groups, weight, bias, **options)

    def _normalize_with_stored(self, x: Tensor, mode: Mode) -> Tensor:
        if not self.track_running_stats:
            raise ValueError(
                f"mode={mode.name!r} needs stored training statistics, and this layer keeps none; build it with "
                "track_running_stats=True or call localnorm.estimate_statistics(model, loader) once"
            )
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        rows = [self._rows(t, mode.group, x.shape[0]) for t in tensors]  # (N, C)
        mixes = mode.name == "prior" and self.from_end > mode.fixed_last
        return normalize_with_stored(x, *rows, prior=mode.prior if mixes else None, eps=self.eps)


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
