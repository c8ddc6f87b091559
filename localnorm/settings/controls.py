"""The settings of the controls of one image at a time, and of fine-tuning for it: the blocks `controls` and `fine_tuning`."""

from dataclasses import asdict, dataclass

from localnorm.networks import NETWORKS, find
from localnorm.params import from_block
from localnorm.settings.rules import check_count, check_number

__all__ = ["CONTROLS", "ControlsConfig", "FineTuningConfig"]

CONTROLS = {  # key -> label
    "fixed": "fixed",
    "prior": "prior by positions (ours)",
    "gated": "gated prior (ours)",
    "images": "prior by images",
    "chance": "beyond chance",
}
OF_BATCHNORM = ("images", "chance")  # made for it by others, and asked of it alone


@dataclass(frozen=True)
class ControlsConfig:
    """The strengths among which each way to correct stored statistics for one image may choose: a `controls` block, checked.

    Args:
        networks: those that are asked, keys of NETWORKS.
        prior: n0 of the prior by positions.
        gated: n0 of the gated prior.
        images: N of the prior by images (Schneider et al. 2020).
        chance: k of the correction beyond chance (Gong et al. 2022).

    Raises:
        ValueError: an unknown network; a strength that is not above 0, or none at all.
    """

    networks: list[str]
    prior: list[float]
    gated: list[float]
    images: list[float]
    chance: list[float]

    def __post_init__(self):
        for network in self.networks:
            find("network", network, NETWORKS)
        for key, strengths in self._strengths().items():
            if not strengths or any(not strength > 0 for strength in strengths):
                raise ValueError(f"{key} must be numbers above 0, at least one, got {strengths}")

    @classmethod
    def from_params(cls, block: dict) -> "ControlsConfig":
        """The `controls` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "controls", block)

    def _strengths(self) -> dict[str, list[float]]:
        return {key: value for key, value in asdict(self).items() if key != "networks"}

    def pairs(self, network: str) -> list[tuple[str, float]]:
        """Every way of a network with every strength; the first is no correction, which has none and is written 0."""
        ways = {key: each for key, each in self._strengths().items() if network == "bn" or key not in OF_BATCHNORM}
        return [("fixed", 0.0)] + [(key, strength) for key, strengths in ways.items() for strength in strengths]


@dataclass(frozen=True)
class FineTuningConfig:
    """How a trained BatchNorm network is trained on, for one image at a time: a `fine_tuning` block, checked.

    Args:
        networks: what it becomes, keys of NETWORKS; "bn" is the control that has the extra training alone.
        epochs: of the extra training.
        rate: the peak of its learning rate, as a share of the train block's.
        seed: of its batches and augmentation.

    Raises:
        ValueError: an unknown network, or a value that cannot work.
    """

    networks: list[str]
    epochs: int = 1
    rate: float = 0.25
    seed: int = 0

    def __post_init__(self):
        for network in self.networks:
            find("network", network, NETWORKS)
        check_count("epochs", self.epochs)
        check_number("rate", self.rate)

    @classmethod
    def from_params(cls, block: dict) -> "FineTuningConfig":
        """The `fine_tuning` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "fine_tuning", block)
