"""Figures: what is drawn is what the table says, and the same table gives the same bytes."""

import matplotlib

matplotlib.use("Agg")

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text
from results_fixtures import EXPERIMENT, write_experiment
from torch import nn

from localnorm.arms import ARMS
from localnorm.comparisons import PRIMARY
from localnorm.figures.ablations import ABLATIONS, plot_ablations, trained_on
from localnorm.figures.accuracy import plot_accuracy
from localnorm.figures.calibration import plot_calibration
from localnorm.figures.cost import plot_cost
from localnorm.figures.forest import plot_forest
from localnorm.figures.groups import group_of_each_image, plot_groups
from localnorm.figures.length import caption as length_caption
from localnorm.figures.length import plot_length
from localnorm.figures.levels import caption as levels_caption
from localnorm.figures.levels import plot_levels
from localnorm.figures.network import plot_network, trace_network
from localnorm.figures.one_image import plot_one_image
from localnorm.figures.photographs import noise_wall, noisy_photographs, photograph, rgb_histograms
from localnorm.figures.poor_light import plot_poor_light
from localnorm.figures.streams import caption as streams_caption
from localnorm.figures.streams import plot_streams
from localnorm.figures.strengths import caption as strengths_caption
from localnorm.figures.strengths import plot_strengths
from localnorm.figures.style import COLUMN, LEGIBLE, fit_column, save
from localnorm.figures.teaser import plot_clean_against_noisy, seen_by
from localnorm.gather import collect, write_results
from localnorm.models import make_model
from localnorm.settings import FINE_TUNING, FIXED_BATCH, FIXED_SIZE, NETWORK, TRAINED_SIZES
from localnorm.tables import read_lengths
from localnorm.words import scored_images


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def curves():
    rows = [
        {
            "arm": arm,
            "suite": "named",
            "noise": name,
            "level": level,
            "seeds": 6,
            "accuracy": a,
            "low": a - 0.05,
            "high": a + 0.05,
        }
        for arm, top in (("BN fixed", 0.8), ("LN batch", 0.9))
        for name in ("gaussian", "contrast")
        for level, a in ((0.0, top), (0.2, top / 2), (0.5, top / 3))
    ]
    return pd.DataFrame(rows)


def test_accuracy_figure_draws_a_panel_a_noise_and_a_line_an_arm_with_the_values_of_the_table(curves):
    figure = plot_accuracy(curves, ARMS)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 2
    for axis, name in zip(shown, ("gaussian", "contrast"), strict=True):
        for line in axis.lines:
            table = curves[(curves.arm == line.get_label()) & (curves.noise == name)]
            assert line.get_xdata().tolist() == table.level.tolist()
            assert line.get_ydata() == pytest.approx(100 * table.accuracy.to_numpy()), "in percent"
        assert [line.get_label() for line in axis.lines] == ["BN fixed", "LN batch"]


def test_same_table_gives_the_same_bytes_and_another_table_others(project, curves):
    def written(table):
        save(plot_accuracy(table, ARMS), "accuracy", "A caption.")
        return {
            suffix: (project / "paper" / "figures" / f"accuracy.{suffix}").read_bytes() for suffix in ("pdf", "png")
        }

    first = written(curves)
    assert first == written(curves)
    changed = written(curves.assign(accuracy=curves.accuracy + 0.05))
    assert first["pdf"] != changed["pdf"]
    assert first["png"] != changed["png"]


def test_photographs_under_noise_are_images_and_differ_from_the_clean_one():
    images = noisy_photographs("flower", {"gaussian": 0.2, "brightness": 0.6}, seed=0)
    clean, gaussian, dark = images.values()
    for image in (clean, gaussian, dark):
        assert image.shape[2] == 3
        assert image.min() >= 0
        assert image.max() <= 1
    assert gaussian.std() > clean.std()
    assert dark.mean() == pytest.approx(0.4 * clean.mean(), rel=1e-3)


def test_wall_has_a_row_a_noise_and_starts_clean():
    wall = noise_wall("china", columns=3, size=16, seed=0)
    assert {"Additive Gaussian\n(named)", "Haze\n(named)"} <= set(wall)
    for row in wall.values():
        assert row[0][0] == "0"
        assert not np.array_equal(row[0][1], row[-1][1])


def test_an_unknown_photograph_names_the_two():
    with pytest.raises(ValueError, match="unknown photograph 'dog'; choose one of flower, china"):
        photograph("dog", 32)


# ------------------------------------------------------------------------------------------------------------- drawings


@pytest.mark.parametrize(
    ("assignment", "groups"), [("contiguous", [0, 0, 1, 1, 2, 2]), ("interleaved", [0, 1, 2, 0, 1, 2])]
)
def test_groups_are_those_that_the_layer_forms(assignment, groups):
    assert group_of_each_image(6, 3, assignment) == groups


def test_the_drawing_of_groups_shows_every_image_once_in_the_batch_and_once_in_its_group():
    figure = plot_groups(8, 4)
    for axis in figure.axes:
        texts = [text.get_text() for text in axis.texts]
        assert sorted(text for text in texts if text.isdigit()) == sorted([str(image) for image in range(8)] * 2)
        assert sum(r"\gamma" in text for text in texts) == 4
    with pytest.raises(ValueError, match=r"divides batch_size, got num_groups=3, batch_size=8"):
        plot_groups(8, 3)


def test_the_traced_network_has_the_layers_of_the_module_tree_in_the_order_in_which_they_run():
    network = make_model("resnet32", "ln", num_classes=10, num_groups=4)
    ran = []
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    steps = trace_network(network, torch.randn(4, 3, 32, 32))
    layers = [step for step in steps if step.kind in ("norm", "conv", "fc")]
    assert [step.name.replace("_", ".") for step in layers] == [name.replace("_", ".") for name in ran]
    assert sum(step.kind == "norm" for step in steps) == 31
    assert len({step.block for step in steps} - {""}) == 15
    assert steps[-1].shape == (4, 10)


def test_the_drawing_has_a_blue_bar_a_norm_layer_and_names_the_shapes_of_its_affine():
    steps = trace_network(make_model("resnet32", "ln", num_classes=10, num_groups=4), torch.randn(4, 3, 32, 32))
    strip, block = plot_network(steps, "blocks.5").axes
    assert sum(to_hex(bar.get_facecolor()).upper() == "#0072B2" for bar in strip.patches) == 31
    assert [text.get_text() for text in block.texts if "4 × 16" in text.get_text()]
    with pytest.raises(ValueError, match=r"unknown block 'blocks\.15'; the network has blocks\.0, "):
        plot_network(steps, "blocks.15")


def test_a_layer_that_a_drawing_has_no_look_for_is_named():
    with pytest.raises(ValueError, match=r"no look for the layer '0', a Tanh; a drawing knows LocalNorm, Conv2d"):
        trace_network(nn.Sequential(nn.Tanh()), torch.randn(1, 3, 8, 8))


# --------------------------------------------------------------------------------------------------------------- charts


@pytest.fixture
def scores():
    """Three seeds whose accuracy falls and whose calibration error and disagreement rise with the level."""
    return pd.DataFrame(
        {
            "arm": arm, "network": ARMS[arm].network, "statistics": ARMS[arm].statistics, "seed": seed,
            "suite": suite, "noise": name, "level": level, "images": 100,
            "right": round(100 * (0.9 - level)) + 2 * (seed - 1),
            "ece": level / 2 + 0.02 * seed, "disagreement": level / 10,
        }
        for arm in ("BN fixed", "BN batch", "LN batch", "LN vote")
        for seed in (0, 1, 2)
        for suite, name, level in (
            ("clean", "clean", 0.0), *(("named", name, level) for name in ("gaussian", "contrast") for level in (0.2, 0.6))
        )
    )  # fmt: skip


def line(axis, label):
    (found,) = [line for line in axis.lines if line.get_label() == label]
    return found.get_xdata().tolist(), pytest.approx(found.get_ydata().tolist())


def marks(axis):
    return np.array([line.get_xydata()[0] for line in axis.lines if line.get_marker() != "None"])


def test_calibration_draws_the_mean_error_over_seeds_and_the_disagreement_of_the_vote(scores):
    figure = plot_calibration(scores, ["BN fixed", "LN vote"])
    first, second, votes = (axis for axis in figure.axes if axis.get_visible())
    for axis in (first, second):
        assert line(axis, "LN vote") == ([0, 0.2, 0.6], [0.02, 0.12, 0.32])
        assert {each.get_label() for each in axis.lines} == {"BN fixed", "LN vote"}
    assert len(votes.lines) == 2, "one line per noise"
    for each in votes.lines:
        assert each.get_xydata() == pytest.approx(np.array([[0, 0], [1 / 3, 0.02], [1, 0.06]]))
    without = plot_calibration(scores[scores.arm != "LN vote"], ["BN fixed", "LN batch"])
    assert len([axis for axis in without.axes if axis.get_visible()]) == 2, "no empty panel where nothing voted"


ACCURACIES = {"BN fixed": (0.9, 0.4), "LN single": (0.1, 0.1), "LN prior": (0.8, 0.6)}  # clean, noisy


def summary():
    """Two experiments, the second with fewer arms."""
    rows = [
        (title, arm, metric, 6, 100, value, value - 0.02, value + 0.02, value - usual, "")
        for title, arms in (("Toys", list(ACCURACIES)), ("Cars", ["BN fixed", "LN single"]))
        for arm in arms
        for metric, value, usual in zip(("clean", "noisy"), ACCURACIES[arm], ACCURACIES["BN fixed"], strict=True)
    ]
    columns = ["title", "arm", "metric", "seeds", "images", "estimate", "low", "high", "change", "by_seed"]
    return pd.DataFrame(rows, columns=columns)


def test_one_image_marks_each_arm_at_its_clean_and_noisy_accuracy_and_skips_what_was_not_scored():
    first, second = plot_one_image(summary(), ["BN fixed"], ["LN single", "LN prior", "LN last fixed"]).axes
    assert marks(first) == pytest.approx(
        np.array([[90, 0], [40, 0], [10, 1], [10, 1], [80, 2], [60, 2]])
    )  # accuracy, row
    assert len(marks(second)) == 2 * 2
    assert [label.get_text() for label in first.get_yticklabels()] == ["BN fixed", "LN single", "LN prior"]
    with pytest.raises(ValueError, match=r"Toys has no results of LN vote.*it has BN fixed"):
        plot_one_image(summary(), ["BN fixed"], ["LN vote"])


def test_the_teaser_puts_each_arm_at_its_clean_and_noisy_accuracy():
    first, second = plot_clean_against_noisy(summary(), ["BN fixed", "LN prior"]).axes
    assert marks(first) == pytest.approx(np.array([[90, 40], [80, 60]]))
    assert marks(second) == pytest.approx(np.array([[90, 40]]))
    assert first.lines[0].get_xdata().tolist() == pytest.approx([88, 92])
    with pytest.raises(ValueError, match="LN vote"):
        plot_clean_against_noisy(summary(), ["LN vote"])


def test_the_teaser_puts_an_arm_of_fewer_seeds_where_its_difference_on_these_seeds_puts_it():
    table = summary()
    table.loc[table.arm == "LN prior", ["seeds", "estimate", "change"]] = [1, 0.7, -0.05]
    (first,) = plot_clean_against_noisy(table[table.title == "Toys"], ["BN fixed", "LN prior"]).axes
    assert marks(first) == pytest.approx(np.array([[90, 40], [85, 35]]))
    faces = [line.get_markerfacecolor() for line in first.lines if line.get_marker() != "None"]
    assert (faces[0] == "none", faces[1] == "none") == (False, True)


def test_the_forest_has_a_row_for_every_primary_comparison_filled_where_it_is_decided():
    rows = [
        {"title": "Toys", "primary": row.primary, "metric": row.metric, "seeds": 6 * (row.primary != "P7"), "estimate": 0.05,
         "low": 0.01, "high": 0.09, "threshold": row.threshold, "p_holm": 0.5, "train_gap": 0.0}
        for row in PRIMARY
    ]  # fmt: skip
    rows[0] |= {"p_holm": 0.001, "high": 0.41}
    rows[1] |= {"p_holm": 0.001, "estimate": -0.4, "low": -0.45, "high": -0.35}
    rows[2] |= {"primary": ""}
    (axis,) = plot_forest(pd.DataFrame(rows)).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(set(labels)) == len(PRIMARY), "no two rows have the same name"
    points = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() in ("^", "v", "o")}
    assert {row: line.get_xdata()[0] for row, line in points.items()} == {
        row: -40 if row == 1 else 5 for row in range(len(PRIMARY) - 1) if row != 2
    }, "each in the row of its own comparison"
    assert [points[row].get_marker() for row in (0, 1, 3)] == ["^", "v", "o"], "it holds, it does not, it is undecided"
    assert [points[row].get_markerfacecolor() == "white" for row in (0, 1, 3)] == [False, False, True]
    ends = [(line.get_marker(), *line.get_xydata()[0]) for line in axis.lines if line.get_marker() in ("<", ">")]
    low, high = axis.get_xlim()
    assert ends == [(">", high, 0), ("<", low, 1)], "an arrow where an interval ends or a mark lies beyond the axis"
    assert sorted(text.get_text() for text in axis.texts) == [
        "claimed of large images alone",
        "not tested here",
        "\N{MINUS SIGN}40.0 ± 5.0",
    ]


def test_strengths_draw_clean_and_noisy_against_n0_for_each_number_of_fixed_layers():
    rows = [(network, seed, prior, count, 0.9, 0.1 * count + 0.1 * seed)
            for network in ("bn", "ln") for seed in (0, 1) for prior in (0, 16, 64) for count in (0, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["network", "seed", "prior", "fixed_last", "clean", "noisy"]).assign(
        statistics="prior"
    )
    figure = plot_strengths({"Toys": table}, ["bn", "ln"])
    left, right = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["Toys, BN", "Toys, LN"]
    lines = [line for line in right.lines if len(line.get_xdata()) == 3]
    drawn = np.array([line.get_ydata() for line in lines])
    assert drawn == pytest.approx(np.array([[90] * 3, [5] * 3, [90] * 3, [15] * 3]))
    assert left.lines[0].get_xdata().tolist() == [0, 16, 64]
    peak = table.assign(noisy=table.noisy + 0.2 * (table.prior == 16))
    best = [line for line in plot_strengths({"Toys": peak}, ["bn"]).axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_xydata()[0].tolist() for line in best] == [[16, pytest.approx(25)], [16, pytest.approx(35)]]
    drawn = plot_strengths({"Toys": table, "Cars": table.assign(network="ln_drawn")}, ["bn", "ln", "ln_drawn"])
    shown = [axis.get_title() for axis in drawn.axes if axis.get_visible()]
    assert shown == ["Toys, BN", "Toys, LN", "Cars, LN drawn"], "what an experiment does not have has no panel"
    (empty,) = plot_strengths({"Toys": table.assign(noisy=np.nan)}, ["bn"]).axes
    assert empty.texts


def test_ablations_draw_accuracy_against_each_value_and_only_the_ablations_that_were_run(scores):
    table = pd.concat(
        scores.assign(ablation=name, value=str(value), right=scores.right - value)
        for name, values in {FIXED_BATCH: (1, 4, 16), FINE_TUNING: (0, 2)}.items()
        for value in values
    )
    clean_groups, clean_tuning, noisy_groups, _ = plot_ablations(table, ["LN batch"]).axes
    assert line(clean_groups, "LN batch") == ([1, 4, 16], [89, 86, 74])
    assert line(noisy_groups, "LN batch") == ([1, 4, 16], [49, 46, 34])
    assert line(clean_tuning, "LN batch") == ([0, 2], [90, 88])
    other = scores.assign(ablation=NETWORK, value="bn")
    figure = plot_ablations(pd.concat([table, other]), ["LN batch"])
    assert len(figure.axes) == 2 * 3
    layers = figure.axes[2]
    assert line(layers, "LN batch") == ([0], [90])
    assert [label.get_text() for label in figure.axes[5].get_xticklabels()] == ["BN"]
    with pytest.raises(ValueError, match=r"unknown ablation depth.*groups at fixed batch"):
        plot_ablations(table.assign(ablation="depth"), ["LN batch"])
    with pytest.raises(ValueError, match="finite number"):
        plot_ablations(table.assign(value="many"), ["LN batch"])


def test_the_ablations_that_are_run_are_those_that_are_drawn():
    assert set(ABLATIONS) == {FIXED_BATCH, FIXED_SIZE, FINE_TUNING, NETWORK, TRAINED_SIZES}


def test_streams_tell_a_uniform_batch_from_a_mixed_one(scores):
    sizes = pd.concat(scores.assign(batch_size=n, right=scores.right - 8 // n) for n in (1, 8))
    mixed = sizes[sizes.level > 0].assign(right=20)
    table = pd.concat([sizes.assign(composition="uniform"), mixed.assign(composition="mixed")])
    clean, uniform, mixed = plot_streams(table, ["BN batch", "LN batch"]).axes
    assert line(clean, "LN batch") == ([1, 8], [82, 89])
    assert line(uniform, "LN batch") == ([1, 8], [42, 49])
    assert line(mixed, "LN batch") == ([1, 8], [20, 20])
    assert len(plot_streams(table[table.composition == "uniform"], ["LN batch"]).axes) == 2
    assert plot_streams(table.head(0), ["LN batch"]).axes[0].texts, "without a study a sentence says so"


def dots(axis):
    return [collection.get_offsets().data for collection in axis.collections if isinstance(collection, PathCollection)]


def bands(axis):
    return [each for each in axis.collections if isinstance(each, PolyCollection) and len(each.get_paths())]


def test_few_seeds_are_drawn_themselves_instead_of_a_band_that_fills_the_panel(curves):
    six = plot_accuracy(curves, ["LN batch"]).axes[0]
    assert (len(bands(six)), len(dots(six))) == (1, 0)
    few = curves.assign(seeds=2, low=np.nan, high=np.nan, by_seed=[f"{a - 0.1:g} {a + 0.1:g}" for a in curves.accuracy])
    two = plot_accuracy(few, ["LN batch"]).axes[0]
    assert not bands(two)
    assert np.concatenate(dots(two)) == pytest.approx(
        np.array([[0, 80], [0, 100], [0.2, 35], [0.2, 55], [0.5, 20], [0.5, 40]])
    )


def test_few_seeds_of_all_arms_stand_beside_their_mean_instead_of_an_interval():
    few = summary().assign(low=np.nan, high=np.nan, by_seed=[f"{v - 0.1:g} {v + 0.1:g}" for v in summary().estimate])
    first = plot_one_image(few, ["BN fixed"], ["LN single"]).axes[0]
    assert dots(first)[0] == pytest.approx(np.array([[80, 0], [100, 0]]))
    teaser = plot_clean_against_noisy(few[few.title == "Toys"], ["LN prior"]).axes
    assert dots(teaser[0])[0] == pytest.approx(np.array([[70, 50], [90, 70]])), "clean and noisy of a seed"
    rows = [{"title": "Toys", "primary": row.primary, "metric": row.metric, "seeds": 2, "estimate": 0.05, "low": np.nan, "high": np.nan,
             "by_seed": "0.04 0.06", "threshold": row.threshold, "p_holm": 0.5, "train_gap": 0.0} for row in PRIMARY]  # fmt: skip
    (axis,) = plot_forest(pd.DataFrame(rows)).axes
    assert dots(axis)[0] == pytest.approx(np.array([[4, 0], [6, 0]]))


def test_cost_has_a_mark_per_setting_beside_the_bound_of_its_row_and_leaves_single_layers_out():
    costs = pd.DataFrame(
        {
            "subject": subject, "measure": measure, "shape": shape, "layout": "contiguous", "dtype": dtype,
            "assignment": "interleaved", "ratio": ratio, "lower_quartile": ratio - 0.1, "upper_quartile": ratio + 0.1,
            "device": device, "bound": 1.05 if measure == "step" else np.nan,
        }
        for subject, measure, shape, dtype, ratio, device in (
            ("layer", "step", "4x3x8x8", "float32", 3.0, "cpu"), ("resnet32", "step", "4x3x8x8", "float32", 1.02, "cpu"),
            ("resnet32", "step", "4x3x8x8", "bfloat16", 1.1, "cpu"), ("resnet32", "prior", "1x3x8x8", "float32", 1.4, "cpu"),
            ("resnet32", "prior", "8x3x8x8", "float32", 1.3, "cpu"), ("resnet32", "vote", "8x3x8x8", "float32", 7.9, "cpu"),
            ("resnet32", "step", "4x3x8x8", "float32", 1.5, "NVIDIA H200"),
        )
    )  # fmt: skip

    def marks(axis):
        return [
            (line.get_xdata()[0], line.get_markerfacecolor() == "white")
            for line in axis.lines
            if line.get_marker() == "o"
        ]

    step, prior, on_gpu, without = plot_cost(costs).axes
    assert marks(step) == [(1.02, False), (1.1, True)], "hollow is bfloat16"
    assert marks(prior) == [(1.4, True), (1.3, False)], "hollow is one image by itself"
    assert marks(on_gpu) == [(1.5, False)]
    assert not without.axison
    assert [tick.get_text() for tick in step.get_yticklabels()] == ["resnet32,\nNCHW"]
    assert [axis.get_ylabel() for axis in (step, on_gpu)] == ["CPU", "H200"]
    upright = [{line.get_xdata()[0] for line in axis.lines if line.get_xdata()[0] == line.get_xdata()[-1] and line.get_marker() == "None"}
               for axis in (step, prior)]  # fmt: skip
    assert upright == [{1, 1.05}, {1}], "equal cost, and the bound where a claim has one"
    with pytest.raises(ValueError, match=r"no networks; write it with python -m localnorm\.cost"):
        plot_cost(costs[costs.subject == "layer"])


# ------------------------------------------------------------------------------------------------------------- captions


def test_a_figure_is_written_with_its_caption_on_one_line(project, curves):
    save(plot_accuracy(curves, ARMS), "accuracy", "A caption\n  of two lines.")
    assert (project / "paper" / "figures" / "accuracy.txt").read_text() == "A caption of two lines.\n"


def test_a_caption_names_what_was_scored_on_other_images():
    about = {"images_of_arm": {"LN batch": 384, "LN single": 384}, "noisy_images": 384, "clean_images": 384}
    assert scored_images(about) == "384"
    about["clean_images"] = 5000
    assert scored_images(about) == "384 (clean 5,000)"
    about["images_of_arm"] |= {"LN single": 64, "LN vote": 64}
    assert scored_images(about) == "384 (clean 5,000; LN single and LN vote 64)"


def test_a_caption_of_ablations_counts_networks_by_where_they_were_trained_and_the_time_that_is_known():
    table = pd.DataFrame(
        {
            "ablation": [NETWORK, NETWORK, NETWORK, FIXED_BATCH, FIXED_BATCH],
            "value": ["bn", "bn", "bn", "4", "4"],
            "seed": [0, 1, 2, 0, 0],  # a network has one row per condition
            "device": "CPU (x86_64)",
            "precision": ["bf16-mixed", "32-true", "32-true", "bf16-mixed", "bf16-mixed"],
            "train_seconds": [60, 120, 180, 90, 90],
        }
    )
    said = trained_on(table)
    assert all(
        part in said
        for part in ("2 networks on CPU (x86_64), bf16-mixed", "2 networks on CPU (x86_64), 32-true", "7.5 minutes")
    )
    table.loc[table.seed == 0, "train_seconds"] = float("nan")
    assert "2 of 4 networks" in trained_on(table)
    assert "minutes" not in trained_on(table[table.seed == 0])


def test_every_figure_notebook_saves_with_a_caption_from_the_library():
    for notebook in sorted((ROOT / "notebooks").glob("figure-*.ipynb")):
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        code = "".join(cells[-1]["source"])
        assert re.search(r"save\(figure, .*caption\(", code, re.S), notebook.name


def test_levels_draw_a_row_per_data_set_and_leave_out_the_noises_that_one_lacks(curves):
    figure = plot_levels({"Toys": curves, "Cars": curves[curves.noise == "contrast"]}, ["BN fixed", "LN batch"])
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 2 + 1
    for axis, name in zip(shown, ("gaussian", "contrast", "contrast"), strict=True):
        table = curves[(curves.noise == name) & (curves.arm == "BN fixed")]
        assert axis.lines[0].get_xydata() == pytest.approx(table[["level", "accuracy"]].to_numpy() * (1, 100))


def test_longer_training_draws_each_arm_against_its_epochs(project):
    """One experiment of three seeds at 2 epochs, one of one seed at 5."""
    results = project / "data" / "results"
    for name, epochs, seeds in (("toys-long", 5, [0]), ("toys", 2, [0, 1, 2])):
        write_experiment(project, seeds=seeds)
        write_results(collect(EXPERIMENT, ["bn", "ln"], seeds))
        about = results / EXPERIMENT / "about.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"epochs": epochs}))
        (results / EXPERIMENT).rename(results / name)
    table, abouts = read_lengths(["toys-long", "toys"])
    assert list(abouts) == [2, 5]
    assert table.groupby("epochs").seeds.max().to_dict() == {2: 3, 5: 1}
    left, right = plot_length(table, ["BN fixed", "LN batch", "LN drawn single"]).axes
    for axis, metric in ((left, "clean"), (right, "noisy")):
        expected = table[(table.metric == metric) & (table.arm == "BN fixed")].estimate
        assert axis.lines[0].get_xydata() == pytest.approx(
            np.array([[2, 100 * expected.iloc[0]], [5, 100 * expected.iloc[1]]])
        )
    (results / "toys" / "about.json").write_text(json.dumps(abouts[5]))
    with pytest.raises(ValueError, match="each with its own number of epochs"):
        read_lengths(["toys-long", "toys"])


# -------------------------------------------------------------------------------------------------------- letters and captions

PAGE = 21 - 2 * 2.2  # cm of text across a page of the paper, see paper/format.typ


def printed_sizes(figure, name):
    """Points of every text of a figure as the paper prints it, the smallest first."""
    paper = (ROOT / "paper" / "paper.typ").read_text()
    (share,) = re.findall(rf'#drawings?\("(?:[^"]*/)?{name}"(?:, width: (\d+)%)?', paper)
    figure.canvas.draw()
    width = figure.get_tightbbox().width + 2 * 0.02  # inches, as `save` cuts it
    scale = PAGE / 2.54 * float(share or 100) / 100 / width
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return sorted(scale * text.get_fontsize() * (0.7 if "_" in text.get_text() else 1) for text in texts)


@pytest.fixture
def drawn(curves, scores):
    """Every figure of the paper, of a few made-up results."""
    streams = scores.assign(batch_size=4, composition="uniform")
    strengths = pd.DataFrame(
        {
            "network": "bn",
            "seed": 0,
            "statistics": "prior",
            "prior": [0, 16],
            "fixed_last": 0,
            "clean": 0.9,
            "noisy": 0.5,
        }
    )
    answers = pd.DataFrame({"image": 0, "level": 0.0, "arm": ["BN fixed"], "rank": 0, "label": 0, "probability": 0.5})
    lengths = summary()[lambda table: table.title == "Toys"].assign(epochs=5, by_seed="")
    rows = pd.DataFrame({"title": "Toys", "primary": row.primary, "metric": row.metric, "seeds": 0} for row in PRIMARY)
    numbers = dict.fromkeys(("estimate", "low", "high", "threshold"), 0.1)
    return {
        "groups": plot_groups(8, 4),
        "histograms": rgb_histograms(noisy_photographs("flower", {"poisson": 0.2}, seed=0)),
        "forest": plot_forest(rows.assign(**numbers)),
        "levels": plot_levels({"Toys": curves}, ["BN fixed"]),
        "length": plot_length(lengths, ["BN fixed"]),
        "teaser": plot_clean_against_noisy(summary(), ["BN fixed"]),
        "strengths": plot_strengths({"Toys": strengths}, ["bn"]),
        "streams": plot_streams(streams, ["BN batch"]),
        "poor-light-published": plot_poor_light(torch.zeros(1, 3, 8, 8), ["a"], answers, ["car"]),
    }


def test_no_letter_of_the_paper_is_printed_smaller_than_seven_points(drawn):
    paper = (ROOT / "paper" / "paper.typ").read_text()
    assert {name.split("/")[-1] for name in re.findall(r'#drawings?\("([^"]+)"', paper)} == set(drawn)
    smallest = {name: printed_sizes(figure, name)[0] for name, figure in drawn.items()}
    assert min(smallest.values()) > LEGIBLE - 0.1, smallest


def test_a_figure_for_a_column_is_as_wide_as_one_with_letters_of_seven_points_and_loses_no_words(drawn):
    notebooks = ROOT / "notebooks"
    have = {
        name
        for name in drawn
        if "column=True" in (notebooks / f"figure-{name.removesuffix('-published')}.ipynb").read_text()
    }
    assert have == {*drawn} - {"strengths", "poor-light-published"}, "these two would be longer than a page"
    for name in have:
        figure = drawn[name]
        before = {words(text) for text in figure.findobj(Text)}
        fit_column(figure)
        figure.canvas.draw()
        width, height = figure.get_tightbbox().size
        assert width < COLUMN + 0.1, name
        assert height < 9.5, name
        texts = [text for text in figure.findobj(Text) if text.get_visible() and words(text)]
        assert min(text.get_fontsize() * (0.7 if "_" in text.get_text() else 1) for text in texts) > LEGIBLE - 0.1, name
        assert before <= {words(text) for text in texts} | {""}, name
        for axis in figure.axes:
            if name in ("forest", "streams", "teaser") and axis.get_subplotspec().colspan.start == 0:
                assert axis.yaxis.get_tick_params()["labelleft"], f"{name}: a panel on the left has values beside it"


def words(text):
    return " ".join(text.get_text().split())


def test_the_teaser_sorts_marks_by_the_images_that_they_see():
    assert [seen_by(arm) for arm in ("BN fixed", "LN batch", "LN prior", "LN drawn single")] == [
        "training", "batch", "one", "one",
    ]  # fmt: skip


ABOUT = {
    "title": "Toys", "model": "small", "shape": [1, 8, 8], "counts": {"train": 10, "test": 5}, "epochs": 2, "batch_size": 4,
    "num_groups": 2, "seeds": 6, "devices": ["CPU"], "torch": ["2"], "images_of_arm": {}, "noisy_images": 5, "clean_images": 5,
    "provenance": {"lossy": False}, "train_accuracy": {"BN": 0.9, "LN": 0.8},
}  # fmt: skip


def test_the_caption_of_strengths_counts_its_claims():
    table = pd.DataFrame(
        {"network": "bn", "seed": 0, "statistics": "prior",
         "prior": [16, 64, 0, 64], "fixed_last": [0, 0, 1, 1], "clean": [0.8, 0.9, 0.9, 0.8],
         "noisy": [0.6, 0.5, 0.4, 0.5]}
    )  # fmt: skip
    tables = {"Toys (small)": table, "Cars": table.assign(fixed_last=2 * table.fixed_last)}
    said = strengths_caption(tables, ["bn"], [ABOUT])
    assert "(0 or 1 on Toys and 0 or 2 on Cars)" in said
    assert "rises in 2 of 4 lines" in said
    assert "below the largest n0 in 2" in said
    assert "not tried with 0 fixed" in said
    assert "Toys: 10 training" in strengths_caption({}, ["bn"], [ABOUT]), "nothing was chosen"


def test_the_caption_of_levels_says_to_which_arm_a_prior_lies_nearer():
    rows = [
        {"arm": arm, "suite": "named", "noise": "contrast", "level": level, "seeds": 6, "accuracy": accuracy}
        for arm, values in {
            "BN fixed": (0.9, 0.5, 0.3),
            "LN batch": (0.8, 0.8, 0.8),
            "LN prior": (0.9, 0.6, 0.3),
        }.items()
        for level, accuracy in zip((0, 0.2, 0.5), values, strict=True)
    ]
    said = levels_caption({"Toys": pd.DataFrame(rows)}, ["BN fixed", "LN batch", "LN prior"], [ABOUT])
    assert "BN fixed is the least accurate at 2 of 2 levels" in said
    assert "nearer to BN fixed on Toys (5.0 points apart on average, 35.0 from LN batch)" in said
    alone = levels_caption({"Toys": pd.DataFrame(rows)}, ["BN fixed", "LN batch"], [ABOUT])
    assert "nearer" not in alone


def test_the_caption_of_longer_training_says_what_a_mark_is_at_each_length():
    few = summary().assign(epochs=5, seeds=1)
    table = pd.concat([summary().assign(epochs=2, seeds=6), few])
    said = length_caption(table, {2: ABOUT, 5: ABOUT | {"seeds": 4}}, ["BN fixed"])
    assert "on Toys" in said
    assert "2 epochs: mean of 6 seeds with its 95 % interval; 5 epochs: one seed." in said
    table.loc[(table.epochs == 5) & (table.arm == "LN single"), "seeds"] = 4
    said = length_caption(table, {2: ABOUT, 5: ABOUT | {"seeds": 4}}, ["BN fixed", "LN single"])
    assert "5 epochs: mean of 1 or 4 seeds with its 95 % interval" in said


def test_longer_training_shows_the_interval_of_every_mean():
    table = summary()[lambda rows: rows.title == "Toys"].assign(epochs=2)
    left, _ = plot_length(table, ["BN fixed", "LN single"]).axes
    bars = [each.get_ydata().tolist() for each in left.lines if each.get_xdata().tolist() == [2, 2]]
    assert bars == [pytest.approx([88, 92]), pytest.approx([8, 12])]


def test_the_caption_of_streams_names_the_panels_that_are_drawn(scores):
    table = scores.assign(batch_size=4, composition="uniform")
    said = streams_caption(table, ["BN batch", "LN batch"], ABOUT)
    assert "batches of clean images and batches of one noise" in said
    assert "LN drawn single" not in said
    drawn = table.assign(network="ln_drawn", statistics="batch")
    assert "LN drawn batch is LN drawn single" in streams_caption(drawn, ["LN drawn batch"], ABOUT)
