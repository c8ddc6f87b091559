"""The chosen prior is the most accurate of the candidates, and what cannot be chosen by is refused before any forward."""

import math
import weakref

import pytest
import torch
from torch import nn

from localnorm import choose_prior, convert_to_localnorm, estimate_statistics, learn_spread, predict

torch.set_num_threads(1)


def images_of(n):
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    )
    estimate_statistics(made, [images_of(64)])
    local = convert_to_localnorm(made, num_groups=1, track_running_stats=True)
    learn_spread(local, [images_of(64)])
    return local


@pytest.mark.parametrize("mode", ["prior", "gated"])
def test_the_chosen_prior_is_the_candidate_with_the_most_accuracy(net, mode):
    """Labels are what one candidate answers on clean images, so that this one is always right there."""
    images = images_of(40)
    noisy = [images * 3 + 1, images + 2 * images_of(40).flip(0)]
    candidates = [1.0, 30.0, 1000.0]
    chosen = []
    for right in candidates:
        labels = predict(net, images, mode, prior=right).argmax(1)

        def right_answers(prior, pixels, labels=labels):
            return (predict(net, pixels, mode, prior=prior).argmax(1) == labels).sum().item()

        score = [2 * right_answers(n0, images) + sum(right_answers(n0, copy) for copy in noisy) for n0 in candidates]
        chosen.append(choose_prior(net, images, labels, noisy, mode, candidates=candidates))
        assert chosen[-1] == max(zip(score, candidates, strict=True))[1]
    assert len(set(chosen)) > 1  # so a function that always takes the same one fails


def test_of_equally_good_candidates_the_largest_is_taken_and_a_warning_says_so(net):
    images, labels = images_of(8), torch.full((8,), 9)  # no class of the network: all are always wrong
    with pytest.warns(UserWarning, match=r"all 3 candidates are right equally often \(0 of 8"):
        assert choose_prior(net, images, labels, iter([images]), candidates=(4, math.inf, 16)) == math.inf


def test_noisy_copies_are_read_one_at_a_time(net):
    alive = []

    def copies():
        for seed in range(6):
            pixels = images_of(8) + seed
            alive.append(weakref.ref(pixels))
            yield pixels
            del pixels
            assert sum(each() is not None for each in alive) <= 3

    assert choose_prior(net, images_of(8), torch.arange(8) % 5, copies()) > 0


def test_choosing_changes_nothing(net):
    before = {name: t.clone() for name, t in net.state_dict().items()}
    choose_prior(net.train(), images_of(40), torch.arange(40) % 5, [3 * images_of(40)])
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "single"}, r"mode must be one of prior, gated.*'single'"),
        ({"candidates": []}, "at least one number"),
        ({"candidates": [4, -1]}, "-1"),
        ({"noisy": []}, "at least one copy"),
        ({"noisy": [images_of(7)]}, r"\(8, 3, 9, 9\).*\(7, 3, 9, 9\)"),
        ({"labels": torch.zeros(7)}, r"8 images.*\(7,\)"),
        ({"labels": torch.zeros(8, 5)}, r"8 images.*\(8, 5\)"),
        ({"images": images_of(8)[:0], "labels": torch.zeros(0)}, "0 images"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(net, change, said):
    given = {"images": images_of(8), "labels": torch.zeros(8), "noisy": [images_of(8)], "mode": "prior"} | change
    begun = net[0].register_forward_pre_hook(lambda *_: pytest.fail("work began"))
    try:
        with pytest.raises(ValueError, match=said):
            choose_prior(net, **given)
    finally:
        begun.remove()


def test_a_network_of_one_logit_has_no_classes_to_be_right_about():
    one = nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    estimate_statistics(one, [images_of(8)])
    with pytest.raises(ValueError, match=r"at least 2 classes, got \(8, 1\)"):
        choose_prior(one, images_of(8), torch.zeros(8), [images_of(8)])
