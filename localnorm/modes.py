"""Where a LocalNorm takes its statistics from: the modes, and the block that chooses one.

A mode is not the training flag. A block (:func:`use_mode`) decides for one thread and ends with the block. Outside
every block a training forward groups its batch, and an evaluation forward does what the network was told by
:func:`localnorm.set_eval_mode`, which is to group the batch too unless told otherwise.
"""

import contextlib
import math
import numbers
import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["MODES", "use_mode"]

MODES = ("batch", "single", "prior", "fixed", "gated")  # files of networks hold a mode by its place: new ones come last
MIXING = ("prior", "gated")  # the image's own statistics and stored ones
STORED = ("prior", "gated", "fixed")
ONE_VALUE = ("refuse", "fixed")


@dataclass(frozen=True)
class Mode:
    """Where a LocalNorm takes its statistics from, and which affine each group of images gets."""

    name: str = "batch"
    group: int | Tensor = 0  # one affine for all, or one per group of images, (G,)
    prior: float | Tensor | Callable[[], Tensor] = 0.0  # positions; each layer calls a function for its own
    group_size: int = 1  # images; more than one where predict adds companions, or training draws the size
    assignment: str = "interleaved"  # of images to groups of more than one
    fixed_last: int = 0  # so many layers at the network's end take stored statistics in every mode
    one_value: str = "refuse"  # what a layer does where a group has one value per channel


BATCH = Mode()
# threading.local and no ContextVar: torch.compile follows it in every torch that this package admits (2.11 breaks the
# graph at a ContextVar). Each thread has its own.
_BLOCK = threading.local()


def mode_of_block() -> Mode | None:
    """The mode of the innermost block around this call in this thread; None outside every block."""
    return getattr(_BLOCK, "mode", None)


@contextlib.contextmanager
def set_mode(mode: Mode) -> Iterator[None]:
    before = mode_of_block()
    _BLOCK.mode = mode
    try:
        yield
    finally:
        _BLOCK.mode = before


def use_mode(
    mode: str,
    *,
    group: int = 0,
    prior: float | Tensor | Callable[[], Tensor] | None = None,
    group_size: int | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Inside the block, every LocalNorm that this thread runs takes its statistics from where ``mode`` says.

    ========== =============================================================== ===================
    mode       statistics                                                      affine
    ========== =============================================================== ===================
    ``batch``  each group of the batch, as in training                         each group's own
    ``single`` each image's own                                                that of ``group``
    ``prior``  each image's own, shrunk towards stored training statistics     that of ``group``
    ``gated``  as ``prior``, shrunk less the more unusual an image is          that of ``group``
    ``fixed``  the stored training statistics of ``group``                     that of ``group``
    ========== =============================================================== ===================

    With h*w positions in the feature map and a prior of n0 positions, a = n0 / (n0 + h*w) and

        mean = a mean_train + (1 - a) mean_image
        var  = a var_train  + (1 - a) var_image  + a (1 - a) (mean_train - mean_image)^2

    so ``prior=0`` is ``single`` and ``prior=math.inf`` is ``fixed``. In ``gated``, a = n0 / (n0 + h*w max(0, d - 1)), where d says how
    far the image lies from the training images in this layer:

        d = mean over channels of ((mean_image - M)^2 / S^2 + (log var_image - L)^2 / T^2) / 2

    with M and S the mean and standard deviation of the training images' means, L and T those of the logarithms of their variances, all
    of the layer's group and from :func:`localnorm.learn_spread`; terms with S or T of 0, to rounding, are left out of sum and count.
    d is 1 on average over training images, so an ordinary image stays close to the training statistics. n0 is on another scale than in
    ``prior``, and smaller; choose both on validation images. A layer with one group serves every ``group``.
    The block does not touch BatchNorm layers, the training flag, or other threads. A thread that is started inside
    the block is outside of it: enter ``use_mode`` there again, or let the mode stay with the network
    (:func:`localnorm.set_eval_mode`), where every thread finds it. The same holds for the tasks of asyncio, and the
    block of a generator reaches whoever reads it: neither await nor yield inside the block.

    Two options of ``batch`` train a network for single images. With ``group_size``, a batch is split into groups of so many
    consecutive images, which take the K affines in turn and leave stored statistics alone: draw it anew for each training step,
    from 1 to B/K. With ``prior``, each image has its own statistics, shrunk by the formula above towards those of its group in
    the batch: draw n0 anew for each step, log-uniformly from a few positions to many thousands, and give the trained
    network ``mode="prior"``. Stored statistics move as without it.

    Activation checkpointing computes forwards again in the backward pass: after the block, or on a GPU in a thread of autograd's
    that the block does not reach. They then meet other groups, and gradients are silently wrong (``use_reentrant=True``)
    or torch raises a CheckpointError. Enter ``use_mode`` inside the checkpointed function, or give
    ``checkpoint(..., use_reentrant=False, context_fn=lambda: (nullcontext(), use_mode("batch", group_size=S)))``.

    Args:
        mode: one of :data:`MODES`.
        group: the group whose affine (and stored statistics) is used; not for ``mode="batch"``.
        prior: n0, in positions; for ``prior`` and ``gated``, a number. For ``mode="batch"`` a number, a tensor () or one n0 per
            image (B,), or a function that each layer calls for such a tensor; None is plain statistics of the groups.
        group_size: images per group, a divisor of the batch; for ``mode="batch"`` only, where None is as the layer is built.

    Raises:
        ValueError: unknown mode, negative group or prior (0 too in ``gated``), a prior missing or given to another mode, likewise a
            group or a group size; in the block, a group that a layer lacks, a batch that the group size does not divide.
        TypeError: a group or group size that is no integer (NumPy's are).

    Example:
        >>> from localnorm import LocalNorm2d
        >>> import torch
        >>> layer = LocalNorm2d(3, num_groups=4)
        >>> image = torch.randn(1, 3, 8, 8)
        >>> with use_mode("single", group=2):
        ...     layer(image).shape
        torch.Size([1, 3, 8, 8])
    """
    if mode == "batch" and prior is not None:
        checked_mode(mode, group, None)
        if group_size is not None:
            raise ValueError(f"group_size={group_size} and prior={prior} are two ways of training; give one of them")
        if not callable(prior):
            check_shrinkage(prior)
        return set_mode(Mode("shrunk", prior=prior))
    if group_size is None:
        return set_mode(checked_mode(mode, group, prior))
    checked_mode(mode, group, prior)
    group_size = whole("group_size", group_size)
    if mode != "batch" or group_size < 1:
        raise ValueError(
            f"group_size, at least 1, belongs to mode='batch'; got group_size={group_size} and mode={mode!r}"
        )
    return set_mode(Mode("sized", group_size=group_size, assignment="contiguous"))


def checked_mode(mode: str, group: int, prior: float | None) -> Mode:
    """The mode of these options, or the error that names the wrong one."""
    if mode not in MODES:
        more = "; that one combines several forwards: ask localnorm.predict" if mode in ("vote", "companions") else ""
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}{more}")
    group = whole("group", group)
    if group < 0:
        raise ValueError(f"group must be at least 0, got {group}")
    if group and mode == "batch":
        raise ValueError(
            f"group={group} belongs to the other modes, got mode='batch', in which each group has its own affine; drop it"
        )
    return with_prior(Mode(mode, group, check_prior(mode, prior)))


def check_shrinkage(prior: float | Tensor) -> None:
    """The n0 of a training with shrunken statistics. Values of a tensor are read where that waits for no device and nothing traces it."""
    rule = "mode='batch' takes a prior of at least 0 positions (math.inf too): a number, or a tensor () or (B,)"
    if not isinstance(prior, Tensor):
        if not isinstance(prior, numbers.Real) or not prior >= 0:
            raise ValueError(f"{rule}; got {prior!r}")
        return
    if prior.dim() > 1:
        raise ValueError(f"{rule}; got shape {tuple(prior.shape)}")
    if prior.requires_grad:
        raise ValueError(f"{rule} that needs no gradient, since it is drawn and not learned; give prior.detach()")
    readable = type(prior) is Tensor and prior.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not torch._C._are_functorch_transforms_active() and not bool((prior >= 0).all()):
        raise ValueError(f"{rule}; got {prior}")


def check_prior(mode: str, prior: float | None) -> float:
    if mode not in MIXING:
        if prior is not None:
            raise ValueError(
                f"prior={prior} belongs to mode='prior' and 'gated', got mode={mode!r}; drop prior or change the mode"
            )
        return 0.0
    least = "above 0" if mode == "gated" else "of at least 0"
    is_number = isinstance(prior, numbers.Real) or (isinstance(prior, Tensor) and prior.numel() == 1)
    if not is_number or not prior >= 0 or (mode == "gated" and prior == 0):
        raise ValueError(f"mode={mode!r} needs prior, a number of positions {least} (math.inf too); got {prior!r}")
    return float(prior)


def whole(name: str, value: int) -> int:
    """A whole number, NumPy's too."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def check_one_value(one_value: str) -> str:
    if one_value not in ONE_VALUE:
        raise ValueError(f"one_value must be one of {', '.join(ONE_VALUE)}; got {one_value!r}")
    return one_value


def with_prior(mode: Mode) -> Mode:
    """An infinite prior is the mode "fixed", and one of 0 "single": so no layer has to ask, which torch.compile could not follow."""
    if mode.name == "prior" and mode.prior == 0:
        return replace(mode, name="single")
    return replace(mode, name="fixed", prior=0.0) if mode.prior == math.inf else mode
