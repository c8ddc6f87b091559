"""Publishes a BatchNorm and a LocalNorm network for tests, as `localnorm.publish_network` does with runs that were asked."""

from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from localnorm import convert_to_localnorm, estimate_statistics, paths, published_networks
from localnorm.models import make_model
from localnorm.publish_network import _bytes, _rounded

PROVENANCE = {"checksum": "sha256:0", "split": {"seed": 0}, "lossy": False}


def publish_pair(
    project: Path,
    experiment: str,
    models: dict[str, nn.Module],
    network: dict,
    dataset=None,
    classes: tuple[str, ...] = (),
    shape: tuple[int, int, int] = (),
    priors: dict[str, float] = MappingProxyType({"bn": 64.0, "ln": 16.0}),
) -> None:
    """Write <experiment>-bn-prior and <experiment>-ln-prior.

    Args:
        models: "bn" and "ln" -> network with stored statistics.
        network: the arguments of `make_model` that both have.
        dataset: that they were trained on; else `classes` and `shape` say what it was.
    """
    classes, shape = (dataset.classes, dataset.shape) if dataset else (classes, shape)
    about = {
        "classes": classes,
        "mean": dataset.mean if dataset else [110.0] * shape[0],
        "std": dataset.std if dataset else [70.0] * shape[0],
        "data": {
            "title": dataset.title if dataset else experiment,
            "shape": list(shape),
            "counts": dict(dataset.counts) if dataset else {"train": 1000, "validation": 0, "test": 0},
            "provenance": dataset.provenance if dataset else PROVENANCE,
        },
        "training": {"seed": 3, "epochs": 2, "batch_size": 64, "num_groups": network.get("num_groups", 1)},
        **{"accuracy": {}, "checked": {}, "licence": "none: of a test"},
    }
    for kind, model in models.items():
        of_kind = {"network": network | {"network": kind}, "arm": f"{kind.upper()} prior"}
        strength = {"statistics": {"mode": "prior", "prior": priors[kind]}}
        file = project / published_networks.PLACE / f"{experiment}-{kind}-prior.safetensors"
        paths.write(file, _bytes(_rounded(model), about | of_kind | strength))


def untrained(network: dict, images: Tensor) -> dict[str, nn.Module]:
    """A BatchNorm network, and a LocalNorm network with the same weights, with the stored statistics of these images (N, C, H, W)."""
    torch.manual_seed(0)
    bn = make_model(**network, network="bn")
    estimate_statistics(bn, [images])
    ln = convert_to_localnorm(bn, network["num_groups"], assignment="contiguous", track_running_stats=True)
    return {"bn": bn, "ln": ln}
