"""The settings of training: the `train` block."""

from dataclasses import dataclass, field

from localnorm.params import from_block
from localnorm.settings.rules import check_choice, check_count, check_number

__all__ = ["MODELS", "Shrinkage", "TrainConfig", "check_augmentation"]

MODELS = ("small", "mnist", "resnet32", "vgg16", "resnet18", "resnet50", "resnet152", "efficientnet_lite0")
OPTIMIZERS = ("sgd", "adam", "muon")
SCHEDULES = ("constant", "one_cycle", "steps", "exponential", "plateau")
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Shrinkage:
    """How the statistics of single images are mixed with their group's in the training "shrunk".

    Args:
        lowest, highest: n0, in positions, is drawn log-uniformly from this range.
        plain: the share of draws that take the group's statistics alone.
        drawn_per: "step", "image" or "layer": what has one n0.
        distil: weight of the Kullback-Leibler divergence from what the network says under its groups' statistics alone; above 0 a step
            has two forwards, one of each kind.
        ramp: the share of the training in which the lowest n0 falls from `highest` to `lowest`, in equal factors. A pretrained network
            may diverge without it: the gradients through the small variances of single images are large at first.

    Raises:
        ValueError: a value that cannot work.
    """

    lowest: float = 16
    highest: float = 16384
    plain: float = 0.2
    drawn_per: str = "step"
    distil: float = 0.0
    ramp: float = 0.0

    def __post_init__(self):
        for name in ("lowest", "highest", "plain", "distil", "ramp"):
            check_number(name, getattr(self, name))
        if not 0 < self.lowest <= self.highest:
            raise ValueError(f"lowest must be above 0 and at most highest, got {self.lowest} and {self.highest}")
        for name in ("plain", "ramp"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share, from 0 to 1, got {getattr(self, name)}")
        check_choice("drawn_per", self.drawn_per, ("step", "image", "layer"))


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run: a `train` block of params.yaml, checked.

    Args:
        model: name of a network (see `localnorm.models.MODELS`).
        epochs: passes over the training part; a tail that does not fill a batch is dropped.
        batch_size: images per step and process (B).
        num_groups: groups that LocalNorm splits a batch into (K).
        group_sizes: numbers of images per group (S), one of them drawn for each step of a LocalNorm network, whose groups then take
            the K affines in turn. Empty means always B / K, and for training "drawn" every divisor of B up to B / K. With 1
            among them the network also learns from single images.
        shrunk: settings of the training "shrunk" that differ from those of `Shrinkage`.
        optimizer: "sgd" (Nesterov), "adam", or "muon": the update of a kernel is the orthogonal matrix next to its momentum
            (Jordan et al. 2024), in timm's implementation, and AdamW at 0.3 times the learning rate serves everything else. It reaches
            higher accuracy than SGD in few epochs.
        learning_rate: the peak for "one_cycle", the first for the other schedules.
        schedule: "constant"; "one_cycle" (linear from a tenth up to the peak in the first quarter, then linearly to zero);
            "steps" (`milestones`: {epoch: learning rate from there on}); "exponential" (times `decay` every
            `decay_every` epochs); "plateau" (times `decay` after each `patience` epochs without a better validation
            accuracy).
        patience: epochs, of the schedule "plateau".
        stop_after: epochs without a better validation accuracy after which training ends; None runs all epochs.
        momentum: of SGD and Muon.
        weight_decay: torch's, on kernels only (twice Keras' lambda); with Muon decoupled from the gradient.
        label_smoothing: share of the target that is spread over all classes.
        augment: arguments of `localnorm.data.augment.augment`: flip, shift, rotation, zoom.
        pretrained: start from ImageNet weights.
        precision: Lightning Fabric's: "32-true", or "bf16-mixed" where the device computes in bf16 (see
            `localnorm.machine.computes_bf16`), and "32-true" elsewhere. The record names the one that was used.
        eps: added to the variance in every normalisation layer, the same in all networks; None keeps the network's own.
        compile: run the network through torch.compile.
        threads: of the CPU; None leaves torch's choice. A network of a few thousand weights is fastest on one.

    Raises:
        ValueError: a value that cannot work, before any data is read.
    """

    model: str
    epochs: int
    batch_size: int
    num_groups: int = 8
    group_sizes: list[int] = field(default_factory=list)
    shrunk: dict = field(default_factory=dict)
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "one_cycle"
    milestones: dict[int, float] = field(default_factory=dict)
    decay: float = 1.0
    decay_every: int = 1
    patience: int = 10
    stop_after: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: dict[str, float | bool] = field(default_factory=dict)
    pretrained: bool = False
    precision: str = "32-true"
    eps: float | None = 1e-5
    compile: bool = False
    threads: int | None = None

    def __post_init__(self):
        for name, known in (
            ("model", MODELS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            check_choice(name, getattr(self, name), known)
        for name in ("epochs", "batch_size", "num_groups", "decay_every", "patience"):
            check_count(name, getattr(self, name))
        for name in ("stop_after", "threads"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), ", or None")
        for name in ("learning_rate", "momentum", "weight_decay", "label_smoothing", "decay", "eps"):
            if not (name == "eps" and self.eps is None):
                check_number(name, getattr(self, name))
        for name in ("momentum", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        self._check_schedule()
        try:
            check_augmentation(**self.augment)
        except (TypeError, ValueError) as error:
            raise ValueError(f"augment: {error}; it takes flip, shift, rotation and zoom, got {self.augment}") from None
        try:
            from_block(Shrinkage, "shrunk", self.shrunk)
        except ValueError as error:
            raise ValueError(f"shrunk: {error}") from None
        self._check_groups()

    def _check_schedule(self) -> None:
        if self.schedule == "steps" and not self.milestones:
            raise ValueError("schedule='steps' needs milestones, {epoch: learning rate from there on}, got none")
        if self.schedule == "plateau" and self.decay >= 1:
            raise ValueError(f"schedule='plateau' needs a decay below 1, got {self.decay}; the released one is 0.1")

    def _check_groups(self) -> None:
        if self.num_groups > self.batch_size:
            raise ValueError(
                f"num_groups={self.num_groups} needs at least {self.num_groups} images in a training batch, "
                f"got batch_size={self.batch_size}; raise batch_size or lower num_groups"
            )
        uneven = [size for size in self.group_sizes if size < 1 or self.batch_size % size]
        if uneven:
            raise ValueError(f"group_sizes must divide batch_size={self.batch_size}, {uneven} do not")

    @classmethod
    def from_params(cls, block: dict) -> "TrainConfig":
        """The `train` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "train", block)


def check_augmentation(*, flip: bool = False, shift: float = 0.0, rotation: float = 0.0, zoom: float = 0.0) -> None:
    """Refuse what `localnorm.data.augment.augment` would refuse, before there are images.

    Raises:
        TypeError: an argument that `augment` does not have.
        ValueError: a value outside its range.
    """
    for name, value, limit in (("shift", shift, "1"), ("rotation", rotation, "180 degrees"), ("zoom", zoom, "1")):
        if not 0 <= value <= float(limit.split()[0]) or (name == "zoom" and value == 1):
            bound = "below" if name == "zoom" else "at most"
            raise ValueError(f"{name} must be at least 0 and {bound} {limit}, got {value}")
