"""Settings: what cannot work is refused where a block is read, and the conditions that follow from one."""

import subprocess
import sys
from dataclasses import replace

import pytest

from localnorm import arms
from localnorm.settings import AblationConfig, AnswersConfig, TrainConfig, conditions

ASKED = AnswersConfig(
    noises={"released": ["bernoulli"], "named": ["gaussian"]}, statistics={"bn": ["fixed"]}, batch_size=8, max_levels=3
)


def test_settings_are_read_without_torch():
    code = "import sys, localnorm.settings; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------------------------------- training


def test_more_groups_than_images_in_a_batch_names_both():
    with pytest.raises(
        ValueError, match="num_groups=16 needs at least 16 images in a training batch, got batch_size=8"
    ):
        TrainConfig("small", epochs=1, batch_size=8, num_groups=16)


def test_group_sizes_that_do_not_divide_the_batch_are_named():
    with pytest.raises(ValueError, match=r"group_sizes must divide batch_size=64, \[3, 0\] do not"):
        TrainConfig("small", epochs=1, batch_size=64, group_sizes=[1, 3, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "plateau"}, r"schedule=.plateau. needs a decay below 1, got 1\.0"),
        ({"schedule": "steps"}, "schedule='steps' needs milestones"),
        ({"augment": {"flipp": True}}, "augment: .*flipp.*; it takes flip, shift, rotation and zoom"),
        ({"augment": {"shift": 5}}, "augment: shift must be at least 0 and at most 1, got 5"),
        ({"label_smoothing": 3}, "label_smoothing must be below 1, got 3"),
        ({"momentum": 1.5}, r"momentum must be below 1, got 1\.5"),
        ({"threads": 0}, "threads must be a whole number of at least 1, or None, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_data(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig("small", epochs=1, batch_size=64, **options)


# --------------------------------------------------------------------------------------------------------------- answers


def test_clean_images_are_one_condition_and_every_noise_has_its_levels_above_zero():
    assert conditions(ASKED) == [
        arms.CLEAN,
        ("released", "bernoulli", 0.5),
        ("released", "bernoulli", 0.95),
        ("named", "gaussian", 0.2),
        ("named", "gaussian", 0.5),
    ]
    assert len(conditions(replace(ASKED, max_levels=None))) == 1 + 19 + 7


def test_images_of_an_arm_come_before_those_of_its_statistics():
    config = replace(ASKED, images=100, clean_images=200, most_images={"single": 32, "LN single": 96})
    assert [config.images_of(network, "single") for network in ("bn", "ln")] == [32, 96]
    assert config.images_of("bn", "fixed") is None
    assert [config.images_at(level) for level in (0, 0.5)] == [200, 100]


def test_a_network_that_nothing_is_asked_of_is_named():
    with pytest.raises(ValueError, match="names no statistics for the network 'gn', only for bn"):
        ASKED.statistics_of("gn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "log"}, "unknown domain 'log'; choose one of standardised, raw, unit"),
        ({"rescale": "batch"}, "unknown rescale 'batch'; choose one of set, image, none"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"images": -5}, "images must be a whole number of at least 1, got -5"),
        ({"fixed_last": [0]}, r"fixed_last must be numbers of layers of at least 1, got \[0\]"),
        ({"clean_images": 0}, "clean_images must be a whole number of at least 1, got 0"),
        ({"companions": 0}, "companions must be a whole number of at least 1, got 0"),
        ({"most_images": {"vote": 0.5}}, "most_images vote must be a whole number of at least 1, got 0.5"),
        ({"most_images": {"LN votes": 8}}, "most_images: unknown statistics or arm 'LN votes'; choose of fixed, batch"),
        (
            {"streams": {"sizes": [8], "images": 8, "conditions": {}}},
            "streams: conditions must name at least one noise",
        ),
        ({"prior": -3}, "prior must be a number of positions of at least 0, got -3"),
        ({"prior": [64, float("nan")]}, "prior must be a number of positions of at least 0, got nan"),
        ({"prior": [1, 2]}, r"a choice of prior \[1, 2\] needs at least one value, and prior_noises to choose by"),
        ({"gated": [1, 2]}, r"a choice of gated \[1, 2\] needs at least one value, and prior_noises to choose by"),
        ({"gated": 0}, "gated must be a number of positions above 0, got 0"),
        (
            {"prior_noises": {"named": {"bernoulli": 1.2}}},
            r"'bernoulli' \(probability .*\) is at least 0 and at most 1, got 1.2",
        ),
        (
            {"noises": {"named": ["poisson"]}, "prior_noises": {"named": {"poisson": 0.2}}},
            r"poisson \(named\) is scored",
        ),
        ({"streams": {"sizes": [8]}}, "streams must have exactly sizes, conditions, images; it has sizes"),
        (
            {"streams": {"sizes": [9], "images": 8, "conditions": {}}},
            r"whole numbers from 1 to images=8, got \[9\]",
        ),
        (
            {"noises": {"released": ["mnist_background"]}, "domain": "raw"},
            "in the domain 'raw' no image is left; set domain: unit",
        ),
        (
            {"statistics": {"ln": ["fix"]}},
            "no arm of the network 'ln' with statistics 'fix'; it has batch, pooled, fixed, single",
        ),
        ({"statistics": {"ghost": ["batch"]}}, "unknown network 'ghost'; choose one of bn, ln, "),
    ],
)
def test_what_a_network_cannot_be_asked_is_refused_with_the_valid_choices(change, message):
    with pytest.raises(ValueError, match=message):
        AnswersConfig(**{"noises": {}, "statistics": {}, "batch_size": 8} | change)


# ------------------------------------------------------------------------------------------------------------- ablations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": ["ghost"]}, "unknown network 'ghost'; choose one of bn, ln, "),
        ({"noises": {"named": ["gauss"]}}, "unknown noise 'gauss' in suite 'named'"),
        ({"images": 0}, "images must be a whole number of at least 1, got 0"),
        ({"max_levels": 1}, "max_levels must be at least 2"),
    ],
)
def test_ablations_that_would_end_after_hours_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        AblationConfig(**{"seeds": [0], "noises": {}, "max_levels": 2, "images": 8} | change)
