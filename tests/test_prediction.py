"""Each mode is its definition on LocalNorm and BatchNorm networks alike, and a prediction leaves no trace."""

import copy
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

import localnorm
from localnorm.convert import convert_to_localnorm
from localnorm.layers import LocalNorm2d, use_mode
from localnorm.prediction import (
    disagreement,
    majority_vote,
    mean_probability,
    mutual_information,
    predict,
    spread,
)
from localnorm.training_statistics import estimate_statistics

torch.set_num_threads(1)
GROUPS = 3


def batch_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Dropout(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    return net.double()


def local_net():
    net = convert_to_localnorm(batch_net(), GROUPS, track_running_stats=True)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, LocalNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    estimate_statistics(net, [images_of(12)])
    return net


def images_of(n):
    return torch.randn(n, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def trained_batch_net():
    net = batch_net()
    estimate_statistics(net, [images_of(12)])
    return net


NETS = {"local": local_net, "batch": trained_batch_net}
OPTIONS = {
    "batch": {},
    "pooled": {},
    "single": {},
    "vote": {},
    "companions": {"companions": images_of(4)},
    "prior": {"prior": 20},
    "fixed": {},
}


@pytest.mark.parametrize("norm", NETS)
@pytest.mark.parametrize("mode", OPTIONS)
def test_a_prediction_changes_nothing_and_records_no_gradient(norm, mode):
    net = NETS[norm]().train()
    net[6].eval()
    state, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    logits = predict(net, images_of(7), mode, **OPTIONS[mode])
    assert logits.shape == (7, 5)
    assert logits.isfinite().all()
    assert not logits.requires_grad
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("norm", NETS)
@pytest.mark.parametrize("mode", [m for m in OPTIONS if m not in ("batch", "pooled")])
@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_outside_batch_mode_an_image_is_predicted_alone_whatever_the_chunks(norm, mode, batch_size):
    net, images = NETS[norm](), images_of(7)
    logits = predict(net, images, mode, batch_size=batch_size, **OPTIONS[mode])
    alone = torch.cat([predict(net, image[None], mode, **OPTIONS[mode]) for image in images])
    torch.testing.assert_close(logits, alone)


def test_batch_mode_is_the_networks_own_forward_in_evaluation():
    net, images = local_net(), images_of(7)
    torch.testing.assert_close(predict(net, images), net.eval()(images))


def test_batch_mode_of_a_batchnorm_network_is_its_training_forward_without_dropout():
    net, images = trained_batch_net(), images_of(7)
    logits = predict(net, images)
    own = copy.deepcopy(net).train()
    own[6].eval()
    torch.testing.assert_close(logits, own(images))


def test_batch_mode_cuts_into_nearly_equal_batches():
    net, images = local_net(), images_of(10)
    parts = [images[:4], images[4:7], images[7:]]
    torch.testing.assert_close(predict(net, images, batch_size=4), torch.cat([net.eval()(part) for part in parts]))


@pytest.mark.parametrize("assignment", ["interleaved", "contiguous"])
@pytest.mark.parametrize("count", [9, 7, 2])
def test_pooled_mode_has_one_statistic_for_all_and_the_affine_of_each_images_group(assignment, count):
    layer = LocalNorm2d(4, GROUPS, assignment=assignment).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(count, 4, 5, 6, dtype=torch.float64) + 3
    plain = torch.nn.functional.batch_norm(x, None, None, training=True, eps=layer.eps)
    groups = min(GROUPS, count)
    if assignment == "interleaved":
        group = [i % groups for i in range(count)]
    else:
        group = [g for g, part in enumerate(torch.arange(count).tensor_split(groups)) for _ in part]
    expected = plain * layer.weight[group, :, None, None] + layer.bias[group, :, None, None]
    torch.testing.assert_close(predict(layer, x, "pooled"), expected.detach())


def test_pooled_mode_of_one_group_is_its_batch_mode():
    images, net = images_of(7), trained_batch_net()
    assert torch.equal(predict(net, images, "pooled", batch_size=4), predict(net, images, "batch", batch_size=4))
    net = local_net()
    assert not torch.allclose(predict(net, images, "pooled"), predict(net, images, "batch"))


def test_fixed_mode_of_a_batchnorm_network_is_evaluation():
    net, images = trained_batch_net(), images_of(7)
    torch.testing.assert_close(predict(net, images, "fixed"), net.eval()(images))


@pytest.mark.parametrize("group", range(GROUPS))
def test_single_mode_uses_the_groups_affine(group):
    net, images = local_net().eval(), images_of(4)
    logits = predict(net, images, "single", group=group)
    with use_mode("single", group=group):
        torch.testing.assert_close(logits, net(images))
    other = predict(net, images, "single", group=(group + 1) % GROUPS)
    assert not torch.allclose(logits, other, atol=1e-2)


def test_vote_has_the_single_predictions_of_all_groups_as_members():
    net, images = local_net(), images_of(4)
    members = predict(net, images, "vote", return_members=True)
    want = torch.stack([predict(net, images, "single", group=k) for k in range(GROUPS)])
    torch.testing.assert_close(members, want)
    torch.testing.assert_close(predict(net, images, "vote").exp(), want.softmax(-1).mean(0))
    chunked = predict(net, images, "vote", batch_size=2, return_members=True)
    torch.testing.assert_close(chunked, want)


@pytest.mark.parametrize("norm", NETS)
def test_an_image_with_companions_is_predicted_as_a_batch_of_one_group(norm):
    net, images, companions = NETS[norm](), images_of(2), images_of(4)
    members = predict(net, images, "companions", companions=companions, return_members=True)
    for k in range(GROUPS if norm == "local" else 1):
        one = copy.deepcopy(net).eval()
        for module in one.modules():
            if isinstance(module, LocalNorm2d):  # the group as a network of one group
                module.num_groups = 1
                module.weight, module.bias = (nn.Parameter(t[k : k + 1].detach()) for t in (module.weight, module.bias))
        want = torch.cat([predict(one, torch.cat([image[None], companions]))[:1] for image in images])
        torch.testing.assert_close(members[k], want)
    torch.testing.assert_close(predict(net, images, "companions", companions=companions), members[0])


@pytest.mark.parametrize("norm", NETS)
def test_prior_leads_from_single_to_fixed(norm):
    net, images = NETS[norm](), images_of(5)
    single, fixed = (predict(net, images, mode) for mode in ("single", "fixed"))
    torch.testing.assert_close(predict(net, images, "prior", prior=0), single)
    torch.testing.assert_close(predict(net, images, "prior", prior=math.inf), fixed)
    distance = [(predict(net, images, "prior", prior=n) - fixed).norm() for n in (0, 10, 100, 1000, 1e6)]
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < 1e-3 * distance[0]


def test_a_network_that_mixes_the_norms_is_predicted_in_every_mode():
    net, images = local_net(), images_of(6)
    net[4] = trained_batch_net()[4]
    for mode, options in OPTIONS.items():
        assert predict(net, images, mode, **options).shape == (6, 5)
    assert predict(net, images, "vote", return_members=True).shape == (GROUPS, 6, 5)


def test_a_network_without_such_a_norm_is_its_own_forward():
    net = nn.Sequential(nn.Flatten(), nn.Linear(243, 5)).double()
    torch.testing.assert_close(predict(net, images_of(3), "single"), net(images_of(3)))


def test_frozen_batchnorm_stays_fixed_in_every_mode():
    frozen = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d
    net = nn.Sequential(nn.Conv2d(3, 4, 3), frozen(4), nn.Flatten(), nn.BatchNorm1d(4 * 49)).double()
    assert predict(net, images_of(3), "batch").shape == (3, 196)


def test_wrappers_are_taken_off():
    net = local_net()
    torch.testing.assert_close(predict(torch.compile(net, backend="eager"), images_of(3)), predict(net, images_of(3)))


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("inside the network")


def test_a_network_that_keeps_an_activation_is_predicted():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x):
            self.kept = self.net(x)
            return self.kept.mean((2, 3))

    net = Keeping()
    images = torch.randn(4, 3, 8, 8)
    want = net(images)
    torch.testing.assert_close(predict(net, images), want)
    assert net.kept.requires_grad


class Keeping(nn.Module):
    """Keeps what its forward made, in the attribute or container that `keep` fills."""

    def __init__(self, keep):
        super().__init__()
        self.net, self.keep = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), keep

    def forward(self, x):
        made = self.net(x)
        self.keep(self, made)
        return made.mean((2, 3))


def in_a_dict(net, made):
    net.kept = {"deep": [(made,)]}


def in_a_buffer(net, made):
    net.register_buffer("kept", made, persistent=False)


@pytest.mark.parametrize("keep", [in_a_dict, in_a_buffer])
def test_activations_kept_in_containers_and_buffers_do_not_hinder(keep):
    net, images = Keeping(keep), torch.randn(4, 3, 8, 8)
    want = net(images)
    kept = net.kept
    torch.testing.assert_close(predict(net, images), want)
    assert net.kept is kept
    assert convert_to_localnorm(net, 2)(images).shape == want.shape


def test_what_cannot_be_copied_is_named():
    net = local_net()
    net[6].lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"because of 6\.lock \(lock\); clear it, or use localnorm.use_mode and the network's own"
    ):
        predict(net, images_of(3))


def test_a_compiled_part_is_predicted():
    net, images = local_net(), images_of(3)
    want = predict(net, images, "single")
    net[0] = torch.compile(nn.Sequential(net[0], net[1]), backend="eager")
    net[1] = nn.Identity()
    torch.testing.assert_close(predict(net, images, "single"), want)
    net.compile(backend="eager")
    torch.testing.assert_close(predict(net, images, "single"), want)


def wrap_forward(net):
    net.forward = torch.autocast("cpu", enabled=False)(net.forward)


def close_over_self(net):
    net.run = lambda x: net.net(x)


@pytest.mark.parametrize("mode", ["batch", "fixed"])
@pytest.mark.parametrize("reach", [wrap_forward, close_over_self])
def test_a_replica_that_would_run_the_network_itself_is_refused_and_the_network_is_untouched(reach, mode):
    net = Keeping(lambda *_: None).train()
    estimate_statistics(net, [torch.randn(4, 3, 8, 8)])
    reach(net)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"would run the original's layers through .*; or use localnorm.use_mode"):
        predict(net, torch.randn(4, 3, 8, 8), mode)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_a_network_that_runs_none_of_its_norms_is_refused():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return elsewhere.norm(x).mean((2, 3))

    elsewhere = Elsewhere().eval()
    with pytest.raises(ValueError, match="forward ran none of its norm layers, so mode='batch' chose nothing"):
        predict(elsewhere, torch.randn(4, 3, 8, 8))


class Output(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.norm, self.change = nn.BatchNorm2d(3), change

    def forward(self, x):
        return self.change(self.norm(x))


@pytest.mark.parametrize("mode", OPTIONS)
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda y: {"logits": y.mean((2, 3))}, "got dict for"),
        (lambda y: torch.cat([y, y]).mean((2, 3)), r"got shape \(\d+, 3\) for \d+ images"),
        (lambda y: y.mean(), r"got shape \(\) for"),
    ],
)
def test_an_output_without_a_row_an_image_is_refused(mode, change, got):
    net = Output(change).double()
    net.norm.running_mean.fill_(1)
    with pytest.raises(ValueError, match=f"one tensor with one row per image.*{got}.*wrap it in a module"):
        predict(net, images_of(2), mode, **OPTIONS[mode])


def test_dense_outputs_have_modes_and_no_votes():
    net = Output(nn.Identity()).double()
    assert predict(net, images_of(2), "single").shape == (2, 3, 9, 9)
    for mode, options in (("vote", {}), ("single", {"return_members": True})):
        with pytest.raises(ValueError, match=r"logits \(N, num_classes\), got shape \(2, 3, 9, 9\)"):
            predict(net, images_of(2), mode, **options)


class Views(nn.Module):
    """An image and its mirror image, averaged: the norm layers meet twice as many rows."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(torch.cat([images, images.flip(-1)])).unflatten(0, (2, -1)).mean(0)


def test_members_and_companions_are_refused_where_the_forward_splits_images_and_would_mix_them():
    net, images = Views(local_net()), images_of(4)
    for options in (
        {"mode": "vote"},
        {"mode": "companions", "companions": images[:1]},
        {"mode": "prior", "prior": 3, "return_members": True},
    ):
        with pytest.raises(ValueError, match=r"one row per image.* for \d+ images"):
            predict(net, images, **options)
    alone = (predict(net.net, views, "single", group=2) for views in (images, images.flip(-1)))
    torch.testing.assert_close(predict(net, images, "single", group=2), sum(alone) / 2)


def test_falling_back_on_statistics_that_were_never_stored_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten()).double()
    for images, mode in ((images_of(3), "single"), (images_of(1), "batch"), (images_of(1), "pooled")):
        with pytest.raises(ValueError, match="one_value='fixed' needs stored training statistics"):
            predict(net, images, mode, one_value="fixed")
    assert predict(net, images_of(3), "batch", one_value="fixed").shape == (3, 4), "three values have a variance"


@pytest.mark.parametrize("mode", ["batch", "single", "vote", "companions", "prior", "fixed"])
def test_no_images_have_no_logits(mode):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    estimate_statistics(net, [torch.randn(4, 3, 8, 8)])
    options = {"prior": {"prior": 4.0}, "companions": {"companions": torch.randn(2, 3, 8, 8)}}.get(mode, {})
    assert predict(net, torch.empty(0, 3, 8, 8), mode, **options).shape == (0, 4)


@pytest.mark.parametrize("reduce", [majority_vote, mean_probability, disagreement, spread, mutual_information])
def test_what_members_say_needs_the_axis_of_members(reduce):
    with pytest.raises(ValueError, match=r"logits \(K, N, num_classes\), got shape \(6, 5\)"):
        reduce(torch.randn(6, 5))


def test_a_vote_in_half_precision_is_finite():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Flatten()).half()
    images = 3 * torch.randn(2, 2, 64).half()
    nn.init.constant_(net[0].weight, 20.0)
    vote = predict(net, images, "vote")
    assert vote.dtype == torch.half
    assert vote.isfinite().all()
    assert (vote.float().softmax(-1) == 0).any() or vote.min() < -20  # so unlikely that the mean would be rounded to 0


def test_a_failing_network_leaves_its_modes():
    net = local_net().train()
    broken = nn.Sequential(*net, Fails())
    with pytest.raises(RuntimeError, match="inside the network"):
        predict(broken, images_of(3), "single")
    assert broken.training
    before = net.eval()(images_of(6))
    torch.testing.assert_close(predict(net, images_of(6)), before)


def test_threads_predict_in_their_own_modes():
    net, images = local_net(), images_of(6)
    want = {mode: predict(net, images, mode, **options) for mode, options in OPTIONS.items()}
    wrong = []

    def work(mode):
        for _ in range(5):
            if not torch.allclose(predict(net, images, mode, **OPTIONS[mode]), want[mode]):
                wrong.append(mode)

    threads = [threading.Thread(target=work, args=(mode,)) for mode in OPTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Members (K = 4, N = 3, 2 classes): all certain of 0; half certain of each; all undecided.
MEMBERS = torch.tensor(
    [
        [[50.0, 0.0], [50.0, 0.0], [0.0, 0.0]],
        [[50.0, 0.0], [50.0, 0.0], [0.0, 0.0]],
        [[50.0, 0.0], [0.0, 50.0], [0.0, 0.0]],
        [[50.0, 0.0], [0.0, 50.0], [0.0, 0.0]],
    ]
)


@pytest.mark.parametrize(
    ("summary", "want"),
    [
        (lambda m: mean_probability(m)[:, 0], [1.0, 0.5, 0.5]),
        (disagreement, [0.0, 0.5, 0.0]),
        (spread, [0.0, 0.5, 0.0]),
        (mutual_information, [0.0, math.log(2), 0.0]),
    ],
)
def test_summaries_tell_agreement_conflict_and_indecision_apart(summary, want):
    torch.testing.assert_close(summary(MEMBERS), torch.tensor(want), rtol=0, atol=1e-6)


def test_majority_and_mean_can_differ():
    members = torch.tensor([[[0.1, 0.0]], [[0.1, 0.0]], [[0.0, 5.0]]])
    assert majority_vote(members).item() == 0
    assert mean_probability(members).argmax(-1).item() == 1


def test_a_tie_goes_to_the_larger_mean_probability():
    members = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    assert majority_vote(members).item() == 1
    assert majority_vote(members.flip(-1)).item() == 0
    assert majority_vote(torch.zeros(2, 1, 3)).item() == 0


def test_the_package_itself_has_what_its_readme_names():
    """`localnorm.predict` is the function, so what the module of its name holds is not to be reached through it."""
    assert localnorm.use_mode is use_mode
    assert localnorm.majority_vote is majority_vote
    assert localnorm.predict is predict
    assert set(localnorm.__all__) <= set(dir(localnorm))


def test_a_group_may_be_a_number_of_numpy():
    net, images = local_net(), images_of(3)
    torch.testing.assert_close(
        predict(net, images, "single", group=np.int64(2)), predict(net, images, "single", group=2)
    )
    for option in ({"group": 1.0}, {"fixed_last": 1.5}, {"batch_size": 2.5}):
        with pytest.raises(TypeError, match=f"{next(iter(option))} must be a whole number"):
            predict(local_net(), images, "single", **option)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("mean", {}, "mode must be one of batch, pooled, single, vote, companions, prior, gated, fixed; got 'mean'"),
        ("batch", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("single", {"group": 3}, "group must be from 0 to 2 in this network, got 3"),
        ("single", {"group": -1}, "group must be from 0 to 2 in this network, got -1"),
        ("batch", {"group": 0}, "group=0 chooses one affine, and every group serves in mode='batch'; drop it"),
        ("pooled", {"group": 0}, "every group serves in mode='pooled'"),
        ("pooled", {"return_members": True}, "return_members=True needs a mode in which an image meets every group"),
        ("vote", {"group": 2}, "group=2 chooses one affine, and every group serves in mode='vote'"),
        (
            "single",
            {"group": 2, "return_members": True},
            "every group serves in mode='single' with return_members=True",
        ),
        ("prior", {}, "mode='prior' needs prior, a number of positions"),
        ("single", {"prior": 5}, "prior=5 belongs to mode='prior'"),
        ("companions", {}, r"mode='companions' needs companions, a tensor \(S - 1, C, H, W\)"),
        (
            "companions",
            {"companions": images_of(0)},
            r"at least one image of the same size, \(S - 1, 3, 9, 9\); got \(0,",
        ),
        (
            "companions",
            {"companions": torch.zeros(2, 3, 8, 9)},
            r"of the same size, \(S - 1, 3, 9, 9\); got \(2, 3, 8, 9\)",
        ),
        ("companions", {"companions": images_of(2).byte()}, "what the images are, torch.float64, got torch.uint8"),
        ("single", {"companions": images_of(1)}, "companions belong to mode='companions', got mode='single'"),
        ("batch", {"return_members": True}, "return_members=True needs a mode in which an image meets every group"),
        (
            "batch",
            {"fixed_last": 1},
            "fixed_last=1 belongs to the modes single, vote, prior and gated, got mode='batch'",
        ),
        ("single", {"fixed_last": 3}, "fixed_last must be from 0 to 2, the norm layers of this network, got 3"),
        ("single", {"fixed_last": -1}, "fixed_last must be from 0 to 2, the norm layers of this network, got -1"),
    ],
)
def test_wrong_options_are_named_before_any_work(mode, options, message):
    broken = nn.Sequential(*local_net(), Fails())
    with pytest.raises(ValueError, match=message):
        predict(broken, images_of(2), mode, **options)


@pytest.mark.parametrize("norm", NETS)
def test_the_last_layers_can_keep_the_training_statistics(norm):
    """By hand: the first norm takes the image's own statistics, the second those of training."""
    net, images, group = NETS[norm]().eval(), images_of(5), 0 if norm == "batch" else 2
    x = net[0](images)
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    first, second = (
        [t if norm == "batch" else t[group] for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
        for layer in (net[1], net[4])
    )
    x = (x - mean) / (variance + 1e-5).sqrt() * first[0].view(-1, 1, 1) + first[1].view(-1, 1, 1)
    x = net[3](x.relu())
    x = nn.functional.batch_norm(x, second[2], second[3], second[0], second[1])
    torch.testing.assert_close(predict(net, images, "single", group=group, fixed_last=1), net[5:](x))
    by_prior = predict(net, images, "prior", prior=0, group=group, fixed_last=1)
    torch.testing.assert_close(by_prior, net[5:](x))


@pytest.mark.parametrize("norm", NETS)
def test_all_layers_fixed_is_the_mode_fixed_and_the_network_forgets_it(norm):
    net, images = NETS[norm](), images_of(5)
    single = predict(net, images, "single")
    torch.testing.assert_close(predict(net, images, "single", fixed_last=2), predict(net, images, "fixed"))
    torch.testing.assert_close(predict(net, images, "single"), single)


def test_a_vote_with_the_last_layer_fixed_gives_each_member_its_own_training_statistics():
    net, images = local_net(), images_of(5)
    members = predict(net, images, "vote", fixed_last=1, return_members=True)
    for group, member in enumerate(members):
        torch.testing.assert_close(predict(net, images, "single", group=group, fixed_last=1), member)


def test_a_last_layer_without_statistics_is_named():
    net = nn.Sequential(*convert_to_localnorm(batch_net(), 2), Fails())
    with pytest.raises(ValueError, match=r"fixed_last=1 needs stored training statistics, and 4 keep none"):
        predict(net, images_of(2), "single", fixed_last=1)


@pytest.mark.parametrize(("mode", "options"), [("prior", {"prior": 5}), ("fixed", {})])
def test_layers_without_statistics_are_named_before_any_work(mode, options):
    net = nn.Sequential(*convert_to_localnorm(batch_net(), 2), Fails())
    with pytest.raises(ValueError, match=rf"mode='{mode}' needs stored training statistics, and 1, 4 keep none"):
        predict(net, images_of(2), mode, **options)


@pytest.mark.parametrize(
    ("mode", "options", "wanted"),
    [
        ("prior", {"prior": 5}, "mode='prior'"),
        ("fixed", {}, "mode='fixed'"),
        ("single", {"fixed_last": 1}, "fixed_last=1"),
    ],
)
@pytest.mark.parametrize("make", [batch_net, lambda: convert_to_localnorm(batch_net(), 2, track_running_stats=True)])
def test_statistics_that_are_still_those_of_a_new_layer_are_refused(make, mode, options, wanted):
    net = make()
    with pytest.raises(
        ValueError, match=rf"{wanted} needs stored .* those of [14] are as they were built.*estimate_statistics"
    ):
        predict(net, images_of(4), mode, **options)
    estimate_statistics(net, [images_of(6)])
    assert predict(net, images_of(4), mode, **options).shape == (4, 5)


def test_statistics_of_an_old_file_which_counted_no_batches_are_taken():
    net = trained_batch_net()
    want = predict(net, images_of(4), "fixed")
    for norm in (net[1], net[4]):
        norm.num_batches_tracked.zero_()
    torch.testing.assert_close(predict(net, images_of(4), "fixed"), want)


def test_a_head_that_evaluation_does_not_run_needs_no_statistics():
    class WithAuxiliaryHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.main(x) + self.auxiliary(x) if self.training else self.main(x)
            return x.mean((2, 3))

    net = convert_to_localnorm(WithAuxiliaryHead().double(), 2)
    estimate_statistics(net, [images_of(6)])
    assert predict(net, images_of(4), "prior", prior=5).shape == (4, 3)


def test_layers_that_disagree_on_groups_are_refused():
    net = nn.Sequential(LocalNorm2d(3, 2), LocalNorm2d(3, 4))
    with pytest.raises(ValueError, match=r"must agree on num_groups, got \[2, 4\]"):
        predict(net, torch.randn(2, 3, 4, 4), "single")


def test_a_batchnorm_of_its_own_kind_is_refused_by_name():
    class OwnNorm(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match=r"cannot choose the statistics of 0 \(OwnNorm is a subclass"):
        predict(nn.Sequential(OwnNorm(3)), torch.randn(2, 3, 4, 4))


# -------------------------------------------------------------------------------------- what a predictor follows, and what it says


class InAThread(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        done = []
        failed = []

        def run():
            try:
                done.append(self.body(x).detach())
            except ValueError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]


def test_a_network_that_runs_its_layers_in_another_thread_is_refused():
    with pytest.raises(ValueError, match=r"another thread.*DataParallel"):
        predict(InAThread(local_net()), images_of(3), "single")


@pytest.mark.parametrize("norm", NETS)
def test_a_predictor_follows_parameters_that_are_given_other_memory(norm):
    net = NETS[norm]()
    asked = localnorm.Predictor(net, "batch")
    before = asked(images_of(6))
    weights = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(torch.randn_like(weights), net.parameters())
    assert torch.equal(asked(images_of(6)), predict(net, images_of(6), "batch"))
    assert not torch.allclose(asked(images_of(6)), before)


def test_a_copied_and_a_pickled_predictor_answer_as_the_first():
    first = localnorm.Predictor(local_net(), "single")
    again = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    for each in again:
        assert torch.equal(each(images_of(3)), first(images_of(3)))


class WithAuxiliaryHead(nn.Module):
    """Its head is the last of its modules, and runs in training alone, as GoogLeNet's do."""

    def __init__(self):
        super().__init__()
        self.body = trained_batch_net()
        self.head = nn.BatchNorm1d(5).double()
        self.head.running_mean.fill_(1)

    def forward(self, x):
        return self.head(self.body(x)) if self.training else self.body(x)


def test_last_layers_that_do_not_run_are_named_in_a_warning():
    net = WithAuxiliaryHead()
    with pytest.warns(UserWarning, match="fixed_last=1 counts head.*count 1 more"):
        predict(net, images_of(3), "single", fixed_last=1)
    with pytest.warns(UserWarning, match="fixed_last=2 counts head"):
        logits = predict(net, images_of(3), "single", fixed_last=2)
    assert torch.equal(logits, predict(net.body, images_of(3), "single", fixed_last=1))
