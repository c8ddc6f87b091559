"""Statistics of single images, shrunk towards their group's: the formula, its gradients, and the networks that are trained with it."""

import math

import pytest
import torch
from torch import nn

from localnorm import (
    LocalNorm1d,
    LocalNorm2d,
    LocalNorm3d,
    convert_to_localnorm,
    estimate_statistics,
    predict,
    use_mode,
)
from localnorm._kernels import group_of_each_image
from localnorm._shrunk import PART
from localnorm.layers import ASSIGNMENTS
from localnorm.settings import Shrinkage, TrainConfig
from localnorm.train import fit
from localnorm.train.draws import draw

LAYOUTS = [torch.contiguous_format, torch.channels_last]
few_images = pytest.mark.filterwarnings("ignore:num_groups=. needs at least . images")


def formula(x, layer, prior):
    """Image by image, in plain words."""
    group = group_of_each_image(len(x), min(layer.num_groups, len(x)), layer.assignment, x.device)
    priors = [prior] * len(x) if isinstance(prior, float) or prior.dim() == 0 else prior
    normalised = []
    for i, image in enumerate(x):
        together = x[group == group[i]].movedim(1, 0).flatten(1)  # (C, S*P)
        own = image.flatten(1)  # (C, P)
        positions = own.shape[1]
        a = 1.0 if math.isinf(priors[i]) else float(priors[i]) / (float(priors[i]) + positions)
        between = together.mean(1) - own.mean(1)
        mean = a * together.mean(1) + (1 - a) * own.mean(1)
        var = a * together.var(1, correction=0) + (1 - a) * own.var(1, correction=0) + a * (1 - a) * between**2
        z = (own - mean[:, None]) / torch.sqrt(var[:, None] + layer.eps)
        normalised.append((z * layer.weight[group[i], :, None] + layer.bias[group[i], :, None]).view_as(image))
    return torch.stack(normalised)


def layer_and_images(kind, shape, num_groups, assignment, dtype=torch.double):
    torch.manual_seed(0)
    layer = kind(shape[1], num_groups, assignment=assignment, dtype=dtype)
    for parameter in (layer.weight, layer.bias):
        nn.init.normal_(parameter)
    ones = (1,) * (len(shape) - 2)
    spread, place = torch.rand(shape[0], shape[1], *ones), torch.randn(shape[0], shape[1], *ones)
    return layer, torch.randn(shape, dtype=dtype) * spread + 2 * place


@few_images
@pytest.mark.parametrize("prior", [0.0, 16.0, math.inf, torch.tensor(5.0)])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [1, 7, 8])
@pytest.mark.parametrize("num_groups", [1, 3, 4])
def test_each_image_has_its_statistics_shrunk_towards_its_groups(num_groups, batch, assignment, prior):
    for layout in LAYOUTS:
        layer, x = layer_and_images(LocalNorm2d, (batch, 3, 4, 5), num_groups, assignment)
        x = x.contiguous(memory_format=layout).requires_grad_()
        with use_mode("batch", prior=prior):
            y = layer(x)
        expected = formula(x, layer, prior)
        torch.testing.assert_close(y, expected)
        towards = torch.randn_like(y)
        inputs = (x, layer.weight, layer.bias)
        for ours, theirs in zip(*(torch.autograd.grad(out, inputs, towards) for out in (y, expected)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("kind", "shape"), [(LocalNorm1d, (8, 3, 5)), (LocalNorm3d, (8, 3, 2, 3, 2))])
def test_other_ranks_follow_the_formula_too(kind, shape):
    layer, x = layer_and_images(kind, shape, 2, "interleaved")
    with use_mode("batch", prior=4.0):
        torch.testing.assert_close(layer(x), formula(x, layer, 4.0))


def test_each_image_may_have_a_prior_of_its_own_and_each_layer_too():
    layer, x = layer_and_images(LocalNorm2d, (6, 3, 4, 4), 2, "contiguous")
    priors = torch.tensor([0.0, 1, 16, 100, 1e6, math.inf])
    with use_mode("batch", prior=priors):
        torch.testing.assert_close(layer(x), formula(x, layer, priors))
    given = iter([2.0, 50.0])
    with use_mode("batch", prior=lambda: next(given)):
        torch.testing.assert_close(layer(x), formula(x, layer, 2.0))
        torch.testing.assert_close(layer(x), formula(x, layer, 50.0))


@pytest.mark.parametrize("batch", [4, 5])
def test_gradcheck_and_gradgradcheck_of_the_shrunken_layer(batch):
    layer, x = layer_and_images(LocalNorm2d, (batch, 2, 3, 2), 2, "interleaved")

    def call(x, weight, bias):
        with use_mode("batch", prior=3.0):
            return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (x.requires_grad_(), layer.weight, layer.bias)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_a_batch_of_several_parts_is_computed_as_one():
    images = 2 * PART // (16 * 32 * 32) + 3
    layer, x = layer_and_images(LocalNorm2d, (images, 16, 32, 32), 1, "contiguous", torch.float32)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    towards = torch.randn_like(x)
    with use_mode("batch", prior=256.0):
        ours = torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), towards)
        y = layer(x.detach())
    expected = formula(x.double(), layer.double(), 256.0)
    theirs = torch.autograd.grad(expected, (x, layer.weight, layer.bias), towards.double())
    torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[0], theirs[0].float(), atol=1e-5, rtol=1e-4)
    for mine, right in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, right.float(), atol=2e-2, rtol=1e-4)  # sums of 35,000 numbers


@pytest.mark.parametrize("images", [8, 2 * PART // (3 * 16 * 16) // 2 * 2 + 2], ids=["few", "several parts"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_images_have_float32_statistics_when_they_shrink(dtype, layout, images):
    layer, x = layer_and_images(LocalNorm2d, (images, 3, 16, 16), 2, "interleaved", torch.float32)
    x = x.to(dtype, memory_format=layout).requires_grad_()
    with use_mode("batch", prior=64.0):
        y = layer(x)
    expected = formula(x.float(), layer, 64.0)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))
    towards = torch.randn_like(expected).to(dtype)
    ours, theirs = torch.autograd.grad(y, x, towards)[0], torch.autograd.grad(expected, x, towards.float())[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=2**-7)


def test_a_large_mean_costs_a_shrunken_layer_no_more_than_the_inputs_own_rounding():
    layer, x = layer_and_images(LocalNorm2d, (8, 3, 16, 16), 2, "contiguous", torch.float32)
    x = x + 1e4
    with use_mode("batch", prior=64.0):
        y = layer(x)
    torch.testing.assert_close(y, formula(x.double(), layer.double(), 64.0).float(), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_activation_may_overwrite_the_result(layout):
    layer, x = layer_and_images(LocalNorm2d, (4, 3, 8, 8), 2, "contiguous", torch.float32)
    x = x.contiguous(memory_format=layout).requires_grad_()
    with use_mode("batch", prior=64.0):
        expected, overwritten = layer(x).relu(), layer(x).relu_()
    torch.testing.assert_close(overwritten, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (overwritten, expected)))


def test_a_map_of_one_value_has_no_variance_and_no_gradient_that_is_not_a_number():
    layer, x = layer_and_images(LocalNorm2d, (4, 3, 8, 8), 2, "contiguous", torch.float32)
    x[0, 0] = 5.0
    x[1] = -2.0
    x.requires_grad_()
    with use_mode("batch", prior=64.0):
        y = layer(x)
    torch.testing.assert_close(y, formula(x.double(), layer.double(), 64.0).float(), atol=1e-4, rtol=1e-4)
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_an_infinite_prior_is_plain_training_and_zero_is_each_image_alone():
    layer, x = layer_and_images(LocalNorm2d, (8, 3, 4, 4), 2, "contiguous")
    with use_mode("batch", prior=math.inf):
        torch.testing.assert_close(layer(x), layer.train()(x))
    with use_mode("batch", prior=0.0):
        shrunk = layer(x)
    with use_mode("single", group=1):
        torch.testing.assert_close(shrunk[4:], layer(x[4:]))


@pytest.mark.parametrize("batch", [8, 9])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_stored_statistics_move_as_in_plain_training(assignment, batch):
    layers = [LocalNorm2d(3, 4, assignment=assignment, track_running_stats=True, dtype=torch.double) for _ in range(2)]
    x = torch.randn(batch, 3, 4, 5, dtype=torch.double) + 2
    layers[0](x)
    with use_mode("batch", prior=16.0):
        layers[1](x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layers[1], name), getattr(layers[0], name))


def test_what_traces_the_layer_gets_the_same_values():
    layer, x = layer_and_images(LocalNorm2d, (6, 3, 4, 4), 2, "interleaved")

    def call(x):
        with use_mode("batch", prior=8.0):
            return layer(x)

    expected = call(x)
    torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(x), expected)
    tangent = torch.randn_like(x)
    _, pushed = torch.func.jvp(call, (x,), (tangent,))
    step = 1e-6 * tangent
    torch.testing.assert_close(pushed, (call(x + step) - call(x - step)) / 2e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": -1.0}, "mode='batch' takes a prior of at least 0"),
        ({"prior": torch.tensor(-1.0)}, "at least 0"),
        ({"prior": torch.tensor([4.0, float("nan")])}, "at least 0"),
        ({"prior": "4"}, "a number, or a tensor"),
        ({"prior": torch.ones(2, 1)}, r"got shape \(2, 1\)"),
        ({"prior": torch.tensor(4.0, requires_grad=True)}, "not learned"),
        ({"prior": 4.0, "group_size": 2}, "give one of them"),
        ({"prior": 4.0, "group": 1}, "drop it"),
    ],
)
def test_wrong_options_of_shrinking_are_refused_before_the_block(options, message):
    with pytest.raises(ValueError, match=message):
        use_mode("batch", **options)


@pytest.mark.parametrize(
    ("prior", "message"),
    [(-5.0, "at least 0"), (torch.tensor(-50.0), "at least 0"), (torch.rand(3), r"\(B,\), here \(4,\)")],
)
def test_what_a_function_draws_for_a_layer_is_checked_too(prior, message):
    with use_mode("batch", prior=lambda: prior), pytest.raises(ValueError, match=message):
        LocalNorm2d(2, 2)(torch.randn(4, 2, 3, 3))


def test_one_value_per_channel_is_refused_where_images_shrink():
    with use_mode("batch", prior=4.0), pytest.raises(ValueError, match="more than 1 value per channel"):
        LocalNorm1d(3, num_groups=4)(torch.randn(4, 3))


# ------------------------------------------------------------------------------------------------------------- the training


@pytest.mark.parametrize(("per", "shape"), [("step", ()), ("image", (64,)), ("layer", (3, 1))])
def test_n0_is_drawn_log_uniformly_and_a_share_of_draws_is_plain(per, shape):
    config = TrainConfig(
        "small", epochs=1, batch_size=64, shrunk={"lowest": 4, "highest": 1024, "plain": 0.25, "drawn_per": per}
    )
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(config, "bn_shrunk", 3, 0.5, generator).prior for _ in range(2000)]
    assert drawn[0].shape == shape
    drawn = torch.cat([each.flatten() for each in drawn])
    assert abs(drawn.isinf().double().mean().item() - 0.25) < 0.04
    finite = drawn[drawn.isfinite()]
    assert finite.min() >= 4
    assert finite.max() <= 1024
    assert abs(finite.log2().mean().item() - 6) < 0.2  # the middle of 2 and 10


@pytest.mark.parametrize(("progress", "lowest"), [(0.0, 1024), (0.1, 256), (0.2, 64), (0.5, 4), (1.0, 4)])
def test_a_ramp_lowers_the_lowest_n0_by_degrees(progress, lowest):
    shrunk = {"lowest": 4, "highest": 1024, "plain": 0, "ramp": 0.4}
    config = TrainConfig("small", epochs=1, batch_size=64, shrunk=shrunk)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw(config, "bn_shrunk", 3, progress, generator).prior for _ in range(500)])
    assert lowest * 0.999 <= drawn.min() < lowest * 1.1
    assert drawn.max() <= 1024 * 1.001


def test_only_networks_that_shrink_draw_a_prior():
    config = TrainConfig("small", epochs=1, batch_size=64, num_groups=4)
    for network in ("bn", "ln", "ln_drawn", "gbn"):
        assert draw(config, network, 3, 0.5, torch.Generator()).prior is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lowest": 0}, "lowest"),
        ({"lowest": 9, "highest": 8}, "lowest"),
        ({"plain": 1.5}, "share"),
        ({"ramp": 1.5}, "share"),
        ({"drawn_per": "epoch"}, "choose one of step, image, layer"),
        ({"strength": 1}, "it knows lowest, highest, plain"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig("small", epochs=1, batch_size=64, shrunk=settings)
    assert Shrinkage().plain < 1


@pytest.mark.parametrize("network", ["bn_shrunk", "ln_shrunk"])
def test_a_network_that_was_trained_to_shrink_answers_one_image_as_in_any_batch(digits, network):
    config = TrainConfig("small", epochs=2, batch_size=64, num_groups=4, augment={"shift": 0.125}, threads=1)
    model = fit(digits, config, network, seed=0).model
    images = digits.images("test")[:40].float() / 8 - 1
    if network == "ln_shrunk":
        estimate_statistics(model, [digits.images("train")[:256].float() / 8 - 1])
    together = predict(model, images, "prior", prior=64)
    alone = torch.cat([predict(model, image[None], "prior", prior=64) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(together.argmax(1), alone.argmax(1))
    assert torch.equal(predict(model, images, "prior", prior=64, batch_size=1), alone)


def test_shrinking_makes_a_network_better_on_single_images(digits):
    config = TrainConfig("small", epochs=6, batch_size=64, num_groups=4, augment={"shift": 0.125}, threads=1)
    images, labels = digits.images("test").float() / 8 - 1, digits.labels("test")
    right = {}
    for network in ("bn", "bn_shrunk"):
        model = fit(digits, config, network, seed=0).model
        right[network] = (predict(model, images, "prior", prior=4).argmax(1) == labels).double().mean().item()
    assert right["bn_shrunk"] > right["bn"] + 0.05


def test_a_converted_network_of_ones_own_trains_in_three_lines():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    net = convert_to_localnorm(net, num_groups=1, track_running_stats=True)
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(2, (16,))
    with use_mode("batch", prior=64):
        nn.functional.cross_entropy(net(images), labels).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
