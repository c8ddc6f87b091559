"""Single images under poor light: an image alone, the strengths that its network chose, and the user's own photographs."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image

from localnorm import estimate_statistics, paths
from localnorm.figures.poor_light import caption, chosen_strengths, darken, folder_images, plot_poor_light, top_classes
from localnorm.models import make_model, save_model


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def networks(project, digits):
    """Untrained networks of seed 0, which answer something; BatchNorm's with statistics, or it has no fixed ones."""
    for network in ("bn", "ln"):
        torch.manual_seed(0)
        arguments = {"num_classes": 10, "in_channels": 1, "num_groups": 4}
        file = project / "data" / "models" / "digits-small" / f"digits-small-{network}-s0.safetensors"
        model = make_model("small", network, **arguments)
        if network == "bn":
            estimate_statistics(model, [digits.images("train")[:64] / 255])
        save_model(model, file, "small", network, **arguments)
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
    with pytest.raises(ValueError, match="BN batch cannot answer for one image alone; choose of BN fixed, "):
        top_classes("digits-small", networks, images, [0.0], ["BN batch"], **ASKED)


def test_the_strengths_of_a_network_are_the_best_of_its_own_candidates(project):
    rows = [
        ("bn", 0, 16, 0, 0.9, 0.5), ("bn", 0, 64, 0, 0.9, 0.4), ("bn", 1, 64, 0, 0.9, 0.9),
        ("ln", 0, 4, 1, 0.7, 0.6), ("ln", 0, 4, 2, 0.8, 0.6), ("ln", 0, 4, 0, 0.9, 0.9),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["network", "seed", "prior", "fixed_last", "clean", "noisy"])
    paths.write_table(paths.results("digits-small") / "strengths.csv", table)
    assert chosen_strengths("digits-small", ["BN fixed", *STRENGTHS], 0) == STRENGTHS


def test_the_caption_names_the_strengths_and_whose_images_they_are():
    about = {
        "title": "Digits", "model": "small", "shape": [1, 8, 8], "counts": {"train": 10, "test": 5}, "epochs": 1, "batch_size": 4,
        "num_groups": 2, "seeds": 2, "devices": ["CPU"], "torch": ["2"], "images_of_arm": {}, "noisy_images": 5, "clean_images": 5,
        "provenance": {"lossy": False},
    }  # fmt: skip
    text = caption(3, STRENGTHS, 0, about)
    assert "BN prior 16, LN prior 4" in text
    assert "the first 3 of the test images" in text
    assert "photographs of the user's own" in caption(3, STRENGTHS, 0, about, own=True)
    assert "n0" not in caption(3, {}, 0, about)


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
