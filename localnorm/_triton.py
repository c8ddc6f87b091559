"""LocalNorm by Triton kernels: where they serve, and the operators that torch.compile, autograd and CUDA graphs know.

The kernels are off until a GPU has been measured: `use_triton` decides, by the table `MEASURED` and the environment
variable LOCALNORM_KERNELS. This module does not import triton; `_triton_kernels` does, at the first call.
"""

import importlib.util
import os

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KERNELS", "MEASURED", "local_norm", "prior_norm", "use_triton"]

CHOICES = ("measured", "triton", "torch")
KERNELS = os.environ.get("LOCALNORM_KERNELS", "measured")
# device, as torch.cuda.get_device_name() names it -> the settings (layout, assignment) in which `make bench` there found
# the kernels faster than torch's. Rows come from a bench's file, never from a guess.
MEASURED: dict[str, frozenset[tuple[str, str]]] = {}
# Both are read once: torch.compile follows `use_triton`, and neither of the two questions.
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

if KERNELS not in CHOICES:
    raise ValueError(f"LOCALNORM_KERNELS must be one of {', '.join(CHOICES)}; got {KERNELS!r}")


def use_triton(x: Tensor, assignment: str = "interleaved", *, differentiable: bool = True) -> bool:
    """Whether LocalNorm of x, (N, C, ...), is computed by the Triton kernels.

    LOCALNORM_KERNELS=torch: never. LOCALNORM_KERNELS=triton: wherever they can run. Without it: where `MEASURED` says that
    they are faster.

    Args:
        differentiable: whether the kernels that would run have a gradient; those of the mode prior have none.

    Raises:
        ModuleNotFoundError: the kernels are asked for, and this environment has no triton.
    """
    if KERNELS == "torch" or (KERNELS == "measured" and not MEASURED):
        return False
    # Float64 would be rounded to the kernels' float32. An empty batch has nothing to launch.
    if x.dtype not in DTYPES or x.numel() == 0:
        return False
    # The operators have no rule for vmap and forward mode. An exported program is to run without this package.
    if (
        torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or torch.compiler.is_exporting()
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return False
    if not differentiable and torch.is_grad_enabled():
        return False
    # Triton compiles for GPUs; its interpreter, for tests, runs on a CPU.
    if not x.is_cuda and not (x.device.type == "cpu" and INTERPRETED):
        return False
    if KERNELS == "measured":
        return INSTALLED and x.is_cuda and (_layout(x), assignment) in MEASURED.get(_device_name(x.device.index), ())
    if not INSTALLED:
        raise ModuleNotFoundError(
            "LOCALNORM_KERNELS=triton needs triton, which is not installed; pip install triton, or unset the variable"
        )
    return True


def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


# What torch.compiler.assume_constant_result does, which would import the whole compiler, triton with it.
_device_name._dynamo_marked_constant = True


def _layout(x: Tensor) -> str:
    return "contiguous" if x.is_contiguous() else "channels_last"


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
    relu: bool = False,
) -> Tensor:
    """`localnorm.layers.local_norm` by the kernels, with the activation after it if ``relu``.

    Args:
        x: (N, C, ...) in float32, bfloat16 or float16, of any strides; N at least 1, more than one value per group and channel.
        weight, bias: (R, C); group g takes row g mod R, so that one row can serve all groups, or K rows more groups than K.
        running_mean, running_var: (K, C), float32 or the dtype of x; moved in place.
    """
    batch = x.shape[0]
    groups = num_groups if batch >= num_groups else batch
    y, mean, var = normalize_groups(x, weight, bias, groups, assignment == "interleaved", eps, relu)
    if running_mean is not None:
        images = torch.full((groups, 1), batch // groups, device=x.device)
        images[: batch % groups] += 1
        count = images * (x[0, 0].numel())
        with torch.no_grad():
            running_mean[:groups].lerp_(mean.to(running_mean.dtype), momentum)
            running_var[:groups].lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


def prior_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stored_mean: Tensor,
    stored_var: Tensor,
    prior: float,
    *,
    eps: float = 1e-5,
    relu: bool = False,
) -> Tensor:
    """Each image by its own statistics, shrunk towards stored ones as `localnorm.use_mode` says. It has no gradient.

    Args:
        x: as in `local_norm`.
        weight, bias, stored_mean, stored_var: (R, C); image i takes row i mod R.
        prior: n0, in positions.
    """
    share = prior / (prior + x[0, 0].numel())
    return normalize_images(x, weight, bias, stored_mean, stored_var, share, eps, relu)


# --------------------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("localnorm::normalize_groups", mutates_args=())
def normalize_groups(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, interleaved: bool, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised batch, and the groups' means and biased variances, (groups, C) in float32."""
    from localnorm import _triton_kernels

    return _triton_kernels.forward(x, weight, bias, groups, interleaved, eps, relu)


@normalize_groups.register_fake
def _(x, weight, bias, groups, interleaved, eps, relu):
    statistics = x.new_empty(groups, x.shape[1], dtype=torch.float32)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@torch.library.custom_op("localnorm::normalize_groups_backward", mutates_args=())
def normalize_groups_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    groups: int,
    interleaved: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, and of each group's weight and bias, (groups, C) in float32."""
    from localnorm import _triton_kernels

    return _triton_kernels.backward(grad, x, weight, bias, mean, var, groups, interleaved, eps, relu)


@normalize_groups_backward.register_fake
def _(grad, x, weight, bias, mean, var, groups, interleaved, eps, relu):
    return torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, *ctx.options = inputs
    _, mean, var = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, mean, var)


def _differentiate(ctx, grad, grad_mean, grad_var):
    if grad is None:
        return (None,) * 7
    x, weight, bias, mean, var = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: the kernels' gradient has no gradient
        leaves = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(_formula(x, weight, bias, *ctx.options), leaves, grad, create_graph=True))
        return *(next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias)), *(None,) * 4
    grad_x, *grad_rows = normalize_groups_backward(grad, x, weight, bias, mean, var, *ctx.options)
    if weight is None:
        return grad_x, *(None,) * 6
    return grad_x, *(_sum_groups(t, len(weight)).to(weight.dtype) for t in grad_rows), *(None,) * 4


def _formula(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups, interleaved, eps, relu) -> Tensor:
    """What the kernels compute, in operators that can be differentiated any number of times."""
    images = torch.arange(len(x), device=x.device)
    ends = torch.tensor([len(x) // groups + (g < len(x) % groups) for g in range(groups)], device=x.device).cumsum(0)
    group = images % groups if interleaved else torch.searchsorted(ends, images, right=True)
    values = x.float().flatten(2) if x.dim() > 2 else x.float().unsqueeze(2)  # (N, C, positions)
    none = values.new_zeros(groups, x.shape[1])
    count = torch.bincount(group, minlength=groups).unsqueeze(1) * values.shape[2]
    centred = values - (none.index_add(0, group, values.sum(2)) / count)[group].unsqueeze(2)
    var = none.index_add(0, group, centred.square().sum(2)) / count
    y = centred * torch.rsqrt(var + eps)[group].unsqueeze(2)
    if weight is not None:
        row = group % len(weight)
        y = y * weight[row].unsqueeze(2) + bias[row].unsqueeze(2)
    return (y.relu() if relu else y).view(x.shape).to(x.dtype)


def _sum_groups(t: Tensor, rows: int) -> Tensor:
    """(G, C) of groups that take (rows, C) in turn: the sum over each row's groups."""
    missing = -t.shape[0] % rows
    return t if t.shape[0] == rows else F.pad(t, (0, 0, 0, missing)).unflatten(0, (-1, rows)).sum(0)


normalize_groups.register_autograd(_differentiate, setup_context=_keep)


@torch.library.custom_op("localnorm::normalize_images", mutates_args=())
def normalize_images(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stored_mean: Tensor,
    stored_var: Tensor,
    share: float,
    eps: float,
    relu: bool,
) -> Tensor:
    """Each image by its own mean and variance, shrunk by `share` towards the stored ones."""
    from localnorm import _triton_kernels

    stored = (stored_mean, stored_var)
    return _triton_kernels.forward(x, weight, bias, len(x), True, eps, relu, stored, share)[0]


@normalize_images.register_fake
def _(x, weight, bias, stored_mean, stored_var, share, eps, relu):
    return torch.empty_like(x)
