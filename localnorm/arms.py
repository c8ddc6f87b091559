"""The vocabulary of the experiments: networks, where statistics come from, arms and metrics; without torch.

Three things are kept apart. A *network* is a normalisation layer and how it was trained. Its *statistics* are where the layers take
mean and variance from when the network predicts. An *arm* is one network under one kind of statistics: a row of the tables, a line
of the figures.

To add an arm: one record in ARMS, one branch where its statistics (`localnorm.answers`) or its training (`localnorm.train`) are
computed, and its name in params.yaml.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from localnorm.networks import LAYERS, NETWORKS, Network, find

__all__ = [
    "ARMS",
    "CLEAN",
    "LAYERS",
    "METRICS",
    "NETWORKS",
    "STATISTICS",
    "Arm",
    "Condition",
    "Metric",
    "Network",
    "Statistics",
    "arm_of",
    "find",
    "in_order",
]

Condition = tuple[str, str, float]  # suite, noise, level
CLEAN: Condition = ("clean", "clean", 0.0)


@dataclass(frozen=True)
class Statistics:
    """Where normalisation layers take their statistics from when a network predicts.

    Args:
        key: its name in params.yaml and in tables.
        label: the last words of an arm's label.
        text: what a legend says of it.
        one_image: an image is answered without other test images.
        stored: it needs statistics of the training set.
        chosen: it has a strength, which is chosen on validation images.
    """

    key: str
    label: str
    text: str
    one_image: bool = True
    stored: bool = False
    chosen: bool = False


STATISTICS = {
    each.key: each
    for each in (
        Statistics("fixed", "fixed", "the training set's", stored=True),
        Statistics("batch", "batch", "the test batch's", one_image=False),
        Statistics("pooled", "pooled", "the test batch's, of all its groups together", one_image=False),
        Statistics("single", "single", "those of the one image"),
        Statistics("vote", "vote", "those of the one image, under the affine of every group; the majority answers"),
        Statistics("companions", "companions", "those of the one image and a few training images together"),
        Statistics(
            "prior", "prior", "those of the one image, shrunk towards the training set's", stored=True, chosen=True
        ),
        Statistics(
            "gated",
            "gated",
            "as prior, shrunk less the more unusual the image is among training images",
            stored=True,
            chosen=True,
        ),
        Statistics(
            "last_fixed", "last fixed", "as prior, the last layers with the training set's", stored=True, chosen=True
        ),
        Statistics("own", "", "the layer's own way, which is the same for an image alone and among others"),
    )
}


@dataclass(frozen=True)
class Arm:
    """A network under one kind of statistics, and how figures draw it.

    Args:
        network: a key of NETWORKS.
        statistics: a key of STATISTICS.
        colour, marker, line: matplotlib's; BatchNorm dashed, LocalNorm solid, one image alone dotted, so that grey print tells them apart.
        ours: the arm is this package's idea, not the original paper's.
    """

    network: str
    statistics: str
    colour: str
    marker: object
    line: object
    ours: bool = False

    @property
    def label(self) -> str:
        """Its name in every table, legend and sentence: layer, training, statistics: "LN drawn single"."""
        return f"{NETWORKS[self.network].label} {STATISTICS[self.statistics].label}".strip()

    @property
    def short(self) -> str:
        """The label where there is little room, under the key of a legend: "LN drawn 1"."""
        short = {"single": "1", "companions": "comp.", "last fixed": "last", "": ""}
        words = STATISTICS[self.statistics].label
        return f"{NETWORKS[self.network].label} {short.get(words, words)}".strip()


_DASHED, _DOTTED, _MIXED = (0, (4, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1))
_FEW, _LAST, _DRAWN = (0, (5, 1, 1, 1, 1, 1)), (0, (2, 1)), (0, (6, 1, 1, 1))

# In the order of the argument: the failure, the control, the method, one image. Colours are Okabe and Ito's where they reach.
ARMS = {
    arm.label: arm
    for arm in (
        Arm("bn", "fixed", "#000000", "o", _DASHED),
        Arm("bn", "batch", "#E69F00", "s", _DASHED),
        Arm("ln", "batch", "#0072B2", "D", "-"),
        Arm("ln", "pooled", "#2F4B9C", (4, 0, 0), "-", ours=True),
        Arm("ln", "fixed", "#004C6D", (7, 1, 0), "-", ours=True),
        Arm("ln", "single", "#CC79A7", "v", _DOTTED),
        Arm("ln", "vote", "#009E73", "^", _DOTTED),
        Arm("ln", "companions", "#6A3D9A", "*", _FEW),
        Arm("bn", "single", "#882255", "d", _DOTTED),
        Arm("bn", "companions", "#C71585", (5, 1, 180), _FEW),
        Arm("bn", "prior", "#D55E00", "X", _MIXED, ours=True),
        Arm("ln", "prior", "#56B4E9", "P", _MIXED, ours=True),
        Arm("bn", "gated", "#A0522D", (4, 1, 22), _MIXED, ours=True),
        Arm("ln", "gated", "#1E90FF", (5, 1, 36), _MIXED, ours=True),
        Arm("bn", "last_fixed", "#8C6D31", "p", _LAST, ours=True),
        Arm("ln", "last_fixed", "#1B4F3A", "h", _LAST, ours=True),
        Arm("ln_drawn", "batch", "#7FB800", "8", "-", ours=True),
        Arm("ln_drawn", "fixed", "#4C6B00", (7, 0, 0), "-", ours=True),
        Arm("ln_drawn", "single", "#B8002A", "H", _DOTTED, ours=True),
        Arm("ln_drawn", "vote", "#5B8C00", (3, 1, 0), _DRAWN, ours=True),
        Arm("ln_drawn", "companions", "#9A86C4", (4, 1, 0), _DRAWN, ours=True),
        Arm("ln_drawn", "prior", "#0B3C6F", (6, 1, 0), _DRAWN, ours=True),
        Arm("ln_drawn", "gated", "#27408B", (6, 1, 30), _DRAWN, ours=True),
        Arm("ln_drawn", "last_fixed", "#6FA287", (8, 1, 0), _DRAWN, ours=True),
        Arm("bn_shrunk", "batch", "#B8860B", (3, 0, 0), "-", ours=True),
        Arm("bn_shrunk", "fixed", "#5C4306", (3, 0, 90), "-", ours=True),
        Arm("bn_shrunk", "prior", "#E31A1C", (4, 1, 45), _MIXED, ours=True),
        Arm("bn_shrunk", "gated", "#E8508B", "<", _MIXED, ours=True),
        Arm("ln_shrunk", "batch", "#3CB371", (5, 0, 0), "-", ours=True),
        Arm("ln_shrunk", "fixed", "#1B5E3A", (5, 0, 180), "-", ours=True),
        Arm("ln_shrunk", "prior", "#7A0177", (5, 1, 0), _MIXED, ours=True),
        Arm("ln_shrunk", "gated", "#C154C1", ">", _MIXED, ours=True),
        Arm("gbn", "batch", "#4D8FAC", (4, 0, 45), (0, (3, 1))),
        Arm("gbn", "single", "#C9A0C9", (3, 0, 180), _DOTTED),
        Arm("gn", "own", "#999999", (4, 2, 0), "-"),
        Arm("in", "own", "#666666", (4, 2, 45), "-"),
        Arm("tasknorm", "own", "#7F7F00", (3, 1, 90), "-"),
        Arm("bin", "own", "#A9A9A9", (5, 1, 90), "-"),
    )
}


@dataclass(frozen=True)
class Metric:
    """An accuracy over several conditions; `localnorm.scores` says how they are weighed.

    Args:
        key: its name in tables.
        label: what figures and texts call it.
        noisy: over the levels above 0; else over clean images.
        suites: of these suites alone; None is all that were scored.
        noises: of these noises alone, by (suite, name); None is all.
    """

    key: str
    label: str
    noisy: bool = True
    suites: tuple[str, ...] | None = None
    noises: tuple[tuple[str, str], ...] | None = None

    def covers(self, suite: str, noise: str, level: float) -> bool:
        """Whether a condition belongs to it."""
        if not self.noisy:
            return level == 0
        return (
            level > 0
            and (self.suites is None or suite in self.suites)
            and (self.noises is None or (suite, noise) in self.noises)
        )


METRICS = {
    metric.key: metric
    for metric in (
        Metric("clean", "clean", noisy=False),
        Metric("noisy", "noisy"),
        Metric("released", "noisy, released suite", suites=("released",)),
        Metric("named", "noisy, named suite", suites=("named",)),
        Metric("corruptions", "noisy, CIFAR-10-C's corruptions", suites=("corruptions",)),
        Metric("dark", "poor light", noises=(("named", "brightness"),)),
    )
}


def arm_of(network: str, statistics: str) -> Arm:
    """The arm of a network under some statistics.

    Raises:
        ValueError: there is no such arm; names the statistics that the network has.
    """
    find("network", network, NETWORKS)
    for arm in ARMS.values():
        if (arm.network, arm.statistics) == (network, statistics):
            return arm
    has = [arm.statistics for arm in ARMS.values() if arm.network == network]
    raise ValueError(
        f"there is no arm of the network {network!r} with statistics {statistics!r}; it has {', '.join(has)}"
    )


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels of arms, each once, in the order of ARMS.

    Raises:
        ValueError: one is no arm's.
    """
    given = {label: find("arm", label, ARMS) for label in labels}
    return [label for label in ARMS if label in given]
