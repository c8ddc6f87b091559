"""A mode that is set stays with the network: in copies, files, threads, compiled and exported forms; a block still wins."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from localnorm import (
    LocalNorm2d,
    Predictor,
    convert_state_dict,
    convert_to_localnorm,
    estimate_statistics,
    learn_spread,
    predict,
    set_eval_mode,
    use_mode,
)

torch.set_num_threads(1)
MODES = {
    "single": {"mode": "single", "group": 2},
    "prior": {"mode": "prior", "prior": 64, "group": 1},
    "fixed": {"mode": "fixed"},
    "gated": {"mode": "gated", "prior": 64, "group": 1},
    "last fixed": {"mode": "single", "fixed_last": 1},
}


def batch_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(150, 5)
    )  # fmt: skip


def local_net():
    net = convert_to_localnorm(batch_net(), 3)
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    estimate_statistics(net, [images_of(12)])
    learn_spread(net, [images_of(12)])
    return net


def images_of(n):
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(n))


def by_state_dict(net):
    other = convert_to_localnorm(batch_net(), 3)  # no statistics and no mode of its own
    other.load_state_dict(net.state_dict())
    return other.eval()


def by_safetensors(net, folder):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(net.state_dict(), folder / "net.safetensors")
    other = convert_to_localnorm(batch_net(), 3)
    other.load_state_dict(safetensors.load_file(folder / "net.safetensors"))
    return other.eval()


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_is_what_predict_gives_and_training_and_blocks_are_as_before(mode):
    net, images = local_net(), images_of(7)
    in_batch, in_training = net.eval()(images), net.train()(images)
    learn_spread(net, [images_of(12)])  # which the training forward made it forget
    assert set_eval_mode(net, **MODES[mode]) is net
    torch.testing.assert_close(net.eval()(images), predict(net, images, **MODES[mode]))
    torch.testing.assert_close(net.train()(images), in_training)
    net.eval()
    with use_mode("batch"):
        torch.testing.assert_close(net(images), in_batch)
    torch.testing.assert_close(predict(net, images), in_batch)
    torch.testing.assert_close(set_eval_mode(net, "batch")(images), in_batch)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", MODES)
def test_an_image_alone_has_the_bits_that_it_has_in_company(mode, layout):
    net = set_eval_mode(local_net().eval(), **MODES[mode])
    images = torch.randn(9, 6, 7, 7).contiguous(memory_format=layout)
    for norm in (net[1], net[4]):
        together = norm(images)
        assert all(torch.equal(norm(images[i : i + 1])[0], together[i]) for i in range(9))


@pytest.mark.parametrize("mode", MODES)
def test_copies_and_files_keep_the_mode(mode, tmp_path):
    net, images = set_eval_mode(local_net().eval(), **MODES[mode]), images_of(5)
    want = net(images)
    for again in (copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), by_state_dict):
        torch.testing.assert_close(again(net)(images), want, rtol=0, atol=0)
    torch.testing.assert_close(by_safetensors(net, tmp_path)(images), want, rtol=0, atol=0)


def test_a_file_without_a_mode_loads_as_before_and_leaves_the_networks_own():
    net, images = local_net().eval(), images_of(5)
    plain = net.state_dict()
    assert not any("eval_mode" in key for key in plain)
    want = set_eval_mode(net, "single")(images)
    net.load_state_dict(plain)
    torch.testing.assert_close(net(images), want)


def test_threads_and_replicas_find_the_mode_where_a_block_does_not_reach():
    net, images, seen = set_eval_mode(local_net().eval(), "single"), images_of(5), {}
    want, in_batch = net(images), predict(net, images)

    def work(name):
        seen[name] = net(images)

    set_eval_mode(net, "batch")
    with use_mode("single"):
        thread = threading.Thread(target=work, args=("block",))
        thread.start()
        thread.join()
    set_eval_mode(net, "single")
    thread = threading.Thread(target=work, args=("set",))
    thread.start()
    thread.join()
    torch.testing.assert_close(seen["block"], in_batch)
    torch.testing.assert_close(seen["set"], want)
    replica = net[1]._replicate_for_data_parallel()  # as DataParallel makes them
    assert replica.eval_mode == net[1].eval_mode


def test_a_compiled_network_follows_the_mode_that_is_set():
    torch._dynamo.reset()
    net, images = local_net().eval(), images_of(6)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for options in ({"mode": "batch"}, *MODES.values()):
        set_eval_mode(compiled, **options)
        torch.testing.assert_close(compiled(images), predict(net, images, **options))


@pytest.mark.parametrize("mode", MODES)
def test_an_exported_network_has_the_mode(mode):
    net = set_eval_mode(local_net().eval(), **MODES[mode])
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    exported = torch.export.export(net, (images_of(4),), dynamic_shapes=shapes).module()
    for n in (1, 7):
        torch.testing.assert_close(exported(images_of(n)), net(images_of(n)))


def test_a_part_of_a_network_can_have_a_mode_of_its_own():
    net, images = local_net().eval(), images_of(5)
    set_eval_mode(set_eval_mode(net, "single")[4], "fixed")
    torch.testing.assert_close(net(images), predict(net, images, "single", fixed_last=1))


def test_the_repr_shows_the_mode():
    assert "eval_mode='prior'" in repr(set_eval_mode(local_net(), "prior", prior=64))
    assert "eval_mode" not in repr(local_net())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (batch_net, {"mode": "single"}, "needs a LocalNorm, and the network has none.*convert_to_localnorm"),
        (
            local_net,
            {"mode": "vote"},
            "mode must be one of batch, single, prior, fixed, gated; got 'vote'.*localnorm.predict",
        ),
        (local_net, {"mode": "prior"}, "mode='prior' needs prior"),
        (local_net, {"mode": "single", "prior": 3}, "prior=3 belongs to mode='prior'"),
        (local_net, {"mode": "single", "group": 3}, "group=3 needs more than 3 groups, got num_groups=3"),
        (local_net, {"mode": "single", "fixed_last": 3}, "fixed_last is from 0 to 2.* got 3"),
        (local_net, {"mode": "batch", "fixed_last": 1}, "fixed_last is .* 0 in mode 'batch'; got 1"),
        (lambda: convert_to_localnorm(batch_net(), 3), {"mode": "fixed"}, r"1, 4 have none.*estimate_statistics"),
        (
            lambda: convert_to_localnorm(batch_net(), 3, track_running_stats=True),
            {"mode": "prior", "prior": 9},
            r"1, 4 have none.*estimate_statistics",
        ),
        (
            lambda: convert_to_localnorm(batch_net(), 3, exclude="4"),
            {"mode": "single"},
            "4 are BatchNorm; convert them",
        ),
    ],
)
def test_a_mode_that_cannot_be_set_is_refused_and_nothing_changes(make, options, message):
    net = make()
    before = [getattr(module, "eval_mode", None) for module in net.modules()]
    with pytest.raises(ValueError, match=message):
        set_eval_mode(net, **options)
    assert [getattr(module, "eval_mode", None) for module in net.modules()] == before


def test_one_predictor_serves_many_calls_and_modes():
    net, images = local_net(), images_of(7)
    predictor = Predictor(net, "prior", prior=64)
    for n in (1, 7):
        torch.testing.assert_close(predictor(images[:n]), predict(net, images[:n], "prior", prior=64), rtol=0, atol=0)
    vote = predictor.using("vote")
    torch.testing.assert_close(vote(images), predict(net, images, "vote"), rtol=0, atol=0)
    members = predictor.using("single", return_members=True)(images)
    torch.testing.assert_close(members[1], predict(net, images, "single", group=1))
    torch.testing.assert_close(predictor(images), predict(net, images, "prior", prior=64), rtol=0, atol=0)
    with pytest.raises(ValueError, match="prior=3 belongs to mode='prior'"):
        predictor.using("single", prior=3)
    with pytest.raises(ValueError, match="group must be from 0 to 2"):
        predictor.using("single", group=3)


@pytest.mark.parametrize("make", [batch_net, local_net])
def test_a_predictor_sees_weights_that_are_trained_on(make):
    net, images = make(), images_of(7)
    estimate_statistics(net, [images])
    predictor = Predictor(net, "prior", prior=64)
    before = predictor(images)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(predictor(images), predict(net, images, "prior", prior=64), rtol=0, atol=0)
    assert not torch.allclose(predictor(images), before)


# Checkpoints across norms


def test_a_batchnorm_checkpoint_is_taken_by_the_call_that_converts_it_and_refused_without():
    batch, images = batch_net(), images_of(8)
    estimate_statistics(batch, [images])
    nn.init.uniform_(batch[1].weight, 0.5, 2)
    want = convert_to_localnorm(batch, 3, track_running_stats=True)
    local = convert_to_localnorm(batch_net(), 3, track_running_stats=True)
    with pytest.raises(RuntimeError, match=r"1.weight has shape \(6,\), a BatchNorm's.*localnorm.convert_state_dict"):
        local.load_state_dict(batch.state_dict())
    local.load_state_dict(convert_state_dict(batch.state_dict(), local))
    assert all(torch.equal(a, b) for a, b in zip(local.state_dict().values(), want.state_dict().values(), strict=True))
    torch.testing.assert_close(predict(local, images, "fixed"), batch.eval()(images))
    without = convert_to_localnorm(batch_net(), 3)
    without.load_state_dict(convert_state_dict(batch.state_dict(), without))
    assert not without[1].track_running_stats


def test_a_localnorm_checkpoint_goes_back_by_images():
    local = local_net()
    with pytest.raises(ValueError, match=r"1.weight has shape \(3, 6\), a LocalNorm's.*convert_to_batchnorm"):
        convert_state_dict(local.state_dict(), batch_net())
    assert convert_state_dict(local.state_dict(), local).keys() == local.state_dict().keys()
    with pytest.raises(ValueError, match=r"1.weight has shape \(3, 6\); this LocalNorm takes \(4, 6\)"):
        convert_state_dict(local.state_dict(), convert_to_localnorm(batch_net(), 4))


# Precision of stored statistics


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_stored_statistics_are_float32_whatever_the_weights_are_in(dtype):
    torch.manual_seed(0)
    layer = LocalNorm2d(2, 2, track_running_stats=True, momentum=0.01).to(dtype)
    built = LocalNorm2d(2, 2, track_running_stats=True, dtype=dtype)
    for norm in (layer, built, copy.deepcopy(layer)):
        assert (norm.weight.dtype, norm.running_mean.dtype, norm.running_var.dtype) == (dtype, *[torch.float32] * 2)
    for _ in range(600):
        layer(torch.randn(4, 2, 3, 3).to(dtype) + 9.5)
    assert (layer.running_mean - 9.5).abs().max() < 0.1  # in bfloat16 the average stalls at about 4
    exact = layer.running_mean.clone()
    assert torch.equal(layer.to(torch.float16).float().running_mean, exact)
    assert layer.double().running_mean.dtype == torch.float64
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in layer.state_dict().items()}
    layer.load_state_dict(half, assign=True)
    assert (layer.weight.dtype, layer.running_mean.dtype) == (dtype, torch.float32)


# One value per channel


class Pooling(nn.Module):
    """A network with an image-pooling branch, whose norm has 1 x 1 maps, as DeepLabV3 has one."""

    def __init__(self):
        super().__init__()
        self.body, self.pooled = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))

    def forward(self, x):
        return self.body(x).mean((2, 3)) + self.pooled(torch.nn.functional.adaptive_avg_pool2d(x, 3)).flatten(1)


@pytest.mark.parametrize("mode", ["single", "vote"])
def test_a_layer_with_one_value_per_channel_takes_stored_statistics_by_choice(mode):
    torch.manual_seed(0)
    net = Pooling()
    estimate_statistics(net, [images_of(12)])
    for network in (net, convert_to_localnorm(net, 4, track_running_stats=True)):
        with pytest.raises(ValueError, match=r"more than 1 value per channel.*one_value='fixed'"):
            predict(network, images_of(3), mode)
        assert predict(network, images_of(3), mode, one_value="fixed").isfinite().all()
    local = convert_to_localnorm(net, 4, track_running_stats=True, one_value="fixed")
    image = images_of(1)
    want = local.body(image).mean((2, 3)) + net.eval().pooled(nn.functional.adaptive_avg_pool2d(image, 3)).flatten(1)
    torch.testing.assert_close(predict(local, image, mode, return_members=True)[0], want)
    with pytest.raises(ValueError, match="one_value must be one of refuse, fixed; got 'skip'"):
        predict(local, image, mode, one_value="skip")


def test_training_with_one_image_per_group_starts_where_such_layers_fall_back():
    net = convert_to_localnorm(Pooling(), 4, track_running_stats=True)
    with pytest.raises(ValueError, match="one_value='fixed'"):
        net(images_of(4))
    net = convert_to_localnorm(Pooling(), 4, track_running_stats=True, one_value="fixed")
    net(images_of(4)).square().sum().backward()
    assert net.pooled[1].weight.grad.any()
    assert net.pooled[1].is_untouched()
    assert not net.body[1].is_untouched()
