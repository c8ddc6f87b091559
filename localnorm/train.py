"""One training loop, on Lightning Fabric: CPU or GPU, float32 or bf16, one process or several.

The images stay on the device as uint8 and are augmented there in batches, so no worker processes are needed. Everything
random in epoch e follows from (seed, e): a run that was killed continues from its last epoch and ends with the same weights.
All arms of a seed (batch, local, drawn) see the same initial convolutions and batches and, on one kind of device, augmentations.
"""

import contextlib
import csv
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from tqdm import tqdm

from localnorm import paths
from localnorm.data.augment import augment, check_augmentation, standardise
from localnorm.data.dataset import Dataset
from localnorm.layers import use_mode
from localnorm.machine import computes_bf16, device_name, use_cpu
from localnorm.models import MODELS, NORMS, make_model, save_model
from localnorm.params import from_block
from localnorm.prediction import predict

__all__ = ["TrainConfig", "TrainedRun", "fit", "learning_rate", "make_fabric", "save_run"]

OPTIMIZERS = ("sgd", "adam", "muon")
FALLBACK_RATE = 0.3  # of Muon's learning rate, for what is no kernel of a convolution
SCHEDULES = ("constant", "one_cycle", "steps", "exponential", "plateau")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run: a `train` block of params.yaml, checked.

    Args:
        model: name of a network (see `localnorm.models.MODELS`).
        epochs: passes over the training part; a tail that does not fill a batch is dropped.
        batch_size: images a step and process (B).
        num_groups: groups that LocalNorm splits a batch into (K).
        group_sizes: images a group (S), one of them drawn for each step of a LocalNorm network, whose groups then take
            the K affines in turn; empty is always B / K, and for the norm "drawn" every divisor of B up to B / K. With 1
            among them the network also learns from single images.
        optimizer: "sgd" (Nesterov), "adam", or "muon": the update of a kernel is the orthogonal matrix next to its momentum
            (Jordan et al. 2024), in timm's implementation, and AdamW at 0.3 times the learning rate serves all else. Of few
            epochs it makes more than SGD.
        learning_rate: the peak for "one_cycle", the first for the other schedules.
        schedule: "constant"; "one_cycle" (linear from a tenth up to the peak in the first quarter, then linearly to zero);
            "steps" (`milestones`: {epoch: learning rate from there on}); "exponential" (times `decay` every
            `decay_every` epochs); "plateau" (times `decay` after each `patience` epochs without a better validation
            accuracy).
        patience: epochs, of the schedule "plateau".
        stop_after: epochs without a better validation accuracy after which training ends; None runs all epochs.
        momentum: of SGD and Muon.
        weight_decay: torch's, on kernels only (twice Keras' lambda); with Muon decoupled from the gradient.
        label_smoothing: share of the target that is spread over all classes.
        augment: arguments of `localnorm.data.augment.augment`: flip, shift, rotation, zoom.
        pretrained: start from ImageNet weights.
        precision: Lightning Fabric's: "32-true", or "bf16-mixed" where the device computes in bf16 (see
            `localnorm.machine.computes_bf16`), and "32-true" elsewhere. The record names the one that was used.
        eps: added to the variance in every normalisation layer, the same in all arms; None keeps the network's own.
        compile: run the network through torch.compile.
        threads: of the CPU; None leaves torch's choice. A network of a few thousand weights is fastest on one.

    Raises:
        ValueError: a value that cannot work, before any data is read.
    """

    model: str
    epochs: int
    batch_size: int
    num_groups: int = 8
    group_sizes: list[int] = field(default_factory=list)
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "one_cycle"
    milestones: dict[int, float] = field(default_factory=dict)
    decay: float = 1.0
    decay_every: int = 1
    patience: int = 10
    stop_after: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: dict[str, float | bool] = field(default_factory=dict)
    pretrained: bool = False
    precision: str = "32-true"
    eps: float | None = 1e-5
    compile: bool = False
    threads: int | None = None

    def __post_init__(self):
        _check_choice("model", self.model, MODELS)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("precision", self.precision, ("32-true", "bf16-mixed"))
        for name in ("epochs", "batch_size", "num_groups", "decay_every", "patience", "stop_after"):
            value = getattr(self, name)
            if name == "stop_after" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("learning_rate", "momentum", "weight_decay", "label_smoothing", "decay", "eps"):
            value = getattr(self, name)
            if name == "eps" and value is None:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ValueError(
                    f"{name} must be a finite number of at least 0, got {value!r}"
                    + (" (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(value, str) else "")
                )
        for name in ("momentum", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise ValueError(f"threads must be a whole number of at least 1, or None, got {self.threads!r}")
        if self.schedule == "steps" and not self.milestones:
            raise ValueError("schedule='steps' needs milestones, {epoch: learning rate from there on}, got none")
        try:
            check_augmentation(**self.augment)
        except (TypeError, ValueError) as error:
            raise ValueError(f"augment: {error}; it takes flip, shift, rotation and zoom, got {self.augment}") from None
        if self.schedule == "plateau" and self.decay >= 1:
            raise ValueError(f"schedule='plateau' needs a decay below 1, got {self.decay}; the released one is 0.1")
        if self.num_groups > self.batch_size:
            raise ValueError(
                f"num_groups={self.num_groups} needs at least {self.num_groups} images in a training batch, "
                f"got batch_size={self.batch_size}; raise batch_size or lower num_groups"
            )

        uneven = [size for size in self.group_sizes if size < 1 or self.batch_size % size]
        if uneven:
            raise ValueError(f"group_sizes must divide batch_size={self.batch_size}, {uneven} do not")

    @classmethod
    def from_params(cls, block: dict) -> "TrainConfig":
        """The `train` block of an experiment in params.yaml.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot work.
        """
        return from_block(cls, "train", block)


def _check_choice(name: str, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def learning_rate(config: TrainConfig, epoch: float, validation: Sequence[float] = ()) -> float:
    """The learning rate at `epoch`, a float in [0, epochs]: a pure function, so a resumed run cannot drift.

    Args:
        config: the settings.
        epoch: how far training is.
        validation: the accuracy after each epoch so far, for the schedule "plateau".

    Example:
        >>> config = TrainConfig("small", epochs=8, batch_size=64, learning_rate=0.4)
        >>> [round(learning_rate(config, epoch), 3) for epoch in (0, 1, 2, 5, 8)]
        [0.04, 0.22, 0.4, 0.2, 0.0]
    """
    peak = config.learning_rate
    if config.schedule == "one_cycle":
        warm = config.epochs / 4
        return peak * (0.1 + 0.9 * epoch / warm) if epoch < warm else peak * (config.epochs - epoch) / (3 * warm)
    if config.schedule == "steps":
        return [peak, *(rate for start, rate in sorted(config.milestones.items()) if start <= epoch)][-1]
    if config.schedule == "exponential":
        return peak * config.decay ** (int(epoch) // config.decay_every)
    if config.schedule == "plateau":
        best, waited, rate = -math.inf, 0, peak
        for accuracy in validation:
            best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
            if waited == config.patience:
                rate, waited = rate * config.decay, 0
        return rate
    return peak


def _has_stalled(config: TrainConfig, validation: Sequence[float]) -> bool:
    if config.stop_after is None or len(validation) <= config.stop_after:
        return False
    return max(validation[-config.stop_after :]) <= max(validation[: -config.stop_after])


class _Started(DDPStrategy):
    """Data parallel among processes that torchrun or SLURM has started: Fabric's own launcher refuses to work in a notebook."""

    def _configure_launcher(self) -> None:
        self._launcher = None


def make_fabric(precision: str = "32-true") -> Fabric:
    """Fabric on the best device at hand; under torchrun or SLURM, on every process that they started.

    "bf16-mixed" becomes "32-true" on a device that does not compute in bf16, and says so.
    """
    started_many = any(int(os.environ.get(name, 1)) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # where SLURM is, but not wanted

    def on_this_machine(precision: str) -> Fabric:
        return Fabric(
            accelerator="auto",
            devices=here if started_many else 1,
            strategy=_Started() if started_many else "auto",
            precision=precision,
            num_nodes=int(os.environ.get("SLURM_NNODES", 1)),
        )

    if precision == "bf16-mixed" and not computes_bf16(device := on_this_machine("32-true").device):
        print(f"{device_name(device)} has no instructions for bf16: training in float32", file=sys.stderr)
        precision = "32-true"
    fabric = on_this_machine(precision)
    fabric.launch()
    return fabric


def _make_optimizer(model: torch.nn.Module, config: TrainConfig, capturable: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a train block; a capturable one keeps all of its state on the GPU, for CUDA graphs."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1 and not _is_affine(model, parameter)]
    chosen = {id(parameter) for parameter in kernels}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, capturable=capturable)
    if config.optimizer == "muon":
        from timm.optim import Muon  # here, since timm is slow to import

        from localnorm.muon import BatchedMuon

        # the last layer is a kernel too, but Muon is for those between hidden layers
        hidden = [kernel for kernel in kernels if kernel.ndim > 2]
        rest = [kernel for kernel in kernels if kernel.ndim == 2]
        groups = [
            {"params": hidden, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": config.weight_decay, "use_fallback": True},
            {"params": others, "weight_decay": 0.0, "use_fallback": True},
        ]
        # on a CPU, which does not wait for calls, timm's own takes as long
        return (BatchedMuon if capturable else Muon)(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=True,
            fallback_lr_scale=FALLBACK_RATE,
            capturable=capturable,
        )
    return torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        fused=capturable,  # the only one that takes its learning rate from the GPU
    )


def _is_affine(model: torch.nn.Module, parameter: torch.nn.Parameter) -> bool:
    """Whether `parameter` is a gamma or beta; LocalNorm's are matrices (K, C), so the rank alone does not tell."""
    return any(
        parameter is own
        for module in model.modules()
        if not isinstance(module, torch.nn.Linear | torch.nn.modules.conv._ConvNd)
        for own in module.parameters(recurse=False)
    )


# ------------------------------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class TrainedRun:
    """What training gives: the network, a row an epoch, and a record of how it was made."""

    model: torch.nn.Module
    history: list[dict]
    record: dict


def _suggest_smaller_batches(fit: Callable) -> Callable:
    @wraps(fit)
    def named(dataset: Dataset, config: TrainConfig, *arguments, **options) -> TrainedRun:
        try:
            return fit(dataset, config, *arguments, **options)
        except RuntimeError as error:  # torch has a class of its own for the GPU's memory, and none for the CPU's
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise MemoryError(
                f"training {config.model} with batch_size={config.batch_size} on images of {dataset.shape} needs more memory "
                f"than there is; lower batch_size, and num_groups={config.num_groups} with it to keep the images a group"
            ) from error

    return named


@_suggest_smaller_batches
def fit(
    dataset: Dataset,
    config: TrainConfig,
    norm: str,
    seed: int,
    *,
    initial: torch.nn.Module | None = None,
    checkpoint: Path | None = None,
    fabric: Fabric | None = None,
    cuda_graphs: bool | None = None,
) -> TrainedRun:
    """Train a network and return it with its history and record.

    Args:
        dataset: see `localnorm.data.load`; the parts "train" and "validation" are used.
        config: the settings.
        norm: "batch", "local", "drawn" (LocalNorm whose images a group are drawn for each step), or another name of
            `localnorm.models.NORMS`.
        seed: of the initial weights, the batches and the augmentation.
        initial: a network to start from, for fine-tuning; it is trained in place. A fresh one if None.
        checkpoint: a file that is rewritten after every epoch; where it is there and was made by the same settings,
            training continues from it.
        fabric: device, precision and processes; `make_fabric(config.precision)` if None.
        cuda_graphs: record a training step's kernels once and replay them: a step of a small network takes a fraction of the time.
            The network must not read values back to the CPU. None does so on one GPU, unless the network is compiled.

    Raises:
        ValueError: fewer training images than a batch, an unknown norm, or feature maps of one position in a network that is to meet
            single images, or CUDA graphs without a GPU.
        FloatingPointError: the loss is no longer finite; names epoch and step.
        MemoryError: the device's memory does not hold a batch.
    """
    _check_choice("norm", norm, NORMS)
    count = len(dataset.labels("train"))
    fabric = fabric or make_fabric(config.precision)
    steps = count // (config.batch_size * fabric.world_size)
    if steps == 0:
        raise ValueError(
            f"batch_size={config.batch_size} on {fabric.world_size} process(es) needs as many training images, "
            f"{dataset.title} has {count}; lower batch_size"
        )

    use_cpu(config.threads)
    torch.manual_seed(seed)
    model = initial or make_model(
        config.model,
        norm,
        num_classes=dataset.num_classes,
        in_channels=dataset.shape[0],
        image_size=dataset.shape[-1],
        num_groups=config.num_groups,
        eps=config.eps,
        pretrained=config.pretrained,
    )
    model = model.to(memory_format=torch.channels_last)
    network = model  # the plain module that is saved and tested, under Fabric's and the compiler's wrappers
    replays = _replays(cuda_graphs, config, fabric)
    optimizer = _make_optimizer(model, config, replays)
    model, optimizer = fabric.setup(torch.compile(model) if config.compile else model, optimizer)
    step = _Step(model, optimizer, config, fabric, replays)

    identity = {
        "train": asdict(config),
        "norm": norm,
        "seed": seed,
        "data": {
            "name": dataset.name,
            "title": dataset.title,
            "num_classes": dataset.num_classes,
            "shape": list(dataset.shape),
            "provenance": dataset.provenance,
            "counts": {part: len(dataset.labels(part)) for part in ("train", "validation", "test")},
        },
    }
    drawn_sizes = _drawn_sizes(config, norm)
    _check_smallest_group(network, dataset, drawn_sizes)
    history, parts = _resume(checkpoint, network, optimizer, identity) if checkpoint else ([], [])
    resumed_at = len(history)

    images = torch.as_tensor(dataset.images("train")).to(fabric.device)
    labels = torch.as_tensor(dataset.labels("train")).to(fabric.device)
    mean, std = (torch.tensor(values, device=fabric.device) for values in (dataset.mean, dataset.std))
    started = time.perf_counter()
    progress = tqdm(
        total=config.epochs * steps,
        initial=resumed_at * steps,
        desc=f"train {dataset.name} {norm} s{seed}",
        unit="step",
        file=sys.stderr,
        mininterval=0.5,
        disable=fabric.global_rank > 0,
    )
    for epoch in range(resumed_at, config.epochs):
        validation = [row["validation_accuracy"] for row in history]
        if _has_stalled(config, validation):
            break
        epoch_seed = _epoch_seed(seed, epoch)
        torch.manual_seed(_epoch_seed(seed, epoch, fabric.global_rank))  # dropout
        order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch_seed)).to(fabric.device)
        generator = torch.Generator(fabric.device).manual_seed(_epoch_seed(seed, epoch, fabric.global_rank))
        sizes = torch.Generator().manual_seed(epoch_seed)  # apart, so that all norms see the same augmentation
        losses = torch.zeros(steps, device=fabric.device)
        correct = torch.zeros((), device=fabric.device)
        model.train()
        for number in range(steps):
            rate = learning_rate(config, epoch + number / steps, validation)
            position = (number * fabric.world_size + fabric.global_rank) * config.batch_size
            chosen = order[position : position + config.batch_size]
            batch = augment(standardise(images[chosen], mean, std), generator=generator, **config.augment)
            batch = batch.contiguous(memory_format=torch.channels_last)
            losses[number], right = step(batch, labels[chosen], rate, _drawn(drawn_sizes, sizes))
            correct += right
            progress.update()
        _check_finite(losses, epoch, rate)
        history.append(
            {
                "epoch": epoch + 1,
                "learning_rate": rate,
                "train_loss": fabric.all_reduce(losses.mean()).item(),
                "train_accuracy": fabric.all_reduce(correct / (steps * config.batch_size)).item(),
                # one for all processes: each has BatchNorm statistics of its own, and all must stop together
                "validation_accuracy": fabric.broadcast(
                    _accuracy(network, dataset, "validation", config.batch_size, norm, fabric)
                ),
            }
        )
        progress.set_postfix_str(f"loss {history[-1]['train_loss']:.3f}, val {history[-1]['validation_accuracy']:.3f}")
        if checkpoint and fabric.is_global_zero:
            _save_checkpoint(checkpoint, network, optimizer, identity, history, [*parts, _part(fabric, started)])
        fabric.barrier()
    progress.close()
    if len(history) > resumed_at:  # else the checkpoint was of a run that had ended
        parts = [*parts, _part(fabric, started)]
    seconds = sum(part["seconds"] for part in parts)
    trained = len(history) * steps * config.batch_size * fabric.world_size
    record = {
        **identity,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "resumed_at_epoch": resumed_at,
        "seconds": round(seconds, 2),
        "images_per_second": round(trained / seconds, 1),
        "group_sizes": drawn_sizes,
        "device": _in_turn(parts, "device"),
        # a part of an older checkpoint does not say
        "precision": _in_turn([{"precision": config.precision} | part for part in parts], "precision"),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "versions": {
            "localnorm": version("localnorm"),
            "torch": _in_turn(parts, "torch"),
            "python": _in_turn([{"python": platform.python_version()} | part for part in parts], "python"),
        },
        "revision": _revision(),
    }
    return TrainedRun(network, history, record)


def _epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """One number a seed, epoch and process: nothing else has to be saved to continue, and no process repeats what another drew."""
    return seed * 100_003 + epoch + 10_000_019 * rank


def _drawn_sizes(config: TrainConfig, norm: str) -> list[int]:
    """Images a group that a training step draws from; empty where the groups are as the layers are built."""
    if norm not in ("local", "drawn"):
        return []
    if norm == "drawn" and not config.group_sizes:
        most = config.batch_size // config.num_groups
        return [size for size in range(1, most + 1) if config.batch_size % size == 0]
    return config.group_sizes


def _check_smallest_group(network: torch.nn.Module, dataset: Dataset, sizes: list[int]) -> None:
    """Refuse before training what would end it at the step that draws the smallest group."""
    if not sizes:
        return
    smallest = min(sizes)
    images = torch.zeros(smallest, *dataset.shape, device=next(network.parameters()).device)
    try:
        with torch.no_grad(), use_mode("batch", group_size=smallest):
            network(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"groups of {smallest} image{'' if smallest == 1 else 's'} of {tuple(dataset.shape)} are too small for this network: "
            f"{error.args[0].split(';')[0]}; take larger images, leave the norm 'drawn' out, or set group_sizes above {smallest}"
        ) from None


def _drawn(sizes: list[int], generator: torch.Generator) -> int | None:
    """The images a group of one step; None where LocalNorm layers group the batch as they are built."""
    return sizes[torch.randint(len(sizes), (), generator=generator)] if sizes else None


def _replays(asked: bool | None, config: TrainConfig, fabric: Fabric) -> bool:
    on_gpu = fabric.device.type == "cuda"
    if asked and not on_gpu:
        raise ValueError(f"cuda_graphs=True needs a GPU, the device is {fabric.device}; leave it out")
    return on_gpu and fabric.world_size == 1 and not config.compile if asked is None else asked


class _Step:
    """A training step: forwards, loss, backwards and update.

    With `replays` the first step of each number of images a group runs as usual, which allocates what kernels and optimizer
    keep. The second is recorded as a CUDA graph, which it and all later ones replay: their kernels start without Python.
    """

    def __init__(self, model, optimizer, config: TrainConfig, fabric: Fabric, replays: bool):
        self.model, self.optimizer, self.config, self.fabric, self.replays = model, optimizer, config, fabric, replays
        if replays:
            self.rate = torch.zeros((), device=fabric.device)
            self.given = None  # images and labels of the current step, at the address that the graphs read
            self.graphs = {}
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream()  # the default one cannot be recorded

    def __call__(
        self, batch: torch.Tensor, labels: torch.Tensor, rate: float, size: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and how many images of the batch (B, C, H, W) were classified right; the next step overwrites them."""
        if not self.replays:
            self._set_rate(rate)
            return self._run(batch, labels, size)
        if self.given is None:
            self._set_rate(self.rate)
            self.given = batch.clone(), labels.clone()
        self.rate.fill_(rate)
        for kept, new in zip(self.given, (batch, labels), strict=True):
            kept.copy_(new)
        if size not in self.graphs:
            self.graphs[size] = None
            return self._run_apart(size)
        if self.graphs[size] is None:
            self.graphs[size] = self._record(size)
        graph, result = self.graphs[size]
        graph.replay()
        return result

    def _run_apart(self, size: int | None):
        caller = torch.cuda.current_stream()
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            result = self._run(*self.given, size)
        caller.wait_stream(self.stream)
        return result

    def _record(self, size: int | None):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = self._run(*self.given, size)
        return graph, result

    def _set_rate(self, rate: float | torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _run(self, batch: torch.Tensor, labels: torch.Tensor, size: int | None):
        with use_mode("batch", group_size=size) if size else contextlib.nullcontext():
            logits = self.model(batch)  # (B, num_classes)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), (logits.argmax(1) == labels).sum()


def _check_finite(losses: torch.Tensor, epoch: int, rate: float) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FloatingPointError(
            f"the loss became {losses[step].item()} in epoch {epoch + 1}, step {step + 1}, at learning rate {rate:.3g}; "
            "lower learning_rate, or look at the images of this data set for constant ones"
        )


def _accuracy(network, dataset: Dataset, part: str, batch_size: int, norm: str, fabric: Fabric) -> float:
    """Clean accuracy as the network would be used: fixed statistics where it has them, else test batches."""
    mean, std = (torch.tensor(values, device=fabric.device) for values in (dataset.mean, dataset.std))
    images = standardise(torch.as_tensor(dataset.images(part)).to(fabric.device), mean, std)
    labels = torch.as_tensor(dataset.labels(part)).to(fabric.device)
    logits = predict(network, images, mode="fixed" if norm == "batch" else "batch", batch_size=batch_size)
    return (logits.argmax(1) == labels).float().mean().item()


def _part(fabric: Fabric, started: float) -> dict:
    """What this run did of a training that may go on elsewhere."""
    seconds = time.perf_counter() - started
    return {
        "device": device_name(fabric.device),
        "precision": fabric.strategy.precision.precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": seconds,
    }


def _in_turn(parts: list[dict], key: str) -> str:
    return ", then ".join(dict.fromkeys(part[key] for part in parts))


def _revision() -> str | None:
    """The git revision, with "+" where what makes results differs from it; None outside a repository."""
    # not all that git tracks: DVC removes a stage's results before it starts
    made_by = ["localnorm", "notebooks", "params.yaml", "dvc.yaml", "requirements.lock"]
    try:
        revision, changes = (
            subprocess.run(
                ["git", *command],
                cwd=paths.project(),
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (["describe", "--always", "--exclude=*"], ["status", "--porcelain", "--", *made_by])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}+" if changes else revision


# ------------------------------------------------------------------------------------------- files: plain tensors, no pickle


def _save_checkpoint(path: Path, network, optimizer, identity: dict, history: list[dict], parts: list[dict]) -> None:
    """`parts`: device, precision, versions and seconds of each run that trained some of the epochs."""
    tensors = {f"model.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(value).contiguous()
            for name, value in state.items()
            if value is not None
        }
    metadata = {
        "identity": json.dumps(identity, sort_keys=True),
        "history": json.dumps(history),
        "parts": json.dumps(parts),
    }
    paths.write(path, safetensors_bytes(tensors, metadata))


def _resume(path: Path, network, optimizer, identity: dict) -> tuple[list[dict], list[dict]]:
    """Load what a run of the same settings left; its history and parts, empty where there is nothing to continue."""
    if not path.is_file():
        return [], []
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("identity") != json.dumps(identity, sort_keys=True) or "parts" not in metadata:
                print(f"{path.name} belongs to other settings or data: training starts anew", file=sys.stderr)
                return [], []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        print(f"{path.name} is damaged ({error}): training starts anew", file=sys.stderr)
        return [], []
    network.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return json.loads(metadata["history"]), json.loads(metadata["parts"])


def save_run(run: TrainedRun, model: Path, folder: Path, checkpoint: Path | None = None) -> None:
    """Write the weights to the file `model`, history.csv and record.json to `folder`, then drop the checkpoint.

    Of several processes the first does.
    """
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    record = run.record
    save_model(
        run.model,
        model,
        name=record["train"]["model"],
        norm=record["norm"],
        num_classes=record["data"]["num_classes"],
        in_channels=record["data"]["shape"][0],
        image_size=record["data"]["shape"][-1],
        num_groups=record["train"]["num_groups"],
        eps=record["train"]["eps"],
    )
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, run.history[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in run.history)
    paths.write(folder / "history.csv", table.getvalue())
    paths.write(folder / "record.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
