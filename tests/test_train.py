"""Training: it learns, it is paired, it continues after a kill, and what it saves comes back."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch._inductor.config
from conftest import ROOT
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from localnorm.convert import convert_to_localnorm
from localnorm.data.augment import standardise
from localnorm.layers import use_mode
from localnorm.models import load_model, make_model
from localnorm.prediction import predict
from localnorm.train import TrainConfig, draws, fit, learning_rate, loop, record, save_run, step
from localnorm.train.optimizers import make_optimizer

SMALL = TrainConfig(
    "small", epochs=3, batch_size=64, num_groups=4, augment={"shift": 0.125}, weight_decay=5e-4, threads=1
)


@pytest.mark.parametrize("network", ["bn", "ln"])
def test_three_epochs_learn_digits(digits, network):
    run = fit(digits, SMALL, network, seed=0)
    assert run.history[-1]["validation_accuracy"] > 0.8
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] / 2


MUON = dataclasses.replace(SMALL, optimizer="muon", learning_rate=0.01, momentum=0.95, weight_decay=0.05)


@pytest.mark.parametrize("network", ["bn", "ln"])
def test_three_epochs_of_muon_learn_digits(digits, network):
    assert fit(digits, MUON, network, seed=0).history[-1]["validation_accuracy"] > 0.8


def test_muon_makes_the_updates_of_kernels_orthogonal_and_leaves_gammas_to_adam():
    """Newton and Schulz's five steps are rough: singular values near one, where those of the gradient spread."""
    torch.manual_seed(0)
    model = make_model("small", "ln", num_classes=10, in_channels=1, num_groups=4)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, dataclasses.replace(MUON, weight_decay=0.0, learning_rate=1e-3))
    torch.nn.functional.cross_entropy(model(torch.randn(64, 1, 8, 8)), torch.arange(64) % 10).backward()
    gradient = torch.linalg.svdvals(model.features[3].weight.grad.flatten(1))
    optimizer.step()
    update = torch.linalg.svdvals((model.features[3].weight - start["features.3.weight"]).flatten(1))  # 32 values
    assert gradient[0] > 4 * gradient[-4]
    assert update[0] < 2 * update[-4]
    moved = (model.features[1].weight - start["features.1.weight"]).abs()  # (K, C): a matrix, but no kernel
    torch.testing.assert_close(moved, torch.full_like(moved, moved.median().item()), rtol=0.05, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])  # the fused SGD has no fake kernel
def test_an_update_on_a_gpu_reads_no_value_back_to_the_cpu(optimizer, monkeypatch):
    """So a CUDA graph can hold it. Fake tensors, which have a device but no values, show it without a GPU."""
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None)
    config = dataclasses.replace(MUON, optimizer=optimizer)
    with FakeTensorMode(), torch.device("cuda"):
        model = make_model("small", "ln", num_classes=10, in_channels=1, num_groups=4)
        chosen = make_optimizer(model, config, capturable=True)
        for group in chosen.param_groups:
            group["lr"] = torch.empty(())
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            chosen.step()
        with pytest.raises(DataDependentOutputException):
            next(model.parameters()).sum().item()


def test_same_seed_gives_the_same_network_and_another_seed_another(digits):
    first, again, other = (fit(digits, SMALL, "ln", seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_saved_network_comes_back_whole_and_predicts_the_same(digits, tmp_path):
    run = fit(digits, SMALL, "ln", seed=0)
    save_run(run, tmp_path / "model.safetensors", tmp_path)
    model = load_model(tmp_path / "model.safetensors")
    images = torch.randn(32, 1, 8, 8)
    assert torch.equal(model(images), run.model.eval()(images))
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["data"]["title"] == digits.title
    assert record["images_per_second"] > 0
    assert record["versions"]["torch"] == torch.__version__
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + SMALL.epochs


def test_a_checkpoint_of_another_network_is_refused_by_name(digits, tmp_path):
    path = tmp_path / "model.safetensors"
    save_run(fit(digits, SMALL, "bn", seed=0), path, tmp_path)
    tensors = load_file(path)
    save_file(
        tensors, path, {"network": json.dumps({"name": "small", "network": "ln", "num_classes": 10, "in_channels": 1})}
    )
    with pytest.raises(ValueError, match="says it is small with the network ln, but its tensors do not fit"):
        load_model(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="has no description of its network"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="run the train stage first"):
        load_model(tmp_path / "none.safetensors")


def test_compiled_training_takes_the_same_steps_and_saves_the_same_kind_of_network(digits, tmp_path):
    # plain C++: which vector instructions the compiler has, torch would find out by compiling as much again
    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
        plain, compiled = (
            fit(digits, dataclasses.replace(SMALL, epochs=1, compile=choice), "ln", seed=0) for choice in (False, True)
        )
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, rtol=0.02, atol=0.02)
    save_run(compiled, tmp_path / "model.safetensors", tmp_path)
    images = torch.randn(32, 1, 8, 8)
    assert torch.equal(load_model(tmp_path / "model.safetensors")(images), compiled.model.eval()(images))


# -------------------------------------------------------------------------------------------------------- interruptions


def test_a_killed_run_continues_and_ends_with_the_same_weights_to_the_bit(digits, tmp_path):
    config = dataclasses.replace(SMALL, epochs=4)
    checkpoint = tmp_path / "run.safetensors"
    batches = 2 * (digits.counts["train"] // config.batch_size) + 5  # until it dies, in the third epoch
    script = f"""
import os, signal; from pathlib import Path; from localnorm.data import load; from localnorm.train import TrainConfig, fit, loop
augment, left = loop.augment, iter(range({batches}))
def dying(*arguments, **options):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return augment(*arguments, **options)
loop.augment = dying
fit(load({str(digits.folder)!r}), {config!r}, "ln", 3, checkpoint=Path({str(checkpoint)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    continued = fit(digits, config, "ln", seed=3, checkpoint=checkpoint)
    assert continued.record["resumed_at_epoch"] == 2
    whole = fit(digits, config, "ln", seed=3)
    assert continued.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, continued.model.state_dict()[name]), name


def test_muon_continues_to_the_same_weights_to_the_bit(digits, tmp_path, monkeypatch):
    def killed(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    save, checkpoint = loop.save_checkpoint, tmp_path / "run.safetensors"
    first = record.device_name(torch.device("cpu"))
    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, MUON, "ln", seed=3, checkpoint=checkpoint)
    monkeypatch.undo()
    monkeypatch.setattr(record, "device_name", lambda device: "another machine")
    continued = fit(digits, MUON, "ln", seed=3, checkpoint=checkpoint)
    assert continued.record["resumed_at_epoch"] == 1
    assert continued.record["device"] == f"{first}, then another machine"
    with safe_open(checkpoint, "pt") as file:
        parts = json.loads(file.metadata()["parts"])
    assert continued.record["seconds"] == pytest.approx(sum(part["seconds"] for part in parts), rel=0.1)
    assert len(parts) == 2
    for name, value in fit(digits, MUON, "ln", seed=3).model.state_dict().items():
        assert torch.equal(value, continued.model.state_dict()[name]), name


def test_a_checkpoint_of_other_settings_is_not_continued(digits, tmp_path, capsys):
    checkpoint = tmp_path / "run.safetensors"
    fit(digits, SMALL, "ln", seed=0, checkpoint=checkpoint)
    run = fit(digits, SMALL, "ln", seed=1, checkpoint=checkpoint)
    assert run.record["resumed_at_epoch"] == 0
    assert "belongs to other settings or data" in capsys.readouterr().err


def test_saving_the_run_removes_its_checkpoint(digits, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    run = fit(digits, SMALL, "bn", seed=0, checkpoint=checkpoint)
    assert checkpoint.exists()
    save_run(run, tmp_path / "out" / "model.safetensors", tmp_path / "out", checkpoint)
    assert not checkpoint.exists()
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_a_revision_is_marked_where_what_makes_results_has_changed_and_not_where_results_have(project):
    def git(*command: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        return subprocess.run(["git", *named, *command], capture_output=True, text=True, check=True).stdout.strip()

    assert record.revision() is None, "no repository"
    code, result = project / "localnorm" / "layers.py", project / "data" / "record.json"
    for file in (code, result, project / "params.yaml"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("a\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    head = git("rev-parse", "--short", "HEAD")
    result.unlink()  # as DVC does before it starts a stage
    assert record.revision() == head
    for file, text in ((code, "b\n"), (project / "params.yaml", "b\n"), (code.with_name("new.py"), "a\n")):
        file.write_text(text)
        assert record.revision() == f"{head}+", file
        if text == "b\n":
            file.write_text("a\n")
            assert record.revision() == head, file
    git("add", ".")
    assert record.revision() == f"{head}+", "added, but not committed"


# ------------------------------------------------------------------------------------------------------ several processes


@pytest.fixture(scope="module")
def in_two_processes(digits, tmp_path_factory):
    """The folder that holds what two processes made of each network: one launch for both, since torch takes long to start."""
    folder = tmp_path_factory.mktemp("two processes")
    script = folder / "train.py"
    script.write_text(f"""
import os; from pathlib import Path; import torch
from localnorm.train import loop; from localnorm.data import load; from localnorm.train import TrainConfig, fit, save_run
augment, seeds = loop.augment, set()
def noting(batch, *, generator, **options):
    seeds.add(generator.initial_seed())
    return augment(batch, generator=generator, **options)
loop.augment = noting
config = TrainConfig("small", epochs=2, batch_size=32, num_groups=4, threads=1)
for network in ("bn", "ln"):
    seeds.clear()
    out = Path({str(folder)!r}) / network
    run = fit(load({str(digits.folder)!r}), config, network, 0, checkpoint=out / "run.safetensors")
    weights = torch.cat([value.flatten().double() for value in run.model.parameters()])
    save_run(run, out / "model.safetensors", out, out / "run.safetensors")
    torch.save((weights, sorted(seeds)), Path({str(folder)!r}) / f"{{network}}-{{os.environ['RANK']}}.pt")
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("network", ["bn", "ln"])
def test_two_processes_train_one_network_and_the_first_saves_it(digits, in_two_processes, network):
    (first, drawn), (second, other) = (
        torch.load(in_two_processes / f"{network}-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert torch.equal(first, second)
    assert len({*drawn, *other}) == 4, "each process draws its own augmentation in each of two epochs"
    record = json.loads((in_two_processes / network / "record.json").read_text())
    assert record["processes"] == 2
    history = (in_two_processes / network / "history.csv").read_text().splitlines()
    assert float(history[-1].split(",")[-1]) > 0.5
    alone = fit(digits, TrainConfig("small", epochs=2, batch_size=64, num_groups=4, threads=1), network, 0).model
    assert not torch.equal(first, torch.cat([value.flatten().double() for value in alone.parameters()]))


def test_no_process_repeats_what_another_drew_in_another_epoch():
    seeds = [loop.epoch_seed(seed, epoch, rank) for seed in range(6) for epoch in range(300) for rank in range(16)]
    assert len(set(seeds)) == len(seeds)


# ------------------------------------------------------------------------------------------------ groups drawn in training


def test_a_network_trained_with_single_images_among_its_groups_predicts_single_images_far_better(digits):
    usual = {"epochs": 6, "batch_size": 64, "num_groups": 4, "augment": {"shift": 0.125}, "threads": 1}
    images = standardise(digits.images("validation"), torch.tensor(digits.mean), torch.tensor(digits.std))
    accuracy = {}
    for sizes in ([], [1, 4, 16]):
        network = fit(digits, TrainConfig("small", **usual, group_sizes=sizes), "ln", seed=0).model
        chosen = predict(network, images, "single").argmax(1)
        accuracy[len(sizes)] = (chosen == digits.labels("validation")).float().mean().item()
    assert accuracy[3] > accuracy[0] + 0.02
    assert accuracy[3] > 0.9


def test_drawn_meets_every_divisor_of_the_batch_up_to_the_usual_size(digits, monkeypatch):
    seen = []

    def note(mode, group_size):
        seen.append((mode, group_size))
        return use_mode(mode, group_size=group_size)

    monkeypatch.setattr(draws, "use_mode", note)
    run = fit(digits, TrainConfig("small", epochs=3, batch_size=36, num_groups=3, threads=1), "ln_drawn", seed=0)
    assert set(seen) == {("batch", size) for size in (1, 2, 3, 4, 6, 9, 12)}
    assert run.record["group_sizes"] == [1, 2, 3, 4, 6, 9, 12]


def test_a_drawn_network_sees_the_batches_and_augmentations_of_the_other_arms(digits):
    usual = {"epochs": 1, "batch_size": 64, "num_groups": 4, "augment": {"shift": 0.125}, "threads": 1}
    plain = fit(digits, TrainConfig("small", **usual), "ln", seed=0).model
    drawn = fit(digits, TrainConfig("small", **usual, group_sizes=[16]), "ln_drawn", seed=0).model  # B / K alone
    mixed = fit(digits, TrainConfig("small", **usual), "ln_drawn", seed=0).model
    weights = [torch.cat([value.flatten() for value in net.parameters()]) for net in (plain, drawn, mixed)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_images_too_small_to_be_normalised_alone_are_refused_before_training(digits, monkeypatch):
    monkeypatch.setattr(step, "F", None)  # a step of training would need it
    config = TrainConfig("resnet18", epochs=1, batch_size=64, num_groups=4, threads=1)  # 8 pixels end as one position
    with pytest.raises(ValueError, match=r"groups of 1 image of \(1, 8, 8\) are too small .* set group_sizes above 1"):
        fit(digits, config, "ln_drawn", seed=0)


def test_fine_tuning_starts_from_the_network_that_it_is_given(digits):
    trained = fit(digits, SMALL, "bn", seed=0)
    converted = convert_to_localnorm(trained.model, 4)
    config = TrainConfig("small", epochs=1, batch_size=64, num_groups=4, learning_rate=0.01, threads=1)
    tuned, fresh = (fit(digits, config, "ln", 0, initial=start) for start in (converted, None))
    assert tuned.history[0]["train_loss"] < 0.5 * fresh.history[0]["train_loss"]
    assert tuned.model is converted


# ---------------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.filterwarnings("ignore")
def test_divergence_stops_with_the_step_and_the_rate(digits):
    config = TrainConfig("small", epochs=3, batch_size=64, num_groups=4, learning_rate=1e30, schedule="constant")
    with pytest.raises(
        FloatingPointError, match=r"the loss became (nan|inf) in epoch 1, step \d+, at learning rate 1e\+30"
    ):
        fit(digits, config, "bn", seed=0)


def test_a_batch_larger_than_the_training_part_names_both(digits):
    with pytest.raises(
        ValueError, match=r"batch_size=5000 on 1 process\(es\) needs as many training images, .* has \d+"
    ):
        fit(digits, TrainConfig("small", epochs=1, batch_size=5000), "bn", seed=0)


def test_an_unknown_network_names_the_valid_ones(digits):
    with pytest.raises(ValueError, match="unknown network 'layer'; choose one of bn, ln, "):
        fit(digits, SMALL, "layer", seed=0)


# ------------------------------------------------------------------------------------------------------------- schedules


def test_released_schedules_have_the_released_rates():
    steps = TrainConfig("small", epochs=200, batch_size=64, schedule="steps", milestones={50: 0.01, 122: 0.003})
    assert [learning_rate(steps, epoch) for epoch in (0, 49.9, 50, 121, 122, 199)] == [
        0.1,
        0.1,
        0.01,
        0.01,
        0.003,
        0.003,
    ]
    adam = TrainConfig(
        "small", epochs=50, batch_size=64, optimizer="adam", learning_rate=1e-3, schedule="exponential", decay=0.9
    )
    assert learning_rate(adam, 2.5) == pytest.approx(1e-3 * 0.81)
    vgg = TrainConfig("small", epochs=250, batch_size=64, schedule="exponential", decay=0.75, decay_every=30)
    assert learning_rate(vgg, 89) == pytest.approx(0.1 * 0.75**2)


def test_a_plateau_lowers_the_rate_after_patience_epochs_without_a_better_accuracy():
    cars = TrainConfig(
        "small", epochs=150, batch_size=64, schedule="plateau", learning_rate=1.5e-3, decay=0.1, patience=2
    )
    assert learning_rate(cars, 3, [0.1, 0.2, 0.2]) == 1.5e-3
    assert learning_rate(cars, 4, [0.1, 0.2, 0.2, 0.1]) == pytest.approx(1.5e-4)
    assert learning_rate(cars, 6, [0.1, 0.2, 0.2, 0.1, 0.2, 0.2]) == pytest.approx(1.5e-5)
    assert learning_rate(cars, 6, [0.1, 0.2, 0.2, 0.1, 0.3, 0.2]) == pytest.approx(1.5e-4)


def test_training_ends_where_the_validation_accuracy_has_stalled(digits):
    config = TrainConfig(
        "small", epochs=40, batch_size=64, learning_rate=0.0, stop_after=2, schedule="constant", threads=1
    )
    run = fit(digits, config, "ln", seed=0)
    assert len(run.history) == 3
    assert run.record["images_per_second"] > 0


def test_weight_decay_acts_on_kernels_and_not_on_affines(digits):
    model = make_model("small", "ln", num_classes=10, in_channels=1, num_groups=4)
    kernels, others = make_optimizer(model, SMALL).param_groups
    assert kernels["weight_decay"] == 5e-4
    assert others["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    for parameter in kernels["params"]:
        owner = modules[names[id(parameter)].rpartition(".")[0]]
        assert isinstance(owner, torch.nn.Conv2d | torch.nn.Linear)
    assert len(kernels["params"]) + len(others["params"]) == len(names)


BF16 = TrainConfig("small", epochs=2, batch_size=64, num_groups=4, precision="bf16-mixed", threads=1)


def test_bf16_trains_too(digits, monkeypatch):
    monkeypatch.setattr(loop, "computes_bf16", lambda device: True)
    run = fit(digits, BF16, "ln", seed=0)
    assert run.history[-1]["validation_accuracy"] > 0.5
    assert all(value.dtype == torch.float32 for value in run.model.state_dict().values() if value.is_floating_point())
    assert run.record["precision"] == "bf16-mixed"


def test_a_device_without_bf16_trains_in_float32_and_says_so(digits, monkeypatch, capsys):
    """A CPU that only emulates bf16 takes ten times as long with it as without."""
    monkeypatch.setattr(loop, "computes_bf16", lambda device: False)
    run = fit(digits, BF16, "ln", seed=0)
    assert "has no instructions for bf16: training in float32" in capsys.readouterr().err
    assert (run.record["train"]["precision"], run.record["precision"]) == ("bf16-mixed", "32-true")
    float32 = fit(digits, dataclasses.replace(BF16, precision="32-true"), "ln", seed=0)
    assert not capsys.readouterr().err.count("bf16")
    assert float32.record["precision"] == "32-true"
    weights = float32.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    monkeypatch.setattr(loop, "computes_bf16", lambda device: True)
    bf16 = fit(digits, BF16, "ln", seed=0).model.state_dict()
    assert not all(torch.equal(value, weights[name]) for name, value in bf16.items())


def test_a_training_that_changes_its_precision_on_the_way_records_both(digits, monkeypatch, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    monkeypatch.setattr(loop, "computes_bf16", lambda device: True)
    monkeypatch.setattr(loop, "has_stalled", lambda config, validation: len(validation) == 1)
    fit(digits, BF16, "ln", seed=0, checkpoint=checkpoint)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "computes_bf16", lambda device: False)
    run = fit(digits, BF16, "ln", seed=0, checkpoint=checkpoint)
    assert run.record["resumed_at_epoch"] == 1
    assert run.record["precision"] == "bf16-mixed, then 32-true"


def test_a_training_that_had_ended_elsewhere_keeps_its_record_here(digits, monkeypatch, tmp_path):
    """Its checkpoint, brought from a GPU say, goes through the stage like any other, and says what trained it."""
    checkpoint = tmp_path / "run.safetensors"
    monkeypatch.setattr(loop, "computes_bf16", lambda device: True)
    monkeypatch.setattr(record.platform, "python_version", lambda: "3.99")
    ended = fit(digits, BF16, "ln", seed=0, checkpoint=checkpoint)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "computes_bf16", lambda device: False)
    here = fit(digits, BF16, "ln", seed=0, checkpoint=checkpoint)
    assert here.history == ended.history
    weights = ended.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in here.model.state_dict().items())
    assert (here.record["precision"], here.record["versions"]["python"]) == ("bf16-mixed", "3.99")
    assert here.record["seconds"] == pytest.approx(ended.record["seconds"], abs=0.5)


def test_cuda_graphs_without_a_gpu_are_refused(digits):
    with pytest.raises(ValueError, match=r"cuda_graphs=True needs a GPU, the device is cpu; leave it out"):
        fit(digits, SMALL, "ln", 0, fabric=Fabric(accelerator="cpu", devices=1), cuda_graphs=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("network", ["bn", "ln", "ln_drawn"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_replayed_steps_train_as_steps_from_python_do(digits, optimizer, network):
    config = dataclasses.replace(MUON, optimizer=optimizer, learning_rate=0.1 if optimizer == "sgd" else 0.01)
    replayed, plain = (fit(digits, config, network, 0, cuda_graphs=graphs).history for graphs in (None, False))
    for ours, theirs in zip(replayed, plain, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.1)
        assert ours["validation_accuracy"] == pytest.approx(theirs["validation_accuracy"], abs=0.1)
    assert replayed[-1]["train_loss"] < replayed[0]["train_loss"] / 2
