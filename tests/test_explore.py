"""The looks behind the sliders: what is shown is what the networks say, and every control does something."""

import io
import shutil
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from published_pair import publish_pair

from localnorm import explore, noise, paths, published_networks
from localnorm.data.augment import standardise
from localnorm.explore import Pair
from localnorm.params import load_params
from localnorm.prediction import predict
from localnorm.trained import Shown


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the digits' block, shortened, and one that has neither images nor networks."""
    folder = tmp_path_factory.mktemp("project")
    params = load_params()
    params["experiments"] = ["digits-small", "cifar10-resnet32"]
    params["digits-small"]["train"]["epochs"] = 3
    (folder / "dvc.yaml").write_text("")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(published_networks, "PLACE", "data/own-networks")  # none, whatever the checkout has
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def pair(project):
    return explore.load_pair("digits-small")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_digits_work_at_once_and_leave_nothing_behind(project, pair):
    assert explore.available() == []
    assert sorted(file.name for file in project.iterdir()) == ["dvc.yaml", "params.yaml"]
    view = explore.look(pair)
    assert view.images == 64
    assert min(view.accuracy.values()) > 0.5, "three epochs reach far more than chance (0.1)"


def test_without_a_trained_pair_the_message_names_the_command(project, tmp_path, monkeypatch):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((project / name).read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"dvc repro train@cifar10-resnet32-bn-0 train@cifar10-resnet32-ln-0"):
        explore.load_pair("cifar10-resnet32")


def test_a_pair_that_the_pipeline_trained_is_loaded_as_it_is(project, pair, monkeypatch, tmp_path):
    from localnorm.data import prepare
    from localnorm.models import save_model

    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    prepare(output=paths.prepared("digits-small"), **load_params("digits-small")["prepare"])
    for network, model in pair.trained.models.items():
        file = paths.model("digits-small", paths.run_name("digits-small", network, 0))
        save_model(model, file, "small", network, num_classes=10, in_channels=1, image_size=8, num_groups=4, eps=1e-5)
    assert explore.available() == ["digits-small"]
    again = explore.look(explore.load_pair("digits-small"), 5, "named", "gaussian", 0.2)
    for network, probabilities in explore.look(pair, 5, "named", "gaussian", 0.2).probabilities.items():
        np.testing.assert_allclose(again.probabilities[network], probabilities, atol=1e-6)


def test_a_clean_look_is_the_image_itself_and_the_networks_own_answer(pair):
    view = explore.look(pair, 7)
    np.testing.assert_array_equal(view.clean, pair.shown.images[7].numpy())
    np.testing.assert_allclose(view.noisy, view.clean, atol=1e-3)
    mean, std = (torch.tensor(values) for values in (pair.trained.mean, pair.trained.std))
    images = standardise(pair.shown.images, mean, std)
    for network, mode in (("bn", "fixed"), ("ln", "batch")):
        expected = predict(pair.trained.models[network], images, mode, batch_size=64).softmax(1)[7]
        np.testing.assert_allclose(view.probabilities[network], expected.numpy(), atol=1e-5)
        assert view.probabilities[network].sum() == pytest.approx(1, abs=1e-5)


def test_named_noise_is_the_one_that_it_is_called(pair):
    dark = explore.look(pair, 0, "named", "brightness", 0.5)
    np.testing.assert_allclose(dark.noisy, dark.clean / 2, atol=1e-3)


def test_a_network_is_offered_the_statistics_of_its_arms_and_answers_with_each(pair):
    assert set(explore.offered(pair, "ln")) - set(explore.offered(pair, "bn")) == {"vote"}, (
        "BatchNorm has no groups that could vote"
    )
    for network in explore.PAIR:
        for mode in explore.offered(pair, network):
            view = explore.look(pair, 1, "named", "contrast", 0.8, {network: mode})
            assert view.statistics[network] == mode
            assert np.isfinite(view.probabilities[network]).all()


def test_the_first_look_shows_batchnorm_failing_where_localnorm_does_not(pair):
    image, level = explore.first_look(pair)
    view = explore.look(pair, image, "named", "contrast", level)
    assert view.accuracy["ln"] > view.accuracy["bn"] + 0.3
    right = {network: each.argmax() == view.expected[network] for network, each in view.probabilities.items()}
    assert right == {"bn": False, "ln": True}
    others = [explore.look(pair, 0, "named", "contrast", each).accuracy for each in noise.levels("contrast", "named")]
    assert view.accuracy["ln"] - view.accuracy["bn"] == max(each["ln"] - each["bn"] for each in others)


def test_statistics_of_the_test_batch_save_a_network_from_low_contrast(pair):
    fixed, batch = (
        explore.look(pair, 0, "named", "contrast", 0.8, {"bn": mode}).accuracy["bn"] for mode in ("fixed", "batch")
    )
    assert batch > fixed + 0.2


@pytest.fixture
def published_pair(project, pair, monkeypatch):
    """The trained digits' networks, published, in a project that has no images."""
    monkeypatch.setattr(published_networks, "PLACE", "data/published-here")
    network = {"name": "small", "num_classes": 10, "in_channels": 1, "image_size": 8, "num_groups": 4, "eps": 1e-5}
    publish_pair(project, "digits-published", pair.trained.models, network, pair.trained.dataset)
    yield "digits-published"
    shutil.rmtree(project / "data")


def test_a_published_pair_comes_first_needs_no_training_and_answers_under_every_statistics(pair, published_pair):
    assert explore.available() == [published_pair]
    assert explore.available(seed=0) == [], "a seed asks for networks that were trained here"
    loaded = explore.load_pair()
    assert loaded.trained.experiment == published_pair
    alike = Pair(loaded.trained, pair.shown, pair.training_range)
    for statistics in ({"bn": "fixed", "ln": "batch"}, {"bn": "single", "ln": "vote"}):
        mine, theirs = (explore.look(each, 3, "named", "contrast", 0.5, statistics) for each in (alike, pair))
        for network in explore.PAIR:
            np.testing.assert_allclose(mine.probabilities[network], theirs.probabilities[network], atol=0.02)
    strengths = [loaded.trained.arguments(f"{layer} prior")["prior"] for layer in ("BN", "LN")]
    assert strengths == [64, 16], "those that its file says"


def test_a_photograph_is_right_or_wrong_for_nobody_and_is_compared_with_the_clean_one(published_pair):
    photographs = explore.load_pair(published_pair)
    assert photographs.shown.names == ["china.jpg", "flower.jpg"]
    assert photographs.usual == {"bn": "fixed", "ln": "prior"}
    assert "batch" not in explore.offered(photographs, "ln"), "photographs that come alone are no batch"
    clean = explore.look(photographs, 1)
    assert clean.accuracy == {"bn": 1, "ln": 1}
    view = explore.look(photographs, 1, "named", "contrast", 0.9)
    for network in explore.PAIR:
        assert view.expected[network] == clean.probabilities[network].argmax()
    axes = {axis.get_label(): axis for axis in explore.plot_view(view).axes}
    titles = " ".join(axes[network].get_title() for network in explore.PAIR)
    assert "as clean" in titles
    assert not {"right", "wrong"} & set(titles.replace(";", " ").split())


def test_a_folder_of_photographs_is_shown_instead_of_test_images(published_pair, tmp_path):
    for name, value in (("b", 200), ("a", 10)):
        Image.new("RGB", (40, 30), (value, value, value)).save(tmp_path / f"{name}.png")
    shown = explore.load_pair(published_pair, folder=str(tmp_path)).shown
    assert (shown.names, shown.labels) == (["a.png", "b.png"], None)
    assert [int(image.float().mean()) for image in shown.images] == [10, 200]


def test_a_first_look_without_a_difference_is_the_first_image_at_the_middle_level(pair):
    models = dict.fromkeys(explore.PAIR, pair.trained.models["bn"])
    photographs = Shown(pair.shown.images[:1], ["one"], None, pair.shown.config)
    trained = replace(pair.trained, models=models, strengths={"LN prior": {"prior": float("inf")}})
    assert explore.first_look(Pair(trained, photographs, pair.training_range)) == (0, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": 64}, "image must be from 0 to 63, got 64"),
        (
            {"statistics": {"ln": "companions"}},
            "unknown statistics 'companions'; choose one of fixed, batch, single, vote, prior, last_fixed",
        ),
        (
            {"statistics": {"bn": "vote"}},
            "unknown statistics 'vote'; choose one of fixed, batch, single, prior, last_fixed",
        ),
        ({"statistics": {"gn": "batch"}}, "unknown network 'gn'; choose one of bn, ln"),
        ({"name": "gauss"}, "unknown noise 'gauss'"),
    ],
)
def test_a_wrong_question_is_answered_with_the_right_ones(pair, arguments, message):
    with pytest.raises(ValueError, match=message):
        explore.look(pair, **{"level": 0.1, **arguments})


def test_the_figure_draws_the_largest_probabilities_and_marks_the_true_class(pair):
    view = explore.look(pair, 2, "named", "gaussian", 0.3)
    axes = {axis.get_label(): axis for axis in explore.plot_view(view).axes}
    for network in ("bn", "ln"):
        widths = [bar.get_width() for bar in axes[network].patches]
        assert widths == pytest.approx(sorted(view.probabilities[network], reverse=True)[:5])
        hatched = [bar.get_width() for bar in axes[network].patches if bar.get_hatch()]
        assert hatched == pytest.approx([view.probabilities[network][view.expected[network]]]), (
            "the true class is among the five"
        )


def test_every_figure_of_a_notebook_is_shown_not_the_first_alone(pair, monkeypatch):
    """Jupyter's backend makes matplotlib interactive while the first figure is made, and shows the figures made from then on."""
    make = plt.subplot_mosaic
    monkeypatch.setattr(plt, "subplot_mosaic", lambda *args, **options: [plt.ion(), make(*args, **options)][1])
    with plt.rc_context():
        explore.plot_view(explore.look(pair))
        assert plt.isinteractive()


def test_another_experiment_brings_its_own_images_and_statistics(pair, published_pair):
    photographs = explore.load_pair(published_pair)
    box = explore.Explorer(photographs)
    box._load = lambda experiment: pair
    box.controls["experiment"].options = [published_pair, "digits-small"]
    before = box.picture.value
    box.controls["experiment"].value = "digits-small"
    assert box.picture.value != before
    assert box.controls["image"].max == 63
    assert {network: box.controls[network].value for network in explore.PAIR} == {"bn": "fixed", "ln": "batch"}
    assert {key for _, key in box.controls["ln"].options} == set(explore.offered(pair, "ln"))


def test_every_control_redraws_and_the_levels_are_those_of_the_noise(pair, monkeypatch):
    monkeypatch.setattr(explore, "load_pair", lambda experiment, seed: pair)  # trained once is enough
    box = explore.Explorer(pair)
    assert Image.open(io.BytesIO(box.picture.value)).size[0] > 900
    assert (box.controls["image"].value, box.controls["level"].value) == explore.first_look(pair)
    assert {key for _, key in box.controls["bn"].options} == set(explore.offered(pair, "bn"))
    for name, value in (
        ("level", 0.3),
        ("noise", ("released", "bernoulli")),
        ("image", 9),
        ("bn", "single"),
        ("ln", "vote"),
    ):
        before = box.picture.value
        box.controls[name].value = value
        assert box.picture.value != before, name
    options = [level for _, level in box.controls["level"].options]
    assert options == [float(level) for level in noise.levels("bernoulli", "released")]
