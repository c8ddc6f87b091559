"""The plan of a full run counts what DVC would do, and one bar follows the runs by what each was expected to take."""

import json

import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import save_file

from localnorm import plan
from localnorm.plan import Speed, describe_plan, duration, make_plan, measure
from localnorm.runs import _Bar, _open_runs, runs_of
from localnorm.settings import TrainConfig

EXPERIMENT = "digits-small"


@pytest.fixture
def digits_only(project):
    """A project with the repository's digits, whose 1,213 training images are known from a prepared folder."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    kept = {key: params[key] for key in ("networks", "seeds", EXPERIMENT)} | {
        "experiments": [EXPERIMENT, "mine"],
        "mine": params[EXPERIMENT],
    }
    (project / "params.yaml").write_text(yaml.safe_dump(kept))
    folder = project / "data" / "prepared" / EXPERIMENT
    folder.mkdir(parents=True)
    about = {
        "shape": [1, 8, 8],
        "classes": list("0123456789"),
        "counts": {"train": 1213, "validation": 135, "test": 449},
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return kept


def test_the_plan_counts_runs_epochs_and_steps(digits_only, monkeypatch):
    monkeypatch.setattr(plan, "measure", lambda *_: Speed(step=0.5, forward=0.0, parameters=1000))
    runs = runs_of(EXPERIMENT)
    late = {f"train@{runs[0]}", f"answers@{runs[0]}", f"answers@{runs[1]}", f"ablations@{EXPERIMENT}"}
    open_runs = {name: len(_open_runs(name, late, (0, 1))) for name in (EXPERIMENT, "mine")}
    train, ablations = make_plan(open_runs, late)
    assert (train.what, train.networks) == ("runs", 2)
    assert train.training == 12 * (1213 // 64) * 0.5
    assert ablations.networks == 3 * 21  # seeds, variants
    assert make_plan({EXPERIMENT: 0}, {f"scores@{EXPERIMENT}"}) == []
    said = describe_plan([EXPERIMENT, "mine"], [train], jobs=1)
    assert duration(2 * train.training) in said
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    side_by_side = describe_plan([EXPERIMENT], [train, ablations], jobs=64)
    assert duration(train.training) in side_by_side, "no run is faster for more cores"
    assert duration(ablations.networks * (ablations.training + ablations.answering)) in side_by_side
    assert "mine: not known before" in said


def test_more_noises_statistics_and_images_take_longer_to_answer(digits_only, project, monkeypatch):
    monkeypatch.setattr(plan, "measure", lambda *_: Speed(step=0.0, forward=1.0, parameters=1))

    def answering() -> float:
        (part,) = make_plan({EXPERIMENT: 1}, ())
        return part.answering

    def with_answers(**changes) -> float:
        changed = digits_only[EXPERIMENT] | {"answers": digits_only[EXPERIMENT]["answers"] | changes}
        (project / "params.yaml").write_text(yaml.safe_dump(digits_only | {EXPERIMENT: changed}))
        return answering()

    usual = answering()
    assert usual > 449
    assert with_answers(images=100) < usual
    assert with_answers(streams=None) < usual
    assert with_answers(max_levels=2) < usual
    assert with_answers(prior=4, gated=4, prior_noises={}) < usual


def test_a_share_has_its_runs_alone_and_images_prepared_anew_open_all(digits_only):
    runs = runs_of(EXPERIMENT)
    late = {f"train@{run}" for run in runs[2:]}
    shares = [_open_runs(EXPERIMENT, late, (number, 2)) for number in range(2)]
    assert shares == [[run for run in runs[number::2] if run in runs[2:]] for number in range(2)]
    assert _open_runs(EXPERIMENT, {f"prepare@{EXPERIMENT}"}, (0, 1)) == runs


def test_speed_is_measured_on_the_network_itself():
    small = measure(TrainConfig("small", epochs=1, batch_size=8, num_groups=2, threads=1), (1, 8, 8), 10)
    assert small.step > 0
    assert small.forward > 0
    assert small.parameters > 1000


def test_a_bar_moves_with_the_epochs_in_a_checkpoint_and_is_full_when_all_runs_ended(project):
    bar = _Bar({"toy-bn-0": (80.0, 20.0), "toy-ln-0": (80.0, 20.0)})
    bar.start("toy-bn-0")
    bar.show()
    assert bar.bar.n == 0
    metadata = {"history": json.dumps([{}, {}, {}]), "identity": json.dumps({"train": {"epochs": 4}})}
    checkpoint = project / "data" / "checkpoints" / "toy-bn-s0.safetensors"
    checkpoint.parent.mkdir(parents=True)
    save_file({"weight": torch.zeros(3)}, checkpoint, metadata)
    bar.show()
    assert bar.bar.n == 60
    bar.end("toy-bn-0")
    assert bar.bar.n == 100
    checkpoint.with_stem("toy-ln-s0").write_bytes(b"cut off")
    bar.start("toy-ln-0")
    bar.show()
    assert bar.bar.n == 100
    bar.end("toy-ln-0")
    assert bar.bar.n == bar.bar.total == 200
    bar.bar.close()


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (1500, "25 min"), (12600, "3.5 h"), (181_440, "2.1 days")])
def test_a_duration_has_the_unit_that_people_use(seconds, text):
    assert duration(seconds) == text
