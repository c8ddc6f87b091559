"""Intervals and tests against values that can be worked out by hand, and against scipy on known distributions."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from localnorm import stats


def test_interval_holds_the_true_mean_about_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3, 1, (60, 12))
    covered = sum(low <= 3 <= high for _, low, high in map(stats.interval, draws))
    assert 48 <= covered <= 60  # BCa on 12 values covers a little less than 95 %
    of_three = np.random.default_rng(0).normal(3, 1, (400, 3))
    covered = sum(low <= 3 <= high for _, low, high in map(stats.interval, of_three))
    assert 368 <= covered <= 392  # Student's; a bootstrap's would cover 75 %


def test_interval_of_six_values_is_too_narrow_by_as_much_as_the_readme_says():
    draws = np.random.default_rng(0).normal(3, 1, (400, 6))
    covered = sum(low <= 3 <= high for _, low, high in map(stats.interval, draws)) / 400
    assert 0.88 - 0.035 < covered < 0.88 + 0.035


def test_interval_of_one_value_is_unknown_and_of_equal_values_has_no_width():
    estimate, low, high = stats.interval([0.5])
    assert estimate == 0.5
    assert np.isnan([low, high]).all()
    assert stats.interval([0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25)


def test_interval_is_the_same_twice():
    values = [0.1, 0.4, 0.2, 0.9, 0.3, 0.35]
    assert stats.interval(values) == stats.interval(values)


@pytest.mark.parametrize(("count", "smallest"), [(2, 1 / 2), (5, 1 / 16), (6, 1 / 32)])
def test_sign_flip_of_n_differences_of_one_sign_gives_two_over_two_to_the_n(count, smallest):
    assert stats.sign_flip(np.arange(1, count + 1)) == pytest.approx(smallest)


def test_five_pairs_cannot_reach_five_percent_and_six_can():
    assert stats.sign_flip([1, 2, 3, 4, 5]) > 0.05 > stats.sign_flip([1, 2, 3, 4, 5, 6])


def test_sign_flip_of_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="differences must be finite"):
        stats.sign_flip([1, 2, np.nan, 3, 4, 5])


def test_sign_flip_of_balanced_differences_finds_nothing():
    assert stats.sign_flip([1, -1, 2, -2, 0.5, -0.5]) == pytest.approx(1)


def test_mcnemar_counts_images_that_one_arm_alone_got_right():
    first = np.array([True] * 10 + [False] * 2 + [True] * 5)
    second = np.array([False] * 10 + [True] * 2 + [True] * 5)
    only_first, only_second, p = stats.mcnemar(first, second)
    assert (only_first, only_second) == (10, 2)
    assert p == pytest.approx(2 * sum(scipy.stats.binom.pmf(k, 12, 0.5) for k in range(3)))
    assert stats.mcnemar(first, first) == (0, 0, 1.0)


def test_holm_is_the_textbook_example():
    # sorted: .01 x 4, .02 x 3, .03 x 2, .04 x 1, made to rise
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]).max() == 1


def table(accuracies: dict[tuple[str, str], list[tuple[float, float, float]]]) -> pd.DataFrame:
    """Accuracy at levels 0, 1, 3 of one noise: (norm, mode) -> a triple a seed."""
    return pd.DataFrame(
        {
            "norm": norm,
            "mode": mode,
            "seed": seed,
            "suite": "named",
            "noise": "gaussian",
            "level": level,
            "accuracy": value,
            "images": 9,
        }
        for (norm, mode), seeds in accuracies.items()
        for seed, triple in enumerate(seeds)
        for level, value in zip((0.0, 1.0, 3.0), triple, strict=True)
    )


@pytest.fixture
def sweep():
    wobble = [0, 0.01, -0.01, 0.02, -0.02, 0.005]
    return table(
        {
            ("batch", "fixed"): [(0.9 + w, 0.4 + w, 0.1) for w in wobble],
            ("batch", "batch"): [(0.88 + w, 0.6, 0.3 + w) for w in wobble],
            ("local", "batch"): [(0.9 + w, 0.7 + w, 0.4 - w) for w in wobble],
        }
    )


def test_area_is_the_trapezoid_over_the_range_of_levels(sweep):
    areas = stats.areas(sweep).set_index("arm").area
    assert areas["BN fixed"] == pytest.approx(((0.9 + 0.4) / 2 * 1 + (0.4 + 0.1) / 2 * 2) / 3, abs=2e-3)


def test_summary_separates_clean_from_noisy_and_puts_arms_in_order(sweep):
    summary = stats.summary(sweep).set_index("arm")
    assert list(summary.index) == ["BN fixed", "BN-batch", "LN batch"]
    assert summary.clean["BN fixed"] == pytest.approx(0.9, abs=2e-3)
    assert summary.noisy["LN batch"] == pytest.approx(0.55, abs=2e-3)
    assert (summary.clean_low <= summary.clean).all()
    assert (summary.clean <= summary.clean_high).all()
    assert summary.clean_low.between(0.85, 0.9).all()


def test_comparison_is_paired_within_seeds(sweep):
    # clean accuracies move by 0.04 over seeds, together: the paired difference does not move at all
    differences, over_images = stats.paired_differences(sweep, "LN batch", "BN-batch", "clean")
    row = stats.difference_row("C4", "", ("LN batch", "BN-batch"), "clean", differences, over_images)
    assert row["estimate"] == pytest.approx(0.02)
    assert row["high"] - row["low"] < 1e-9
    assert row["p"] == pytest.approx(2 / 2**6)
    assert np.isnan(row["over_images"])  # the table does not say which images were right


def answered(*right: str) -> np.ndarray:
    """A row a condition: "1" a right answer (class 0), "0" a wrong one, "-" an image that was not scored."""
    return np.array([[{"1": 0, "0": 1, "-": -1}[each] for each in row] for row in right], np.int16)


def test_a_difference_counts_the_images_that_both_arms_scored_and_says_what_they_leave_open():
    labels = np.zeros(8, np.int16)
    levels = pd.DataFrame({"suite": "named", "noise": ["gaussian", "gaussian", "brightness"], "level": [0.0, 0.2, 0.5]})
    every, some = (pd.concat([levels.assign(mode=mode)]) for mode in ("fixed", "single"))
    runs = {
        ("batch", seed): (every, answered("11111111", "00001111", "00000000"), labels) for seed in (0, 1)
    } | {
        ("local", seed): (some, answered("1111----", "111" + str(seed) + "----", "1010----"), labels) for seed in (0, 1)
    }  # fmt: skip
    # on the first four images BN fixed is wrong under both noises; LN single is right on 3 or 4 of gaussian's and 2 of brightness'
    noisy, over_images = stats.paired_differences(every, "LN single", "BN fixed", "noisy", runs)
    assert noisy.tolist() == pytest.approx([(3 / 4 + 2 / 4) / 2, (4 / 4 + 2 / 4) / 2])
    images = np.array([1, 0.5, 1, 0.25])  # of each image, over seeds and noises
    assert over_images == pytest.approx(1.96 * images.std(ddof=1) / 2)
    dark, _ = stats.paired_differences(every, "LN single", "BN fixed", "brightness", runs)
    assert dark.tolist() == pytest.approx([0.5, 0.5])
    clean, none = stats.paired_differences(every, "LN single", "BN fixed", "clean", runs)
    assert (clean.tolist(), none) == ([0, 0], 0)


def test_a_difference_that_other_images_could_undo_is_undecided():
    differences = np.array([0.010, 0.011, 0.012, 0.009, 0.010, 0.011])

    def verdict(over_images, sign=1):
        return stats.difference_row("C3", "", ("LN batch", "BN fixed"), "noisy", sign * differences, over_images)[
            "verdict"
        ]

    assert (verdict(0.005), verdict(0.02)) == ("holds", "undecided")
    assert (verdict(0.005, -1), verdict(0.02, -1)) == ("does not hold here", "undecided")
    nothing = stats.difference_row("C5", "", ("LN single", "BN single"), "noisy", np.zeros(6))
    assert nothing["verdict"] == "undecided"  # two networks at chance, alike


def test_six_seeds_decide_only_where_the_sign_flip_test_does_too():
    def row(differences, **options):
        return stats.difference_row("C6", "", ("LN prior", "BN prior"), "brightness", np.array(differences), **options)

    scattered = [-0.010, -0.009, 0.076, 0.023, -0.005, 0.156]  # three of six point the other way
    found = row(scattered)
    assert found["low"] > 0
    assert found["p"] > 0.2
    assert found["verdict"] == "undecided"
    # four cannot give p < .05: Student's interval decides, which is wider than their range where they scatter
    assert row(scattered[2:])["low"] < min(scattered[2:])
    assert row(scattered[2:])["verdict"] == "undecided"
    assert row([0.02, 0.03, 0.025])["verdict"] == "holds"
    assert row([0.02, 0.03, 0.01, 0.04, 0.03, 0.02])["verdict"] == "holds"


def test_p_is_of_the_bound_that_the_claim_names():
    slightly = [-0.004, -0.005, -0.006, -0.0045, -0.0055, -0.005]

    def row(differences, **options):
        return stats.difference_row(
            "C4", "", ("LN batch", "BN fixed"), "clean", np.array(differences), 0.001, **options
        )

    within = row(slightly, threshold=-0.01)
    assert (within["verdict"], within["p"]) == ("holds", 2 / 2**6)
    assert row([-0.015, *slightly[1:]], threshold=-0.01)["p"] > 0.05
    loss = row(slightly, sign=-1)
    assert (loss["verdict"], loss["p"]) == ("holds", 2 / 2**6)


def test_largest_ratio_is_found_at_the_level_where_it_is(sweep):
    best = stats.largest_ratio(sweep, "LN batch", "BN fixed", num_classes=10)
    assert (best["noise"], best["level"]) == ("gaussian", 3.0)
    assert best["ratio"] == pytest.approx(4, abs=0.1)
    assert best["low"] < best["ratio"] < best["high"]


def test_an_accuracy_below_chance_counts_as_chance_in_a_ratio():
    unlucky = table({("batch", "fixed"): [(0.9, 0.3, 0.002)] * 2, ("local", "batch"): [(0.9, 0.7, 0.4)] * 2})
    assert stats.largest_ratio(unlucky, "LN batch", "BN fixed", num_classes=10)["ratio"] == pytest.approx(4)


def test_one_lucky_seed_does_not_make_a_ratio_large():
    seeds = [
        (0.9, 0.3, 0.15),
        (0.9, 0.3, 0.15),
        (0.9, 0.3, 0.11),
    ]  # at the last level BN fixed is right by chance or little more
    several = table({("batch", "fixed"): seeds, ("local", "batch"): [(0.9, 0.4, 0.6)] * 3})
    best = stats.largest_ratio(several, "LN batch", "BN fixed", num_classes=10)
    assert best["ratio"] == pytest.approx(best["first_accuracy"] / best["second_accuracy"])
    assert best["ratio"] == pytest.approx(0.6 / (0.41 / 3))
    assert best["low"] < best["ratio"] < best["high"]


def test_verdicts_follow_from_the_intervals(sweep):
    verdicts = stats.claims(sweep, num_classes=10, margin=0.01, ratio=3)
    verdicts = verdicts[(verdicts.claim != "C4") | (verdicts.second == "BN fixed")].set_index(["claim", "part"]).verdict
    assert verdicts["C2", "noisy"] == "holds"
    assert verdicts["C2", "clean"] == "holds"  # BN-batch loses two points
    assert verdicts["C3", "largest ratio"] == "holds"
    assert verdicts["C4", "clean"] == "holds"
    assert (
        stats.claims(sweep, num_classes=10, margin=0.01, ratio=5)
        .set_index(["claim", "part"])
        .verdict["C3", "largest ratio"]
        == "holds in part"
    )


def test_a_claim_that_fails_is_said_to_fail():
    seeds = [0, 0.01, -0.01, 0.02, -0.02, 0.005]
    worse = table(
        {
            ("batch", "fixed"): [(0.9 + w, 0.6, 0.5) for w in seeds],
            ("batch", "batch"): [(0.9 + w, 0.5, 0.4 + w) for w in seeds],
            ("local", "batch"): [(0.8 + w, 0.4, 0.3 - w) for w in seeds],
        }
    )
    verdicts = stats.claims(worse, num_classes=10, margin=0.01, ratio=3)
    verdicts = verdicts[(verdicts.claim != "C4") | (verdicts.second == "BN fixed")].set_index(["claim", "part"]).verdict
    for key in [("C2", "noisy"), ("C3", "noisy"), ("C3", "largest ratio"), ("control", "noisy"), ("C4", "clean")]:
        assert verdicts[key] == "does not hold here", key


def test_one_image_with_a_prior_is_set_against_both_of_its_controls():
    arms = {
        ("batch", "fixed"): [(0.9, 0.5, 0.4)] * 6,
        ("batch", "batch"): [(0.9, 0.6, 0.5)] * 6,
        ("batch", "prior"): [(0.9, 0.8, 0.7)] * 6,
        ("local", "batch"): [(0.9, 0.6, 0.5)] * 6,
        ("local", "prior"): [(0.9, 0.7, 0.6)] * 6,
    }
    found = (
        stats.claims(table(arms), num_classes=10, margin=0.01, ratio=3).set_index(["claim", "first", "second"]).verdict
    )
    assert found["C5", "LN prior", "BN fixed"] == "holds"
    assert found["C5", "LN prior", "BN prior"] == "does not hold here"
    fixed = {("batch", "last_fixed"): [(0.9, 0.3, 0.2)] * 6, ("local", "last_fixed"): [(0.9, 0.4, 0.3)] * 6}
    found = stats.claims(table(arms | fixed), num_classes=10, margin=0.01, ratio=3)
    found = found.set_index(["claim", "first", "second"]).verdict
    assert found["C5", "LN last fixed", "BN fixed"] == "does not hold here"
    assert found["C5", "LN last fixed", "BN last fixed"] == "holds"
    without = {arm: scores for arm, scores in arms.items() if arm != ("batch", "prior")}
    found = stats.claims(table(without), num_classes=10, margin=0.01, ratio=3)
    assert found[found.claim == "C5"].second.tolist() == ["BN fixed"]


def test_groups_of_drawn_size_are_set_against_the_same_arms_of_localnorm_and_in_batches_with_the_margin():
    wobble = (0.0, 0.01, -0.01, 0.02, 0.0, -0.02)
    arms = {
        ("batch", "fixed"): [(0.9, 0.3, 0.2)] * 6,
        ("local", "batch"): [(0.9, 0.6, 0.5)] * 6,
        ("local", "single"): [(0.1, 0.1, 0.1)] * 6,
        ("drawn", "batch"): [(0.895, 0.5 + w, 0.4) for w in wobble],
        ("drawn", "single"): [(0.8 + w, 0.5, 0.4 + w) for w in wobble],
        ("batch", "prior"): [(0.8, 0.6 + w, 0.5) for w in wobble],
    }
    found = stats.claims(table(arms), num_classes=10, margin=0.01, ratio=3)
    verdicts = found.set_index(["claim", "first", "second", "part"]).verdict
    assert verdicts["drawn", "LN drawn batch", "LN batch", "clean"] == "holds", "half a point is within the margin"
    assert verdicts["drawn", "LN drawn batch", "LN batch", "noisy"] == "does not hold here"
    for part in ("clean", "noisy"):
        assert verdicts["drawn", "LN drawn single", "LN single", part] == "holds"
    assert verdicts["C5", "LN drawn single", "BN fixed", "noisy"] == "holds"
    assert verdicts["C5", "LN single", "BN fixed", "noisy"] == "does not hold here"
    assert verdicts["C5", "LN drawn single", "BN prior", "noisy"] == "does not hold here", "BN's best way to one image"
    assert ("C5", "LN single", "BN prior", "noisy") not in verdicts.index


def test_poor_light_is_the_paired_difference_on_dark_images_over_the_levels():
    def dark(arms):
        rows = table(arms)
        return pd.concat([rows.assign(noise="brightness"), rows.assign(accuracy=0.3)])

    arms = {
        ("batch", "fixed"): [(0.9, 0.5 + w, 0.1 - w) for w in (0.0, 0.1)],
        ("batch", "batch"): [(0.9, 0.6, 0.5)] * 2,
        ("local", "batch"): [(0.9, 0.6, 0.5)] * 2,
        ("local", "single"): [(0.9, 0.7 + w, 0.2 - w) for w in (0.0, 0.1)],
    }
    found = stats.claims(dark(arms), num_classes=10, margin=0.01, ratio=3)
    (row,) = found[found.claim == "C6"].itertuples()
    assert (row.first, row.second, row.part) == ("LN single", "BN fixed", "brightness")
    assert row.estimate == pytest.approx(0.15)
    assert row.verdict == "holds"
    assert "C6" not in set(stats.claims(table(arms), num_classes=10, margin=0.01, ratio=3).claim)


def test_accuracy_of_a_suite_is_that_of_its_noises_alone(sweep):
    both = pd.concat([sweep, sweep.assign(suite="released", noise="bernoulli", accuracy=0.2)])
    suites = stats.suites(both).set_index(["arm", "suite"]).accuracy
    assert suites["LN batch", "released"] == pytest.approx(0.2)
    assert suites["LN batch", "named"] == pytest.approx(0.55, abs=2e-3)


def test_mcnemar_table_adjusts_within_a_seed_and_leaves_out_images_that_one_arm_did_not_see():
    labels = np.zeros(40, np.int16)
    rows = pd.DataFrame({"mode": "batch", "suite": "named", "noise": "gaussian", "level": [0.0, 0.1, 0.2]})
    right = np.zeros((3, 40), np.int16)
    wrong = right.copy()
    wrong[1, :20] = 1  # twenty images wrong at level 0.1
    wrong[2, 30:] = -1  # ten images not scored at level 0.2
    result = stats.mcnemar_table(
        {("local", 0): (rows, right, labels), ("batch", 0): (rows, wrong, labels)},
        ("local", "batch"),
        ("batch", "batch"),
    ).set_index("level")
    assert result.loc[0.1, ["only_first", "only_second"]].tolist() == [20, 0]
    assert result.loc[0.1, "p_holm"] == pytest.approx(3 * 2 / 2**20)
    assert result.loc[0.2, "images"] == 30
