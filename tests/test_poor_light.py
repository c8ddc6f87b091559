"""Single images under poor light: an image alone, the strengths that its network chose, and the user's own photographs."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image
from published_pair import publish_pair, untrained
from torch import nn

from localnorm import paths, predict, published_networks
from localnorm.data.augment import standardise
from localnorm.figures.poor_light import (
    TOP,
    caption,
    choose,
    chosen_strengths,
    darken,
    find_trained,
    plot_poor_light,
    top_classes,
)
from localnorm.settings import AnswersConfig
from localnorm.trained import Shown, Trained, published_pairs, show


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


STRENGTHS = {
    "BN prior": {"prior": 16.0, "fixed_last": 0},
    "LN prior": {"prior": 4.0, "fixed_last": 0},
    "LN last fixed": {"prior": 4.0, "fixed_last": 2},
}
NETWORK = {"name": "small", "num_classes": 10, "in_channels": 1, "num_groups": 4}


@pytest.fixture
def trained(digits):
    """Untrained networks, which answer something."""
    models = untrained(NETWORK, digits.images("train")[:64] / 255)
    return Trained(
        "digits-small", models, "Digits", digits.classes, digits.shape, digits.mean, digits.std, "a test", STRENGTHS, 0
    )


def test_an_image_alone_gets_the_same_answer_whatever_comes_with_it(trained, digits):
    images, arms = digits.images("test")[:3], ["BN fixed", "BN prior", "LN single", "LN last fixed"]
    together = top_classes(trained, images, [0.0, 0.7], arms)
    alone = top_classes(trained, images[1:2], [0.0, 0.7], arms)
    second = together[together.image == 1].reset_index(drop=True)
    assert second.label.tolist() == alone.label.tolist()
    assert second.probability.tolist() == pytest.approx(alone.probability.tolist(), rel=1e-4)
    assert len(second) == 2 * 4 * TOP
    by_rank = second.groupby(["level", "arm"]).probability
    assert (by_rank.diff().dropna() <= 0).all(), "the likeliest first"
    with pytest.raises(ValueError, match="BN batch cannot answer for one image alone; choose of BN fixed, "):
        top_classes(trained, images, [0.0], ["BN batch"])


def test_the_strengths_of_a_network_are_the_best_of_its_own_candidates(project):
    rows = [
        ("bn", 0, 16, 0, 0.9, 0.5), ("bn", 0, 64, 0, 0.9, 0.4), ("bn", 1, 64, 0, 0.9, 0.9),
        ("ln", 0, 4, 1, 0.7, 0.6), ("ln", 0, 4, 2, 0.8, 0.6), ("ln", 0, 4, 0, 0.9, 0.9),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["network", "seed", "prior", "fixed_last", "clean", "noisy"])
    table["statistics"] = table.fixed_last.map(lambda count: "last_fixed" if count else "prior")
    paths.write_table(paths.results("digits-small") / "strengths.csv", table)
    assert chosen_strengths("digits-small", ["BN fixed", *STRENGTHS], 0) == STRENGTHS


class Lamp(nn.Module):
    """Answers "on" to an image of more than a quarter of full light; its norm does nothing, and is there to be asked under."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.norm.num_batches_tracked += 1  # it was trained

    def forward(self, x):
        light = (self.norm(x).mean((1, 2, 3)) * 0.5 + 0.5)[:, None]
        return torch.cat([0.25 - light, light - 0.25], 1)


def lamps(values: list[int], labels: list[int] | None) -> tuple[Trained, Shown]:
    """A network that reads only the light of images, which fails below a quarter of it, and grey images of these values."""
    trained = Trained("lamp", {"bn": Lamp().eval()}, "Lamps", ("off", "on"), (1, 4, 4), (127.5,), (127.5,), "a test")
    images = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    config = AnswersConfig(noises={}, statistics={}, batch_size=4)
    truth = None if labels is None else torch.tensor(labels)
    return trained, Shown(images, [f"test image {number}" for number in range(len(values))], truth, config)


def test_the_light_is_the_most_at_which_batchnorm_loses_half_and_the_images_the_first_that_it_loses():
    # 0 is wrong in full light; the others are lost below 64 of 255: at the levels 0.3, 0.4, never (it is off), 0.5 and 0.8
    trained, shown = lamps([255, 90, 100, 10, 110, 250], [0, 1, 1, 0, 1, 1])
    choice = choose(trained, shown, 2)
    assert choice.level == pytest.approx(0.5), "3 of 5 are lost there, and 2 at 0.4"
    assert choice.images == [1, 2]
    assert "the first 2 test images that BN fixed recognises in full light and not at 50 % of the light" in choice.words
    assert "at least half of the 5 images (of the first 6)" in choice.words


def test_of_photographs_the_answer_in_full_light_is_the_one_to_lose_and_all_are_shown():
    trained, shown = lamps([255, 90, 100, 10, 110, 250], None)
    choice = choose(trained, shown, 9)
    assert choice.images == [0, 1, 2, 3, 4, 5]
    assert choice.level == pytest.approx(0.5), "3 of 6 answers are others there"
    assert "photographs in full light and at 50 % of the light" in choice.words


def test_a_network_that_never_fails_is_shown_in_the_least_light():
    trained, shown = lamps([10, 20], [0, 0])
    choice = choose(trained, shown, 2)
    assert (choice.level, choice.images) == (0.95, [0, 1])
    assert "5 % is the least light that was tried" in choice.words


def test_the_caption_says_how_images_were_chosen_the_strengths_and_whose_networks_answer(trained):
    about = {
        "title": "Digits", "model": "small", "shape": [1, 8, 8], "counts": {"train": 10, "test": 5}, "epochs": 1, "batch_size": 4,
        "num_groups": 2, "seeds": 2, "devices": ["CPU"], "torch": ["2"], "images_of_arm": {}, "noisy_images": 5, "clean_images": 5,
        "provenance": {"lossy": False},
    }  # fmt: skip
    answers = pd.DataFrame(
        {"arm": ["BN fixed", "BN prior", "LN prior"], "rank": [0, 0, 0], "probability": [0.5, 0.9, 0.02]}
    )
    text = caption("the first 3 of something", trained, answers, about=about)
    assert "BN prior 16, LN prior 4" in text
    assert "the first 3 of something" in text
    assert "Asked are a test" in text
    assert "10 training and 5 test images" in text
    assert "LN prior (2 % at most)" in text, "whose bars nobody sees"
    assert "bold" in text
    unknown = caption("", trained, answers.head(1), known=False)
    assert not [word for word in ("n0", "bold", "at most") if word in unknown]


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


def test_photographs_of_the_users_own_go_through_the_same_figure(trained, project):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(project / "b.png")
    Image.new("RGB", (20, 50), (0, 0, 0)).save(project / "a.jpg")
    (project / "notes.txt").write_text("no image")
    shown = show(trained, str(project))
    assert shown.names == ["a.jpg", "b.png"]
    assert shown.images.shape == (2, *trained.shape)
    assert shown.labels is None
    answers = top_classes(trained, shown.images, [0.5], ["BN fixed", "LN single"])
    figure = plot_poor_light(shown.images, shown.names, answers, trained.classes)
    bars = [axis for axis in figure.axes if axis.patches]
    assert len(bars) == 2 * 2
    drawn = [bar.get_width() for bar in bars[0].patches]
    assert drawn == answers[(answers["image"] == 0) & (answers.arm == "BN fixed")].probability.tolist()
    with pytest.raises(ValueError, match=r"no images in .*nowhere.*; give a folder with files in \.bmp"):
        show(trained, str(project / "nowhere"))


def test_of_a_folder_the_first_photographs_by_name_are_shown(trained, project, monkeypatch):
    for name in ("c", "a", "b"):
        Image.new("L", (8, 8)).save(project / f"{name}.png")
    monkeypatch.setattr("localnorm.trained.PHOTOGRAPHS", 2)
    assert show(trained, str(project)).names == ["a.png", "b.png"]


def test_without_images_or_a_folder_two_photographs_are_there(trained):
    shown = show(trained)
    assert shown.names == ["china.jpg", "flower.jpg"]
    assert shown.images.shape == (2, 1, 8, 8)
    assert shown.images.float().std() > 20


def test_a_published_pair_answers_where_nothing_was_trained(project, digits, monkeypatch):
    monkeypatch.setattr(published_networks, "PLACE", "data/networks-of-this-test")
    block = "digits-small: {prepare: {}, train: {}, answers: {}}"
    (project / "params.yaml").write_text(f"experiments: [digits-small]\n{block}\nnetworks: [bn, ln]\nseeds: [0]")
    with pytest.raises(FileNotFoundError, match=r"strengths\.csv is not there"):
        find_trained("", ["BN fixed"])
    models = untrained(NETWORK, digits.images("train")[:64] / 255)
    publish_pair(project, "tiny", models, NETWORK, digits)
    publish_pair(project, "half", {"bn": models["bn"]}, NETWORK, digits)
    found = find_trained("", ["BN fixed", "LN drawn single"])
    assert published_pairs() == ["tiny"], "a network alone is no pair"
    assert (found.experiment, found.seed, found.classes) == ("tiny", None, digits.classes)
    arms = ["BN fixed", "BN prior", "LN single", "LN drawn single", "LN prior"]
    assert [arm for arm in arms if found.can(arm)] == ["BN fixed", "BN prior", "LN single", "LN prior"]
    assert "tiny-bn-prior and tiny-ln-prior" in found.origin
    images = digits.images("test")[:4]
    pixels = standardise(images, torch.tensor(digits.mean), torch.tensor(digits.std))
    answers = top_classes(found, images, [0.0], ["BN fixed", "LN prior"])
    for arm, network, arguments in (
        ("BN fixed", "bn", {"mode": "fixed"}),
        ("LN prior", "ln", {"mode": "prior", "prior": 16}),
    ):
        expected = predict(models[network], pixels, **arguments).softmax(1).max(1).values
        likeliest = answers[(answers.arm == arm) & (answers["rank"] == 0)].probability.tolist()
        assert likeliest == pytest.approx(expected.tolist(), abs=0.01), "to half precision"


def test_darkening_takes_the_share_of_light_away():
    images = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert torch.allclose(darken(images, 0.75), torch.tensor(200 / 255 * 0.25))
