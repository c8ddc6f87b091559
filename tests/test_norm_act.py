"""A norm that ends in ReLU computes what norm and ReLU compute one after the other, and is made from such pairs."""

import math

import pytest
import torch
from torch import nn

from localnorm import LocalNorm2d, LocalNormAct2d, use_mode
from localnorm.layers import ASSIGNMENTS
from localnorm.timing import peak_memory

LAYOUTS = [torch.contiguous_format, torch.channels_last]
MODES = {
    "batch": ("batch", {}),
    "shrunk": ("batch", {"prior": 8.0}),
    "drawn": ("batch", {"group_size": 2}),
    "single": ("single", {"group": 1}),
    "prior": ("prior", {"prior": 8.0}),
    "fixed": ("fixed", {}),
}


def fused_and_apart(assignment="interleaved", act=None, drop=None):
    """A layer that ends in ReLU, and the same norm followed by ReLU."""
    torch.manual_seed(0)
    options = {"assignment": assignment, "track_running_stats": True, "dtype": torch.double}
    fused = LocalNormAct2d(3, 2, act=act or nn.ReLU(), drop=drop, **options)
    for tensor in (fused.weight, fused.bias, fused.running_mean):
        nn.init.normal_(tensor)
    norm = LocalNorm2d(3, 2, **options)
    norm.load_state_dict(fused.state_dict())
    return fused, nn.Sequential(norm, nn.ReLU())


def images(count, layout=torch.contiguous_format):
    x = 2 * torch.randn(count, 3, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1)) + 1
    return x.contiguous(memory_format=layout)


# ------------------------------------------------------------------------------------------------------------- the layer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("count", [8, 2])
def test_values_and_gradients_are_those_of_norm_and_relu(count, assignment, layout, mode):
    name, options = MODES[mode]
    found = []
    for net in fused_and_apart(assignment=assignment):
        x = images(count, layout).requires_grad_()
        with use_mode(name, **options):
            y = net(x)
        towards = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
        with torch.no_grad(), use_mode(name, **options):
            without_gradient = net(x)
        found.append([y, without_gradient, *torch.autograd.grad(y, [x, *net.parameters()], towards)])
    assert (found[0][0] == 0).any()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_ragged_and_empty_batches_too():
    fused, apart = fused_and_apart()
    for count in (7, 0):
        torch.testing.assert_close(fused(images(count)), apart(images(count)))


def test_a_nan_stays_one_with_its_gradients():
    found = []
    for net in fused_and_apart():
        x = images(4)
        x[1, 2, 0, 0] = math.nan
        y = net(x.requires_grad_())
        found.append([y, *torch.autograd.grad(y.sum(), [x, *net.parameters()])])
    assert found[0][0][1, 2].isnan().all()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("prior", [None, 5.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_can_be_differentiated(layout, prior):
    fused, _ = fused_and_apart(assignment="contiguous")
    x = images(4, layout).requires_grad_()

    def call(x, weight, bias):
        with use_mode("batch", prior=prior):
            return torch.func.functional_call(fused, {"weight": weight, "bias": bias}, (x,))

    fused.track_running_stats = False  # what is checked is called many times
    assert torch.autograd.gradcheck(call, (x, fused.weight, fused.bias))
    assert torch.autograd.gradgradcheck(call, (x, fused.weight, fused.bias))


def test_what_follows_the_layer_gets_the_same_values():
    fused, apart = fused_and_apart()
    fused.eval(), apart.eval()
    x, expected = images(4), apart(images(4))
    torch.testing.assert_close(torch.compile(fused, backend="aot_eager", fullgraph=True)(x), expected)
    exported = torch.export.export(fused, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
    torch.testing.assert_close(exported(images(6)), apart(images(6)))
    for ours, theirs in zip(*(torch.func.jvp(net, (x,), (x.cos(),)) for net in (fused, apart)), strict=True):
        torch.testing.assert_close(ours, theirs)
    stacked = torch.stack([x, x.sin()])
    torch.testing.assert_close(torch.vmap(fused)(stacked), torch.stack([apart(each) for each in stacked]))
    assert [node.op for node in torch.fx.symbolic_trace(nn.Sequential(fused)).graph.nodes][1] == "call_module"


def test_the_relu_takes_no_memory_of_its_own():
    fused, apart = (net.eval() for net in fused_and_apart())
    x = images(400)
    result = x.numel() * x.element_size()
    with torch.no_grad():
        assert peak_memory(lambda: fused(x)) < 1.1 * result
        assert peak_memory(lambda: apart(x)) > 1.9 * result


class Tripled(nn.ReLU):
    def forward(self, x):
        return 3 * super().forward(x)


def hooked(act):
    act.register_forward_hook(lambda module, inputs, y: 3 * y)
    return act


def with_forward_of_its_own(act):
    act.forward = lambda x: 3 * x.relu()
    return act


@pytest.mark.parametrize("act", [Tripled(), hooked(nn.ReLU()), with_forward_of_its_own(nn.ReLU())], ids=str)
def test_an_activation_that_does_more_than_relu_is_called(act):
    fused, apart = fused_and_apart(act=act)
    torch.testing.assert_close(fused(images(4)), 3 * apart(images(4)))


def test_dropout_before_the_relu_is_called():
    fused, apart = fused_and_apart(drop=nn.Dropout(0.5))
    fused.drop.eval()
    torch.testing.assert_close(fused(images(4)), apart(images(4)))
    fused.drop.train()
    assert (fused(images(4)) == 0).sum() > (apart(images(4)) == 0).sum()
