"""The layer equals its formula, keeps to it under every transform of torch, and says what is wrong with bad input."""

import contextlib
import copy
import math
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from localnorm import _kernels
from localnorm._kernels import LARGE_IMAGE
from localnorm.layers import ASSIGNMENTS, LocalNorm1d, LocalNorm2d, LocalNorm3d, local_norm, use_mode
from localnorm.modes import Mode, set_mode

torch.set_num_threads(1)

INPUTS = [
    (LocalNorm1d, (12, 3)),
    (LocalNorm1d, (8, 3, 5)),
    (LocalNorm2d, (8, 3, 4, 5)),
    (LocalNorm3d, (8, 3, 2, 3, 2)),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
fewer_images_than_groups = pytest.mark.filterwarnings("ignore:num_groups=. needs at least . images")
traced_by_torch_jit = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")


def groups_of(batch, num_groups, assignment):
    """The images of each group, written down without a reshape."""
    groups = min(batch, num_groups)
    if assignment == "interleaved":
        return [list(range(k, batch, groups)) for k in range(groups)]
    sizes = [batch // groups + (k < batch % groups) for k in range(groups)]
    starts = [sum(sizes[:k]) for k in range(groups)]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def formula(x, weight, bias, num_groups, assignment, eps=1e-5):
    y = torch.empty_like(x)
    ones = (1,) * (x.dim() - 2)
    for k, images in enumerate(groups_of(len(x), num_groups, assignment)):
        part = x[images].transpose(0, 1).flatten(1)  # (C, S*H*W)
        mean = part.mean(1)
        var = ((part - mean[:, None]) ** 2).mean(1)
        shape = (1, -1, *ones)
        y[images] = (x[images] - mean.view(shape)) / torch.sqrt(var.view(shape) + eps) * weight[k].view(shape) + bias[
            k
        ].view(shape)
    return y


def randomized(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2)
    return layer


def equals_formula(layer, x, atol):
    """Values and the gradients of input, weight and bias."""
    probe = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    inputs = (x.requires_grad_(), layer.weight, layer.bias)
    got = layer(x)
    want = formula(x, layer.weight, layer.bias, layer.num_groups, layer.assignment, layer.eps)
    grads = torch.autograd.grad((got * probe).sum(), inputs)
    wants = torch.autograd.grad((want * probe).sum(), inputs)
    for a, b in zip((got, *grads), (want, *wants), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize(("kind", "shape"), INPUTS)
@pytest.mark.parametrize("num_groups", [1, 3, 4])
def test_layer_equals_the_formula_with_its_gradients(kind, shape, num_groups, assignment):
    torch.manual_seed(0)
    layer = randomized(kind(3, num_groups, assignment=assignment, dtype=torch.float64))
    equals_formula(layer, torch.randn(shape, dtype=torch.float64), 1e-10)


@fewer_images_than_groups
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 13),
    num_groups=st.integers(1, 9),
    assignment=st.sampled_from(ASSIGNMENTS),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 9),
)
def test_any_batch_in_any_layout_equals_the_formula(batch, num_groups, assignment, layout, seed):
    torch.manual_seed(seed)
    layer = randomized(LocalNorm2d(2, num_groups, assignment=assignment, dtype=torch.float64))
    x = torch.randn(batch, 2, 3, 4, dtype=torch.float64).contiguous(memory_format=layout)
    equals_formula(layer, x, 1e-10)
    assert layer(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [4, 5])
def test_gradcheck_and_gradgradcheck(batch, layout, assignment):
    torch.manual_seed(0)
    x = torch.randn(batch, 2, 2, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.rand(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def f(x, weight, bias):
        return local_norm(x, 2, weight, bias, assignment=assignment)

    assert torch.autograd.gradcheck(f, (x, weight, bias))
    assert torch.autograd.gradgradcheck(f, (x, weight, bias))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradients_gradient_is_the_formulas(layout, assignment):
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.rand(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    probe = torch.randn(6, 2, 3, 3, dtype=torch.float64)

    def second(y):
        (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return torch.autograd.grad((first * probe).sum(), (x, weight))

    got = second(local_norm(x, 2, weight, bias, assignment=assignment))
    for a, b in zip(got, second(formula(x, weight, bias, 2, assignment)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "strided", [lambda x: x.transpose(2, 3), lambda x: x[::2], lambda x: x[:, :, ::2], lambda x: x[:, :2]]
)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_strided_input_equals_the_formula(strided, assignment):
    torch.manual_seed(0)
    x = strided(torch.randn(12, 4, 6, 6, dtype=torch.float64))
    equals_formula(randomized(LocalNorm2d(x.shape[1], 3, assignment=assignment, dtype=torch.float64)), x, 1e-10)


def test_one_group_is_batchnorm_in_training():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    local, batch = (
        randomized(n) for n in (LocalNorm2d(3, 1, dtype=torch.float64), nn.BatchNorm2d(3, dtype=torch.float64))
    )
    local.load_state_dict({"weight": batch.weight.detach()[None], "bias": batch.bias.detach()[None]})
    torch.testing.assert_close(local(x), batch(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_one_image_a_group_is_instancenorm_with_the_groups_affine(assignment):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    layer = randomized(LocalNorm2d(3, 4, assignment=assignment, dtype=torch.float64))
    want = F.instance_norm(x) * layer.weight[..., None, None] + layer.bias[..., None, None]
    torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_group_does_not_see_the_others(assignment):
    torch.manual_seed(0)
    x = torch.randn(7, 3, 4, 4)
    layer = LocalNorm2d(3, 3, assignment=assignment)
    for images in groups_of(7, 3, assignment):
        changed = torch.randn_like(x)
        changed[images] = x[images]
        torch.testing.assert_close(layer(changed)[images], layer(x)[images])
        outside = [i for i in range(7) if i not in images]
        assert not torch.allclose(layer(changed)[outside], layer(x)[outside], atol=0.1)


def test_training_and_evaluation_normalise_alike():
    x = torch.randn(9, 3, 4, 4)
    layer = LocalNorm2d(3, 4)
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_without_affine_there_is_nothing_to_train():
    x = torch.randn(8, 3, 4, 4)
    layer = LocalNorm2d(3, 4, affine=False)
    assert list(layer.state_dict()) == []
    torch.testing.assert_close(layer(x), LocalNorm2d(3, 4)(x))
    for layout in LAYOUTS:
        x = torch.randn(8, 3, 4, 4).contiguous(memory_format=layout).requires_grad_()
        LocalNorm2d(3, 4, affine=False, assignment="contiguous")(x).square().sum().backward()
        assert x.grad.isfinite().all()


def test_device_and_dtype_reach_every_tensor():
    layer = LocalNorm2d(3, 4, track_running_stats=True, device="meta", dtype=torch.float64)
    floating = [t for t in layer.state_dict().values() if t.is_floating_point()]
    assert len(floating) == 4
    assert all(t.device.type == "meta" and t.dtype == torch.float64 for t in floating)
    assert layer.num_batches_tracked.device.type == "meta"


def test_meta_layer_gives_shapes():
    for assignment in ASSIGNMENTS:
        layer = LocalNorm2d(3, 4, assignment=assignment, device="meta")
        assert layer(torch.empty(10, 3, 5, 5, device="meta")).shape == (10, 3, 5, 5)


def test_repr_shows_the_arguments():
    layer = LocalNorm2d(3, 4, eps=1e-3, assignment="contiguous", track_running_stats=True, momentum=0.2)
    assert repr(layer) == (
        "LocalNorm2d(3, num_groups=4, eps=0.001, affine=True, assignment='contiguous', "
        "track_running_stats=True, momentum=0.2)"
    )
    assert eval(repr(layer)).state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_equal_the_layer_and_share_nothing(again):
    x = torch.randn(8, 3, 4, 4)
    layer = randomized(LocalNorm2d(3, 4, track_running_stats=True))
    other = again(layer)
    assert torch.equal(other(x), layer(x))
    assert not {t.data_ptr() for t in other.state_dict().values()} & {t.data_ptr() for t in layer.state_dict().values()}


def test_a_layer_without_training_statistics_takes_those_of_a_file():
    stored = LocalNorm2d(3, 4, track_running_stats=True)
    stored(torch.randn(8, 3, 5, 5) + 2)
    layer = LocalNorm2d(3, 4)
    layer.load_state_dict(stored.state_dict())
    assert torch.equal(layer.running_mean, stored.running_mean)
    with use_mode("prior", prior=4):
        assert layer(torch.randn(1, 3, 5, 5)).shape == (1, 3, 5, 5)


def test_state_dict_round_trip_and_shapes():
    layer = randomized(LocalNorm2d(3, 4, track_running_stats=True))
    layer(torch.randn(8, 3, 4, 4))
    state = layer.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "weight": (4, 3), "bias": (4, 3), "running_mean": (4, 3), "running_var": (4, 3), "num_batches_tracked": (),
    }  # fmt: skip
    other = LocalNorm2d(3, 4, track_running_stats=True)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), state.values(), strict=True))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_empty_batch_gives_an_empty_output_and_zero_gradients(assignment):
    layer = LocalNorm2d(3, 4, assignment=assignment)
    y = layer(torch.empty(0, 3, 4, 4))
    assert y.shape == (0, 3, 4, 4)
    y.sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros(4, 3))
    layer.keep_running_stats()
    for mode, options in (("single", {}), ("prior", {"prior": 4.0}), ("fixed", {})):
        with use_mode(mode, **options):
            assert layer(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [8, 9])
def test_running_statistics_are_the_moving_groups_with_unbiased_variance(batch, assignment, layout):
    torch.manual_seed(0)
    layer = LocalNorm2d(3, 4, assignment=assignment, track_running_stats=True, momentum=0.25)
    x = (torch.randn(batch, 3, 5, 5) * 3 + 2).contiguous(memory_format=layout)
    layer(x)
    for k, images in enumerate(groups_of(batch, 4, assignment)):
        part = x[images].transpose(0, 1).flatten(1)
        torch.testing.assert_close(layer.running_mean[k], 0.25 * part.mean(1))
        torch.testing.assert_close(layer.running_var[k], 0.75 + 0.25 * part.var(1))
    assert layer.num_batches_tracked == 1
    kept = layer.running_mean.clone()
    layer.eval()(x)
    with use_mode("single"):
        layer.train()(x)
    assert torch.equal(layer.running_mean, kept)


def test_momentum_none_averages_the_batches():
    torch.manual_seed(0)
    layer = LocalNorm2d(3, 2, track_running_stats=True, momentum=None)
    batches = [torch.randn(4, 3, 5, 5) + i for i in range(3)]
    for x in batches:
        layer(x)
    want = torch.stack([x.unflatten(0, (2, 2)).mean((0, 3, 4)) for x in batches]).mean(0)
    torch.testing.assert_close(layer.running_mean, want)


def test_a_training_batch_that_leaves_groups_without_images_warns():
    layer = LocalNorm2d(3, 4)
    with pytest.warns(
        UserWarning, match=r"num_groups=4 needs at least 4 images in a training batch, got 3: .*drop_last=True"
    ):
        layer(torch.randn(3, 3, 4, 4)).sum().backward()
    assert not layer.weight.grad[3].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for images in (0, 4, 5):
            layer(torch.randn(images, 3, 4, 4))
        with use_mode("batch", group_size=3):
            layer(torch.randn(3, 3, 4, 4))
        with torch.no_grad():
            layer(torch.randn(3, 3, 4, 4))
        layer.eval()(torch.randn(3, 3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine", ["none", "float32", "half"])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_half_inputs_have_float32_statistics(dtype, affine, assignment):
    torch.manual_seed(0)
    x = (torch.randn(16, 3, 8, 8) + 3).to(dtype)
    layer = LocalNorm2d(3, 4, assignment=assignment, affine=affine != "none", track_running_stats=True, momentum=1.0)
    if affine == "half":
        layer.to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    want = formula(x.double(), *torch.tensor([[1.0], [0.0]]).expand(2, 4).double()[..., None], 4, assignment)
    # Half an ulp at the largest output (between 2 and 4); statistics in half precision miss this bound.
    assert (y.double() - want).abs().max() <= 1.01 * torch.finfo(dtype).eps * 2 / 2 + 1e-5
    torch.testing.assert_close(layer.running_mean.double().mean(), x.double().mean(), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_affine_in_float32(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), LocalNorm2d(4, 2))
    with torch.autocast("cpu", dtype=dtype):
        y = net(torch.randn(4, 3, 8, 8))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert net[1].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize(("layout", "atol"), [(torch.contiguous_format, 2e-3), (torch.channels_last, 2e-2)])
def test_a_large_mean_costs_no_more_than_the_inputs_own_rounding(assignment, layout, atol):
    # float32 holds 1e4 to 5e-4; E[x^2] - E[x]^2 would be wrong by whole units. torch's channels_last kernel adds a
    # plain
    # float32 sum.
    torch.manual_seed(0)
    x = (torch.randn(32, 3, 16, 16) + 1e4).contiguous(memory_format=layout)
    want = local_norm(x.double(), 4, assignment=assignment)
    assert (local_norm(x, 4, assignment=assignment) - want).abs().max() < atol
    layer = LocalNorm2d(3, 4)
    with use_mode("single"):
        assert (layer(x) - local_norm(x.double(), len(x))).abs().max() < 2e-3


# Modes


def test_single_mode_normalises_each_image_alone_with_one_groups_affine():
    torch.manual_seed(0)
    layer = randomized(LocalNorm2d(3, 4))
    for layout in LAYOUTS:
        x = torch.randn(5, 3, 6, 6).contiguous(memory_format=layout)
        with use_mode("single", group=2):
            y = layer(x)
        want = F.instance_norm(x) * layer.weight[2, :, None, None] + layer.bias[2, :, None, None]
        torch.testing.assert_close(y, want)
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 8, 48, 48), (2, 4, 16, 18, 18)])
def test_large_images_in_channels_last_are_normalised_alone_with_and_without_gradients(shape, affine):
    torch.manual_seed(0)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape).contiguous(memory_format=layout)
    layer = randomized((LocalNorm2d if len(shape) == 4 else LocalNorm3d)(shape[1], 4, affine=affine))
    assert x[0].numel() > LARGE_IMAGE
    for group in (3, torch.tensor([1, 0, 3])[: len(x)]):
        with set_mode(Mode("single", group)):
            tracked = layer(x)  # group_norm's kernel
            with torch.no_grad():
                y = layer(x)
        torch.testing.assert_close(y, tracked.detach(), rtol=1e-4, atol=1e-4)
        assert y.is_contiguous(memory_format=layout)


@fewer_images_than_groups
@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 4, 5, 5), 1), ((1, 4, 5, 5), 4), ((3, 4, 5, 5), 2), ((1, 32, 24, 24), 1)]
)
def test_a_group_of_one_image_has_the_gradients_of_the_formula_in_every_layout(
    shape, groups, assignment, layout, gradient
):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    layer = randomized(LocalNorm2d(shape[1], groups, assignment=assignment).double())
    grad = torch.randn_like(x)

    def gradients(forward, x, grad):
        x = x.requires_grad_()
        return torch.autograd.grad(forward(x * 1.0), [x, layer.weight, layer.bias], grad)

    def formula(x):
        parts = [i % min(groups, len(x)) for i in range(len(x))]
        if assignment == "contiguous":
            parts = sorted(parts)
        y = torch.empty_like(x)
        for k in set(parts):
            own = [i for i, part in enumerate(parts) if part == k]
            mean, var = x[own].mean((0, 2, 3), keepdim=True), x[own].var((0, 2, 3), correction=0, keepdim=True)
            weight, bias = (t[k].view(1, -1, 1, 1) for t in (layer.weight, layer.bias))
            y[own] = (x[own] - mean) / (var + layer.eps).sqrt() * weight + bias
        return y

    got = gradients(layer, x.contiguous(memory_format=layout), grad.contiguous(memory_format=gradient))
    for mine, want in zip(got, gradients(formula, x.clone(), grad), strict=True):
        torch.testing.assert_close(mine, want)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_large_images_in_groups_of_one_have_the_gradients_of_the_formula(assignment):
    torch.manual_seed(0)
    x = torch.randn(3, 8, 48, 48).contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    affine = torch.rand(2, 3, 8)

    def gradients(dtype, layout):
        leaves = [t.to(dtype).requires_grad_() for t in (x.contiguous(memory_format=layout), *affine)]
        y = local_norm(leaves[0], 3, *leaves[1:], assignment=assignment)
        return y, *torch.autograd.grad(y, leaves, grad.to(dtype))

    for got, want in zip(
        gradients(torch.float32, torch.channels_last), gradients(torch.float64, torch.contiguous_format), strict=True
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_prior_mode_is_its_formula_and_ends_in_single_and_fixed():
    torch.manual_seed(0)
    layer = randomized(LocalNorm2d(3, 4, track_running_stats=True, dtype=torch.float64))
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64) * 2 + 1
    layer(torch.randn(16, 3, 6, 6, dtype=torch.float64))
    image_mean, image_var = x.mean((2, 3)), x.var((2, 3), correction=0)
    train_mean, train_var = layer.running_mean[1], layer.running_var[1]
    a = 100 / (100 + 36)
    mean = a * train_mean + (1 - a) * image_mean
    var = a * train_var + (1 - a) * image_var + a * (1 - a) * (train_mean - image_mean) ** 2
    want = (x - mean[..., None, None]) / torch.sqrt(var + 1e-5)[..., None, None]
    want = want * layer.weight[1, :, None, None] + layer.bias[1, :, None, None]

    def run(mode, **options):
        with use_mode(mode, group=1, **options):
            return layer(x)

    torch.testing.assert_close(run("prior", prior=100), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(run("prior", prior=0), run("single"), rtol=0, atol=1e-10)
    torch.testing.assert_close(run("prior", prior=math.inf), run("fixed"), rtol=0, atol=0)
    want = F.batch_norm(x, train_mean, train_var, layer.weight[1], layer.bias[1])
    torch.testing.assert_close(run("fixed"), want, rtol=0, atol=1e-10)


def test_fixed_mode_with_one_group_is_batchnorm_in_evaluation():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5)
    local, batch = LocalNorm2d(3, 1, track_running_stats=True), nn.BatchNorm2d(3)
    for norm in (local, batch):
        norm(x)
    with use_mode("fixed"):
        torch.testing.assert_close(local(x), batch.eval()(x))


def test_a_group_size_splits_a_batch_into_consecutive_images_that_take_the_affines_in_turn():
    layer = randomized(LocalNorm2d(3, 2, track_running_stats=True))
    x = torch.randn(6, 3, 5, 5)
    with use_mode("batch", group_size=2):
        y = layer(x)
    assert not layer.running_mean.any()
    for group, affine in ((0, 0), (1, 1), (2, 0)):
        part = x[2 * group : 2 * group + 2]
        want = local_norm(part, 1, layer.weight[affine : affine + 1], layer.bias[affine : affine + 1])
        torch.testing.assert_close(y[2 * group : 2 * group + 2], want)
    with use_mode("batch", group_size=1):
        alone = layer(x)
    with use_mode("single", group=1):
        torch.testing.assert_close(alone[[1, 3, 5]], layer(x)[[1, 3, 5]])
    with use_mode("batch", group_size=4), pytest.raises(ValueError, match="group_size=4 does not divide a batch of 6"):
        layer(x)
    for mode, size in (("single", 2), ("batch", 0)):
        with pytest.raises(ValueError, match=f"belongs to mode='batch'; got group_size={size} and mode='{mode}'"):
            use_mode(mode, group_size=size)


def test_a_mode_ends_with_its_block_and_after_an_exception():
    layer, x = LocalNorm2d(3, 2), torch.randn(4, 3, 4, 4)
    before = layer(x)
    with use_mode("single"):
        with use_mode("batch"):
            assert torch.equal(layer(x), before)
        assert not torch.allclose(layer(x), before)
    assert torch.equal(layer(x), before)
    with pytest.raises(ValueError, match="needs 3 channels"), use_mode("single"):
        layer(x[:, :2])
    assert torch.equal(layer(x), before)


def test_a_mode_stays_in_its_thread():
    layer, x = LocalNorm2d(3, 2), torch.randn(4, 3, 4, 4)
    before, seen = layer(x), []
    with use_mode("single"):
        thread = threading.Thread(target=lambda: seen.append(layer(x)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], before)


@pytest.mark.parametrize("way", ["inside", "context_fn"])
def test_a_checkpointed_forward_runs_again_in_the_mode_that_it_is_given(way):
    torch.manual_seed(0)
    layer, x = randomized(LocalNorm2d(3, 4)), torch.randn(8, 3, 4, 4, requires_grad=True)
    probe = torch.randn_like(x)

    def in_pairs(x):
        with use_mode("batch", group_size=2):
            return layer(x)

    def checkpointed(x):
        if way == "inside":
            return checkpoint(in_pairs, x, use_reentrant=True)
        contexts = lambda: (contextlib.nullcontext(), use_mode("batch", group_size=2))  # noqa: E731
        with use_mode("batch", group_size=2):
            return checkpoint(layer, x, use_reentrant=False, context_fn=contexts)

    def gradients(forward):
        x.grad = layer.weight.grad = None
        (forward(x) * probe).square().sum().backward()
        return x.grad, layer.weight.grad

    for again, once in zip(gradients(checkpointed), gradients(in_pairs), strict=True):
        assert torch.equal(again, once)


# Transforms and export


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_compiles_whole_and_does_not_compile_again(assignment, dynamic):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = randomized(LocalNorm2d(3, 4, assignment=assignment))
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (8, 8, 16, 24) if dynamic else (8, 8):
            x = torch.randn(batch, 3, 5, 5)
            torch.testing.assert_close(compiled(x), layer(x))


@fewer_images_than_groups
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_compiled_layer_takes_ragged_batches(assignment):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = randomized(LocalNorm2d(3, 4, assignment=assignment))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (7, 3, 1, 9):
        x = torch.randn(batch, 3, 5, 5, requires_grad=True)
        plain = x.detach().clone().requires_grad_()
        y, want = compiled(x), layer(plain)
        torch.testing.assert_close(y, want)
        (grad,), (expected,) = (torch.autograd.grad(out.square().sum(), at) for out, at in ((y, x), (want, plain)))
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4)


def test_compiled_layer_follows_the_mode():
    torch._dynamo.reset()
    layer = randomized(LocalNorm2d(3, 4))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(8, 3, 5, 5)
    layer.keep_running_stats()
    layer.running_mean += 0.5
    for mode, prior in (
        ("batch", None),
        ("single", None),
        ("batch", None),
        ("prior", 4.0),
        ("prior", 16.0),
        ("prior", math.inf),
    ):
        with use_mode(mode, group=0, prior=prior):
            torch.testing.assert_close(compiled(x), layer(x))


def test_exports_in_single_mode_with_a_dynamic_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), randomized(LocalNorm2d(4, 2))).eval()
    x = torch.randn(4, 3, 8, 8)
    with use_mode("single", group=1):
        exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},)).module()
        for batch in (4, 7):
            x = torch.randn(batch, 3, 8, 8)
            torch.testing.assert_close(exported(x), net(x))


def test_onnx_runtime_agrees_in_single_mode(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), randomized(LocalNorm2d(4, 2)), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    with use_mode("single", group=1):
        want = net(x)
        torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-5)


def test_an_onnx_file_with_a_dynamic_batch_serves_one_image_and_many(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), randomized(LocalNorm2d(4, 2)), nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    with use_mode("single", group=1):
        torch.onnx.export(
            net, (torch.randn(2, 3, 8, 8),), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        for batch in (1, 2, 5):
            x = torch.randn(batch, 3, 8, 8)
            (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            torch.testing.assert_close(torch.from_numpy(got), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_functional_gradients_and_vmap_over_weights(assignment, layout):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=layout)
    weights, biases = torch.rand(2, 5, 4, 3, dtype=torch.float64)

    def loss(weight, bias):
        return local_norm(x, 4, weight, bias, assignment=assignment).square().sum()

    for f in (loss, torch.func.grad(loss)):
        got = torch.func.vmap(f)(weights, biases)
        want = torch.stack([f(w, b) for w, b in zip(weights, biases, strict=True)])
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [4, 8, 9])
def test_an_ensemble_under_vmap_equals_its_members_one_by_one(batch, assignment, layout):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), randomized(LocalNorm2d(4, 4, assignment=assignment))) for _ in range(3)]
    x = torch.randn(batch, 3, 6, 6).contiguous(memory_format=layout)
    together = vmap(lambda *state: functional_call(nets[0], state, (x,)))(*stack_module_state(nets))
    torch.testing.assert_close(together, torch.stack([net(x) for net in nets]))


@fewer_images_than_groups
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_groups", [1, 4])
def test_gradients_of_each_image_under_vmap_equal_those_of_a_loop(num_groups, layout):
    torch.manual_seed(0)
    norm = randomized(LocalNorm2d(4, num_groups))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(inplace=True)).double()
    parameters = dict(net.named_parameters())
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64).contiguous(memory_format=layout)

    def loss(parameters, image):
        return functional_call(net, parameters, (image[None],)).pow(3).sum()

    got = vmap(grad(loss), (None, 0))({name: p.detach() for name, p in parameters.items()}, images)
    loop = [torch.autograd.grad(loss(parameters, image), list(parameters.values())) for image in images]
    for mine, want in zip(got.values(), zip(*loop, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(want))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own, at its first forward-mode derivative
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [2, 4])
def test_hessian_and_tangent_are_those_of_plain_arithmetic(batch, assignment, layout):
    torch.manual_seed(0)
    x = torch.randn(batch, 2, 2, 3, dtype=torch.float64).contiguous(memory_format=layout)
    direction = torch.randn_like(x)
    weight, bias = torch.rand(2, 2, 2, dtype=torch.float64)
    groups = groups_of(batch, 2, assignment)

    def plain(x):
        parts = [x[images] for images in groups]  # (S, C, H, W) each
        parts = [
            (p - p.mean((0, 2, 3), keepdim=True)) / (p.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
            for p in parts
        ]
        y = torch.cat([p * w[:, None, None] + b[:, None, None] for p, w, b in zip(parts, weight, bias, strict=True)])
        return y[torch.tensor([i for images in groups for i in images]).argsort()]

    def layer(x):
        return local_norm(x, 2, weight, bias, assignment=assignment)

    second, tangent = [], []
    for f in (layer, plain):
        second.append(hessian(lambda x, f=f: f(x).pow(3).sum())(x))
        with forward_ad.dual_level():
            tangent.append(forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction))).tangent)
    torch.testing.assert_close(*second)
    torch.testing.assert_close(*tangent)


@fewer_images_than_groups
@traced_by_torch_jit
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [1, 4, 8, 9])
def test_a_traced_network_equals_the_network(batch, assignment, layout):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), randomized(LocalNorm2d(4, 4, assignment=assignment)), nn.ReLU(inplace=True))
    x, other = torch.randn(2, batch, 3, 6, 6)
    traced = torch.jit.trace(net, x.contiguous(memory_format=layout))
    other = other.contiguous(memory_format=layout).requires_grad_()
    torch.testing.assert_close(traced(other), net(other))
    gradients = [torch.autograd.grad(f(other).square().sum(), other)[0] for f in (traced, net)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@traced_by_torch_jit
@pytest.mark.parametrize("size", [6, 80])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_traced_in_single_mode_takes_other_batches(layout, size):
    torch.manual_seed(0)
    layer = randomized(LocalNorm2d(3, 4))
    assert (3 * size**2 > LARGE_IMAGE) == (size == 80)
    images = torch.randn(5, 3, size, size).contiguous(memory_format=layout)
    with torch.no_grad(), use_mode("single", group=1):
        torch.testing.assert_close(torch.jit.trace(layer, images[:2])(images), layer(images), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:ONNX export mode", "ignore::DeprecationWarning")
@traced_by_torch_jit
def test_the_older_onnx_exporter_agrees_on_one_image(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), randomized(LocalNorm2d(4, 2)), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), net(x).detach(), rtol=1e-4, atol=1e-5)


def _train_in_a_process(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), randomized(LocalNorm2d(4, 2)))
    x = torch.randn(2, 4, 3, 6, 6)
    wrapped = nn.parallel.DistributedDataParallel(net)
    wrapped(x[rank]).pow(3).mean().backward()
    if rank == 0:
        torch.save({"x": x, "net": copy.deepcopy(net).state_dict(), "grad": net[1].weight.grad}, folder / "out.pt")
    torch.distributed.destroy_process_group()


def test_processes_group_their_own_images_and_average_the_gradients(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    forks = sys.platform == "linux" and not torch.cuda.is_available()  # else each process imports torch again
    torch.multiprocessing.start_processes(
        _train_in_a_process, (port, tmp_path), nprocs=2, start_method="fork" if forks else "spawn"
    )
    saved = torch.load(tmp_path / "out.pt")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), LocalNorm2d(4, 2))
    net.load_state_dict(saved["net"])
    loss = sum(net(half).pow(3).mean() for half in saved["x"]) / 2
    (want,) = torch.autograd.grad(loss, net[1].weight)
    torch.testing.assert_close(saved["grad"], want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [8, 9])
def test_groups_that_are_laid_out_for_one_kernel_equal_the_formula(batch, assignment, layout, monkeypatch):
    """As on every device but a CPU, where one kernel call per group takes longer."""
    monkeypatch.setattr(_kernels, "_choose_path", lambda *_: _kernels._through_a_copy)
    layer = randomized(LocalNorm2d(3, 4, assignment=assignment, track_running_stats=True))
    x = torch.randn(batch, 3, 5, 6).contiguous(memory_format=layout).requires_grad_()
    direction = torch.randn(batch, 3, 5, 6)
    inputs = (x, layer.weight, layer.bias)
    y, want = layer(x), formula(x, layer.weight, layer.bias, 4, assignment)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, want)
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, direction) for out in (y, want)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    means = torch.stack([x[images].mean((0, 2, 3)) for images in groups_of(batch, 4, assignment)])
    torch.testing.assert_close(layer.running_mean, 0.1 * means)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [4, 8])
def test_an_activation_may_overwrite_what_the_layer_returns(batch, assignment, layout):
    """As the inplace ReLU after most norms does, groups of one image included."""
    layer = randomized(LocalNorm2d(3, 4, assignment=assignment))
    x = torch.randn(batch, 3, 5, 6).contiguous(memory_format=layout).requires_grad_()
    results = [F.relu(layer(x), inplace=inplace) for inplace in (True, False)]
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in results))
    assert results[0].grad_fn.name() == "ReluBackward0", "no view, of which autograd would copy whole gradients"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("batch", [8, 9])
def test_cuda_equals_the_formula(batch, assignment, layout):
    layer = randomized(LocalNorm2d(3, 4, assignment=assignment, device="cuda"))
    x = torch.randn(batch, 3, 6, 6, device="cuda").contiguous(memory_format=layout)
    want = formula(x, layer.weight, layer.bias, 4, assignment)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("kind", "x", "message"),
    [
        (
            LocalNorm1d,
            torch.zeros(2, 3, 4, 4),
            r"LocalNorm1d takes input \(N, C\) or \(N, C, L\), got shape \(2, 3, 4, 4\)",
        ),
        (LocalNorm2d, torch.zeros(2, 3), r"LocalNorm2d takes input \(N, C, H, W\), got shape \(2, 3\)"),
        (LocalNorm3d, torch.zeros(2, 3, 4, 4), r"LocalNorm3d takes input \(N, C, D, H, W\), got"),
        (
            LocalNorm2d,
            torch.zeros(2, 5, 4, 4),
            r"num_features=3 needs 3 channels in dimension 1, got shape \(2, 5, 4, 4\)",
        ),
        (
            LocalNorm2d,
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            r"takes floating input, got torch.uint8; convert with x.float\(\)",
        ),
        (
            LocalNorm1d,
            torch.zeros(5, 3),
            r"more than 1 value per channel, got input \(5, 3\) in 4 groups; use a larger batch",
        ),
    ],
)
def test_wrong_input_is_named(kind, x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        kind(3, 4)(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 0}, "num_groups must be at least 1, got 0"),
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"assignment": "random"}, "assignment must be one of interleaved, contiguous; got 'random'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LocalNorm2d(**{"num_features": 3, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 0}, "num_groups must be at least 1, got 0"),
        ({"assignment": "contigous"}, "assignment must be one of interleaved, contiguous; got 'contigous'"),
        ({"weight": torch.ones(2, 3)}, "weight and bias come together"),
        ({"running_mean": torch.zeros(2, 3)}, "running_mean and running_var come together"),
        ({"weight": torch.ones(5, 3), "bias": torch.zeros(5, 3)}, r"weight is .*, here \(2, 3\); got \(5, 3\)"),
        ({"x": torch.ones(4, 3, 2, 2).byte()}, "local_norm takes floating input, got torch.uint8"),
    ],
)
def test_wrong_arguments_of_the_function_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        local_norm(**{"x": torch.randn(4, 3, 2, 2), "num_groups": 2, **options})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["vote"], {}, "mode must be one of batch, single, prior, fixed, gated; got 'vote'"),
        (["single"], {"group": -1}, "group must be at least 0, got -1"),
        (["batch"], {"group": 99}, "group=99 belongs to the other modes, got mode='batch'"),
        (["batch"], {"group": 1, "group_size": 2}, "group=1 belongs to the other modes, got mode='batch'"),
        (["single"], {"prior": 3}, "prior=3 belongs to mode='prior' and 'gated', got mode='single'"),
        (["prior"], {}, "mode='prior' needs prior, a number of positions of at least 0"),
        (["prior"], {"prior": math.nan}, "needs prior, a number of positions"),
        (["prior"], {"prior": lambda: torch.tensor(4.0)}, "needs prior, a number of positions"),
    ],
)
def test_a_wrong_mode_is_named_before_it_is_set(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        use_mode(*arguments, **options)


@pytest.mark.parametrize("mode", ["fixed", "prior"])
def test_a_mode_without_its_statistics_says_how_to_get_them(mode):
    message = rf"mode='{mode}' needs stored training statistics.*track_running_stats=True"
    with pytest.raises(ValueError, match=message), use_mode(mode, prior=4 if mode == "prior" else None):
        LocalNorm2d(3, 2)(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("group", [2, np.int64(2)])
def test_a_group_that_the_layer_lacks_is_named(group):
    with (
        pytest.raises(ValueError, match="group=2 needs more than 2 groups, got num_groups=2"),
        use_mode("single", group=group),
    ):
        LocalNorm2d(3, 2)(torch.zeros(2, 3, 4, 4))


def test_numpys_integers_are_groups_and_group_sizes_and_fractions_are_not():
    layer, x = randomized(LocalNorm2d(3, 4)), torch.randn(8, 3, 4, 4)
    for mode, option in (("single", "group"), ("batch", "group_size")):
        results = []
        for number in (2, np.int64(2), torch.tensor(2)):
            with use_mode(mode, **{option: number}):
                results.append(layer(x))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        with pytest.raises(TypeError, match=f"{option} must be a whole number, got 2.0"):
            use_mode(mode, **{option: 2.0})


@pytest.mark.parametrize("mode", [("fixed", {}), ("prior", {"prior": 9.0}), ("single", {})], ids=lambda mode: mode[0])
def test_one_image_in_channels_last_has_the_gradient_of_the_same_image_in_plain_memory(mode):
    """Torch's own BatchNorm has not: an image that was (H, W, C) in memory is a batch of one with a short stride."""
    name, options = mode
    torch.manual_seed(0)
    layer, readout = LocalNorm2d(8, 2, track_running_stats=True).eval(), torch.randn(288)
    layer.running_mean.normal_()
    image = torch.randn(6, 6, 8)
    gradients = []
    for memory in (lambda t: t, torch.Tensor.contiguous):
        leaf = image.clone().requires_grad_()
        with use_mode(name, **options):
            (layer(memory(leaf.permute(2, 0, 1)[None])).flatten(1) @ readout).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_does_not_count_in_the_average_of_batches():
    layer = LocalNorm2d(1, 1, track_running_stats=True, momentum=None)
    layer(torch.zeros(0, 1, 2, 2))
    layer(torch.tensor([4.0, 6.0, 4.0, 6.0]).view(1, 1, 2, 2))
    assert layer.running_mean.item() == 5
