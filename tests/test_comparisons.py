"""The table of comparisons: what it asks, what it finds in results that are known, and when it decides."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from results_fixtures import EXPERIMENT, IMAGES, write_experiment

from localnorm import comparisons, evaluators, scores, stats
from localnorm.arms import ARMS, METRICS
from localnorm.comparisons import CLAIMS, COMPARISONS, PRIMARY, Comparison, verdict
from localnorm.gather import collect


@pytest.fixture
def runs(project):
    write_experiment(project)
    return collect(EXPERIMENT, ["bn", "ln"], list(range(6)))


def row_of(table, first, second, metric):
    return table[(table["first"] == first) & (table.second == second) & (table.metric == metric)].iloc[0]


def test_the_primary_comparisons_are_the_seven_that_were_written_down():
    assert sorted({row.primary for row in PRIMARY}) == [f"P{n}" for n in range(1, 8)]
    assert {row.claim for row in COMPARISONS} <= set(CLAIMS)
    assert len({(row.first, row.second, row.metric, row.source, row.value) for row in COMPARISONS}) == len(COMPARISONS)


@pytest.mark.parametrize(
    ("part", "value"),
    [("claim", "C0"), ("first", "LN best"), ("second", "BN-batch"), ("metric", "loud"), ("source", "air")],
)
def test_a_comparison_of_what_does_not_exist_names_what_does(part, value):
    known = {"claim": CLAIMS, "first": ARMS, "second": ARMS, "metric": METRICS, "source": comparisons.SOURCES}[part]
    with pytest.raises(ValueError, match=f"{value}.*{next(iter(known))}"):
        replace(Comparison("C3", "LN batch", "BN fixed", "noisy"), **{part: value})


def test_a_difference_is_paired_within_seeds_and_of_the_same_images(runs):
    row = row_of(comparisons.evaluate(runs), "LN batch", "BN fixed", "noisy")
    assert row.seeds == 6
    assert row.estimate == pytest.approx(0.4, abs=1 / IMAGES)
    table = scores.per_seed(scores.score(runs.answers.values()), "noisy")
    differences = table["LN batch"] - table["BN fixed"]
    assert row.estimate == pytest.approx(differences.mean())
    assert row.deviation == pytest.approx(differences.std(), abs=1e-12)


def test_a_seed_that_was_not_asked_in_one_of_the_ways_is_left_out_of_that_comparison_alone(runs):
    whole = runs.answers["ln", 2]
    kept = (whole.table.statistics != "single").to_numpy()
    partly = replace(whole, table=whole.table[kept].reset_index(drop=True), classes=whole.classes[kept])
    before, after = (
        comparisons.evaluate(each) for each in (runs, replace(runs, answers=runs.answers | {("ln", 2): partly}))
    )
    asked = [
        [float(each) for each in row_of(table, "LN single", "BN fixed", "noisy").by_seed.split()]
        for table in (before, after)
    ]
    assert asked[1] == asked[0][:2] + asked[0][3:]
    assert row_of(after, "LN single", "BN fixed", "noisy").seeds == 5
    assert row_of(after, "LN batch", "BN fixed", "noisy").seeds == 6


def test_what_was_not_run_is_listed_and_not_dropped(runs):
    table = comparisons.evaluate(runs)
    assert len(table) == sum(row.source != "conversion" for row in COMPARISONS)
    row = row_of(table, "LN prior", "BN prior", "noisy")
    assert row.seeds == 0
    assert np.isnan(row.estimate)
    assert verdict(row) == ""


def test_primary_comparisons_alone_are_corrected_and_decided(runs):
    table = comparisons.evaluate(runs)
    tested = table[(table.primary != "") & (table.seeds > 0)]
    assert (tested.p_holm >= tested.p).all()
    assert table[table.primary == ""].p_holm.isna().all()
    assert verdict(row_of(table, "LN batch", "BN fixed", "noisy")) == "holds"
    assert verdict(row_of(table, "LN batch", "BN fixed", "clean")) != ""
    assert verdict(row_of(table, "BN batch", "BN fixed", "noisy")) == ""


def test_a_claim_about_large_images_is_a_description_of_small_ones(runs):
    small, large = (
        comparisons.evaluate(replace(runs, about=runs.about | {"shape": [3, side, side]})) for side in (32, 64)
    )
    assert sorted(large.primary[large.primary != ""]) == sorted(row.primary for row in PRIMARY)
    assert list(small.primary[small.primary != ""]) == [
        name for name in large.primary[large.primary != ""] if name != "P4"
    ]
    for metric in ("clean", "noisy"):
        one, other = (row_of(table, "LN single", "BN fixed", metric) for table in (small, large))
        assert one.estimate == other.estimate
        assert verdict(one) == ""
        assert verdict(other) != ""
    one, other = (row_of(table, "LN batch", "BN fixed", "noisy") for table in (small, large))
    assert one.p_holm / one.p <= 7 < other.p_holm / other.p <= 9, "corrected over those that are asked"


def a_row(**changes):
    standard = {"primary": "P1", "seeds": 6, "estimate": -0.1, "threshold": 0.0, "p_holm": 0.001, "train_gap": 0.0}
    return SimpleNamespace(**(standard | changes))


def test_a_verdict_needs_the_corrected_p_and_a_fair_chance():
    assert verdict(a_row()) == "does not hold here"
    assert verdict(a_row(estimate=0.1)) == "holds"
    assert verdict(a_row(estimate=-0.005, threshold=-0.01)) == "holds"
    assert verdict(a_row(p_holm=0.06)) == "undecided"
    assert verdict(a_row(p_holm=np.nan)) == "undecided", "one seed decides nothing"
    assert verdict(a_row(train_gap=-0.13)) == "undecided", "an arm that was not trained to the end is not said to fail"
    assert verdict(a_row(estimate=0.1, train_gap=-0.13)) == "holds"


def test_mixed_streams_take_the_largest_batches(runs):
    row = Comparison("streams", "LN batch", "BN fixed", "noisy", source="mixed streams")
    differences, over_images = comparisons.SOURCES["mixed streams"](row, runs)
    streams = runs.streams[
        (runs.streams.composition == "mixed") & (runs.streams.batch_size == 8) & (runs.streams.level > 0)
    ]
    accuracy = (streams.right / streams.images).groupby([streams.network, streams.statistics, streams.seed]).mean()
    assert differences.tolist() == pytest.approx((accuracy["ln", "batch"] - accuracy["bn", "fixed"]).tolist())
    assert np.isnan(over_images)


def test_a_converted_network_is_compared_with_itself_as_it_was():
    rows = [
        (ablation, value, seed, network, statistics, *condition, 100, right + 2 * seed)
        for ablation, value, network, statistics, right in (
            ("fine-tuning epochs after conversion", "1", "ln", "batch", 70),
            ("network", "bn", "bn", "fixed", 40),
            ("network", "bn", "bn", "batch", 65),
        )
        for seed in range(3)
        for condition in (("clean", "clean", 0.0), ("named", "gaussian", 0.1))
    ]
    columns = ["ablation", "value", "seed", "network", "statistics", "suite", "noise", "level", "images", "right"]
    table = comparisons.evaluate_ablations(pd.DataFrame(rows, columns=columns))
    done = table[table.seeds > 0]
    assert set(done.value) == {"1"}
    assert row_of(done, "LN batch", "BN fixed", "noisy").estimate == pytest.approx(0.3)
    assert row_of(done, "LN batch", "BN batch", "noisy").estimate == pytest.approx(0.05)


# ------------------------------------------------------------------------------------------------------ evaluators of their own


def test_the_largest_ratio_leaves_out_conditions_where_the_other_arm_guesses(runs):
    table = scores.score(runs.answers.values())
    assert evaluators.largest_ratio(table, num_classes=4) is None, "30 % is less than twice the 25 % of guessing"
    found = evaluators.largest_ratio(table, num_classes=10)
    assert found["ratio"] == pytest.approx(0.7 / 0.3, rel=0.05)
    assert found["low"] <= found["ratio"] <= found["high"]
    assert found["control_accuracy"] == pytest.approx(0.6, abs=0.02)


def test_mcnemar_counts_image_by_image_in_every_seed_and_condition(runs):
    table = evaluators.mcnemar_table(runs)
    assert len(table) == 6 * 4
    noisy = table[(table.seed == 1) & (table.noise == "gaussian") & (table.level == 0.1)].iloc[0]
    assert (noisy.only_first, noisy.only_second) == (4, 0), "28 and 24 of the same images"
    assert (table.p_holm >= table.p).all()


def test_a_noise_shifts_statistics_where_its_batches_lie_beyond_clean_ones():
    table = pd.DataFrame({"level": [0.0, 0.1, 0.2], "low": [0.0, 0.5, 1.5], "high": [1.0, 2.0, 3.0]})
    assert stats.beyond_clean(table).to_dict() == {1: False, 2: True}


def test_a_cost_is_within_its_bound_by_its_upper_quartile_and_beyond_by_its_lower_one():
    rows = [("resnet32", "step", ratio, ratio - 0.02, ratio + 0.02, 1.05, "cpu") for ratio in (1.0, 1.04, 1.2)] + [
        ("layer", "step", 3.0, 2.9, 3.1, 1.05, "cpu")
    ]
    costs = pd.DataFrame(
        rows, columns=["subject", "measure", "ratio", "lower_quartile", "upper_quartile", "bound", "device"]
    )
    (row,) = evaluators.cost_summary(costs).itertuples()
    assert (row.claim, row.settings, row.within, row.beyond) == ("C7", 3, 1, 1)
    assert (row.lowest, row.highest) == (1.0, 1.2)
