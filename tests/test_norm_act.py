"""A norm that ends in ReLU computes what norm and ReLU compute one after the other, and is made from such pairs."""

import copy
import math
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from localnorm import (
    LocalNorm2d,
    LocalNormAct2d,
    convert_state_dict,
    convert_to_batchnorm,
    convert_to_localnorm,
    estimate_statistics,
    predict,
    use_mode,
)
from localnorm._kernels import rectify
from localnorm.layers import ASSIGNMENTS, LocalNorm
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
    steps = [lambda net=net: net(x).sum().backward() for net in (fused, apart)]
    assert peak_memory(steps[0]) <= peak_memory(steps[1])


def test_a_view_is_not_overwritten():
    result = torch.randn(6, requires_grad=True) * 2
    assert rectify(result.view(2, 3)).grad_fn.name() == "ReluBackward0"
    assert rectify(result) is result


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


# -------------------------------------------------------------------------------------------------------- the conversion


class Block(nn.Sequential):
    """A subclass whose forward is nn.Sequential's, as torchvision's Conv2dNormActivation."""


def pairs_of_a_network():
    torch.manual_seed(0)
    block = Block(OrderedDict(conv=nn.Conv2d(4, 5, 3), norm=nn.BatchNorm2d(5), relu=nn.ReLU(inplace=True)))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), block, nn.BatchNorm2d(5))
    for norm in (net[1], block.norm, net[4]):
        nn.init.uniform_(norm.weight)
        nn.init.normal_(norm.bias)
    return net


def pictures(count=8):
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(3))


def test_norm_and_relu_become_one_layer_and_every_other_name_and_key_stays():
    net = pairs_of_a_network()
    fused, apart = (convert_to_localnorm(net, 2, track_running_stats=True, fuse_relu=fuse) for fuse in (True, False))
    assert [type(fused.get_submodule(name)) for name in ("1", "3.norm", "4")] == [LocalNormAct2d] * 2 + [LocalNorm2d]
    assert [type(fused.get_submodule(name)) for name in ("2", "3.relu")] == [nn.Identity] * 2
    assert [name for name, _ in net.named_modules() if name not in dict(fused.named_modules())] == []
    assert fused.state_dict().keys() == apart.state_dict().keys()
    assert [type(net[i]) for i in (1, 2)] == [nn.BatchNorm2d, nn.ReLU], "a copy leaves the original"
    found = []
    for each in (fused, apart):
        y = each(pictures())
        found.append([y, *torch.autograd.grad(y.cos().sum(), list(each.parameters()))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    expected = predict(apart, pictures(), "prior", prior=16)
    torch.testing.assert_close(predict(fused, pictures(), "prior", prior=16), expected)


def test_the_network_itself_can_be_fused():
    net = pairs_of_a_network()
    expected = convert_to_localnorm(net, 2)(pictures())
    assert convert_to_localnorm(net, 2, inplace=True, fuse_relu=True) is net
    torch.testing.assert_close(net(pictures()), expected)


def test_known_networks_are_fused_and_equal_their_own():
    models = pytest.importorskip("torchvision").models
    for make, pairs in ((models.vgg11_bn, 8), (models.regnet_y_400mf, 33)):
        net = make(num_classes=7).eval()
        fused, apart = (convert_to_localnorm(net, 2, fuse_relu=fuse) for fuse in (True, False))
        assert sum(type(module) is LocalNormAct2d for module in fused.modules()) == pairs
        images = torch.randn(4, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(fused(images), apart(images))


def test_copies_and_files_are_fused_too():
    fused = convert_to_localnorm(pairs_of_a_network(), 2, track_running_stats=True, fuse_relu=True)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(again(pictures()), copy.deepcopy(fused)(pictures()))
        assert type(convert_to_batchnorm(again, [pictures()])[2]) is nn.ReLU
    other = pairs_of_a_network()
    nn.init.zeros_(other[1].bias)
    fused.load_state_dict(convert_state_dict(other.state_dict(), fused))
    torch.testing.assert_close(fused(pictures()), convert_to_localnorm(other, 2)(pictures()))


class NeedsItsNorm(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x)) + self[0](x)


def with_its_norm_twice(norm):
    return nn.Sequential(norm, nn.ReLU(), norm)


def with_its_relu_twice(norm, relu):
    return nn.Sequential(norm, relu, nn.Conv2d(3, 3, 1), relu)


def with_another_forward(sequence):
    sequence.forward = lambda x: sequence[0](x)
    return sequence


LEFT_ALONE = {
    "a forward of its class": NeedsItsNorm(nn.BatchNorm2d(3), nn.ReLU()),
    "a forward of its own": with_another_forward(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())),
    "a norm in two places": with_its_norm_twice(nn.BatchNorm2d(3)),
    "a ReLU in two places": with_its_relu_twice(nn.BatchNorm2d(3), nn.ReLU()),
    "a ReLU with hooks": nn.Sequential(nn.BatchNorm2d(3), hooked(nn.ReLU())),
    "a subclass of ReLU": nn.Sequential(nn.BatchNorm2d(3), Tripled()),
    "ReLU6": nn.Sequential(nn.BatchNorm2d(3), nn.ReLU6()),
    "SiLU": nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()),
    "something between": nn.Sequential(nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()),
    "a norm of any rank": nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU()),
    "no Sequential": nn.ModuleList([nn.BatchNorm2d(3), nn.ReLU()]),
}


@pytest.mark.parametrize("part", LEFT_ALONE)
def test_what_is_no_pair_stays_two_layers(part):
    part = LEFT_ALONE[part]
    others = [module for module in part.modules() if not isinstance(module, _BatchNorm)]
    net = nn.ModuleList([part, nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())])
    convert_to_localnorm(net, 2, inplace=True, fuse_relu=True)
    assert type(net[1][0]) is LocalNormAct2d
    assert not any(type(module) is LocalNormAct2d for module in part.modules())
    assert [module for module in part.modules() if not isinstance(module, LocalNorm)] == others


@pytest.mark.parametrize("excluded", ["1", "2"])
def test_what_is_excluded_is_not_fused(excluded):
    net = convert_to_localnorm(pairs_of_a_network(), 2, exclude=[excluded], fuse_relu=True)
    assert [type(net[1]), type(net[2])] == [nn.BatchNorm2d if excluded == "1" else LocalNorm2d, nn.ReLU]
    assert type(net[3].norm) is LocalNormAct2d


def test_a_network_without_a_pair_is_refused():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.SiLU())
    with pytest.raises(ValueError, match=r"needs a BatchNorm2d directly followed by nn\.ReLU .* leave fuse_relu out"):
        convert_to_localnorm(net, 2, inplace=True, fuse_relu=True)
    assert type(net[0]) is nn.BatchNorm2d


# ----------------------------------------------------------------------------------------------------------- the way back


def test_the_way_back_restores_the_pair():
    net, loader = pairs_of_a_network(), [pictures()]
    back = convert_to_batchnorm(convert_to_localnorm(net, 2, fuse_relu=True), loader)
    assert [(name, type(module)) for name, module in back.named_modules()] == [
        (name, type(module)) for name, module in net.named_modules()
    ]
    assert back[3].relu.inplace
    estimate_statistics(net, loader)
    torch.testing.assert_close(back.eval()(pictures(3)), net.eval()(pictures(3)))


def test_hooks_where_the_relu_goes_back_are_refused_by_name():
    fused = convert_to_localnorm(pairs_of_a_network(), 2, fuse_relu=True)
    fused[3].relu.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"3\.relu \(the ReLU of 3\.norm goes back there, and its hooks would be lost"):
        convert_to_batchnorm(fused, [pictures()], inplace=True)
    assert type(fused[1]) is LocalNormAct2d


@pytest.mark.parametrize("after", [nn.Dropout(), None], ids=str)
def test_a_pair_that_has_lost_its_place_becomes_timms_layer(after):
    timm = pytest.importorskip("timm.layers")
    fused = convert_to_localnorm(pairs_of_a_network(), 2, fuse_relu=True)
    if after is None:
        del fused[2]
    else:
        fused[2] = after
    back = convert_to_batchnorm(fused, [pictures()])
    assert type(back[1]) is timm.BatchNormAct2d
    assert type(back[1].act) is nn.ReLU
    assert type(back[2]) is not nn.ReLU


def test_timms_own_layers_are_no_pairs():
    timm = pytest.importorskip("timm.layers")
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.ReLU(), timm.BatchNormAct2d(3), nn.Identity(), timm.BatchNormAct2d(3), nn.ReLU()
    )
    fused = convert_to_localnorm(net, 2, fuse_relu=True)
    assert [type(layer) for layer in fused] == [LocalNormAct2d, nn.Identity] * 2 + [LocalNormAct2d, nn.ReLU]
    back = convert_to_batchnorm(fused, [torch.randn(4, 3, 5, 5)])
    assert [type(layer) for layer in back] == [type(layer) for layer in net]
