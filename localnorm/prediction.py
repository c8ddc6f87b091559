"""Predict with a trained network: the caller chooses where its norm layers take their statistics from.

LocalNorm and BatchNorm networks are asked alike, since BatchNorm is LocalNorm with one group and stored statistics. A
:class:`Predictor` holds a replica that shares the network's parameters, so the caller's network, its flags and its
statistics stay as they are, for every thread and after every exception. :func:`predict` builds one and asks it once.
"""

import copy
import math
import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm._replica import CALL_THEM, describe, device_of, named, share_parameters, unwrapped
from localnorm.convert import FROZEN, convert_to_localnorm, refusals
from localnorm.layers import LocalNorm, check_spread
from localnorm.modes import (
    MIXING,
    STORED,
    Mode,
    check_one_value,
    check_prior,
    mode_of_block,
    set_mode,
    use_mode,
    whole,
    with_prior,
)

__all__ = [
    "MODES",
    "Predictor",
    "disagreement",
    "majority_vote",
    "mean_probability",
    "mutual_information",
    "predict",
    "spread",
    "use_mode",
]

MODES = ("batch", "pooled", "single", "vote", "companions", "prior", "gated", "fixed")
TOGETHER = ("batch", "pooled")  # the modes in which images of a test batch share statistics
MEMORY_BOUND = 32  # images in a forward without a batch_size: a CPU is fastest while activations fit its cache


def predict(
    model: nn.Module,
    images: Tensor,
    mode: str = "batch",
    *,
    batch_size: int | None = None,
    group: int | None = None,
    prior: float | None = None,
    companions: Tensor | None = None,
    fixed_last: int = 0,
    return_members: bool = False,
    one_value: str = "refuse",
) -> Tensor:
    """Logits of images, with the statistics of every LocalNorm and BatchNorm from where ``mode`` says.

    ============== =================================================================== ==================
    mode           statistics of an image                                              affine
    ============== =================================================================== ==================
    ``batch``      its group's in the test batch; for BatchNorm the whole batch's      its group's
    ``pooled``     the whole test batch's, of all groups together                      its group's
    ``single``     its own                                                             that of ``group``
    ``vote``       its own                                                             all, averaged
    ``companions`` its own and the S - 1 companions' together                          that of ``group``
    ``prior``      its own, shrunk towards the training statistics: :func:`use_mode`   that of ``group``
    ``gated``      as ``prior``, shrunk less the more unusual it is: :func:`use_mode`  that of ``group``
    ``fixed``      the training statistics                                             that of ``group``
    ============== =================================================================== ==================

    ``vote`` is ``single`` with every group's affine, and returns the log of the members' mean probability. In the
    released evaluation an image joins its companions in every group: ``mode="companions", return_members=True``.
    ``gated`` compares an image with the training images as :func:`localnorm.learn_spread` stored them, in a LocalNorm network; a
    BatchNorm network is converted first, ``convert_to_localnorm(model, 1, track_running_stats=True)``.
    Cost of one image in forwards: batch, pooled, single, prior, gated and fixed 1; vote K; companions S; times K with
    ``return_members``.

    For many calls on one network build a :class:`Predictor` once: this function does so on each call.

    Args:
        model: the network, on the device that is to be used; it is not changed. Wrappers (torch.compile,
            DistributedDataParallel) are taken off.
        images: (N, C, H, W), or what the network takes.
        mode: one of :data:`MODES`.
        batch_size: in ``batch`` and ``pooled`` the most images that share statistics (default: all): N images are cut into batches
            that differ by at most one image, so that no short tail has worse statistics. Elsewhere a bound on memory
            alone: the most images in one forward, copies and companions included (default 32); one image with all of its own
            always shares a forward.
        group: the group whose affine and stored statistics serve (default 0); BatchNorm has one for all. Not in ``batch``,
            ``pooled`` and ``vote``, nor with ``return_members``, where every group serves.
        prior: n0, in positions of the feature map; for ``prior`` and ``gated`` only.
        companions: (S - 1, C, H, W) stored images; for ``companions`` only.
        fixed_last: how many norm layers at the end of the network, in the order of ``model.modules()``, keep the training
            statistics; for ``single``, ``vote``, ``prior`` and ``gated``. With 1, the layer before a global pooling does not
            normalise away what tells one small image's class.
        return_members: the K members instead of one; not in ``batch`` and ``pooled``, where an image meets one group.
        one_value: ``"fixed"`` lets a layer take its stored statistics where a group has one value per channel, as in an
            image-pooling branch; ``"refuse"`` raises there, unless the layer was built to fall back.

    Returns:
        Logits (N, num_classes); with ``return_members`` (K, N, num_classes), for :func:`mean_probability`,
        :func:`majority_vote`, :func:`spread`, :func:`disagreement` and :func:`mutual_information`.

    Raises:
        ValueError: an unknown mode, an option that the mode does not take, a group that is not there, statistics
            that were never stored, a spread that was never learned, a BatchNorm whose statistics cannot be chosen, companions
            unlike the images in size or dtype; a network that cannot be copied or whose norm layers its forward does not run, or whose
            output is no tensor with one row per image.
        TypeError: images that are no tensor; a batch size, group or fixed_last that is no integer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> predict(net, torch.randn(10, 3, 8, 8), "batch", batch_size=4).shape  # batches of 4, 3 and 3
        torch.Size([10, 4])
    """
    options = {"group": group, "prior": prior, "companions": companions, "fixed_last": fixed_last}
    return Predictor(model, mode, batch_size=batch_size, return_members=return_members, one_value=one_value, **options)(
        images
    )


class Predictor:
    """A network that is ready to predict in one mode: build it once, call it often.

    Building checks the options and the network, and copies its modules; parameters are shared, so changes of weights
    made in place (an optimiser's step) are seen. Statistics and other buffers are those of the moment of building: after
    :func:`localnorm.estimate_statistics` build another. Threads may call one predictor at the same time.

    Args: as of :func:`predict`, without the images.

    Raises:
        ValueError: as :func:`predict`; what concerns images and forwards is raised by the call.

    Example:
        >>> from localnorm import estimate_statistics
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> estimate_statistics(net, [torch.randn(8, 3, 8, 8)])
        >>> by_prior = Predictor(net, "prior", prior=512)
        >>> by_prior(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 4])
        >>> fixed = by_prior.using("fixed")  # the same copy of the network in another mode
        >>> torch.equal(fixed(torch.ones(1, 3, 8, 8)), net.eval()(torch.ones(1, 3, 8, 8)))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        mode: str = "batch",
        *,
        batch_size: int | None = None,
        group: int | None = None,
        prior: float | None = None,
        companions: Tensor | None = None,
        fixed_last: int = 0,
        return_members: bool = False,
        one_value: str = "refuse",
    ) -> None:
        _check_options(mode, batch_size, group, prior, companions, fixed_last, return_members, one_value)
        self._network = _Network(model)
        self._choose(mode, batch_size, group, prior, companions, fixed_last, return_members, one_value)

    def using(
        self,
        mode: str = "batch",
        *,
        batch_size: int | None = None,
        group: int | None = None,
        prior: float | None = None,
        companions: Tensor | None = None,
        fixed_last: int = 0,
        return_members: bool = False,
        one_value: str = "refuse",
    ) -> "Predictor":
        """A predictor of the same copy of the network in another mode, with none of this one's options; takes no time."""
        _check_options(mode, batch_size, group, prior, companions, fixed_last, return_members, one_value)
        other = copy.copy(self)
        other._choose(mode, batch_size, group, prior, companions, fixed_last, return_members, one_value)
        return other

    def _choose(self, mode, batch_size, group, prior, companions, fixed_last, return_members, one_value) -> None:
        network = self._network
        group = 0 if group is None else whole("group", group)
        if not 0 <= group < network.num_groups:
            raise ValueError(f"group must be from 0 to {network.num_groups - 1} in this network, got {group}")
        if mode in STORED:
            network.check_stored(f"mode={mode!r}")
        if mode == "gated" and network.norms:
            check_spread(network.norms.values())
        if not 0 <= whole("fixed_last", fixed_last) <= len(network.norms):
            raise ValueError(
                f"fixed_last must be from 0 to {len(network.norms)}, the norm layers of this network, got {fixed_last}"
            )
        if fixed_last:
            network.check_stored(f"fixed_last={fixed_last}", last=fixed_last)
        self.mode, self.batch_size, self.return_members = mode, batch_size, return_members
        self.members = list(range(network.num_groups)) if return_members or mode == "vote" else [group]
        self.companions = companions
        statistics = mode if mode in (*TOGETHER, *STORED) else "single"
        self.statistics = with_prior(
            Mode(statistics, prior=check_prior(mode, prior), fixed_last=fixed_last, one_value=one_value)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W); with ``return_members`` (K, N, num_classes)."""
        network = self._network
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images must be one tensor (N, C, H, W), got {type(images).__name__}; torch.stack(images) makes one"
            )
        if self.mode in TOGETHER:
            batches = _nearly_equal(images, self.batch_size or max(1, len(images)))
            logits = torch.cat([network.forward(batch, self.statistics) for batch in batches])  # (N, num_classes)
        else:
            companions = images[:0] if self.companions is None else self.companions
            if self.companions is not None:
                _check_companions(companions, images)
            most = max(1, (self.batch_size or MEMORY_BOUND) // (len(self.members) * (1 + len(companions))))
            parts = _nearly_equal(images, most)
            logits = torch.cat([self._ask_members(part, companions) for part in parts], 1)  # (M, N, num_classes)
        if network.norms and not network.ran:
            raise ValueError(
                f"the network's forward ran none of its norm layers, so mode={self.mode!r} chose nothing; {CALL_THEM}"
            )
        counted = list(network.norms)[len(network.norms) - self.statistics.fixed_last :]
        if silent := [name for name in counted if name not in network.ran]:
            warnings.warn(
                f"fixed_last={len(counted)} counts {named(silent)}, which the forward does not run (an auxiliary head?); count "
                f"{len(silent)} more",
                stacklevel=2,
            )
        if (self.mode == "vote" or self.return_members) and logits.dim() != 3:
            raise ValueError(
                f"members vote with logits (N, num_classes), got shape {tuple(logits.shape[1:])} of the network; "
                "ask each group by mode='single' and group"
            )
        if self.mode in TOGETHER or self.return_members:
            return logits
        return _log_mean_probability(logits) if self.mode == "vote" else logits[0]

    def _ask_members(self, images: Tensor, companions: Tensor) -> Tensor:
        """Logits (M, N, num_classes) of N images under the affines of M groups, in one forward."""
        images, companions = (t.to(self._network.device) for t in (images, companions))
        members = self.members
        copies = images.repeat(len(members), *[1] * (images.dim() - 1))  # (M*N, C, H, W): a member's images together
        affine = members[0]  # one for all, or one for each copy
        if len(members) > 1 or len(companions):
            affine = torch.tensor(members, device=images.device).repeat_interleave(len(images))  # (M*N,)
        # Image i of a forward is in group i mod M*N: each copy first, then every companion once for each copy.
        batch = torch.cat([copies, companions.repeat_interleave(len(copies), 0)])  # (S*M*N, C, H, W)
        mode = replace(self.statistics, group=affine, group_size=1 + len(companions))
        logits = self._network.forward(batch, mode)
        return logits[: len(copies)].unflatten(0, (len(members), len(images)))


class _Network:
    """The replica that predictors of one network share, and what its norm layers have shown so far."""

    def __init__(self, model: nn.Module) -> None:
        self.replica = _replica(model)
        self.norms = {name: module for name, module in self.replica.named_modules() if isinstance(module, LocalNorm)}
        self.num_groups = _common_num_groups(self.norms)
        self.device = device_of(model)
        self.ran: set[str] = set()  # the names of the layers that a forward has run
        # (row, parameter) of each converted BatchNorm, in the same memory until the parameter gets other memory
        self.rows = [
            pair
            for norm in self.norms.values()
            for pair in zip((norm.weight, norm.bias), getattr(norm, "of_batchnorm", ()), strict=False)
        ]
        for from_end, (name, norm) in enumerate(reversed(self.norms.items()), 1):
            norm.from_end = from_end
            lacks = norm.track_running_stats and norm.is_untouched()
            norm.register_forward_pre_hook(partial(self._watch, name, lacks), with_kwargs=True)

    def _watch(self, name: str, lacks: bool, norm: LocalNorm, inputs: tuple, options: dict) -> None:
        """A layer that is to take training statistics and has none yet is refused when it runs and not before: an auxiliary
        head, which does not run, needs none."""
        mode = mode_of_block()
        if mode is None:
            raise ValueError(
                f"the network runs {name or 'its norm layer'} in another thread than its forward, where the mode does not reach it; take "
                "off what starts threads, as an nn.DataParallel inside the network does"
            )
        x = inputs[0] if inputs else options["input"]
        if isinstance(mode.group, Tensor) and len(x) != len(mode.group) * mode.group_size:
            raise ValueError(
                f"members and companions need one row per image in every norm layer, and {name or 'the network'} gets {len(x)} for "
                f"{len(mode.group) * mode.group_size} images; its forward joins or splits images (frames, crops), so ask by "
                "mode='single', 'prior' or 'gated', and each group by group"
            )
        groups = {"batch": norm.num_groups, "pooled": 1}.get(mode.name, max(1, len(x) // mode.group_size))
        falls_back = lacks and norm.falls_back(x, groups, mode)
        if lacks and (mode.name in STORED or norm.from_end <= mode.fixed_last or falls_back):
            wanted = f"mode={mode.name!r}" if mode.name in STORED else f"fixed_last={mode.fixed_last}"
            wanted = "one_value='fixed'" if falls_back else wanted
            raise ValueError(
                f"{wanted} needs stored training statistics, and those of {name or 'the network'} are as they were "
                "built, of no batch; call localnorm.estimate_statistics(model, loader) once"
            )
        self.ran.add(name)

    def check_stored(self, wanted: str, last: int | None = None) -> None:
        names = list(self.norms)[-(last or len(self.norms)) :]
        missing = [name for name in names if not self.norms[name].track_running_stats]
        if missing:
            raise ValueError(
                f"{wanted} needs stored training statistics, and {named(missing)} keep none; "
                "call localnorm.estimate_statistics(model, loader) once"
            )

    def forward(self, images: Tensor, mode: Mode) -> Tensor:
        for row, parameter in self.rows:
            if row.data_ptr() != parameter.data_ptr():
                row.data = parameter.detach()[None]
        with torch.no_grad(), set_mode(mode):
            output = self.replica(images.to(self.device))
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(images):
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"predict needs a network that gives one tensor with one row per image, (N, num_classes); got {got} for "
                f"{len(images)} images; wrap it in a module whose forward returns the logits"
            )
        return output


def mean_probability(members: Tensor) -> Tensor:
    """Mean of the members' softmax: (K, N, num_classes) logits -> (N, num_classes)."""
    _check_members(members)
    return members.softmax(-1).mean(0)


def _log_mean_probability(members: Tensor) -> Tensor:
    """Finite where a class is so unlikely that its probability would be rounded to 0."""
    wide = members.to(torch.promote_types(members.dtype, torch.float32))
    return (wide.log_softmax(-1).logsumexp(0) - math.log(len(members))).to(members.dtype)


def majority_vote(members: Tensor) -> Tensor:
    """The class that most members predict: (K, N, num_classes) logits -> (N,) labels.

    A tie goes to the class with the larger mean probability.
    """
    _check_members(members)
    probability = members.to(torch.promote_types(members.dtype, torch.float32)).softmax(-1)
    return (_votes(probability) + probability.mean(0) / 2).argmax(-1)


def disagreement(members: Tensor) -> Tensor:
    """Share of the members that do not predict the majority's class: (K, N, num_classes) logits -> (N,) in [0, 1)."""
    _check_members(members)
    return 1 - _votes(members).amax(-1) / len(members)


def spread(members: Tensor) -> Tensor:
    """Standard deviation over members of the probability of the mean's class: (K, N, num_classes) logits -> (N,)."""
    _check_members(members)
    probability = members.softmax(-1)
    chosen = probability.mean(0).argmax(-1, keepdim=True)  # (N, 1)
    return probability.gather(-1, chosen.expand(len(members), -1, -1)).squeeze(-1).std(0, correction=0)


def mutual_information(members: Tensor) -> Tensor:
    """Entropy of the mean minus the mean entropy, in nats: (K, N, num_classes) logits -> (N,) in [0, log K].

    Source: Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, arXiv 1112.5745.
    """
    _check_members(members)
    probability = members.softmax(-1)
    entropy_of_mean = torch.special.entr(probability.mean(0)).sum(-1)
    return (entropy_of_mean - torch.special.entr(probability).sum(-1).mean(0)).clamp_min(0)


def _check_members(members: Tensor) -> None:
    if members.dim() != 3 or not len(members):
        raise ValueError(
            f"members are logits (K, N, num_classes), got shape {tuple(members.shape)}; "
            "predict(..., return_members=True) returns them"
        )


def _votes(members: Tensor) -> Tensor:
    return nn.functional.one_hot(members.argmax(-1), members.shape[-1]).sum(0)  # (N, num_classes)


def _check_options(
    mode: str,
    batch_size: int | None,
    group: int | None,
    prior: float | None,
    companions: Tensor | None,
    fixed_last: int,
    return_members: bool,
    one_value: str,
) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if batch_size is not None and whole("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if group is not None and (mode in (*TOGETHER, "vote") or return_members):
        asked = f"mode={mode!r}" + (" with return_members=True" if return_members else "")
        raise ValueError(
            f"group={group} chooses one affine, and every group serves in {asked}; drop it or change the mode"
        )
    if mode == "companions" and companions is None:
        raise ValueError("mode='companions' needs companions, a tensor (S - 1, C, H, W) of stored images; got None")
    check_prior(mode, prior)
    check_one_value(one_value)
    if mode != "companions" and companions is not None:
        raise ValueError(f"companions belong to mode='companions', got mode={mode!r}; drop them or change the mode")
    if fixed_last and mode not in ("single", "vote", *MIXING):
        raise ValueError(
            f"fixed_last={fixed_last} belongs to the modes single, vote, prior and gated, got mode={mode!r}; drop it or change the mode"
        )
    if return_members and mode in TOGETHER:
        raise ValueError(
            f"return_members=True needs a mode in which an image meets every group; in {mode!r} it meets one: use 'vote'"
        )


def _check_companions(companions: Tensor, images: Tensor) -> None:
    if not len(companions) or companions.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"companions are at least one image of the same size, (S - 1, {', '.join(map(str, images.shape[1:]))}); "
            f"got {tuple(companions.shape)} for images {tuple(images.shape)}"
        )
    if companions.dtype != images.dtype:
        raise ValueError(
            f"companions must be what the images are, {images.dtype}, got {companions.dtype}; standardise them alike"
        )


def _replica(model: nn.Module) -> nn.Module:
    """The network in evaluation with its parameters shared and every BatchNorm a LocalNorm of one group."""
    model = unwrapped(model)
    refused = refusals(model)
    left = {name: why for name, why in refused.items() if why != FROZEN}
    if left:
        raise ValueError(f"cannot choose the statistics of {describe(left)}; predict with the network's own forward")
    replica = share_parameters(model).eval()
    batchnorms = {name: module for name, module in replica.named_modules() if isinstance(module, _BatchNorm)}
    if batchnorms:
        replica = convert_to_localnorm(replica, 1, track_running_stats=True, exclude=refused, inplace=True)
        for name, norm in batchnorms.items():
            if norm.affine:  # one row in the memory of the network's own weight and bias, so later training is seen
                local = replica.get_submodule(name)
                local.of_batchnorm = (norm.weight, norm.bias)  # no parameters of the layer, since in a tuple
                local.weight, local.bias = (nn.Parameter(t.detach()[None]) for t in local.of_batchnorm)
    return replica


def _common_num_groups(norms: dict[str, LocalNorm]) -> int:
    counts = {norm.num_groups for norm in norms.values()} - {1}  # one group serves every member
    if len(counts) > 1:
        raise ValueError(
            f"the layers of a network must agree on num_groups, got {sorted(counts)}; convert all of them with one"
        )
    return counts.pop() if counts else 1


def _nearly_equal(images: Tensor, most: int) -> tuple[Tensor, ...]:
    return images.tensor_split(max(1, -(-len(images) // most)))
