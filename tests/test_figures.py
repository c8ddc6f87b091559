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
from matplotlib.colors import to_hex
from PIL import Image
from torch import nn

from localnorm import estimate_statistics, paths
from localnorm.ablations import FINE_TUNING, FIXED_BATCH, FIXED_SIZE, NORM, TRAINED_SIZES
from localnorm.evaluate import ARMS
from localnorm.figures.ablations import ABLATIONS, plot_ablations, plot_batches
from localnorm.figures.accuracy import plot_accuracy
from localnorm.figures.calibration import plot_calibration
from localnorm.figures.captions import scored_images, seeds_by_ablation, trained_on
from localnorm.figures.cost import plot_cost
from localnorm.figures.estimates import clean_and_noisy
from localnorm.figures.fixed_against_batch import plot_fixed_against_batch
from localnorm.figures.groups import group_of_each_image, plot_groups
from localnorm.figures.network import plot_network, trace_network
from localnorm.figures.one_image import plot_one_image
from localnorm.figures.photographs import noise_wall, noisy_photographs, photograph
from localnorm.figures.poor_light import chosen_strengths, darken, folder_images, plot_poor_light, top_classes
from localnorm.figures.strengths import plot_strengths
from localnorm.figures.style import ARM_STYLES, save
from localnorm.models import make_model, save_model


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


def test_every_arm_has_a_colour_and_a_marker_of_its_own():
    assert set(ARM_STYLES) == set(ARMS.values())
    assert len({colour for colour, _, _ in ARM_STYLES.values()}) == len(ARMS)
    assert len({marker for _, marker, _ in ARM_STYLES.values()}) == len(ARMS)


def test_accuracy_figure_draws_a_panel_a_noise_and_a_line_an_arm_with_the_values_of_the_table(curves):
    figure = plot_accuracy(curves)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 2
    for axis, name in zip(shown, ("gaussian", "contrast"), strict=True):
        for line in axis.lines:
            table = curves[(curves.arm == line.get_label()) & (curves.noise == name)]
            assert line.get_xdata().tolist() == table.level.tolist()
            assert line.get_ydata().tolist() == table.accuracy.tolist()
        assert [line.get_label() for line in axis.lines] == ["BN fixed", "LN batch"]


def test_same_table_gives_the_same_bytes_and_another_table_others(project, curves):
    def written(table):
        save(plot_accuracy(table), "accuracy", "A caption.")
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
    assert len(wall) == 10
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
    network = make_model("resnet32", "local", num_classes=10, num_groups=4)
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
    steps = trace_network(make_model("resnet32", "local", num_classes=10, num_groups=4), torch.randn(4, 3, 32, 32))
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
def sweep():
    """Two seeds whose accuracy falls and whose calibration error and disagreement rise with the level."""
    return pd.DataFrame(
        {
            "norm": norm, "seed": seed, "mode": mode, "suite": "named", "noise": name, "level": level, "images": 50,
            "accuracy": 0.9 - level + 0.02 * seed, "ece": level / 2 + 0.02 * seed, "disagreement": level / 10,
        }
        for norm, mode in (("batch", "fixed"), ("batch", "batch"), ("local", "batch"), ("local", "vote"))
        for seed in (0, 1)
        for name in ("gaussian", "contrast")
        for level in (0.0, 0.2, 0.6)
    )  # fmt: skip


def line(axis, label):
    (found,) = [line for line in axis.lines if line.get_label() == label]
    return found.get_xdata().tolist(), pytest.approx(found.get_ydata().tolist())


def test_calibration_draws_the_mean_error_over_seeds_and_the_disagreement_of_the_vote(sweep):
    figure = plot_calibration(sweep, ["BN fixed", "LN vote"])
    first, second, votes = (axis for axis in figure.axes if axis.get_visible())
    for axis in (first, second):
        assert line(axis, "LN vote") == ([0, 0.2, 0.6], [0.01, 0.11, 0.31])
        assert {each.get_label() for each in axis.lines} == {"BN fixed", "LN vote"}
    assert len(votes.lines) == 2  # a line a noise
    for each in votes.lines:
        assert each.get_xydata() == pytest.approx(np.array([[0, 0], [1 / 3, 0.02], [1, 0.06]]))
    assert [text.get_text() for text in votes.get_legend().get_texts()] == ["named"]


def test_calibration_has_no_empty_panel_where_nothing_voted(sweep):
    figure = plot_calibration(sweep[sweep["mode"] != "vote"], ["BN fixed", "LN batch"])
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 2
    assert all(len(axis.lines) == 2 for axis in shown)


def test_fixed_against_batch_writes_the_difference_in_points_and_leaves_nothing_empty():
    summary = pd.DataFrame({"arm": ["BN fixed", "BN-batch"]} | {
        name: [0.95, 0.9] if name.startswith("clean") else [0.4, 0.7]
        for part in ("clean", "noisy") for name in (part, f"{part}_low", f"{part}_high")
    })  # fmt: skip
    (axis,) = plot_fixed_against_batch({"Digits": summary, "Cars": summary}, ["BN fixed", "BN-batch"]).axes
    assert [text.get_text() for text in axis.texts] == ["-5.0", "+30.0"] * 2
    assert [label.get_text() for label in axis.get_yticklabels()][2:] == ["Cars, clean", "Cars, noisy"]
    with pytest.raises(ValueError, match="Digits has no results of LN batch; it has BN fixed, BN-batch"):
        plot_fixed_against_batch({"Digits": summary}, ["BN fixed", "LN batch"])
    with pytest.raises(ValueError, match="no experiment has results yet"):
        plot_fixed_against_batch({}, ["BN fixed", "BN-batch"])


def test_one_image_marks_each_arm_at_its_clean_and_noisy_accuracy_and_skips_what_was_not_scored():
    summary = pd.DataFrame({"arm": ["BN fixed", "LN single", "LN prior"], "seeds": 3} | {
        name: [0.9, 0.1, 0.8] if name.startswith("clean") else [0.4, 0.1, 0.6]
        for part in ("clean", "noisy") for name in (part, f"{part}_low", f"{part}_high")
    })  # fmt: skip
    arms = ["LN single", "LN prior", "LN last fixed"]
    figure = plot_one_image({"Digits": summary, "Cars": summary.head(2)}, ["BN fixed"], arms)
    first, second = figure.axes
    marks = [line.get_xydata()[0].tolist() for line in first.lines if line.get_marker() != "None"]
    clean_and_noisy = [[90, 0], [40, 0], [10, 1], [10, 1], [80, 2], [60, 2]]  # (accuracy, row)
    assert np.array(marks) == pytest.approx(np.array(clean_and_noisy))
    assert len([line for line in second.lines if line.get_marker() != "None"]) == 2 * 2
    assert [label.get_text() for label in first.get_yticklabels()] == ["BN fixed", "LN single", "LN prior"]
    with pytest.raises(ValueError, match="Digits has no results of LN single, LN prior; it has BN fixed"):
        plot_one_image({"Digits": summary.head(1)}, ["BN fixed"], arms[:2])
    with pytest.raises(ValueError, match="no experiment has results yet"):
        plot_one_image({}, ["BN fixed"], arms)


def test_strengths_draw_clean_and_noisy_against_n0_for_each_number_of_fixed_norms():
    rows = [(norm, seed, prior, count, 0.9, 0.1 * count + 0.1 * seed)
            for norm in ("batch", "local") for seed in (0, 1) for prior in (0, 16, 64) for count in (0, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["norm", "seed", "prior", "fixed_last", "clean", "noisy"])
    figure = plot_strengths({"Digits": table})
    left, right = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["Digits, BN", "Digits, LN"]
    drawn = np.array([line.get_ydata() for line in right.lines])
    assert drawn == pytest.approx(np.array([[90] * 3, [5] * 3, [90] * 3, [15] * 3]))
    assert left.lines[0].get_xdata().tolist() == [0, 16, 64]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["0 fixed, clean", "0 fixed, noisy"]
    drawn = plot_strengths({"Digits": table, "Cars": table.assign(norm="drawn", fixed_last=2 * table.fixed_last)})
    named = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert named == [f"{count} fixed, {part}" for count in ("0", "1, 2") for part in ("clean", "noisy")]
    shown = [axis.get_title() for axis in drawn.axes if axis.get_visible()]
    assert shown == ["Digits, BN", "Digits, LN", "Cars, LN drawn"], "what an experiment does not have has no panel"
    (empty,) = plot_strengths({}).axes
    assert [text.get_text() for text in empty.texts] == ["No sweep of this run had strengths to choose from."]


def test_a_caption_names_what_was_scored_on_other_images():
    modes = ["batch", "single", "vote", "companions"]
    sweep = pd.DataFrame({"norm": "local", "mode": modes * 2, "level": [0.0] * 4 + [0.1] * 4, "images": 384})
    assert scored_images(sweep) == "384"
    sweep.loc[0, "images"] = 5000
    assert scored_images(sweep) == "384 (clean 5,000)"
    sweep.loc[[1, 2, 5, 6], "images"] = 64
    assert scored_images(sweep) == "384 (clean 5,000; LN single and LN vote 64)"
    sweep.loc[[3, 7], "images"] = 64
    assert scored_images(sweep) == "384 (clean 5,000; LN single, LN vote and LN companions 64)"


def test_clean_and_noisy_weigh_every_noise_alike(sweep):
    uneven = sweep[(sweep.noise == "gaussian") | (sweep.level != 0.2)]  # contrast has one level, gaussian two
    scores = clean_and_noisy(uneven, []).set_index(["norm", "mode", "seed", "part"]).accuracy
    assert scores["local", "batch", 0, "clean"] == pytest.approx(0.9)
    assert scores["local", "batch", 0, "noisy"] == pytest.approx(((0.7 + 0.3) / 2 + 0.3) / 2)


def test_ablations_draw_accuracy_against_each_value_and_only_the_ablations_that_were_run(sweep):
    names = {FIXED_BATCH: (1, 4, 16), FINE_TUNING: (0, 2)}
    table = pd.concat(
        sweep.assign(ablation=name, value=str(value), accuracy=sweep.accuracy - value / 100)
        for name, values in names.items()
        for value in values
    )
    figure = plot_ablations(table, ["LN batch"])
    clean_groups, clean_tuning, noisy_groups, _ = figure.axes
    assert line(clean_groups, "LN batch") == ([1, 4, 16], [0.9, 0.87, 0.75])
    assert line(noisy_groups, "LN batch") == ([1, 4, 16], [0.5, 0.47, 0.35])
    assert line(clean_tuning, "LN batch") == ([0, 2], [0.91, 0.89])
    other = sweep.assign(ablation=NORM, value="batch")
    figure = plot_ablations(pd.concat([table, other.assign(ablation=FIXED_SIZE, value="4"), other]), ["LN batch"])
    assert len(figure.axes) == 2 * 4
    (norms,) = [axis for axis in figure.axes if axis.get_title() == "other\nnorms"]
    assert line(norms, "LN batch") == ([0], [0.91])
    with pytest.raises(ValueError, match="unknown ablation depth; choose of groups at fixed batch, "):
        plot_ablations(table.assign(ablation="depth"))


def test_the_ablations_that_are_run_are_those_that_are_drawn():
    assert set(ABLATIONS) == {FIXED_BATCH, FIXED_SIZE, FINE_TUNING, NORM, TRAINED_SIZES}


def test_batches_tell_a_uniform_batch_from_a_mixed_one(sweep):
    sizes = pd.concat(sweep.assign(batch_size=n, accuracy=sweep.accuracy - 0.1 / n) for n in (1, 8))
    mixed = sizes[sizes.level > 0].assign(accuracy=0.2)
    table = pd.concat([sizes.assign(composition="uniform"), mixed.assign(composition="mixed")])
    clean, uniform, mixed = plot_batches(table, ["BN-batch", "LN batch"]).axes
    assert line(clean, "LN batch") == ([1, 8], [0.81, 0.8975])
    assert line(uniform, "LN batch") == ([1, 8], [0.41, 0.4975])
    assert line(mixed, "LN batch") == ([1, 8], [0.2, 0.2])
    assert len(plot_batches(table[table.composition == "uniform"]).axes) == 2
    (said,) = plot_batches(table.head(0)).axes[0].texts
    assert said.get_text() == "This experiment has no study of test batches."


def test_cost_writes_every_ratio_and_leaves_single_layers_out():
    costs = pd.DataFrame(
        {
            "subject": subject, "measure": measure, "layout": "contiguous", "dtype": "float32",
            "assignment": "interleaved", "ratio": ratio, "lower_quartile": ratio - 0.1, "upper_quartile": ratio + 0.1,
            "device": device, "bound": 1.05 if measure == "step" else None,
        }
        for subject, measure, ratio, device in (
            ("layer", "step", 3.0, "cpu"), ("resnet32", "step", 1.02, "cpu"), ("resnet32", "vote", 7.9, "cpu"),
            ("resnet32", "step", 1.5, "a GPU"),
        )
    )  # fmt: skip
    both, costs = costs, costs[costs.device == "cpu"]
    figure = plot_cost(costs)
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["1.02", "7.90"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["resnet32, fp32\nNCHW, interleaved"]
    step, vote = (
        {line.get_xdata()[0] for line in axis.lines if not any(line.get_ydata() - np.array([0, 1]))}
        for axis in figure.axes
    )
    assert (step, vote) == ({1, 1.05}, {1}), "equal cost, and the bound where a claim has one"
    on_cpu, _, on_gpu, without = plot_cost(both).axes
    assert not without.axison
    assert [axis.get_ylabel() for axis in (on_cpu, on_gpu)] == ["CPU", "a GPU"]
    assert [text.get_text() for text in on_gpu.texts] == ["1.50"]
    with pytest.raises(ValueError, match=r"no networks; write it with python -m localnorm\.cost"):
        plot_cost(costs[costs.subject == "layer"])


# ----------------------------------------------------------------------------------------------------------- poor light


@pytest.fixture
def networks(project, digits):
    """Untrained networks of seed 0, which answer something; BatchNorm's with statistics, or it has no fixed ones."""
    for norm in ("batch", "local"):
        torch.manual_seed(0)
        arguments = {"num_classes": 10, "in_channels": 1, "num_groups": 4}
        file = project / "data" / "models" / "digits-small" / f"digits-small-{norm}-s0.safetensors"
        model = make_model("small", norm, **arguments)
        if norm == "batch":
            estimate_statistics(model, [digits.images("train")[:64] / 255])
        save_model(model, file, "small", norm, **arguments)
    return digits


STRENGTHS = {
    "BN prior": {"prior": 16.0, "fixed_last": 0},
    "LN prior": {"prior": 4.0, "fixed_last": 0},
    "LN last fixed": {"prior": 4.0, "fixed_last": 2},
}
ASKED = {"batch_size": 64, "strengths": STRENGTHS, "seed": 0}


def test_an_image_alone_gets_the_same_answer_whatever_comes_with_it(networks):
    images, arms = networks.images("test")[:3], ["BN fixed", "BN prior", "LN single", "LN last fixed"]
    together = top_classes("digits-small", networks, images, [0.0, 0.7], arms, **ASKED)
    alone = top_classes("digits-small", networks, images[1:2], [0.0, 0.7], arms, **ASKED)
    second = together[together.image == 1].reset_index(drop=True)
    assert second.label.tolist() == alone.label.tolist()
    assert second.probability.tolist() == pytest.approx(alone.probability.tolist(), rel=1e-4)
    assert len(second) == 2 * 4 * 5
    by_rank = second.groupby(["level", "arm"]).probability
    assert (by_rank.diff().dropna() <= 0).all(), "the likeliest first"
    with pytest.raises(ValueError, match="BN-batch cannot answer for one image alone; choose of BN fixed, "):
        top_classes("digits-small", networks, images, [0.0], ["BN-batch"], **ASKED)


def test_the_strengths_of_a_network_are_those_that_its_sweep_took(project):
    table = pd.read_csv(ROOT / "data" / "sweeps" / "digits-small.csv", nrows=4)
    table["norm"], table["mode"] = ["batch", "batch", "batch", "local"], ["fixed", "prior", "prior", "last_fixed"]
    table["seed"], table["prior"], table["fixed_last"] = [0, 0, 1, 0], [None, 16, 64, 4], [None, 0, 0, 2]
    paths.sweep("digits-small").parent.mkdir(parents=True)
    table.to_csv(paths.sweep("digits-small"), index=False)
    assert chosen_strengths("digits-small", 0) == {arm: STRENGTHS[arm] for arm in ("BN prior", "LN last fixed")}


def test_long_names_of_classes_are_cut_and_leave_the_bars_their_place():
    arms = ["BN fixed", "BN prior", "LN single", "LN drawn single", "LN prior"]
    answers = pd.DataFrame(
        {"image": 0, "level": 0.0, "arm": arm, "rank": rank, "label": rank, "probability": 0.2}
        for arm in arms for rank in range(5)
    )  # fmt: skip
    classes = ["Chevrolet Corvette Ron Fellows Edition Z06 2007"] * 5
    figure = plot_poor_light(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], answers, classes)
    figure.draw_without_rendering()
    for axis in figure.axes[1:]:
        panel = axis.get_window_extent()
        assert panel.width > 0.1 * figure.bbox.width
        for text in axis.texts:
            assert text.get_text().endswith("…")
            assert text.get_window_extent().x1 < panel.x1 + 0.2 * panel.width


def test_photographs_of_the_users_own_go_through_the_same_figure(networks, project):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(project / "b.png")
    Image.new("RGB", (20, 50), (0, 0, 0)).save(project / "a.jpg")
    (project / "notes.txt").write_text("no image")
    names, images = folder_images(project, networks)
    assert names == ["a.jpg", "b.png"]
    assert images.shape == (2, *networks.shape)
    answers = top_classes("digits-small", networks, images, [0.5], ["BN fixed", "LN single"], **ASKED)
    figure = plot_poor_light(images, names, answers, networks.classes)
    bars = [axis for axis in figure.axes if axis.patches]
    assert len(bars) == 2 * 2
    shown = [bar.get_width() for bar in bars[0].patches]
    assert shown == answers[(answers["image"] == 0) & (answers.arm == "BN fixed")].probability.tolist()
    with pytest.raises(ValueError, match=r"no images in .*nowhere.*; give a folder with files in \.bmp"):
        folder_images(project / "nowhere", networks)


def test_darkening_takes_the_share_of_light_away():
    images = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert torch.allclose(darken(images, 0.75), torch.tensor(200 / 255 * 0.25))


# ------------------------------------------------------------------------------------------------------------- captions


def test_a_figure_is_written_with_its_caption_on_one_line(project, curves):
    save(plot_accuracy(curves), "accuracy", "A caption\n  of two lines.")
    assert (project / "paper" / "figures" / "accuracy.txt").read_text() == "A caption of two lines.\n"


def test_a_caption_of_ablations_says_which_have_how_many_seeds():
    table = pd.DataFrame({"ablation": [FIXED_BATCH, FINE_TUNING, FINE_TUNING, NORM, NORM], "seed": [0, 0, 1, 0, 1]})
    assert seeds_by_ablation(table) == (
        f"2 seeds (bands 95 % intervals of Student's t; {FINE_TUNING}, {NORM}) and one seed, so no interval ({FIXED_BATCH})"
    )
    assert seeds_by_ablation(table[table.ablation == NORM]) == "2 seeds (bands 95 % intervals of Student's t)"
    assert seeds_by_ablation(table[table.ablation == FIXED_BATCH]) == "one seed, so no interval"


def test_a_caption_of_ablations_says_where_and_how_long_its_networks_were_trained():
    table = pd.DataFrame(
        {
            "ablation": [NORM, NORM, NORM, FIXED_BATCH, FIXED_BATCH],
            "value": ["batch", "batch", "batch", "4", "4"],
            "seed": [0, 1, 2, 0, 0],  # a network has a row a condition
            "device": "CPU (x86_64)",
            "precision": ["bf16-mixed", "32-true", "32-true", "bf16-mixed", "bf16-mixed"],
            "train_seconds": [60, 120, 180, 90, 90],
        }
    )
    assert trained_on(table) == (
        "CPU (x86_64), bf16-mixed (2 networks, of seed 0) and CPU (x86_64), 32-true (2 networks, of seeds 1, 2); 7.5 minutes"
    )
    assert trained_on(table[table.precision == "32-true"]) == "CPU (x86_64), 32-true; 5.0 minutes"
    table.loc[table.seed == 0, "train_seconds"] = float("nan")
    assert trained_on(table).endswith("; 2 of 4 networks 5.0 minutes, of the others no time was kept")
    assert trained_on(table[table.seed == 0]) == "CPU (x86_64), bf16-mixed; of their training no time was kept"


def test_every_figure_notebook_saves_with_a_caption():
    for notebook in sorted((ROOT / "notebooks").glob("figure-*.ipynb")):
        code = [
            "".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
        ]
        assert re.search(r"^save\(figure, f?\"[^,]+, caption\)", code[-1], re.M), notebook.name
        assert code[-1].startswith("caption = ") or "\ncaption = " in code[-1], notebook.name
