"""A converted network equals the original, shares nothing with it, and what cannot be converted is named."""

import copy
import threading
from dataclasses import dataclass
from functools import partial
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from localnorm.convert import convert_state_dict, convert_to_batchnorm, convert_to_localnorm, param_groups
from localnorm.layers import ASSIGNMENTS, LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d
from localnorm.training_statistics import estimate_statistics

torch.set_num_threads(1)


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.Dropout(),
        nn.Flatten(),
    )
    return randomized(net)


def randomized(net):
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return net


def without_dropout(net):
    net.train()
    for module in net.modules():
        if "Drop" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
            module.eval()
    return net


def _torchvision(name):
    return lambda: getattr(pytest.importorskip("torchvision").models, name)(num_classes=7)


def _timm(name):
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=7)


NETWORKS = {
    "resnet18": _torchvision("resnet18"),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "densenet121": _torchvision("densenet121"),
    "regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "timm efficientnet_lite0": _timm("efficientnet_lite0"),
    "timm skresnet18": _timm("skresnet18"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_group_of_a_known_network_gets_what_the_original_gives_that_group(name):
    torch.manual_seed(0)
    net = randomized(NETWORKS[name]()).double()
    local = convert_to_localnorm(net, 2, assignment="contiguous")
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in local.modules())
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    without_dropout(net), without_dropout(local)
    with torch.no_grad():
        want = torch.cat([net(images[:2]), net(images[2:])])
        torch.testing.assert_close(local(images), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_one_groups_worth_of_data_gives_the_original_in_every_group(assignment):
    net = small_net()
    local = convert_to_localnorm(net, 3, assignment=assignment)
    group = torch.randn(5, 3, 8, 8)
    images = group.repeat_interleave(3, 0) if assignment == "interleaved" else group.repeat(3, 1, 1, 1)
    want = without_dropout(net)(group)
    want = want.repeat_interleave(3, 0) if assignment == "interleaved" else want.repeat(3, 1)
    torch.testing.assert_close(without_dropout(local)(images), want)


def test_every_rank_is_converted_and_syncbatchnorm_serves_any():
    net = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3)])
    local = convert_to_localnorm(net, 2)
    assert [type(m) for m in local] == [LocalNorm1d, LocalNorm2d, LocalNorm3d, LocalNorm]
    for shape in [(4, 3), (4, 3, 5), (4, 3, 5, 5), (4, 3, 2, 2, 2)]:
        assert local[3](torch.randn(shape)).shape == shape if len(shape) > 2 else True


def test_a_network_that_was_converted_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        net = convert_to_localnorm(small_net(), 2)
    net(torch.randn(4, 3, 8, 8)).sum().backward()
    assert net[1].weight.grad.shape == (2, 4)


def test_a_parametrized_norm_is_not_decayed():
    net = convert_to_localnorm(small_net(), 2)
    parametrize.register_parametrization(net[1], "weight", nn.Softplus())
    decayed, others = (group["params"] for group in param_groups(net, 1e-4))
    assert [p.ndim for p in decayed] == [4, 4], "the kernels"
    assert any(p is net[1].parametrizations.weight.original for p in others)


def test_settings_of_the_original_are_kept():
    net = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, momentum=0.2), nn.BatchNorm2d(3, affine=False)).double().eval()
    net[0].weight.requires_grad_(False)
    local = convert_to_localnorm(net, 2, track_running_stats=True)
    assert (local[0].eps, local[0].momentum, local[0].weight.dtype, local[0].training) == (
        1e-3,
        0.2,
        torch.float64,
        False,
    )
    assert not local[0].weight.requires_grad
    assert local[0].bias.requires_grad
    assert not local[1].affine
    assert torch.equal(local[0].running_var, net[0].running_var.expand(2, -1))


def _storages(net):
    return {t.untyped_storage().data_ptr() for t in net.state_dict().values()}


def test_a_converted_copy_shares_no_tensor_and_leaves_the_original():
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    local = convert_to_localnorm(net, 2, track_running_stats=True)
    back = convert_to_batchnorm(local, [torch.randn(4, 3, 8, 8)])
    assert not _storages(net) & _storages(local)
    assert not _storages(local) & _storages(back)
    assert isinstance(net[1], nn.BatchNorm2d)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_inplace_changes_the_network_itself_with_fresh_tensors():
    net = small_net()
    old = net[1]
    assert convert_to_localnorm(net, 2, inplace=True) is net
    assert isinstance(net[1], LocalNorm2d)
    assert not _storages(old) & _storages(net)


def test_a_norm_in_two_places_stays_one_and_a_root_is_converted():
    norm = nn.BatchNorm2d(3)
    local = convert_to_localnorm(nn.Sequential(norm, nn.Sequential(norm)), 2)
    assert local[0] is local[1][0]
    twice = convert_to_localnorm(nn.Sequential(norm, nn.ReLU(), norm), 2)
    assert twice[0] is twice[2]
    assert isinstance(twice[2], LocalNorm2d)
    assert isinstance(convert_to_localnorm(norm, 2), LocalNorm2d)


def test_excluded_names_stay():
    net = small_net()
    local = convert_to_localnorm(net, 2, exclude=["4"])
    assert [type(local[i]) for i in (1, 4)] == [LocalNorm2d, nn.BatchNorm2d]
    with pytest.raises(ValueError, match="exclude='head' matches no module of the network"):
        convert_to_localnorm(net, 2, exclude="head")


def test_what_is_below_an_excluded_module_stays_by_whatever_name_it_has():
    shared = nn.BatchNorm2d(3)
    net = nn.ModuleDict(
        {
            "body": nn.Sequential(nn.BatchNorm2d(3), shared),
            "head": nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)), shared),
        }
    )
    local = convert_to_localnorm(net, 2, exclude=["head"])
    assert isinstance(local["body"][0], LocalNorm2d)
    assert [type(norm) for norm in (local["head"][0][0], local["head"][1])] == [nn.BatchNorm2d] * 2
    assert local["body"][1] is local["head"][1]
    with pytest.raises(ValueError, match="no BatchNorm to convert, but for what is excluded"):
        convert_to_localnorm(net, 2, exclude="*")


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def _hooked():
    norm = nn.BatchNorm2d(3)
    norm.register_forward_hook(lambda *_: None)
    return norm


def _with_forward_of_its_own():
    norm = nn.BatchNorm2d(3)
    norm.forward = lambda x: x
    return norm


def _without_bias():
    norm = nn.BatchNorm2d(3)
    norm.register_parameter("bias", None)
    return norm


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (OwnNorm(3), r"1 \(OwnNorm is a subclass with behaviour of its own\)"),
        (nn.LazyBatchNorm2d(), r"1 \(it does not know its channels yet; run the network once"),
        (_hooked(), r"1 \(it has hooks, which would be lost\)"),
        (_with_forward_of_its_own(), r"1 \(its forward is set on the instance, and would be lost\)"),
        (_without_bias(), r"1 \(it has one of weight and bias, and its counterpart would have both\)"),
        (torch.jit.script(nn.BatchNorm2d(3)), r"1 \(a TorchScript module\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_would_lose_its_behaviour_is_refused_by_name(norm, reason):
    net = nn.Sequential(nn.BatchNorm2d(3), norm)
    with pytest.raises(ValueError, match=f"cannot convert faithfully: {reason}"):
        convert_to_localnorm(net, 2, inplace=True)
    assert isinstance(net[0], nn.BatchNorm2d)
    assert isinstance(convert_to_localnorm(net, 2, exclude="1", inplace=True)[0], LocalNorm2d)


class Around(nn.Module):
    """A network whose norm, or whose body, is reached around its modules: `reach` sets how."""

    def __init__(self, reach):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        reach(self)

    def forward(self, x):
        return self.body(x).mean((2, 3))


def wrap_forward(net):
    net.forward = torch.autocast("cpu", enabled=False)(net.forward)


def bind_forward_over_the_old_one(net):
    old = net.forward
    net.forward = MethodType(lambda self, x: old(x), net)


def close_over_self(net):
    net.run = lambda x: net.body(x)


def hold_as_default(net):
    net.run = lambda x, body=net.body: body(x)


def hook_over_self(net):
    net.body[0].register_forward_hook(lambda module, inputs, output: net.body[1](output))


@pytest.mark.parametrize(
    ("reach", "named"),
    [
        (hook_over_self, r"body\.0\._forward_hooks \(a function over a module"),
        (wrap_forward, r"forward \(set on the instance"),
        (bind_forward_over_the_old_one, r"forward \(a function over a module"),
        (close_over_self, r"run \(a function over a module"),
        (hold_as_default, r"run \(a function over a module"),
    ],
)
def test_a_copy_that_would_run_the_original_is_refused_and_inplace_is_the_way_out(reach, named):
    net = Around(reach).train()
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError, match=rf"would run the original's layers through {named}.*or convert with inplace=True"
    ):
        convert_to_localnorm(net, 2)
    with pytest.raises(ValueError, match=named):
        estimate_statistics(net, [torch.randn(4, 3, 8, 8)])
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert isinstance(convert_to_localnorm(net, 2, inplace=True).body[1], LocalNorm2d)
    assert net(torch.randn(4, 3, 8, 8)).shape == (4, 4)


def test_methods_of_the_network_itself_are_copied_with_it():
    def reach(net):
        net.forward = MethodType(type(net).forward, net)
        net.run = net.forward

    net = Around(reach)
    local = convert_to_localnorm(net, 2)
    assert local.run.__self__ is local.forward.__self__ is local


def in_a_list(net):
    net.norms = [net.body[1]]


def in_a_nested_dict(net):
    net.norms = {"first": (net.body[1],)}


def in_a_closure(net):
    net.norms = lambda x, norm=net.body[1]: norm(x)


@dataclass
class Held:
    norm: nn.Module


def in_a_dataclass(net):
    net.norms = Held(net.body[1])


def in_a_namespace(net):
    net.norms = SimpleNamespace(norm=[net.body[1]])


@pytest.mark.parametrize("hold", [in_a_list, in_a_nested_dict, in_a_closure, in_a_dataclass, in_a_namespace])
@pytest.mark.parametrize("inplace", [True, False])
def test_a_norm_in_a_plain_attribute_is_refused_because_it_would_stay_there(hold, inplace):
    net = Around(hold)
    with pytest.raises(ValueError, match=r"body\.1 \(norms holds it in a plain attribute.* use nn.ModuleList"):
        convert_to_localnorm(net, 2, inplace=inplace)
    local = convert_to_localnorm(Around(lambda net: None), 2)
    hold(local)
    with pytest.raises(ValueError, match=r"body\.1 \(norms holds it"):
        convert_to_batchnorm(local, [torch.randn(4, 3, 8, 8)], inplace=inplace)


def test_a_norm_that_only_a_plain_list_holds_is_refused_and_a_list_of_modules_is_copied():
    net = Around(lambda net: setattr(net, "layers", [nn.Sequential(nn.BatchNorm2d(4))]))
    with pytest.raises(ValueError, match=r"layers \(layers holds it in a plain attribute"):
        convert_to_localnorm(net, 2)
    local = convert_to_localnorm(Around(lambda net: setattr(net, "layers", [net.body, net])), 2)
    assert local.layers[0] is local.body
    assert local.layers[1] is local


def test_a_hook_that_would_go_on_running_the_replaced_norm_is_refused():
    net = Around(lambda net: net.body[0].register_forward_hook(partial(lambda norm, *_: norm(_[2]), net.body[1])))
    with pytest.raises(ValueError, match=r"body\.1 \(body\.0\._forward_hooks runs it"):
        convert_to_localnorm(net, 2)


def test_a_teacher_in_a_plain_attribute_stays_as_it_is_where_it_is_excluded():
    net = Around(lambda net: setattr(net, "teacher", [nn.Sequential(nn.BatchNorm2d(4))]))
    with pytest.raises(ValueError, match=r"teacher \(teacher holds it.*exclude them by name"):
        convert_to_localnorm(net, 2)
    local = convert_to_localnorm(net, 2, exclude="teacher")
    assert type(local.body[1]) is LocalNorm2d
    assert type(local.teacher[0][0]) is nn.BatchNorm2d
    assert local.teacher[0] is not net.teacher[0]


def test_a_batchnorm_whose_statistics_were_taken_away_has_none_to_hand_on():
    net = small_net()
    net[1].running_mean = net[1].running_var = None  # a way to let BatchNorm use its batch in evaluation
    local = convert_to_localnorm(net, 2, track_running_stats=True)
    assert (local[1].track_running_stats, local[4].track_running_stats) == (False, True)
    images = torch.randn(4, 3, 8, 8)
    expected = net[:3].eval()(images)
    torch.testing.assert_close(convert_to_localnorm(net, 1)[:3].eval()(images), expected)


def test_a_converted_file_keeps_the_versions_that_torch_reads():
    net = small_net()
    converted = convert_state_dict(net.state_dict(), convert_to_localnorm(net, 2))
    assert converted._metadata == net.state_dict()._metadata
    with pytest.raises(TypeError, match=r"got str; give torch.load"):
        convert_state_dict("net.pt", net)


def test_what_cannot_be_copied_is_named_with_the_way_out():
    net = Around(lambda net: setattr(net.body, "lock", threading.Lock()))
    with pytest.raises(
        ValueError, match=r"cannot be copied because of body\.lock \(lock\); clear it, or convert with inplace"
    ):
        convert_to_localnorm(net, 2)
    assert isinstance(convert_to_localnorm(net, 2, inplace=True).body[1], LocalNorm2d)


def test_tied_layers_stay_tied():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    net[3].weight, net[3].bias = net[1].weight, net[1].bias
    local = convert_to_localnorm(net, 2)
    assert local[3].weight is local[1].weight
    assert local[3].bias is local[1].bias
    assert local[4].weight is not local[1].weight
    back = convert_to_batchnorm(local, [torch.randn(4, 3, 8, 8)])
    assert back[3].weight is back[1].weight
    with pytest.raises(ValueError, match="3 shares a parameter with 1, which is not converted; exclude it"):
        convert_to_localnorm(net, 2, exclude="1", inplace=True)
    assert isinstance(net[3], nn.BatchNorm2d)


def test_a_localnorm_that_would_lose_its_behaviour_is_refused_by_name():
    local = convert_to_localnorm(small_net(), 2)
    local[4].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"cannot convert faithfully: 4 \(it has hooks"):
        convert_to_batchnorm(local, [torch.randn(4, 3, 8, 8)], inplace=True)
    assert isinstance(local[1], LocalNorm2d)


def test_frozen_batchnorm_is_refused_by_name():
    frozen = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d(3)
    with pytest.raises(ValueError, match=r"1 \(its statistics are frozen\); exclude them by name"):
        convert_to_localnorm(nn.Sequential(nn.BatchNorm2d(3), frozen), 2)


def test_a_fused_activation_is_kept_under_its_names_there_and_back():
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    net = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), layers.BatchNormAct2d(4)))
    x = torch.randn(4, 3, 8, 8)
    local = convert_to_localnorm(net, 1, track_running_stats=True)
    torch.testing.assert_close(local(x), net(x))
    assert local(x).min() == 0
    assert local.state_dict().keys() == net.state_dict().keys()
    assert type(local[1].act) is type(net[1].act)
    assert local[1].running_mean.shape == (1, 4)
    back = convert_to_batchnorm(local, [x])
    assert type(back[1]) is layers.BatchNormAct2d
    assert type(back[1].act) is type(net[1].act)


def test_a_network_without_the_norm_is_refused():
    with pytest.raises(ValueError, match="the network has no BatchNorm to convert"):
        convert_to_localnorm(nn.Sequential(nn.GroupNorm(1, 3)), 2)
    with pytest.raises(ValueError, match="the network has no LocalNorm to convert"):
        convert_to_batchnorm(small_net(), [torch.randn(4, 3, 8, 8)])


def test_going_back_gives_the_mean_affine_and_the_loaders_statistics():
    net = small_net()
    local = convert_to_localnorm(net, 4)
    with torch.no_grad():
        for module in (local[1], local[4]):
            module.weight.add_(torch.randn_like(module.weight))
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    back = convert_to_batchnorm(local, ((images, None) for images in batches))
    torch.testing.assert_close(back[1].weight, local[1].weight.mean(0))
    outputs = [local[0](images) for images in batches]
    torch.testing.assert_close(back[1].running_mean, torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0))
    torch.testing.assert_close(back[1].running_var, torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0))
    assert back[1].momentum == 0.1


def test_there_and_back_without_training_is_the_original():
    net = small_net()
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    estimate_statistics(net, batches)
    back = convert_to_batchnorm(convert_to_localnorm(net, 4), batches)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(back.eval()(x), net.eval()(x))


def test_statistics_are_estimated_for_each_group_without_dropout_and_flags_stay():
    net = without_dropout(convert_to_localnorm(small_net(), 4))
    net[5].train()
    images = torch.randn(8, 3, 8, 8)
    estimate_statistics(net, [images])
    y = net[0](images)
    torch.testing.assert_close(net[1].running_mean, y.unflatten(0, (2, 4)).mean((0, 3, 4)))
    assert net.training
    assert net[5].training
    assert net[1].momentum == 0.1
    assert net[1].track_running_stats


def test_a_batch_without_an_image_for_every_group_is_left_out_of_the_statistics():
    layer = LocalNorm2d(3, 4)
    whole, tail = torch.randn(8, 3, 5, 5) + 9, torch.randn(2, 3, 5, 5) + 9
    estimate_statistics(layer, [tail, whole, tail])
    torch.testing.assert_close(layer.running_mean, whole.unflatten(0, (2, 4)).mean((0, 3, 4)))
    with pytest.raises(ValueError, match=r"num_groups=4 groups need batches of at least 4 images, got at most 2"):
        estimate_statistics(LocalNorm2d(3, 4), [tail])


def test_a_failing_loader_leaves_the_statistics():
    net = small_net()
    before = copy.deepcopy(net.state_dict())

    def loader():
        yield torch.randn(4, 3, 8, 8)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        estimate_statistics(net, loader())
    with pytest.raises(ValueError, match="at least one batch, got an empty loader"):
        estimate_statistics(net, [])
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    with pytest.raises(ValueError, match="neither a LocalNorm nor a BatchNorm"):
        estimate_statistics(nn.ReLU(), [torch.randn(1)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
@pytest.mark.parametrize("norm", ["batch", "local"])
def test_half_precision_networks_have_the_average_of_float32_which_batchnorm_rounds_once(dtype, norm):
    """An average in bfloat16 would stop to move after some hundred batches."""
    torch.manual_seed(0)
    batches = [torch.full((4, 2, 3, 3), float(number)) + torch.randn(4, 2, 3, 3) for number in range(64)]
    layer, half = (nn.BatchNorm2d(2) if norm == "batch" else LocalNorm2d(2, 2) for _ in range(2))
    half = half.to(dtype)
    estimate_statistics(layer, [batch.to(dtype).float() for batch in batches])
    estimate_statistics(half, [batch.to(dtype) for batch in batches])
    stored = dtype if norm == "batch" else torch.float32
    assert (half.weight.dtype, half.running_mean.dtype) == (dtype, stored)
    for got, want in ((half.running_mean, layer.running_mean), (half.running_var, layer.running_var)):
        torch.testing.assert_close(got, want.to(stored), rtol=1e-6, atol=0)  # far below half precision's rounding


def test_a_batchnorm_without_a_place_for_statistics_is_refused_by_name():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"track_running_stats=False has no place for statistics: '1'; build it with"):
        estimate_statistics(net, [torch.randn(4, 3, 8, 8)])
    local = nn.Sequential(LocalNorm2d(3, 2), net[1])
    with pytest.raises(ValueError, match="no place for statistics: '1'"):
        convert_to_batchnorm(local, [torch.randn(4, 3, 8, 8)], inplace=True)
    assert isinstance(local[0], LocalNorm2d)


class WithAuxiliaryHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.main(x) + self.auxiliary(x) if self.training else self.main(x)


def test_a_layer_that_evaluation_does_not_run_keeps_its_statistics():
    net = randomized(WithAuxiliaryHead())
    before = net.auxiliary.running_mean.clone()
    images = torch.randn(4, 3, 8, 8)
    estimate_statistics(net, [images])
    torch.testing.assert_close(net.main.running_mean, images.mean((0, 2, 3)))
    assert torch.equal(net.auxiliary.running_mean, before)


def test_statistics_of_layers_that_the_forward_does_not_run_are_refused():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return elsewhere.norm(x)

    elsewhere = Elsewhere().eval()
    with pytest.raises(ValueError, match="the network's forward ran none of its norm layers"):
        estimate_statistics(elsewhere, [torch.randn(4, 3, 8, 8)])
    assert elsewhere.norm.num_batches_tracked == 0


def test_statistics_that_are_not_finite_are_refused_and_the_network_keeps_its_own():
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(4, 3, 8, 8)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="the statistics are not finite"):
        estimate_statistics(net, [images])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_conversion_in_place_that_fails_leaves_the_network_as_it_was():
    local = nn.Sequential(nn.Conv2d(3, 4, 3), LocalNorm2d(4, 2), nn.ReLU())
    before = copy.deepcopy(local.state_dict())
    with pytest.raises(ValueError, match="not finite"):
        convert_to_batchnorm(local, [torch.full((4, 3, 8, 8), torch.nan)], inplace=True)
    assert type(local[1]) is LocalNorm2d
    assert all(torch.equal(t, before[name]) for name, t in local.state_dict().items())
    images = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    copied = convert_to_batchnorm(local, images)
    assert convert_to_batchnorm(local, images, inplace=True) is local
    assert all(torch.equal(t, copied.state_dict()[name]) for name, t in local.state_dict().items())
