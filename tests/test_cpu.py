"""What CPUs take equals BatchNorm in training of each group alone, and the formula of shrunken statistics."""

import pytest
import torch
import torch.nn.functional as F

from localnorm._cpu import GroupByGroup, normalize_images
from localnorm._kernels import normalize_with_stored

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("assignment", ["interleaved", "contiguous"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("images", "dtype"), [(6, torch.float32), (3, torch.float32), (6, torch.float64)], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_each_group_is_batchnorms(images, dtype, layout, assignment, affine):
    torch.manual_seed(0)
    x = torch.randn(images, 5, 4, 6, dtype=dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    weight, bias = torch.randn(2, 3, 5, dtype=dtype).requires_grad_().unbind() if affine else (None, None)
    kept = [torch.zeros(3, 5, dtype=dtype), torch.ones(3, 5, dtype=dtype)]
    grad = torch.randn(x.shape, dtype=dtype)
    y = GroupByGroup.apply(x, weight, bias, *kept, 3, assignment, 1e-5, 0.2)
    assert y.stride() == x.stride()
    leaves = [t for t in (x, weight, bias) if t is not None]
    grads = torch.autograd.grad(y, leaves, grad)
    order = torch.arange(images)
    parts = [order[g::3] for g in range(3)] if assignment == "interleaved" else order.tensor_split(3)
    for g, part in enumerate(parts):
        # contiguous and in one image's case without a batch dimension of 1, which torch has got wrong
        own = x.detach()[part].transpose(0, 1).reshape(1, 5, -1).requires_grad_()
        stored = [torch.zeros(5, dtype=dtype), torch.ones(5, dtype=dtype)]
        rows = [None if t is None else t.detach()[g].requires_grad_() for t in (weight, bias)]
        expected = F.batch_norm(own, *stored, *rows, training=True, momentum=0.2, eps=1e-5)
        own_grad = grad[part].transpose(0, 1).reshape(1, 5, -1)
        wanted = torch.autograd.grad(expected, [t for t in (own, *rows) if t is not None], own_grad)
        assert torch.allclose(y[part].transpose(0, 1).reshape(1, 5, -1), expected, atol=1e-5)
        assert torch.allclose(grads[0][part].transpose(0, 1).reshape(1, 5, -1), wanted[0], atol=1e-5)
        for got, row in zip(grads[1:], wanted[1:], strict=True):
            assert torch.allclose(got[g], row, atol=1e-4)
        assert torch.allclose(kept[0][g], stored[0])
        assert torch.allclose(kept[1][g], stored[1])


@pytest.mark.parametrize("assignment", ["interleaved", "contiguous"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_can_be_differentiated(layout, assignment):
    torch.manual_seed(0)
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    weight, bias = torch.randn(2, 2, 2, dtype=torch.float64).requires_grad_().unbind()

    def by_group(x, weight, bias):
        return GroupByGroup.apply(x, weight, bias, None, None, 2, assignment, 1e-5, 0.0)

    assert torch.autograd.gradcheck(by_group, (x, weight, bias))
    assert torch.autograd.gradgradcheck(by_group, (x, weight, bias))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prior", [None, 0.0, 30.0])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_an_image_by_stored_statistics_and_its_own(prior, layout, affine):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 5, 6).contiguous(memory_format=LAYOUTS[layout]) * 2 + 1
    mean, var, weight, bias = torch.rand(4, 3).add(0.5).unbind()
    with torch.no_grad():
        y = normalize_with_stored(x, mean, var, *((weight, bias) if affine else (None, None)), prior=prior, eps=1e-5)
    exact, mean, var = x.double(), mean.double(), var.double()
    if prior is not None:
        own_mean, own_var = exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)
        a = prior / (prior + 30)
        var = a * var + (1 - a) * own_var + a * (1 - a) * (mean - own_mean) ** 2
        mean = a * mean + (1 - a) * own_mean
    expected = (exact - mean.view(-1, 1, 1)) / (var + 1e-5).sqrt().view(-1, 1, 1)
    if affine:
        expected = expected * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    assert torch.allclose(y.double(), expected, atol=1e-5)
    assert y.stride() == x.stride()


def test_an_image_of_a_large_mean():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 9, 9) + 1e4
    with torch.no_grad():
        # eps vanishes beside the variance; torch 2.11 refuses an eps of 0
        y = normalize_with_stored(x, torch.full((3,), 1e4), torch.ones(3), None, None, prior=81.0, eps=1e-12)
    own_mean, own_var = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    var = (1 + own_var) / 2 + (own_mean - 1e4) ** 2 / 4
    expected = (x.double() - ((own_mean + 1e4) / 2).view(-1, 1, 1)) / var.sqrt().view(-1, 1, 1)
    assert torch.allclose(y.double(), expected, atol=5e-3), "float32 has 1e4 to 5e-4"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gated_image_is_the_same_by_kernels_and_by_the_formula(layout):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 5, 6).contiguous(memory_format=LAYOUTS[layout]) * 2 + 1
    mean, var, weight, bias = torch.rand(4, 3).add(0.5).unbind()
    spread = torch.tensor(
        [[0.5, 0.6, 0.7], [0.1, 0.2, 0.0], [0.1, 0.2, 0.3], [0.3, 0.4, 0.5]]
    )  # one mean tells nothing
    given = {"prior": 30.0, "spread": spread, "eps": 1e-5}
    with torch.no_grad():
        together = normalize_with_stored(images, mean, var, weight, bias, **given)
        for i in range(2):
            alone = normalize_with_stored(images[i : i + 1], mean, var, weight, bias, **given)
            assert torch.allclose(alone, together[i : i + 1], atol=1e-5)
            assert alone.stride()[1:] == images.stride()[1:]
            assert not torch.allclose(
                alone,
                normalize_with_stored(images[i : i + 1], mean, var, weight, bias, prior=30.0, eps=1e-5),
                atol=0.01,
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [None, 1, 3], ids=["plain", "one row", "a row for each image"])
def test_each_image_where_it_lies(layout, rows):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6).contiguous(memory_format=LAYOUTS[layout]) + 100
    weight, bias = torch.randn(2, rows, 4).unbind() if rows else (None, None)
    with torch.no_grad():
        y = normalize_images(x, weight, bias, 1e-5)
    for i in range(3):
        own = [None if t is None else t[i % rows] for t in (weight, bias)]
        expected = F.batch_norm(x[i : i + 1].contiguous(), None, None, *own, training=True, eps=1e-5)
        assert torch.allclose(y[i : i + 1], expected, atol=1e-4)
    assert y.stride() == x.stride()
