"""Published networks: what is written is what is read, in half precision; the card says what it is; strangers are refused by name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stages import ASKED, EXPERIMENT, TRAIN

import localnorm
from localnorm import paths, publish_network, published_networks
from localnorm.answers import answer, save_answers
from localnorm.data import load, prepare
from localnorm.models import load_model, make_model
from localnorm.prediction import predict
from localnorm.publish import PUBLISHED_SEED
from localnorm.publish_network import checked_images
from localnorm.published_networks import count_right, load_published, published, read_about
from localnorm.render import model_cards
from localnorm.strengths import choose_strengths, measure_strengths
from localnorm.train import fit, save_run

ARMS = {
    "bn": ["fixed", "batch", "prior", "gated"],
    "bn_shrunk": ["fixed"],
    "ln": ["batch", "single", "last_fixed", "gated", "vote"],
}
COMMITTED = sorted((ROOT / "data" / "networks").glob("*.safetensors"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a BatchNorm and a LocalNorm run of digits, trained and asked, each published under several statistics."""
    folder = tmp_path_factory.mktemp("project")
    block = "\n".join(
        [
            "experiments: [digits-small]",
            "digits-small:",
            "  prepare: {dataset: digits}",
            "  train: {model: small}",
            f"  answers: {json.dumps({'noises': ASKED.noises, 'statistics': ARMS, 'batch_size': 64})}",
        ]
    )
    (folder / "params.yaml").write_text(block)
    (folder / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        dataset = load(prepare("digits", paths.prepared(EXPERIMENT), validation=0.1, test=0.25))
        config = publish_network.AnswersConfig(
            noises=ASKED.noises,
            statistics=ARMS,
            batch_size=64,
            max_levels=2,
            prior=[4, 64],
            fixed_last=[1],
            prior_noises={"released": {"mnist_foreground": 1}},
        )
        for network in ARMS:
            run = paths.run_name(EXPERIMENT, network, 0)
            save_run(fit(dataset, TRAIN, network, 0), paths.model(EXPERIMENT, run), paths.run(EXPERIMENT, run))
            model = load_model(paths.model(EXPERIMENT, run))
            strengths = choose_strengths(measure_strengths(model, dataset, config, network))
            save_answers(answer(model, dataset, config, network, strengths), paths.run(EXPERIMENT, run))
            for statistics in ARMS[network]:
                if statistics != "vote":
                    publish_network.publish_network(EXPERIMENT, network, statistics, 0)
    return folder


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


PUBLISHED = [(network, each) for network, arms in ARMS.items() for each in arms if each != "vote"]


@pytest.mark.parametrize(("network", "statistics"), PUBLISHED)
def test_a_published_network_predicts_as_its_run_did_under_its_statistics(inside, network, statistics):
    """One call of the model, no company where the arm has none, is what `predict` says of the same weights in float32."""
    loaded = load_published(f"{EXPERIMENT}-{network}-{statistics}")
    images, _ = checked_images(load(paths.prepared(EXPERIMENT)), 64)
    pixels = loaded.standardise(images)
    trained = load_model(paths.model(EXPERIMENT, paths.run_name(EXPERIMENT, network, 0)))
    if statistics in ("last_fixed", "gated"):
        trained = publish_network.store_statistics(
            trained,
            load(paths.prepared(EXPERIMENT)),
            publish_network.AnswersConfig(noises={}, statistics=ARMS, batch_size=64),
            network,
        )
    expected = predict(trained, pixels, **loaded.about["statistics"])
    with torch.no_grad():
        logits = loaded.model(pixels)
        alone = loaded.model(pixels[:1])
    assert (logits - expected).abs().max() < 0.05, "half precision keeps three digits"
    assert not torch.equal(logits, expected), "and it is not what was trained"
    together = torch.allclose(alone[0], logits[0], atol=1e-4)
    assert together == (statistics != "batch")


def test_weights_lie_in_half_precision_and_statistics_in_float32_and_all_is_float32_in_memory(inside):
    with safe_open(Path("data/networks/digits-small-ln-last_fixed.safetensors"), "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert dtypes["fc.weight"] == dtypes["features.1.weight"] == torch.float16
    assert dtypes["features.1.running_mean"] == dtypes["features.1.running_var"] == torch.float32
    model = load_published("digits-small-ln-last_fixed").model
    assert not model.training
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.dim()} >= {torch.float32}
    assert torch.float16 not in {tensor.dtype for tensor in model.state_dict().values()}


def test_a_network_says_what_it_is(inside):
    loaded = load_published("digits-small-bn-prior")
    dataset = load(paths.prepared(EXPERIMENT))
    assert (loaded.name, loaded.arm, loaded.data) == ("digits-small-bn-prior", "BN prior", "Digits")
    assert loaded.classes == dataset.classes
    assert (loaded.mean, loaded.std, loaded.shape) == (dataset.mean, dataset.std, (1, 8, 8))
    assert "MIT" in loaded.licence
    assert dataset.provenance["licence"] in loaded.licence
    assert loaded.about["statistics"]["prior"] in (4, 64)
    answers = localnorm.publish_network.scores.read_answers(
        paths.run(EXPERIMENT, paths.run_name(EXPERIMENT, "bn", 0)), "bn", 0
    )
    clean = answers.table[(answers.table.statistics == "prior") & (answers.table.level == 0)].iloc[0]
    assert loaded.accuracy["clean"] == pytest.approx(clean.right / clean.images, abs=1e-6)
    assert 0.1 < loaded.accuracy["noisy"] < loaded.accuracy["clean"]


def test_published_lists_every_network_in_a_line(inside):
    listed = published()
    assert sorted(listed) == sorted(f"{EXPERIMENT}-{network}-{statistics}" for network, statistics in PUBLISHED)
    loaded = load_published("digits-small-ln-single")
    assert listed["digits-small-ln-single"] == (
        f"Digits, small with LocalNorm, LN single: {100 * loaded.accuracy['clean']:.1f} % clean, "
        f"{100 * loaded.accuracy['noisy']:.1f} % noisy"
    )


def test_a_path_loads_from_anywhere(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_published(project / "data" / "networks" / "digits-small-ln-batch.safetensors")
    assert loaded.arm == "LN batch"


def ask_again(file: Path, dataset) -> tuple[int, dict]:
    """How many images the file answers rightly now, and what it says of it."""
    network = load_published(file)
    checked = network.about["checked"]
    images, labels = checked_images(dataset, checked["images"])
    assert len(labels) == checked["images"]
    return count_right(network, images, labels, checked["batch_size"]), checked


@pytest.mark.parametrize(("network", "statistics"), PUBLISHED)
def test_a_file_answers_as_many_images_rightly_as_it_says(inside, network, statistics):
    right, checked = ask_again(
        Path(f"data/networks/{EXPERIMENT}-{network}-{statistics}.safetensors"), load(paths.prepared(EXPERIMENT))
    )
    assert checked["images"] == 448, "whole batches of 64 of the 449 test images"
    assert right == checked["right"] > 250


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_a_committed_network_has_its_accuracy_and_its_card(file, tmp_path, monkeypatch):
    about = read_about(file)
    assert file.with_suffix(".md").read_text(encoding="utf-8") == model_cards.card(file.stem, about)
    monkeypatch.chdir(ROOT)
    data = about["data"]
    split = data["provenance"]["split"]
    try:
        folder = prepare(data["name"], tmp_path / "images", image_size=data["shape"][-1], **split)
    except (FileNotFoundError, OSError) as error:
        pytest.skip(f"its images are not here: {str(error).splitlines()[0]}")
    right, checked = ask_again(file, load(folder))
    assert abs(right - checked["right"]) <= max(1, checked["images"] // 250), "another CPU rounds otherwise"


def test_committed_networks_are_of_the_seed_that_tables_take_them_for():
    assert {read_about(file)["training"]["seed"] for file in COMMITTED} == {PUBLISHED_SEED}


def test_committed_networks_are_small_enough_for_every_clone():
    assert sum(file.stat().st_size for file in COMMITTED) <= publish_network.LIMIT


def test_the_card_says_what_it_is_what_it_scored_and_what_it_is_not_for(inside):
    model_cards.write()
    text = Path("data/networks/digits-small-ln-batch.md").read_text(encoding="utf-8")
    loaded = load_published("digits-small-ln-batch")
    assert "small with LocalNorm" in text
    assert "| trained on | Digits: 1,213 images of 8 x 8 pixels, grey |" in text
    assert f"| clean | {100 * loaded.accuracy['clean']:.1f} | 449 |" in text
    assert f"answers {loaded.about['checked']['right']} of 448 clean test images" in text
    assert "## What it must not be used for" in text
    assert "an answer depends on the images beside it" in text, "of an arm whose statistics are the batch's"
    assert "an answer depends" not in Path("data/networks/digits-small-ln-single.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {"images": torch.zeros(64, 1, 8, 8, dtype=torch.uint8)}
    exec(code, names)
    assert names["logits"].shape == (64, 10)


def test_the_command_publishes_and_writes_the_cards(inside):
    file = Path("data/networks/digits-small-ln-single.safetensors")
    before = file.read_bytes()
    file.unlink()
    command = [sys.executable, "-m", "localnorm.pipeline", "publish-network", EXPERIMENT, "ln", "single", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == before, "the same run gives the same bytes"
    assert file.with_suffix(".md").is_file()


def test_a_name_that_is_not_there_names_those_that_are(inside, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'resnet99'.*digits-small-bn-batch, .*digits-small-ln-single"):
        load_published("resnet99")
    with pytest.raises(FileNotFoundError, match=r"resnet99\.safetensors"):
        load_published("resnet99.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published_networks, "PLACE", "no/such/folder")
    assert published() == {}
    with pytest.raises(ValueError, match="has none"):
        load_published("resnet99")


def changed(file: Path, target: Path, text: str = "", **network) -> Path:
    """A copy of a published network whose header says something else."""
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["published"])
    about["network"] |= network
    save_file(load_file(file), target, {"published": text or json.dumps(about)})
    return target


def test_files_of_others_are_refused_before_a_network_is_built(inside, tmp_path):
    good = Path("data/networks/digits-small-bn-fixed.safetensors")
    run = paths.model(EXPERIMENT, paths.run_name(EXPERIMENT, "bn", 0))
    with pytest.raises(ValueError, match="describes no published network"):
        load_published(run)  # a network, and nothing is said of it
    cut, other = tmp_path / "cut.safetensors", tmp_path / "other.safetensors"
    cut.write_bytes(good.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        load_published(cut)
    with pytest.raises(ValueError, match="pretrained"):
        load_published(changed(good, other, pretrained=True))
    for text in ("[]", "{}", "nonsense"):
        with pytest.raises(ValueError, match="describes no published network"):
            load_published(changed(good, other, text))
    for network, said in (({"name": "resnet99"}, "resnet99"), ({"network": "xn"}, "xn"), ({"depth": 3}, "depth")):
        with pytest.raises(ValueError, match=said):
            load_published(changed(good, other, **network))
    with pytest.raises(ValueError, match="does not fit"):
        load_published(changed(good, other, name="mnist"))


def test_what_cannot_be_published_is_refused_before_anything_is_written(inside, monkeypatch):
    before = {file: file.read_bytes() for file in Path("data/networks").iterdir()}
    with pytest.raises(ValueError, match="several forwards"):
        publish_network.publish_network(EXPERIMENT, "ln", "vote", 0)
    with pytest.raises(ValueError, match="not asked under statistics 'fixed'; it was under batch, single"):
        publish_network.publish_network(EXPERIMENT, "ln", "fixed", 0)
    with pytest.raises(FileNotFoundError, match=r"dvc repro answers@digits-small-ln-7"):
        publish_network.publish_network(EXPERIMENT, "ln", "batch", 7)
    monkeypatch.setattr(publish_network, "LIMIT", 100_000)
    with pytest.raises(ValueError, match=r"at most 0 MB together"):
        publish_network.publish_network(EXPERIMENT, "ln", "batch", 0)
    assert {file: file.read_bytes() for file in Path("data/networks").iterdir()} == before


def test_other_images_than_it_was_trained_on_are_refused(inside):
    record = paths.run(EXPERIMENT, paths.run_name(EXPERIMENT, "bn", 0)) / "record.json"
    text = record.read_text()
    try:
        record.write_text(text.replace('"validation": 0.1', '"validation": 0.2'))
        with pytest.raises(ValueError, match="other images than are prepared now"):
            publish_network.publish_network(EXPERIMENT, "bn", "fixed", 0)
    finally:
        record.write_text(text)


def test_weights_beyond_half_precision_are_refused():
    model = make_model("small", num_classes=10, in_channels=1)
    model.fc.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"fc\.weight has values that half precision cannot hold, up to 1e\+05"):
        publish_network._rounded(model)
