"""Trained networks that come with the repository: list them, load one, and see what it is.

A network is one safetensors file in data/networks: its weights in half precision, its stored statistics in float32, and a
description in the header, which is JSON. Loading runs no code from the file. `localnorm.publish_network` writes such files.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm import paths
from localnorm.convert import convert_to_localnorm
from localnorm.data.augment import standardise
from localnorm.eval_mode import set_eval_mode
from localnorm.layers import LocalNorm
from localnorm.models import MODELS, make_model
from localnorm.networks import LAYERS, NETWORKS, find

__all__ = [
    "PLACE",
    "PublishedNetwork",
    "count_right",
    "load_published",
    "load_trained_layers",
    "published",
    "read_about",
]

PLACE = "data/networks"  # in a project
# what the description of a network says; see `localnorm.publish_network`
ABOUT = ("accuracy", "arm", "checked", "classes", "data", "licence", "mean", "network", "statistics", "std", "training")


@dataclass(frozen=True)
class PublishedNetwork:
    """A trained network, ready to predict, with what one has to know before using it.

    Attributes:
        model: in evaluation mode, in float32, on the CPU, with the statistics of its arm: ``model(pixels)`` gives logits.
        name: of its file.
        arm: layer, training and statistics, as in the paper: "LN drawn single".
        data: the title of the data set that it was trained on.
        classes: their names, in the order of the logits.
        shape: (C, H, W) of the images that it was trained on.
        mean, std: of each channel, in 0 ... 255; see `standardise`.
        licence: of the weights, and of the images that they come from.
        accuracy: "clean" and "noisy", as shares of test images, of the same network in float32.
        about: everything that its file says.
    """

    model: nn.Module
    name: str
    arm: str
    data: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    accuracy: dict[str, float]
    about: dict

    def standardise(self, images: Tensor) -> Tensor:
        """Pixels as the network wants them: (images - mean) / std.

        Args:
            images: (N, C, H, W), uint8 or floating, in 0 ... 255.

        Returns:
            (N, C, H, W) float32.
        """
        return standardise(images, self.mean, self.std)


def published() -> dict[str, str]:
    """The networks that can be loaded by name: name -> what it is, in one line. Empty where there are none.

    They lie in data/networks of the project that the working folder belongs to, or of the checkout that this package runs from.
    """
    return {file.stem: _in_one_line(read_about(file)) for file in sorted(_folder().glob("*.safetensors"))}


def load_published(name: str | Path) -> PublishedNetwork:
    """A trained network, ready to predict: in evaluation mode, with the statistics of its arm.

    Args:
        name: one of `published()`, or the path of a file of that kind, which ends in ".safetensors".

    Raises:
        ValueError: no network has this name, which names those that there are; the file is damaged, or describes no network
            of this package.
        FileNotFoundError: there is no file at this path.

    Example:
        >>> from localnorm import load_published
        >>> network = load_published("cifar10-resnet32-bn-prior")  # doctest: +SKIP
        >>> images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
        >>> network.classes[network.model(network.standardise(images)).argmax()]  # doctest: +SKIP
        'truck'
    """
    file = _find(name)
    about = read_about(file)
    data = about["data"]
    model = _with_statistics(_as_trained(file, about), about["statistics"])
    return PublishedNetwork(
        model=model,
        name=file.stem,
        arm=about["arm"],
        data=data["title"],
        classes=tuple(about["classes"]),
        shape=tuple(data["shape"]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        licence=about["licence"],
        accuracy={metric: found["share"] for metric, found in about["accuracy"].items()},
        about=about,
    )


def load_trained_layers(name: str) -> nn.Module:
    """A published network in evaluation mode with the layers that it was trained with, to train it on.

    Args:
        name: one of `published()`.

    Raises:
        ValueError: there is no such network, or its file is none.
    """
    file = _find(name)
    return _as_trained(file, read_about(file))


def _as_trained(file: Path, about: dict) -> nn.Module:
    network = about["network"]
    try:
        model = make_model(**network)
        if about["statistics"]["mode"] == "gated":  # the file has more than a BatchNorm has places for
            model = _with_localnorm(model)
        model.load_state_dict(load_file(file))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{file.name} says it is {network['name']} with the network {network['network']}, and does not fit: {error}"
        ) from None
    return model.eval().to(memory_format=torch.channels_last)


def read_about(file: Path) -> dict:
    """What the header of a published network says, without its weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or describes no published network.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no published network at {file}; localnorm.published() lists those that have a name")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        about = json.loads(metadata["published"])
        if missing := [key for key in ABOUT if key not in about]:
            raise KeyError(*missing)
        if about["network"].get("pretrained"):  # make_model would fetch weights
            raise ValueError("pretrained is none of its keys")
        find("model", about["network"]["name"], MODELS)
        find("network", about["network"]["network"], NETWORKS)
    except SafetensorError as error:
        raise ValueError(
            f"{file.name} is damaged or no safetensors file ({error}); get it again: git checkout {file.name}"
        ) from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file.name} describes no published network ({error}); only files that `python -m localnorm.pipeline "
            "publish-network` wrote can be loaded"
        ) from None
    return about


def count_right(network: PublishedNetwork, images: Tensor, labels: Tensor, batch_size: int) -> int:
    """How many images a network answers rightly, asked in whole batches.

    Args:
        images: (N, C, H, W) uint8; N is a multiple of `batch_size`.
        labels: (N,).
        batch_size: images together; matters where statistics come from the batch.
    """
    right = 0
    with torch.no_grad():
        for pixels, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            pixels = network.standardise(pixels).contiguous(memory_format=torch.channels_last)
            right += int((network.model(pixels).argmax(1) == truth).sum())
    return right


def _find(name: str | Path) -> Path:
    file = Path(name)
    if file.suffix != ".safetensors":
        file = _folder() / f"{name}.safetensors"
        if not file.is_file():
            there = ", ".join(sorted(each.stem for each in _folder().glob("*.safetensors")))
            raise ValueError(
                f"no published network is called {str(name)!r}; {_folder()} has {there or 'none'}. They come with a checkout of the "
                "repository; elsewhere, give the path of a .safetensors file"
            )
    return file


def _folder() -> Path:
    """data/networks of the working folder's project; without one, of the checkout that this package runs from."""
    own = Path(__file__).parent.parent / PLACE
    with contextlib.suppress(FileNotFoundError):
        folder = paths.project() / PLACE
        return folder if folder.is_dir() else own
    return own


def _with_statistics(model: nn.Module, statistics: dict) -> nn.Module:
    """The same network, its evaluation mode set; a BatchNorm that is to use other than its stored statistics becomes a LocalNorm
    with one group, which is the same layer and knows the modes."""
    if statistics["mode"] != "fixed":
        model = _with_localnorm(model)
    return set_eval_mode(model, **statistics) if _has(model, LocalNorm) else model


def _with_localnorm(model: nn.Module) -> nn.Module:
    if _has(model, _BatchNorm):
        convert_to_localnorm(model, 1, track_running_stats=True, inplace=True)
    return model


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _in_one_line(about: dict) -> str:
    shares = ", ".join(f"{100 * found['share']:.1f} % {metric}" for metric, found in about["accuracy"].items())
    layer = LAYERS[NETWORKS[about["network"]["network"]].layer].partition(":")[0]
    return f"{about['data']['title']}, {about['network']['name']} with {layer}, {about['arm']}: {shares}"
