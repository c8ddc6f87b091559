"""The looks behind the sliders: what is shown is what the networks say, and every control does something."""

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from localnorm import explore, noise, paths
from localnorm.data.augment import standardise
from localnorm.params import load_params
from localnorm.prediction import predict


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the digits' block alone, shortened, and without any network."""
    folder = tmp_path_factory.mktemp("project")
    params = load_params()
    params["experiments"] = ["digits-small", "cifar10-resnet32"]
    params["digits-small"]["train"]["epochs"] = 3
    (folder / "dvc.yaml").write_text("")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
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
    for network, model in pair.networks.items():
        file = paths.model("digits-small", paths.run_name("digits-small", network, 0))
        save_model(model, file, "small", network, num_classes=10, in_channels=1, image_size=8, num_groups=4, eps=1e-5)
    assert explore.available() == ["digits-small"]
    again = explore.look(explore.load_pair("digits-small"), 5, "named", "gaussian", 0.2)
    for network, probabilities in explore.look(pair, 5, "named", "gaussian", 0.2).probabilities.items():
        np.testing.assert_allclose(again.probabilities[network], probabilities, atol=1e-6)


def test_a_clean_look_is_the_image_itself_and_the_networks_own_answer(pair):
    view = explore.look(pair, 7)
    np.testing.assert_array_equal(view.clean, pair.images[7].numpy())
    np.testing.assert_allclose(view.noisy, view.clean, atol=1e-3)
    mean, std = (torch.tensor(values) for values in (pair.dataset.mean, pair.dataset.std))
    images = standardise(pair.images, mean, std)
    for network, mode in (("bn", "fixed"), ("ln", "batch")):
        expected = predict(pair.networks[network], images, mode, batch_size=64).softmax(1)[7]
        np.testing.assert_allclose(view.probabilities[network], expected.numpy(), atol=1e-5)
        assert view.probabilities[network].sum() == pytest.approx(1, abs=1e-5)


def test_named_noise_is_the_one_that_it_is_called(pair):
    dark = explore.look(pair, 0, "named", "brightness", 0.5)
    np.testing.assert_allclose(dark.noisy, dark.clean / 2, atol=1e-3)


def test_a_network_is_offered_the_statistics_of_its_arms_and_answers_with_each(pair):
    assert set(explore.offered("ln")) - set(explore.offered("bn")) == {"vote"}, (
        "BatchNorm has no groups that could vote"
    )
    for network in explore.PAIR:
        for mode in explore.offered(network):
            view = explore.look(pair, 1, "named", "contrast", 0.8, {network: mode})
            assert view.statistics[network] == mode
            assert np.isfinite(view.probabilities[network]).all()


def test_the_first_look_shows_batchnorm_failing_where_localnorm_does_not(pair):
    image, level = explore.first_look(pair)
    view = explore.look(pair, image, "named", "contrast", level)
    assert view.accuracy["ln"] > view.accuracy["bn"] + 0.3
    right = {network: each.argmax() == view.label for network, each in view.probabilities.items()}
    assert right == {"bn": False, "ln": True}
    others = [explore.look(pair, 0, "named", "contrast", each).accuracy for each in noise.levels("contrast", "named")]
    assert view.accuracy["ln"] - view.accuracy["bn"] == max(each["ln"] - each["bn"] for each in others)


def test_statistics_of_the_test_batch_save_a_network_from_low_contrast(pair):
    fixed, batch = (
        explore.look(pair, 0, "named", "contrast", 0.8, {"bn": mode}).accuracy["bn"] for mode in ("fixed", "batch")
    )
    assert batch > fixed + 0.2


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
        assert hatched == pytest.approx([view.probabilities[network][view.label]]), "the true class is among the five"


def test_every_control_redraws_and_the_levels_are_those_of_the_noise(pair, monkeypatch):
    monkeypatch.setattr(explore, "load_pair", lambda experiment, seed: pair)  # trained once is enough
    box = explore.explorer()
    assert Image.open(io.BytesIO(box.picture.value)).size[0] > 900
    assert (box.controls["image"].value, box.controls["level"].value) == explore.first_look(pair)
    assert {key for _, key in box.controls["bn"].options} == set(explore.offered("bn"))
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
