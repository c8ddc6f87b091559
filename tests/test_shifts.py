"""Noise moves the statistics of a test batch, and clean batches are the yardstick."""

from dataclasses import replace

import numpy as np
import pytest

from localnorm.answers import noisy_images, test_images, training_range_of
from localnorm.figures.shifts import plot_shifts
from localnorm.settings import AnswersConfig
from localnorm.shifts import shifts
from localnorm.stats import beyond_clean

CONFIG = AnswersConfig(
    noises={"released": ["bernoulli"], "named": ["gaussian", "brightness"]},
    statistics={"bn": ["fixed"]},
    batch_size=32,
    images=128,
    max_levels=3,
)


@pytest.fixture(scope="module")
def table(digits):
    return shifts(digits, CONFIG)


def test_a_batch_of_all_images_has_the_distance_of_the_formula(digits):
    config = replace(CONFIG, batch_size=128)
    images, training_range = test_images(digits, config)[0], training_range_of(digits)
    for row in shifts(digits, config).itertuples():
        pixels = noisy_images(images, digits, row.suite, row.noise, row.level, config, training_range).double().numpy()
        mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
        expected = np.sqrt((mean**2 + (deviation - 1) ** 2).mean())
        assert expected > 1e-3
        np.testing.assert_allclose([row.distance, row.low, row.high], expected, rtol=1e-6)


def test_every_noise_and_level_is_there_and_clean_images_once(table):
    assert (table.level == 0).sum() == 1
    noisy = table[table.level > 0]
    assert noisy.groupby(["suite", "noise"]).size().to_dict() == {
        ("named", "brightness"): 2, ("named", "gaussian"): 2, ("released", "bernoulli"): 2,
    }  # fmt: skip
    assert (noisy.groupby(["suite", "noise"]).distance.diff().dropna() > 0).all(), "more noise lies farther out"


def test_clean_batches_scatter_the_more_the_smaller_they_are(digits, table):
    few = shifts(digits, replace(CONFIG, batch_size=2))
    assert few.high[0] > 2 * table.high[0] > 0


def test_strong_noise_lies_beyond_clean_batches_and_clean_images_under_a_trifle_of_it_do_not(table):
    assert beyond_clean(table).all()
    trifle = table.copy()
    trifle.loc[1, "low"] = table.high[0]
    assert beyond_clean(trifle).sum() == len(table) - 2
    assert list(beyond_clean(trifle).index) == list(table.index[1:])


def test_the_chart_has_one_dot_per_level_and_one_row_per_noise(table):
    (axis,) = plot_shifts(table).axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert sorted(line.get_xdata()[0] for line in dots) == pytest.approx(sorted(table.distance[1:]))
    assert len(axis.get_yticklabels()) == 3
