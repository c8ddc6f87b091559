"""The settings of what trained networks are asked: the `answers` block, and the conditions that follow from it."""

from dataclasses import dataclass, field
from typing import TypedDict

from localnorm import arms
from localnorm.noise import catalogue
from localnorm.params import from_block
from localnorm.settings.rules import check_choice, check_count

__all__ = ["DOMAINS", "AnswersConfig", "Streams", "candidates", "conditions", "conditions_of"]

# what the released suite is drawn on -> what a pixel of 0 ... 255 is divided by
DOMAINS = {"standardised": None, "raw": 1.0, "unit": 255.0}
RESCALINGS = ("set", "image", "none")


def candidates(strength: float | list[float]) -> list[float]:
    """The values that a strength is chosen from, rising."""
    return sorted(strength) if isinstance(strength, list) else [strength]


class Streams(TypedDict):
    """What `localnorm.streams` varies: sizes of a test batch, conditions (suite -> {noise: level}), and so many test images."""

    sizes: list[int]
    conditions: dict[str, dict[str, float]]
    images: int


@dataclass(frozen=True)
class AnswersConfig:
    """What a trained network is asked: an `answers` block of params.yaml, checked.

    Args:
        noises: suite -> the names of its noises.
        statistics: network -> the kinds of statistics under which it is asked; each pair is an arm of `localnorm.arms`.
        batch_size: test images together where statistics come from a batch.
        domain: what the released suite is drawn on: "standardised" pixels, "raw" ones (0 ... 255) or "unit" ones (0 ... 1).
        rescale: what follows the released suite: map the range of the whole noisy "set", of each "image", or "none",
            to the training part's range.
        prior: n0 of the statistics "prior" and "last_fixed", in positions of a feature map; of several, each network takes the one
            that is best on validation images (see `localnorm.strengths`).
        gated: n0 of the statistics "gated", likewise.
        fixed_last: layers at the end that keep the training statistics under "last_fixed"; of several, each network takes
            the number that is best on validation images, together with its n0.
        prior_noises: suite -> {noise: level}, the noises of these choices; none of them may be scored.
        companions: S - 1 training images that join an image under "companions".
        streams: the study of test batches of other sizes and mixed conditions, see `Streams`; None leaves it out.
        seed: of the noise and of the order of the test images.
        images: so many test images at most; None is all.
        clean_images: so many without noise, instead of `images`: clean accuracy is one condition, and accuracies differ by little.
        most_images: statistics, or an arm's label, which comes first -> so many test images at most ("vote" costs K forwards
            per image).
        max_levels: so many levels per noise at most, spread evenly, first and last among them; None is all.
        threads: of the CPU; None leaves torch's choice.

    Raises:
        ValueError: an unknown suite, noise, arm, domain or rescaling, a level out of range, a noise that leaves no image in
            the domain, or a prior that would be chosen on a noise that is scored.
    """

    noises: dict[str, list[str]]
    statistics: dict[str, list[str]]
    batch_size: int
    domain: str = "standardised"
    rescale: str = "set"
    prior: float | list[float] = 512
    gated: float | list[float] = 128
    fixed_last: list[int] = field(default_factory=lambda: [1])
    prior_noises: dict[str, dict[str, float]] = field(default_factory=dict)
    companions: int = 15
    streams: Streams | None = None
    seed: int = 0
    images: int | None = None
    clean_images: int | None = None
    most_images: dict[str, int] = field(default_factory=dict)
    max_levels: int | None = None
    threads: int | None = None

    def __post_init__(self):
        check_noises(self.noises)
        for network, kinds in self.statistics.items():
            for statistics in kinds:
                arms.arm_of(network, statistics)
        check_choice("domain", self.domain, DOMAINS)
        check_choice("rescale", self.rescale, RESCALINGS)
        known = [*arms.STATISTICS, *arms.ARMS]
        if unknown := [name for name in self.most_images if name not in known]:
            raise ValueError(f"most_images: unknown statistics or arm {unknown[0]!r}; choose of {', '.join(known)}")
        counts = {name: getattr(self, name) for name in ("images", "clean_images", "threads")}
        counts = {name: count for name, count in counts.items() if count is not None}
        counts |= {"batch_size": self.batch_size, "companions": self.companions}
        counts |= {f"most_images {name}": count for name, count in self.most_images.items()}
        for name, count in counts.items():
            check_count(name, count)
        check_most_levels(self.max_levels)
        self._check_strengths()
        if self.streams is not None:
            _check_streams(self.streams)
        self._check_domain()

    def _check_strengths(self) -> None:
        for strength in candidates(self.prior):
            if not strength >= 0:
                raise ValueError(f"prior must be a number of positions of at least 0, got {strength!r}")
        for strength in candidates(self.gated):
            if not strength > 0:
                raise ValueError(f"gated must be a number of positions above 0, got {strength!r}")
        for suite, name, _ in conditions_of(self.prior_noises):
            if name in self.noises.get(suite, ()):
                raise ValueError(
                    f"prior_noises: {name} ({suite}) is scored, and a prior chosen on it would be flattered; take another"
                )
        if not self.fixed_last or min(self.fixed_last) < 1:
            raise ValueError(f"fixed_last must be numbers of layers of at least 1, got {self.fixed_last}")
        for name in ("prior", "gated"):
            if isinstance(of := getattr(self, name), list) and not (of and self.prior_noises):
                raise ValueError(f"a choice of {name} {of} needs at least one value, and prior_noises to choose by")

    def _check_domain(self) -> None:
        asked = [
            *self.noises.get("released", ()),
            *self.prior_noises.get("released", ()),
            *(self.streams["conditions"].get("released", ()) if self.streams else ()),
        ]
        if "mnist_background" in asked and self.domain != "unit":
            raise ValueError(
                "mnist_background draws pixels that are 0 anew, up to about 1, and sets all others to 1: in the domain "
                f"{self.domain!r} no image is left; set domain: unit"
            )

    def statistics_of(self, network: str) -> list[str]:
        """The kinds of statistics under which a network is asked.

        Raises:
            ValueError: the block names none for it.
        """
        if network not in self.statistics:
            raise ValueError(
                f"the answers block names no statistics for the network {network!r}, only for {', '.join(self.statistics)}"
            )
        return self.statistics[network]

    def images_at(self, level: float) -> int | None:
        """The most test images of a condition; None is all."""
        return self.clean_images if level == 0 and self.clean_images else self.images

    def images_of(self, network: str, statistics: str) -> int | None:
        """The most test images that an arm is asked about in any condition; None is all."""
        label = arms.arm_of(network, statistics).label
        return self.most_images.get(label, self.most_images.get(statistics))

    @classmethod
    def from_params(cls, block: dict) -> "AnswersConfig":
        """The `answers` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "answers", block)


def conditions(config: AnswersConfig) -> list[arms.Condition]:
    """(suite, noise, level) of everything that is asked, in order: clean images once, then each noise at its levels above 0."""
    noisy = [
        (suite, name, float(level))
        for suite, names in config.noises.items()
        for name in names
        for level in _thin(catalogue.levels(name, suite), config.max_levels)
        if level > 0
    ]
    return [arms.CLEAN, *noisy]


def conditions_of(levels: dict[str, dict[str, float]]) -> list[arms.Condition]:
    """suite -> {noise: level} as a list of conditions.

    Raises:
        ValueError: an unknown suite or noise, or a level out of range.
    """
    for suite, names in levels.items():
        for name, level in names.items():
            catalogue.check(name, level, suite)
    return [(suite, name, float(level)) for suite, names in levels.items() for name, level in names.items()]


def _thin(levels: tuple[float, ...], most: int | None) -> list[float]:
    if most is None or len(levels) <= most:
        return list(levels)
    step = (len(levels) - 1) / (most - 1)
    return [levels[round(index * step)] for index in range(most)]


def check_noises(noises: dict[str, list[str]]) -> None:
    for suite, names in noises.items():
        for name in names:
            catalogue.levels(name, suite)


def check_most_levels(most: int | None) -> None:
    if most is not None and most < 2:
        raise ValueError(f"max_levels must be at least 2 (clean and noisy), got {most}")


def _check_streams(block: Streams) -> None:
    if set(block) != set(Streams.__annotations__):
        known = ", ".join(Streams.__annotations__)
        raise ValueError(f"streams must have exactly {known}; it has {', '.join(block) or 'nothing'}")
    if not block["sizes"] or not all(isinstance(size, int) and 1 <= size <= block["images"] for size in block["sizes"]):
        raise ValueError(
            f"streams: sizes must be whole numbers from 1 to images={block['images']}, got {block['sizes']}"
        )
    if not conditions_of(block["conditions"]):
        raise ValueError("streams: conditions must name at least one noise, e.g. {named: {gaussian: 0.2}}")
