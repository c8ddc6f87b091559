"""The networks of the experiments, without torch: a normalisation layer, and how it is trained.

It is all of the vocabulary that training reads; the rest is in `localnorm.arms`, which may change without making a training stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LAYERS", "NETWORKS", "Network", "find"]

LAYERS = {
    "BN": "BatchNorm",
    "LN": "LocalNorm",
    "GBN": "Ghost BatchNorm: LocalNorm's groups under one (gamma, beta)",
    "GN": "GroupNorm",
    "IN": "InstanceNorm",
    "TaskNorm": "TaskNorm: each image's statistics pooled with the batch's by a weight that is learned",
    "BIN": "Batch-Instance Normalization: BatchNorm's result and InstanceNorm's, mixed by weights that are learned",
}


@dataclass(frozen=True)
class Network:
    """A normalisation layer and how it is trained: what a training run makes.

    Args:
        key: its name in params.yaml, in run names and in file names.
        layer: a key of LAYERS.
        training: "plain"; "drawn": the number of images per group is drawn anew for each training step; "shrunk": each image has
            statistics of its own, shrunk towards its group's by a strength that is drawn anew for each step.
    """

    key: str
    layer: str
    training: str = "plain"

    @property
    def label(self) -> str:
        """ "LN", "LN drawn": the first words of its arms."""
        return self.layer if self.training == "plain" else f"{self.layer} {self.training}"

    @property
    def has_groups(self) -> bool:
        """Whether its layers are LocalNorm's, with K groups."""
        return self.layer in ("LN", "GBN")


NETWORKS = {
    network.key: network
    for network in (
        Network("bn", "BN"),
        Network("ln", "LN"),
        Network("ln_drawn", "LN", "drawn"),
        Network("bn_shrunk", "BN", "shrunk"),
        Network("ln_shrunk", "LN", "shrunk"),
        Network("gbn", "GBN"),
        Network("gn", "GN"),
        Network("in", "IN"),
        Network("tasknorm", "TaskNorm"),
        Network("bin", "BIN"),
    )
}


def find(kind: str, name: str, known: Mapping[str, object]):
    """The entry of that name in a dictionary.

    Raises:
        ValueError: there is none; names those that there are.

    Example:
        >>> find("network", "ln_drawn", NETWORKS).label
        'LN drawn'
    """
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")
    return known[name]
