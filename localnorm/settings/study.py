"""The settings of the study of trainings for one image at a time: the `study` block."""

from dataclasses import asdict, dataclass, field, replace

from localnorm import arms
from localnorm.params import check_keys, from_block
from localnorm.settings.answers import AnswersConfig, conditions_of
from localnorm.settings.rules import check_count
from localnorm.settings.train import TrainConfig

__all__ = ["StudyConfig"]


@dataclass(frozen=True)
class StudyConfig:
    """Which trainings are compared, and on what: a `study` block of params.yaml, checked.

    Every trained network answers validation images one at a time, under each n0. No test image and no noise that is scored takes
    part, so a training may be chosen by it.

    Args:
        seeds: of the trainings.
        variants: name -> {network: a key of NETWORKS, and settings of the train block that differ}.
        train: settings of all variants that differ from the train block's; fewer epochs, say.
        prior: n0, in positions; 0 is the statistics of the image alone, 1e9 those of the training set.
        gated: n0 of mode "gated", likewise; may be empty.
        noises: suite -> {noise: level}.
        images: validation images per condition.

    Raises:
        ValueError: an unknown noise or network, or a value that cannot work.
    """

    seeds: list[int]
    variants: dict[str, dict]
    prior: list[float]
    noises: dict[str, dict[str, float]]
    images: int
    gated: list[float] = field(default_factory=list)
    train: dict = field(default_factory=dict)

    def __post_init__(self):
        check_count("images", self.images)
        conditions_of(self.noises)
        for name, variant in self.variants.items():
            if "network" not in variant:
                raise ValueError(f"variants: {name} needs a network, e.g. `network: bn_shrunk`")
            arms.find("network", variant["network"], arms.NETWORKS)
        if not self.prior or any(not n0 >= 0 for n0 in self.prior):
            raise ValueError(f"prior must be numbers of positions of at least 0, got {self.prior}")
        if any(not n0 > 0 for n0 in self.gated):
            raise ValueError(f"gated must be numbers of positions above 0, got {self.gated}")

    @classmethod
    def from_params(cls, block: dict) -> "StudyConfig":
        """The `study` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "study", block)

    def train_of(self, name: str, train: TrainConfig) -> TrainConfig:
        """How a variant is trained.

        Raises:
            ValueError: a key that the train block does not know, or a value that cannot work.
        """
        own = self.train | {key: value for key, value in self.variants[name].items() if key != "network"}
        check_keys(f"study's {name}", asdict(train) | own, TrainConfig)
        return replace(train, **own)

    def asked(self, name: str, answers: AnswersConfig) -> AnswersConfig:
        """What a variant's network is asked: validation images under each n0, or in the one way that its layers have.

        Raises:
            ValueError: a noise that the answers block scores.
        """
        network = self.variants[name]["network"]
        layer = arms.NETWORKS[network].layer
        mixing = ["prior", "gated"] if self.gated else ["prior"]
        return replace(
            answers,
            statistics={network: mixing if layer in ("BN", "LN", "GBN") else ["own"]},
            prior=self.prior,
            gated=self.gated or answers.gated,
            prior_noises=self.noises,
            images=self.images,
            streams=None,
        )
