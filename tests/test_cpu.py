"""Group by group equals BatchNorm in training of each group alone, in values, gradients and stored statistics."""

import pytest
import torch
import torch.nn.functional as F

from localnorm._cpu import GroupByGroup

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
    y = GroupByGroup.apply(x, *kept, weight, bias, 3, assignment, 1e-5, 0.2)
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
