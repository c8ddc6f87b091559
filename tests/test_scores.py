"""Answers in, accuracies out: every metric is the weighted mean that its definition says, over images and over tables alike."""

import numpy as np
import pandas as pd
import pytest
import yaml
from results_fixtures import CONDITIONS, EXPERIMENT, IMAGES, right_share, write_experiment, write_run

from localnorm import paths, scores
from localnorm.arms import METRICS
from localnorm.gather import collect, lender, write_results
from localnorm.tables import read_about, read_table


@pytest.fixture
def runs(project):
    write_experiment(project)
    return collect(EXPERIMENT, ["bn", "ln"], list(range(6)))


def test_a_noise_counts_once_and_each_of_its_levels_the_same():
    assert scores.weights(CONDITIONS, "noisy").tolist() == [0, 0.25, 0.25, 0.5]
    assert scores.weights(CONDITIONS, "clean").tolist() == [1, 0, 0, 0]
    assert scores.weights(CONDITIONS, "dark").tolist() == [0, 0, 0, 1]
    assert not scores.weights(CONDITIONS, "released").any()


@pytest.mark.parametrize("metric", METRICS)
def test_the_weights_of_a_metric_sum_to_one_or_nothing_belongs_to_it(metric):
    assert scores.weights(CONDITIONS, metric).sum() in (0, pytest.approx(1))


def test_an_unknown_metric_names_those_that_there_are():
    with pytest.raises(ValueError, match=r"unknown metric 'loud'.*clean, noisy"):
        scores.weights(CONDITIONS, "loud")


def test_single_images_and_the_table_give_the_same_accuracy(runs):
    table = scores.score(runs.answers.values())
    for metric in ("clean", "noisy", "dark"):
        of_table = scores.per_seed(table, metric)
        for (network, seed), answers in runs.answers.items():
            for statistics, label in (("fixed", "BN fixed"), ("batch", "BN batch" if network == "bn" else "LN batch")):
                if answers.conditions(statistics):
                    of_images = scores.per_image(answers, statistics, metric)
                    assert of_images.shape == (IMAGES,)
                    assert np.nanmean(of_images) == pytest.approx(of_table[label, seed])


def test_accuracy_is_the_share_that_was_right(runs):
    table = scores.per_seed(scores.score(runs.answers.values()), "clean")
    assert table["BN fixed", 0] == round(right_share("bn", "fixed", 0, 0) * IMAGES) / IMAGES


def test_the_order_of_conditions_does_not_move_the_last_digit_of_a_mean():
    """Else the processor's own order of adding would decide how a tie is rounded in a table."""
    random = np.random.default_rng(0)
    rows = [
        ("BN fixed", 0, "named", noise, level, 64, int(random.integers(65)))
        for noise in ("gaussian", "contrast", "poisson", "brightness", "bernoulli")
        for level in (0.1, 0.2, 0.3)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "suite", "noise", "level", "images", "right"])
    values = {scores.per_seed(table.sample(frac=1, random_state=seed), "noisy").item() for seed in range(50)}
    assert len(values) == 1


def test_an_image_that_was_not_scored_under_every_condition_counts_for_no_metric_of_them(project):
    write_run(project, "ln", 0, ["batch"], images=30)
    answers = scores.read_answers(paths.run(EXPERIMENT, f"{EXPERIMENT}-ln-s0"), "ln", 0)
    assert np.isnan(scores.per_image(answers, "batch", "noisy")[30:]).all()
    assert not np.isnan(scores.per_image(answers, "batch", "noisy")[:30]).any()
    assert not np.isnan(scores.per_image(answers, "batch", "clean")).any()


def test_answers_that_do_not_fit_their_table_are_refused(project):
    folder = write_run(project, "ln", 0, ["batch"])
    table = pd.read_csv(folder / "answers.csv")
    table.loc[0, "right"] += 1
    paths.write_table(folder / "answers.csv", table)
    with pytest.raises(ValueError, match=r"answers.csv and answers.npz"):
        scores.read_answers(folder, "ln", 0)


def test_the_summary_has_every_metric_of_every_arm_with_an_interval_around_its_estimate(runs):
    write_results(runs)
    summary = read_table("summary", EXPERIMENT)
    assert list(dict.fromkeys(summary.arm)) == ["BN fixed", "BN batch", "LN batch", "LN single"], (
        "in the order of the vocabulary"
    )
    assert set(summary.metric) == {"clean", "noisy", "named", "dark"}
    assert (summary.low <= summary.estimate).all()
    assert (summary.estimate <= summary.high).all()
    assert summary.low.between(0, 1).all()
    noisy = summary.set_index(["arm", "metric"]).estimate
    expected = np.mean([round(right_share("ln", "batch", seed, 1) * IMAGES) / IMAGES for seed in range(6)])
    assert noisy["LN batch", "noisy"] == pytest.approx(expected, abs=1e-5)


def test_an_arm_is_set_against_usual_practice_on_the_seeds_that_both_have():
    index = pd.MultiIndex.from_tuples(
        [("BN fixed", 0), ("BN fixed", 1), ("BN gated", 1), ("LN batch", 0), ("LN batch", 1)], names=["arm", "seed"]
    )
    values = pd.Series([0.9, 0.5, 0.6, 0.8, 0.7], index)
    expected = {"BN fixed": 0, "BN gated": 0.1, "LN batch": 0.05}  # the means would say that gated is worse by 0.1
    assert scores.changes(values).to_dict() == pytest.approx(expected)
    assert scores.changes(values[values.index.get_level_values("arm") != "BN fixed"]).isna().all()


def test_on_a_mixed_stream_one_image_arms_answer_alone_and_others_in_the_largest_batches():
    rows = [
        (network, 0, statistics, composition, size, suite, noise, level, 10, right)
        for network, statistics, rights in (
            ("bn", "fixed", (5, 5)),
            ("ln_drawn", "batch", (8, 3)),
            ("ln", "prior", (7, 6)),
        )
        for size, right in zip((1, 32), rights, strict=True)
        for composition, add in (("mixed", 0), ("uniform", 2))
        for suite, noise, level, right in (("", "", 0.0, 9), ("named", "gaussian", 0.1, right + add))
    ]
    columns = [
        "network",
        "seed",
        "statistics",
        "composition",
        "batch_size",
        "suite",
        "noise",
        "level",
        "images",
        "right",
    ]
    noisy = scores.mixed_stream(pd.DataFrame(rows, columns=columns)).query("metric == 'noisy'").set_index("arm")
    assert noisy.accuracy.to_dict() == {
        "BN fixed": 0.5,
        "LN drawn batch": 0.3,
        "LN drawn single": 0.8,
        "LN prior": 0.7,
    }
    assert noisy.change["LN drawn single"] == pytest.approx(0.3)


def test_curves_begin_on_clean_images_for_every_noise(runs):
    curves = scores.curves(scores.score(runs.answers.values()))
    clean = curves[curves.level == 0]
    assert set(clean.noise) == {"gaussian", "brightness"}
    assert clean.groupby("arm").accuracy.nunique().eq(1).all()


def test_the_commonest_answer_is_a_share_of_all_answers(runs):
    answers = runs.answers["bn", 0]
    given = answers.classes[(answers.table.statistics == "fixed").to_numpy()]
    assert scores.commonest(answers, "fixed") == max(np.bincount(given.ravel())) / given.size


# ------------------------------------------------------------------------------------------------- the runs that are gathered


def test_a_missing_run_is_said_and_costs_no_other_seed(project, capsys):
    write_experiment(project, range(2))
    write_run(project, "bn", 2, ["fixed", "batch"])
    write_run(project, "ln_drawn", 0, [])
    runs = collect(EXPERIMENT, ["bn", "ln"], [0, 1, 2])
    assert sorted(runs.table.seed.unique()) == [0, 1]
    assert "2 of 3 seeds" in capsys.readouterr().out


def test_without_a_single_whole_seed_the_command_is_named(project):
    write_run(project, "bn", 0, ["fixed"])
    with pytest.raises(FileNotFoundError, match=f"dvc repro scores@{EXPERIMENT}"):
        collect(EXPERIMENT, ["bn", "ln"], [0])


@pytest.mark.parametrize(
    ("changes", "named"), [({"train": {"epochs": 3}}, "train.epochs"), ({"images": 30}, "gaussian|brightness")]
)
def test_runs_that_were_trained_or_asked_otherwise_do_not_join(project, changes, named):
    write_experiment(project, range(2))
    write_run(project, "ln", 1, ["batch", "single"], **changes)
    with pytest.raises(ValueError, match=named):
        collect(EXPERIMENT, ["bn", "ln"], [0, 1])


def test_a_setting_of_one_kind_of_training_concerns_its_own_runs_alone(project):
    write_experiment(project, range(2))
    for seed in (0, 1):
        write_run(project, "bn_shrunk", seed, ["fixed", "batch"], train={"shrunk": {"lowest": 64}})
    assert {network for network, _ in collect(EXPERIMENT, ["bn", "ln", "bn_shrunk"], [0, 1]).answers} == {
        "bn",
        "ln",
        "bn_shrunk",
    }
    write_run(project, "bn", 1, ["fixed", "batch"], train={"shrunk": {"lowest": 512}})  # which it does not read
    collect(EXPERIMENT, ["bn", "ln", "bn_shrunk"], [0, 1])
    write_run(project, "bn_shrunk", 1, ["fixed", "batch"], train={"shrunk": {"lowest": 512}})
    with pytest.raises(ValueError, match=r"bn_shrunk-s0 and .*bn_shrunk-s1 differ in train\.shrunk"):
        collect(EXPERIMENT, ["bn", "ln", "bn_shrunk"], [0, 1])


def test_another_experiment_lends_networks_of_another_learning_rate_and_no_other_difference(project):
    write_experiment(project, range(3))
    for seed in (0, 1):
        write_run(project, "ln", seed, ["batch", "single"], "toy-tuned", train={"learning_rate": 0.4})
    runs = collect("toy-tuned", ["ln"], [0, 1], {"bn": EXPERIMENT})
    assert sorted(runs.answers) == [("bn", 0), ("bn", 1), ("ln", 0), ("ln", 1)]
    assert sorted(runs.table.run) == [
        f"{EXPERIMENT}-bn-s0",
        f"{EXPERIMENT}-bn-s1",
        "toy-tuned-ln-s0",
        "toy-tuned-ln-s1",
    ]
    assert (runs.experiment, set(runs.streams.network)) == ("toy-tuned", {"ln", "bn"})
    write_run(project, "ln", 1, ["batch", "single"], train={"learning_rate": 0.4})
    with pytest.raises(ValueError, match=r"differ in train\.learning_rate"):
        collect(EXPERIMENT, ["bn", "ln"], [0, 1])  # of one experiment it is no reason
    write_run(project, "ln", 1, ["batch", "single"], "toy-tuned", train={"learning_rate": 0.4, "epochs": 3})
    with pytest.raises(ValueError, match=r"toy-tuned-ln-s0 and toy-tuned-ln-s1 differ in train\.epochs"):
        collect("toy-tuned", ["ln"], [0, 1], {"bn": EXPERIMENT})


def test_the_lender_is_the_published_experiment_that_differs_in_the_rate_alone(project):
    block = {"prepare": {"dataset": "toys"}, "train": {"epochs": 2, "learning_rate": 0.1}, "answers": {}}
    blocks = {
        "toy-short": block | {"train": block["train"] | {"epochs": 1}},
        "toy": block | {"train": block["train"] | {"shrunk": {"lowest": 4}}},
        "toy-tuned": block | {"train": block["train"] | {"learning_rate": 0.4}},
    }
    params = {"experiments": list(blocks), "published": ["toy-short", "toy"]} | blocks
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert [lender(name) for name in blocks] == [None, None, "toy"]


def test_what_captions_say_of_an_experiment_is_counted_from_its_runs(runs):
    write_results(runs)
    about = read_about(EXPERIMENT)
    assert (about["seeds"], about["epochs"], about["conditions"]) == (6, 2, 3)
    assert about["images_of_arm"]["LN single"] == IMAGES
    assert about["train_accuracy"] == {"BN": 0.97, "LN": 0.97}
    assert about["one_class"] == []
