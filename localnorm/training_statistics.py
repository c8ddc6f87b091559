"""What a network stores about its training images: their statistics, and how single images differ from one another.

Two passes over training images, after training or instead of what training stored; the network changes only after the last batch.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm._kernels import log_var, moments_of_each_image
from localnorm._replica import CALL_THEM, device_of, named, share_parameters, unwrapped
from localnorm.layers import LocalNorm
from localnorm.modes import BATCH, Mode, set_mode

__all__ = ["estimate_statistics", "learn_spread"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@torch.inference_mode(False)  # tensors that are made in that mode cannot be trained or loaded into later
def estimate_statistics(model: nn.Module, loader: Iterable) -> None:
    """Store training statistics in every LocalNorm and BatchNorm: the plain average over a loader's batches.

    Batches are normalised by their own statistics, as in training, and everything else (dropout) runs as in evaluation.
    A batch with fewer images than groups has none for some of them and is left out. Half-precision statistics are
    averaged in float32, and rounded once. A LocalNorm stores float32 whatever its weights are.
    The model changes only after the last batch. A LocalNorm without stored statistics has them from then on; a layer that
    evaluation does not run (an auxiliary head) keeps what it has.

    An averaged network (EMA) pairs tensors by their place. So if it was begun before the layers had statistics, do not
    update it afterwards: estimate the average's own, ``estimate_statistics(ema.module, loader)``. Or convert with
    ``track_running_stats=True`` before the average is begun, and it has them from the start.

    Args:
        model: on the device that is to be used.
        loader: batches of images, or of tuples that start with them, of the size used in training.

    Raises:
        ValueError: the network has no such layer, or none that its forward runs; a BatchNorm has
            ``track_running_stats=False``; the network cannot be copied; the loader is empty, or no batch has an image for
            every group; statistics that are not finite.
        TypeError: the loader is a tensor, or a batch holds none.
    """
    batches, model = at_least_one(loader), unwrapped(model)
    if not norm_layers(model):
        raise ValueError("the network has neither a LocalNorm nor a BatchNorm to store statistics in")
    check_places(model)
    device = device_of(model)
    replica = share_parameters(model).eval()
    began = set()  # the replica's layers that have statistics of a batch

    def begin(norm: nn.Module, inputs: tuple, named: dict) -> None:
        """Forget the stored statistics with the first batch that moves them: a layer that takes them for want of a variance keeps them."""
        moves = isinstance(norm, _BatchNorm) or not norm.falls_back(
            inputs[0] if inputs else named["input"], norm.num_groups, BATCH
        )
        if moves and norm not in began:
            norm.reset_running_stats()
            began.add(norm)

    for norm in norm_layers(replica):
        norm.training = True  # not train(), which reaches a dropout inside the layer
        norm.momentum = None  # torch's way to say plain average
        if isinstance(norm, LocalNorm) and not norm.track_running_stats:
            norm.keep_running_stats(device)
        _widen(norm)
        norm.register_forward_pre_hook(begin, with_kwargs=True)
    most_groups = max((norm.num_groups for norm in norm_layers(replica) if isinstance(norm, LocalNorm)), default=1)
    sizes = []
    with torch.no_grad(), set_mode(BATCH):
        for batch in batches:
            images = _images_of(batch)
            sizes.append(len(images))
            if len(images) >= most_groups:
                replica(images.to(device))
    if max(sizes) < most_groups:
        raise ValueError(
            f"statistics of num_groups={most_groups} groups need batches of at least {most_groups} images, got at most {max(sizes)}; "
            "take those of the training"
        )
    if not began:
        raise ValueError(f"the network's forward ran none of its norm layers, so there are no statistics; {CALL_THEM}")
    if not all(getattr(norm, name).isfinite().all() for norm in began for name in STATISTICS):
        raise ValueError(
            "the statistics are not finite: a batch of the loader, or a weight, is inf or nan, or overflows"
        )
    for norm, estimated in zip(norm_layers(model), norm_layers(replica), strict=True):
        if isinstance(norm, LocalNorm) and not norm.track_running_stats:
            norm.keep_running_stats(device)
        if estimated in began:
            for name in STATISTICS:
                getattr(norm, name).copy_(getattr(estimated, name))
            if isinstance(norm, LocalNorm):
                norm.spread = None  # it was of forwards with other statistics


@torch.inference_mode(False)
def learn_spread(model: nn.Module, loader: Iterable) -> None:
    """Store in every LocalNorm how single training images differ from one another: mode ``gated`` compares an image with that.

    Each layer keeps, per group and channel, mean and variance over the images of their means and of the logarithms of their variances,
    in the buffer ``spread`` (K, 4, C), which ``state_dict()`` has from then on. Everything runs as in evaluation with the stored
    statistics, one forward per group. The spread holds for these weights, statistics and image size: new or reset statistics and a file
    without it drop it, and a training forward of the layer makes it nan, which ``gated`` refuses. Where norm layers stay in evaluation
    while others train, nothing tells them: learn it again. The model changes only after the last batch. Of an averaged network (EMA),
    learn it after the last update, ``learn_spread(ema.module, loader)``.

    Args:
        model: a trained LocalNorm network with stored statistics; a BatchNorm network after
            ``convert_to_localnorm(model, 1, track_running_stats=True)``.
        loader: batches of training images as they are at test time, without augmentation, or of tuples that start with them. A few
            hundred images are enough: their spread is then known to a few percent.

    Raises:
        ValueError: the network has BatchNorm layers, no LocalNorm, or none that its forward runs; statistics that were never stored; fewer
            than two images; the network cannot be copied.
        TypeError: as of :func:`estimate_statistics`.

    Example:
        >>> from localnorm import LocalNorm2d, predict
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), LocalNorm2d(4, num_groups=2, track_running_stats=True))
        >>> images = torch.randn(64, 3, 8, 8)
        >>> estimate_statistics(net, images.split(16))
        >>> learn_spread(net, images.split(16))
        >>> predict(net, images[:5], "gated", prior=128).shape
        torch.Size([5, 4, 6, 6])
    """
    model = unwrapped(model)
    norms = norm_layers(model)
    batchnorms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if batchnorms or not norms:
        found = f"{named(batchnorms)} are BatchNorm" if batchnorms else "the network has none"
        raise ValueError(
            f"mode 'gated' needs LocalNorm layers, and {found}; convert them, convert_to_localnorm(model, 1, track_running_stats=True)"
        )
    if all(norm.running_mean is None or norm.is_untouched() for norm in norms):
        raise ValueError(
            "learn_spread needs stored training statistics; call localnorm.estimate_statistics(model, loader) first"
        )
    groups = max(norm.num_groups for norm in norms)
    if {norm.num_groups for norm in norms} - {1, groups}:
        raise ValueError(
            f"the layers of a network must agree on num_groups, got {sorted({norm.num_groups for norm in norms})}"
        )
    replica, device = share_parameters(model).eval(), device_of(model)
    learned = [[_Spread() for _ in range(norm.num_groups)] for norm in norms]
    group = 0  # of the forward that runs

    def look(spreads: list[_Spread], layer: LocalNorm, inputs: tuple, named: dict) -> None:
        if group < len(spreads):  # a layer of one group has seen these images
            spreads[group].add(inputs[0] if inputs else named["input"])

    for norm, spreads in zip(norm_layers(replica), learned, strict=True):
        norm.register_forward_pre_hook(partial(look, spreads), with_kwargs=True)
    count = 0
    with torch.no_grad():
        for batch in at_least_one(loader):
            images = _images_of(batch)
            count += len(images)
            for group in range(groups if len(images) else 0):
                with set_mode(Mode("fixed", group=group)):
                    replica(images.to(device))
    if count < 2:
        raise ValueError(f"how images differ needs at least 2 of them, the loader has {count}")
    complete = [[spread.rows() for spread in spreads] for spreads in learned if all(spread.count for spread in spreads)]
    if not complete:
        raise ValueError(f"the network's forward ran none of its norm layers; {CALL_THEM}")
    if not all(rows.isfinite().all() for each in complete for rows in each):
        raise ValueError(
            "how images differ is not finite: an image of the loader, or a weight, is inf or nan, or overflows"
        )
    for norm, spreads in zip(norms, learned, strict=True):
        if all(spread.count for spread in spreads):
            norm.keep_spread()
            norm.spread.copy_(torch.stack([spread.rows() for spread in spreads]))


class _Spread:
    """Mean and variance over images of their means and log variances in a layer; in float64, so that the order matters little."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # mean and sum of squared deviations, (2, C)

    def add(self, x: Tensor) -> None:
        mean, var = moments_of_each_image(x.to(torch.promote_types(x.dtype, torch.float32)))
        values = torch.stack([mean, log_var(var)], 1).cpu().double()  # (N, 2, C)
        own, count = values.mean(0), self.count + len(values)
        off = own - self.mean
        self.squares = self.squares + (values - own).square().sum(0) + off.square() * (self.count * len(values) / count)
        self.mean = self.mean + off * (len(values) / count)
        self.count = count

    def rows(self) -> Tensor:
        """(4, C): mean and variance of means, then of log variances."""
        return torch.stack([self.mean, self.squares / (self.count - 1)], 1).flatten(0, 1)


def norm_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, LocalNorm | _BatchNorm)]


def at_least_one(loader: Iterable) -> Iterable:
    if isinstance(loader, Tensor):
        raise TypeError(
            f"a loader gives batches, and this is one tensor {tuple(loader.shape)}; give [images], or images.split(64)"
        )
    batches = iter(loader)
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError("the statistics need at least one batch, got an empty loader") from None
    return itertools.chain([first], batches)


def _images_of(batch: Tensor | Sequence) -> Tensor:
    images = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(images, Tensor):
        raise TypeError(
            "a batch of the loader is a tensor (N, C, H, W), or a tuple or list that starts with one; got "
            f"{type(batch).__name__}; give (batch['image'] for batch in loader), say"
        )
    return images


def check_places(model: nn.Module) -> None:
    without = [name for name, norm in model.named_modules() if isinstance(norm, _BatchNorm) and not keeps(norm)]
    if without:
        raise ValueError(
            f"a BatchNorm with track_running_stats=False has no place for statistics: {', '.join(map(repr, without))}; "
            "build it with track_running_stats=True"
        )


def keeps(norm: _BatchNorm) -> bool:
    return norm.track_running_stats and norm.running_mean is not None


def _widen(norm: nn.Module) -> None:
    """Give a replica's layer float32 tensors for half ones: an average in half precision stalls."""
    for name, tensor in [*norm._parameters.items(), *norm._buffers.items()]:
        if tensor is not None and tensor.dtype in (torch.half, torch.bfloat16):
            wide = tensor.detach().float()
            setattr(norm, name, nn.Parameter(wide) if name in norm._parameters else wide)
