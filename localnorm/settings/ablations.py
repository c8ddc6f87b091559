"""The settings of ablations: the `ablations` block."""

from dataclasses import asdict, dataclass, field, replace

from localnorm import arms
from localnorm.params import check_keys, from_block
from localnorm.settings.answers import check_most_levels, check_noises
from localnorm.settings.rules import check_count
from localnorm.settings.train import TrainConfig

__all__ = [
    "FINE_TUNING",
    "FIXED_BATCH",
    "FIXED_SIZE",
    "FULL_LENGTH",
    "NETWORK",
    "TRAINED_SIZES",
    "AblationConfig",
    "Variant",
    "variants",
]

# what the table calls each ablation
FIXED_BATCH = "groups at fixed batch"
FULL_LENGTH = "groups at full length"
FIXED_SIZE = "groups at fixed group size"
TRAINED_SIZES = "images per group drawn in training"
FINE_TUNING = "fine-tuning epochs after conversion"
NETWORK = "network"


@dataclass(frozen=True)
class AblationConfig:
    """The settings of an experiment's ablations: an `ablations` block of params.yaml, checked.

    Args:
        seeds: of the trainings; each variant is trained with each.
        noises: suite -> noises, as in the answers block.
        max_levels: levels per noise, as in the answers block.
        images: test images per condition.
        train: settings that differ from those of the train block, in every training but `groups_at_full_length`; fewer epochs, say.
            Those of fine-tuning are its own in epochs and learning rate.
        groups_at_fixed_batch: values of K; a group has B / K images, down to 1 at K = B.
        groups_at_full_length: values of K at the same batch, trained and asked as the experiment's own networks are (the epochs, noises,
            levels and images of its train and answers blocks), to be set beside those of the same seeds.
        groups_at_fixed_group_size: values of K; the batch has K times the train block's images per group, and the learning rate is in
            proportion to the batch.
        group_sizes: lists of images per group to draw from in each training step.
        fine_tuning_epochs: after a trained BatchNorm network was converted; 0 is the converted network as it is.
        fine_tuning_rate: the peak of its learning rate, as a share of the train block's.
        networks: other layers or trainings of the same network, keys of `localnorm.arms.NETWORKS`.

    Raises:
        ValueError: an unknown noise or network, or a value that cannot work.
    """

    seeds: list[int]
    noises: dict[str, list[str]]
    max_levels: int
    images: int
    train: dict = field(default_factory=dict)
    groups_at_fixed_batch: list[int] = field(default_factory=list)
    groups_at_full_length: list[int] = field(default_factory=list)
    groups_at_fixed_group_size: list[int] = field(default_factory=list)
    group_sizes: list[list[int]] = field(default_factory=list)
    fine_tuning_epochs: list[int] = field(default_factory=list)
    fine_tuning_rate: float = 0.1
    networks: list[str] = field(default_factory=list)

    def __post_init__(self):
        check_noises(self.noises)
        check_most_levels(self.max_levels)
        check_count("images", self.images)
        for network in self.networks:
            try:
                arms.find("network", network, arms.NETWORKS)
            except ValueError as error:
                raise ValueError(f"networks: {error}") from None

    @classmethod
    def from_params(cls, block: dict) -> "AblationConfig":
        """The `ablations` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "ablations", block)

    def shorten(self, train: TrainConfig) -> TrainConfig:
        """The train block with the settings that these ablations replace.

        Raises:
            ValueError: a key that the train block does not know, or a value that cannot work.
        """
        check_keys("ablations' train", asdict(train) | self.train, TrainConfig)
        return replace(train, **self.train)


@dataclass(frozen=True)
class Variant:
    """One network of an ablation: the value on its axis, and how it is trained."""

    ablation: str
    value: str
    network: str
    train: TrainConfig
    fine_tuning: TrainConfig | None = None  # after a conversion to LocalNorm

    @property
    def statistics(self) -> list[str]:
        """The kinds of statistics under which it is asked."""
        if self.ablation == FULL_LENGTH:
            return ["batch", "single", "prior"]
        if arms.NETWORKS[self.network].has_groups:
            return ["batch", "single"]
        has = [arm.statistics for arm in arms.ARMS.values() if arm.network == self.network]
        return [statistics for statistics in ("fixed", "batch", "own") if statistics in has]


def variants(config: AblationConfig, train: TrainConfig) -> list[Variant]:
    """The networks that an experiment's ablations train for each seed.

    Raises:
        ValueError: a value that the train block cannot have, such as K above B; or, for groups at full length, the K that it has already.
    """
    if train.num_groups in config.groups_at_full_length:
        raise ValueError(
            f"groups_at_full_length: K = {train.num_groups} is the experiment's own num_groups, whose networks the stage train has; "
            "leave it out"
        )
    full, train = train, config.shorten(train)
    size = train.batch_size // train.num_groups
    made = [Variant(FIXED_BATCH, str(k), "ln", replace(train, num_groups=k)) for k in config.groups_at_fixed_batch]
    made += [Variant(FULL_LENGTH, str(k), "ln", replace(full, num_groups=k)) for k in config.groups_at_full_length]
    for k in config.groups_at_fixed_group_size:
        rate = train.learning_rate * k * size / train.batch_size
        made.append(
            Variant(FIXED_SIZE, str(k), "ln", replace(train, num_groups=k, batch_size=k * size, learning_rate=rate))
        )
    for sizes in config.group_sizes:
        name = " or ".join(map(str, sizes))
        made.append(Variant(TRAINED_SIZES, name, "ln", replace(train, group_sizes=sizes)))
    for epochs in config.fine_tuning_epochs:
        tuning = replace(train, epochs=max(1, epochs), learning_rate=train.learning_rate * config.fine_tuning_rate)
        made.append(Variant(FINE_TUNING, str(epochs), "ln", train, tuning))
    made += [Variant(NETWORK, network, network, train) for network in config.networks]
    return made
