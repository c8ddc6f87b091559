"""What a network stores about its training images, and the mode "gated", which compares an image with how they differ."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from localnorm import (
    LocalNorm2d,
    LocalNormAct2d,
    Predictor,
    choose_prior,
    convert_state_dict,
    convert_to_localnorm,
    estimate_statistics,
    learn_spread,
    predict,
    set_eval_mode,
    use_mode,
)

GROUPS = 3


def batch_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    return net.double()


def local_net(spread: bool = True):
    net = convert_to_localnorm(batch_net(), GROUPS, track_running_stats=True)
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
    estimate_statistics(net, training().split(12))
    if spread:
        learn_spread(net, training().split(12))
    return net.eval()


def images_of(seed: int, n: int):
    return torch.randn(n, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def training():
    return images_of(1, 240)


def unusual(maps, net_of_training, layer):
    """max(0, d - 1), by hand: maps are what the layer meets, (N, C, H, W)."""
    with torch.no_grad():
        ordinary = net_of_training(training())
    off = 0
    for own, theirs in (
        (maps.mean((2, 3)), ordinary.mean((2, 3))),
        (maps.var((2, 3), correction=0).log(), ordinary.var((2, 3), correction=0).log()),
    ):
        off = off + ((own - theirs.mean(0)) / theirs.std(0)).square()
    return (off.mean(1) / 2 - 1).clamp_min(0)


def test_gated_is_a_prior_that_counts_only_the_positions_of_unusual_images():
    net, group = local_net(), 2
    images = torch.cat([images_of(2, 20), 3 * images_of(3, 20) + 1])
    x = net[0](images)
    d = unusual(x, net[0], net[1])
    assert (d[:20] == 0).sum() > 5
    assert (d[20:] > 1).all()
    a = (50 / (50 + 49 * d)).view(-1, 1, 1, 1)
    stored, own = (
        (t[group].view(1, -1, 1, 1) for t in (net[1].running_mean, net[1].running_var)),
        x.mean((2, 3), keepdim=True),
    )
    mean_train, var_train = stored
    mean = a * mean_train + (1 - a) * own
    var = a * var_train + (1 - a) * x.var((2, 3), correction=0, keepdim=True) + a * (1 - a) * (mean_train - own) ** 2
    weight, bias = (t[group].view(1, -1, 1, 1) for t in (net[1].weight, net[1].bias))
    expected = (x - mean) / (var + 1e-5).sqrt() * weight + bias
    with use_mode("gated", prior=50, group=group):
        torch.testing.assert_close(net[1](x), expected)


def test_an_ordinary_image_is_answered_as_in_fixed_and_an_unusual_one_as_in_prior():
    net = local_net()
    images, far = images_of(2, 200), 5 * images_of(3, 50) + 3
    fixed, gated = (
        predict(net, images, mode, **options) for mode, options in (("fixed", {}), ("gated", {"prior": 50}))
    )
    unmoved = (gated - fixed).abs().amax(1) < 1e-9
    assert 0.05 < unmoved.double().mean() < 0.95, "some training images are farther than the others are on the mean"
    assert (gated - fixed).abs().median() < 0.2 * (predict(net, images, "prior", prior=50) - fixed).abs().median()
    with use_mode("gated", prior=1e-6):
        by_gate = net[1](net[0](far))
    with use_mode("single"):
        torch.testing.assert_close(by_gate, net[1](net[0](far)))
    torch.testing.assert_close(predict(net, far, "gated", prior=float("inf")), predict(net, far, "fixed"))


@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_an_image_is_answered_as_if_it_were_alone(batch_size):
    net, images = local_net(), 2 * images_of(4, 7)
    together = predict(net, images, "gated", prior=20, batch_size=batch_size)
    alone = torch.cat([predict(net, image[None], "gated", prior=20) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_the_members_of_a_gated_prediction_are_the_groups():
    net, images = local_net(), 2 * images_of(4, 7)
    members = predict(net, images, "gated", prior=20, return_members=True)
    for group in range(GROUPS):
        torch.testing.assert_close(members[group], predict(net, images, "gated", prior=20, group=group))
    last = predict(net, images, "gated", prior=20, fixed_last=2)
    torch.testing.assert_close(last, predict(net, images, "fixed"))


def test_what_is_learned_is_how_single_images_differ_in_each_group_whatever_their_batches():
    net = local_net()
    whole = copy.deepcopy(net)
    learn_spread(whole, [training()])
    for index, body in ((1, net[:1]), (4, net[:4])):
        for group in range(GROUPS):
            with use_mode("fixed", group=group), torch.no_grad():
                maps = body(training())
            means, logs = maps.mean((2, 3)), maps.var((2, 3), correction=0).log()
            expected = torch.stack([means.mean(0), means.var(0), logs.mean(0), logs.var(0)])
            torch.testing.assert_close(net[index].spread[group], expected)
        torch.testing.assert_close(net[index].spread, whole[index].spread)


def test_a_batchnorm_network_is_gated_after_its_conversion():
    net = batch_net()
    estimate_statistics(net, training().split(12))
    images = 2 * images_of(5, 6)
    local = convert_to_localnorm(net, 1, track_running_stats=True)
    learn_spread(local, training().split(12))
    torch.testing.assert_close(predict(local, images, "gated", prior=float("inf")), net.eval()(images))
    assert not torch.allclose(predict(local, images, "gated", prior=20), net(images))
    with pytest.raises(ValueError, match="LocalNorm layers, and 1, 4 are BatchNorm; convert them"):
        learn_spread(net, training().split(12))


def test_files_have_the_spread_and_files_without_it_load_as_before():
    net, images = set_eval_mode(local_net(), "gated", prior=20), 2 * images_of(5, 6)
    other = convert_to_localnorm(batch_net(), GROUPS).eval()
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(images), net(images), rtol=0, atol=0)
    plain = local_net(spread=False).state_dict()
    assert not any("spread" in key for key in plain)
    convert_to_localnorm(batch_net(), GROUPS).load_state_dict(plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_spread_stays_in_float32_when_weights_are_halved(dtype):
    net = local_net().float()
    before = net[1].spread.clone()
    assert net.to(dtype)[1].spread.dtype == torch.float32
    assert torch.equal(net[1].spread, before)
    assert predict(net, 2 * images_of(5, 6).to(dtype), "gated", prior=20).isfinite().all()


def test_other_statistics_make_the_spread_be_forgotten():
    for change in (lambda net: estimate_statistics(net, [training()]), lambda net: net[1].reset_running_stats()):
        net = local_net()
        change(net)
        assert net[1].spread is None


def test_training_on_makes_the_spread_be_forgotten():
    net = local_net().train()
    net(training()[:12])
    with pytest.raises(ValueError, match="learn_spread"):
        predict(net, training()[:2], "gated", prior=20)


def test_a_spread_that_a_part_of_the_network_outlived_is_refused_wherever_gated_is_asked_for():
    """Fine-tuning with some norms in evaluation: only the others know that the spread is of another network."""
    net = local_net().train()
    net[1].eval()
    net(training()[:12])
    net.eval()
    one, labels = training()[:2], torch.tensor([0, 1])
    for ask in (
        lambda: predict(net, one, "gated", prior=20),
        lambda: set_eval_mode(net, "gated", prior=20),
        lambda: choose_prior(net, one, labels, [one / 2], "gated"),
    ):
        with pytest.raises(ValueError, match="trained after it learned"):
            ask()
    with use_mode("gated", prior=20), pytest.raises(ValueError, match="trained after it learned"):
        net(one)
    learn_spread(net, training().split(12))
    set_eval_mode(net, "gated", prior=20).train()(training()[:12])
    with pytest.raises(ValueError, match="trained after it learned"):
        net.eval()(one)


def test_what_did_not_differ_among_training_images_tells_nothing():
    """A channel that is constant there differs elsewhere by rounding alone, or by another map size."""
    net = local_net(spread=False)
    with torch.no_grad():
        net[0].weight[0] = 0
    estimate_statistics(net, training().split(12))
    learn_spread(net, training().split(12))
    images = images_of(2, 30)
    with torch.no_grad():
        net[0].bias[0] += 1e-6  # as another precision would round it
        maps = net[0](images)
        with use_mode("gated", prior=1e3):
            gated = net[1](maps)
        with use_mode("fixed"):
            fixed = net[1](maps)
    assert (gated - fixed)[:, 0].abs().max() < 0.01
    assert (gated - fixed).abs().max() < 1


def test_one_value_per_channel_has_a_mean_alone_and_is_as_usual_as_any():
    torch.manual_seed(0)
    net = convert_to_localnorm(nn.Sequential(nn.Linear(4, 50), nn.BatchNorm1d(50)), 1, track_running_stats=True)
    data = torch.randn(300, 4)
    estimate_statistics(net, [data])
    learn_spread(net, [data])
    values = net[0](data)
    d = ((values - values.mean(0)) / values.std(0)).square().mean(1)
    expected = (d - 1).clamp_min(0)
    share = (8 / (8 + expected)).unsqueeze(1)
    with use_mode("gated", prior=8), torch.no_grad():
        moved = net[1](values)
    mean, var = net[1].running_mean, net[1].running_var
    centre = share * mean + (1 - share) * values
    spread = share * var + share * (1 - share) * (mean - values) ** 2
    torch.testing.assert_close(moved, (values - centre) / (spread + 1e-5).sqrt(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(broken):
    net, images = local_net(spread=False), training().clone()
    images[100, 0, 3, 3] = broken
    with pytest.raises(ValueError, match="not finite"):
        learn_spread(net, images.split(12))
    assert net[1].spread is None


def test_an_empty_batch_of_a_loader_is_passed_over():
    net, whole = local_net(spread=False), local_net()
    learn_spread(net, [training()[:0], *training().split(12), training()[:0]])
    torch.testing.assert_close(net[1].spread, whole[1].spread)


def test_a_norm_may_be_called_by_batchnorms_keyword():
    class ByKeyword(nn.Sequential):
        def forward(self, x):
            x = self[1](input=self[0](x))
            for layer in list(self)[2:]:
                x = layer(x)
            return x

    net, images = local_net(), 2 * images_of(5, 6)
    by_keyword = ByKeyword(*local_net(spread=False)).eval()
    learn_spread(by_keyword, training().split(12))
    torch.testing.assert_close(predict(by_keyword, images, "gated", prior=9), predict(net, images, "gated", prior=9))


def test_a_layer_that_was_pickled_before_there_was_a_spread_works():
    layer = local_net(spread=False)[1]
    state = layer.__getstate__() if hasattr(layer, "__getstate__") else dict(vars(layer))
    state = {**state, "_buffers": {name: t for name, t in layer._buffers.items() if name != "spread"}}
    old = LocalNorm2d.__new__(LocalNorm2d)
    old.__setstate__(state)
    assert old.half().spread is None


def test_files_of_other_weights_take_the_spread_away_and_refused_ones_leave_none():
    net, plain = local_net(), local_net(spread=False).state_dict()
    net.load_state_dict(plain)
    assert net[1].spread is None
    net.load_state_dict(local_net().state_dict())
    assert net[1].spread is not None
    two = convert_to_localnorm(batch_net(), 2, track_running_stats=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        two.load_state_dict(local_net().state_dict())
    assert two[1].spread is None
    untracked = convert_to_localnorm(batch_net(), GROUPS)
    untracked.load_state_dict(convert_state_dict(local_net().state_dict(), untracked))
    assert untracked[1].spread is None


def test_a_network_stays_as_it_was_where_learning_fails():
    def broken():
        yield training()[:12]
        raise OSError("a file is gone")

    net = local_net()
    before = net[1].spread
    with pytest.raises(OSError, match="gone"):
        learn_spread(net, broken())
    assert net[1].spread is before


@pytest.mark.parametrize(
    ("make", "batches", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)).double(), [training()], "the network has none"),
        (lambda: convert_to_localnorm(batch_net(), 2), [training()], "estimate_statistics"),
        (lambda: convert_to_localnorm(batch_net(), 2, track_running_stats=True), [training()], "estimate_statistics"),
        (local_net, [training()[:1]], "at least 2 of them, the loader has 1"),
        (local_net, [], "at least one batch, got an empty loader"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(make, batches, message):
    with pytest.raises(ValueError, match=message):
        learn_spread(make(), batches)


@pytest.mark.parametrize(
    "ask", [lambda net: Predictor(net, "gated", prior=5), lambda net: set_eval_mode(net, "gated", prior=5)]
)
def test_gated_without_a_spread_says_how_to_get_one(ask):
    with pytest.raises(ValueError, match=r"mode='gated' needs to know how training images differ.*learn_spread"):
        ask(local_net(spread=False))
    with (
        use_mode("gated", prior=5),
        pytest.raises(ValueError, match="learn_spread"),
    ):
        LocalNorm2d(3, 2, track_running_stats=True)(torch.randn(4, 3, 5, 5))


@pytest.mark.parametrize(
    ("prior", "message"), [(None, "mode='gated' needs prior"), (0, "positions above 0"), (-1, "positions above 0")]
)
def test_a_gated_prior_is_a_number_above_0(prior, message):
    with pytest.raises(ValueError, match=message):
        predict(local_net(), images_of(1, 2), "gated", prior=prior)


# ------------------------------------------------------------------------------------------------------------- estimated statistics


class Pooled(nn.Module):
    """A branch with one value per channel and image, and a norm layer behind it."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
        self.out = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.out(x + self.pool(x))


def test_a_layer_that_takes_stored_statistics_takes_its_own_while_those_of_others_are_estimated():
    net, images = Pooled(), 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 10
    estimate_statistics(net, [images])
    local = convert_to_localnorm(net, 4, track_running_stats=True, one_value="fixed")
    estimate_statistics(local, images.split(4))
    met = []
    local.out.register_forward_pre_hook(lambda layer, inputs: met.append(inputs[0].mean()))
    with torch.no_grad():
        local.eval()(images)
    assert local.out.running_mean.mean() == pytest.approx(met[0].item(), abs=0.1)
    assert torch.equal(local.pool[1].running_mean, net.pool[1].running_mean.expand(4, 3)), "no batch moves it"


def test_dropout_inside_a_norm_layer_is_off_while_statistics_are_estimated():
    net = nn.Sequential(LocalNormAct2d(3, 2, drop=nn.Dropout(0.5)), LocalNorm2d(3, 2)).eval()
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(2):
        estimate_statistics(net, [images])
        found.append(net[1].running_var.clone())
    assert torch.equal(*found)


def test_what_spreads_a_network_over_devices_is_taken_off():
    net, images = local_net(spread=False), images_of(2, 24)
    wrapped = nn.DataParallel(net)
    wrapped.forward = None  # so that a call of the wrapper fails
    estimate_statistics(wrapped, [images])
    learn_spread(wrapped, [images])
    assert net[1].spread is not None


def test_a_layer_without_affine_answers_in_the_networks_precision():
    layer, images = LocalNorm2d(3, 2, affine=False).double(), images_of(2, 4)
    estimate_statistics(layer, [images])
    with use_mode("fixed"), torch.no_grad():
        assert layer.eval()(images).dtype == layer(images[:1]).dtype == torch.float64


@pytest.mark.parametrize("how", [{}, {"group_size": 4}, {"prior": 9.0}])
def test_every_way_of_training_on_makes_the_spread_be_forgotten(how):
    net = local_net().train()
    with use_mode("batch", **how):
        net(training()[:12]).sum().backward()
    assert net[1].spread.isnan().all()
    with pytest.raises(ValueError, match="learn_spread"):
        predict(net, training()[:1], "gated", prior=9)
    with pytest.raises(ValueError, match="learn_spread"):
        set_eval_mode(net, "gated", prior=9)
    learn_spread(net, training().split(12))
    assert predict(net, training()[:1], "gated", prior=9).isfinite().all()


@pytest.mark.parametrize("learned", [False, True])
def test_an_average_of_a_network_that_trains_on_pairs_the_same_tensors(learned):
    net = local_net(spread=learned).train()
    average = AveragedModel(net, use_buffers=True, avg_fn=get_ema_avg_fn(0.0))  # a copy of the newest
    net(training()[:12])
    average.update_parameters(net)
    net(training()[12:36])
    average.update_parameters(net)
    for own, averaged in zip(net.buffers(), average.module.buffers(), strict=True):
        torch.testing.assert_close(averaged, own, equal_nan=True)


def test_statistics_of_inference_mode_can_be_trained_and_loaded():
    net = convert_to_localnorm(batch_net(), GROUPS)
    with torch.inference_mode():
        estimate_statistics(net, training().split(12))
        learn_spread(net, training().split(12))
    net.load_state_dict(net.state_dict())
    net.train()(training()[:12]).sum().backward()
    assert net[1].num_batches_tracked > 1


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (torch.zeros(8, 3, 9, 9), r"one tensor \(8, 3, 9, 9\); give \[images\]"),
        ([{"image": torch.zeros(8, 3, 9, 9)}], "got dict; give"),
    ],
    ids=["tensor", "dict"],
)
def test_a_loader_of_something_else_than_batches_is_refused(loader, message):
    for learn in (estimate_statistics, learn_spread):
        with pytest.raises(TypeError, match=message):
            learn(local_net(), loader)


def test_a_dead_channel_leaves_gradients_finite_under_a_gate():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), LocalNorm2d(6, 2, track_running_stats=True)).double()
    with torch.no_grad():
        net[0].weight[0] = 0
    estimate_statistics(net, training().split(24))
    learn_spread(net, training().split(24))
    images = (3 * training()[:2]).requires_grad_()
    with use_mode("gated", prior=9.0):
        (gradient,) = torch.autograd.grad(net.eval()(images).square().sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_a_file_of_an_old_batchnorm_without_a_count_is_converted_and_loaded():
    net = batch_net()
    estimate_statistics(net, training().split(12))
    old = {name: t for name, t in net.state_dict().items() if "num_batches" not in name}
    local = convert_to_localnorm(batch_net(), GROUPS, track_running_stats=True)
    local.load_state_dict(convert_state_dict(old, local))
    with use_mode("fixed"), torch.no_grad():
        torch.testing.assert_close(local.eval()(training()[:5]), net.eval()(training()[:5]))
