"""Intervals and tests against values that can be worked out by hand, and against scipy on known distributions."""

import numpy as np
import pytest
import scipy.stats

from localnorm import stats


@pytest.mark.parametrize("count", [4, 6, 12])
def test_an_interval_holds_the_true_mean_as_often_as_it_says(count):
    draws = np.random.default_rng(0).normal(3, 1, (600, count))
    covered = np.mean([low <= 3 <= high for _, low, high, _ in map(stats.interval, draws)])
    assert 0.95 - 0.03 < covered < 0.95 + 0.025


def test_an_interval_counts_what_the_shared_test_images_leave_open():
    draw, covered, narrow = np.random.default_rng(0), [], []
    for _ in range(600):
        images = draw.normal(0, 1, 300)  # all seeds are scored on the same ones
        seeds = images.mean() + draw.normal(0, 0.03, 6)
        error = stats.image_spread(images[None])
        covered.append(stats.interval(seeds, error).low <= 0 <= stats.interval(seeds, error).high)
        narrow.append(stats.interval(seeds).low <= 0 <= stats.interval(seeds).high)
    assert 0.92 < np.mean(covered) < 0.975
    assert np.mean(narrow) < 0.8, "without the images it covers far less than it says"


def test_an_interval_is_students_where_images_leave_nothing_open():
    values = [0.1, 0.4, 0.2, 0.9, 0.3, 0.35]
    found = stats.interval(values, null=0.1)
    expected = scipy.stats.t.interval(0.95, 5, np.mean(values), scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(values, 0.1).pvalue)


def test_too_few_values_have_no_interval_but_a_p_and_equal_ones_one_without_width():
    found = stats.interval([0.5])
    assert found.estimate == 0.5
    assert np.isnan([found.low, found.high, found.p]).all()
    few = stats.interval([0.1, 0.4, 0.2], null=0.1)
    assert np.isnan([few.low, few.high]).all()
    assert few.p == pytest.approx(scipy.stats.ttest_1samp([0.1, 0.4, 0.2], 0.1).pvalue)
    assert stats.interval([0.25] * 4, null=0) == (0.25, 0.25, 0.25, 0)
    assert stats.interval([0.25] * 4, null=0.25).p == 1
    assert np.isnan(stats.interval([0.25] * 3).low)


def test_values_are_kept_in_order_beside_their_mean():
    assert stats.by_seed([0.5, 1 / 3, 0.25]) == "0.5 0.333333 0.25"


def test_the_spread_over_images_is_that_of_their_mean_over_seeds():
    right = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], float)
    assert stats.image_spread(right) == pytest.approx(np.std([1, 0, 0.5, 0], ddof=1) / 2)
    assert np.isnan(stats.image_spread(np.ones((2, 1))))


@pytest.mark.parametrize(("count", "smallest"), [(2, 1 / 2), (5, 1 / 16), (6, 1 / 32)])
def test_sign_flip_of_n_differences_of_one_sign_gives_two_over_two_to_the_n(count, smallest):
    assert stats.sign_flip(np.arange(1, count + 1)) == pytest.approx(smallest)


def test_sign_flip_of_what_is_not_finite_is_refused_and_of_balance_finds_nothing():
    with pytest.raises(ValueError, match="finite"):
        stats.sign_flip([1, 2, np.nan, 3, 4, 5])
    assert stats.sign_flip([1, -1, 2, -2, 0.5, -0.5]) == pytest.approx(1)


def test_mcnemar_counts_images_that_one_arm_alone_got_right():
    first = np.array([True] * 10 + [False] * 2 + [True] * 5)
    second = np.array([False] * 10 + [True] * 2 + [True] * 5)
    only_first, only_second, p = stats.mcnemar(first, second)
    assert (only_first, only_second) == (10, 2)
    assert p == pytest.approx(2 * sum(scipy.stats.binom.pmf(k, 12, 0.5) for k in range(3)))
    assert stats.mcnemar(first, first) == (0, 0, 1.0)


def test_holm_is_the_textbook_example_and_counts_tests_that_were_planned_and_not_made():
    # sorted: .01 x 4, .02 x 3, .03 x 2, .04 x 1, made to rise
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.04, 0.01], family=9) == pytest.approx([0.32, 0.09])
    assert stats.holm([0.9, 0.8]).max() == 1


def test_a_ratio_is_one_of_means_and_its_interval_covers_the_true_one():
    assert stats.ratio_interval([0.6] * 4, [0.2] * 4) == pytest.approx((3, 3, 3))
    assert stats.ratio_interval([0.0, 0.0], [0.2, 0.2]) == (0, 0, 0)
    draw = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        _, low, high = stats.ratio_interval(draw.normal(0.6, 0.03, 6), draw.normal(0.2, 0.02, 6))
        covered.append(low <= 3 <= high)
    assert 0.91 < np.mean(covered) < 0.98
