"""The settings of the controls of one image at a time: the `controls` block."""

from dataclasses import asdict, dataclass

from localnorm.params import from_block

__all__ = ["CONTROLS", "ControlsConfig"]

CONTROLS = {  # key -> label, and what its strength is
    "fixed": ("fixed", "none"),
    "positions": ("prior by positions (ours)", "n0, positions"),
    "images": ("prior by images", "N, images"),
    "chance": ("beyond chance", "k, standard errors"),
    "unusual": ("where unusual (ours)", "n0, positions"),
}


@dataclass(frozen=True)
class ControlsConfig:
    """The strengths among which each way to correct BatchNorm's statistics for one image may choose: a `controls` block, checked.

    Args:
        positions: n0 of the prior by positions.
        images: N of the prior by images (Schneider et al. 2020).
        chance: k of the correction beyond chance (Gong et al. 2022).
        unusual: n0 of the prior that serves unusual images alone.

    Raises:
        ValueError: a strength that is not above 0, or none at all.
    """

    positions: list[float]
    images: list[float]
    chance: list[float]
    unusual: list[float]

    def __post_init__(self):
        for key, strengths in asdict(self).items():
            if not strengths or any(not strength > 0 for strength in strengths):
                raise ValueError(f"{key} must be numbers above 0, at least one, got {strengths}")

    @classmethod
    def from_params(cls, block: dict) -> "ControlsConfig":
        """The `controls` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "controls", block)

    def pairs(self) -> list[tuple[str, float]]:
        """Every control with every strength; the first is no correction, which has none and is written 0."""
        return [("fixed", 0.0)] + [(key, strength) for key, strengths in asdict(self).items() for strength in strengths]
