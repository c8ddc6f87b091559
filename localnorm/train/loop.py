"""One training loop, on Lightning Fabric: CPU or GPU, float32 or bf16, one process or several.

The images stay on the device as uint8 and are augmented there in batches, so no worker processes are needed. Everything
random in epoch e follows from (seed, e): a run that was killed continues from its last epoch and ends with the same weights.
All networks of a seed (bn, ln, ln_drawn, ...) see the same initial convolutions and batches and, on one kind of device, augmentations.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from tqdm import tqdm

from localnorm.data.augment import augment, standardise
from localnorm.data.dataset import Dataset
from localnorm.layers import LocalNorm, use_mode
from localnorm.machine import computes_bf16, device_name, use_cpu
from localnorm.models import make_model
from localnorm.networks import NETWORKS, find
from localnorm.prediction import predict
from localnorm.settings import TrainConfig
from localnorm.train.checkpoints import resume, save_checkpoint
from localnorm.train.draws import Draw, draw, group_sizes
from localnorm.train.optimizers import has_stalled, learning_rate, make_optimizer
from localnorm.train.record import TrainedRun, describe_run, identify, part_of
from localnorm.train.step import Step, replays_steps

__all__ = ["fit", "make_fabric"]


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
                f"than there is; lower batch_size, and num_groups={config.num_groups} with it to keep the images per group"
            ) from error

    return named


@_suggest_smaller_batches
def fit(
    dataset: Dataset,
    config: TrainConfig,
    network: str,
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
        network: a key of `localnorm.networks.NETWORKS`: the layer, and how it is trained.
        seed: of the initial weights, the batches and the augmentation.
        initial: a network to start from, for fine-tuning; it is trained in place. A fresh one if None.
        checkpoint: a file that is rewritten after every epoch; where it is there and was made by the same settings,
            training continues from it.
        fabric: device, precision and processes; `make_fabric(config.precision)` if None.
        cuda_graphs: record a training step's kernels once and replay them: a step of a small network takes a fraction of the time.
            The network must not read values back to the CPU. None does so on one GPU, unless the network is compiled.

    Raises:
        ValueError: an unknown network, fewer training images than a batch, feature maps of one position in a network that is to meet
            single images, or CUDA graphs without a GPU.
        FloatingPointError: the loss is no longer finite; names epoch and step.
        MemoryError: the device's memory does not hold a batch.
    """
    find("network", network, NETWORKS)
    fabric = fabric or make_fabric(config.precision)
    steps = _steps_per_epoch(dataset, config, fabric)
    use_cpu(config.threads)
    plain = initial or _make_network(dataset, config, network, seed)
    plain = plain.to(memory_format=torch.channels_last)  # saved and tested, under Fabric's and the compiler's wrappers
    replays = replays_steps(cuda_graphs, config, fabric)
    optimizer = make_optimizer(plain, config, capturable=replays)
    model, optimizer = fabric.setup(torch.compile(plain) if config.compile else plain, optimizer)
    step = Step(model, optimizer, config, fabric, replays)
    layers = sum(isinstance(layer, LocalNorm) for layer in plain.modules())
    batches = _Batches(dataset, config, network, layers, seed, steps, fabric)
    _check_smallest_group(plain, dataset, group_sizes(config, network))
    identity = identify(dataset, config, network, seed)
    history, parts = resume(checkpoint, plain, optimizer, identity) if checkpoint else ([], [])
    resumed_at = len(history)

    started = time.perf_counter()
    progress = _progress(f"train {dataset.name} {network} s{seed}", config.epochs * steps, resumed_at * steps, fabric)
    for epoch in range(resumed_at, config.epochs):
        validation = [row["validation_accuracy"] for row in history]
        if has_stalled(config, validation):
            break
        model.train()
        row = _train_epoch(step, batches, epoch, config, validation, fabric, progress)
        # one for all processes: each has BatchNorm statistics of its own, and all must stop together
        row["validation_accuracy"] = fabric.broadcast(_validate(plain, dataset, config, network, fabric))
        history.append(row)
        progress.set_postfix_str(f"loss {row['train_loss']:.3f}, val {row['validation_accuracy']:.3f}")
        if checkpoint and fabric.is_global_zero:
            save_checkpoint(checkpoint, plain, optimizer, identity, history, [*parts, part_of(fabric, started)])
        fabric.barrier()
    progress.close()
    if len(history) > resumed_at:  # else the checkpoint was of a run that had ended
        parts = [*parts, part_of(fabric, started)]
    record = describe_run(
        identity,
        parts,
        parameters=sum(parameter.numel() for parameter in plain.parameters()),
        images=len(history) * steps * config.batch_size * fabric.world_size,
        resumed_at=resumed_at,
        group_sizes=group_sizes(config, network),
        fabric=fabric,
    )
    return TrainedRun(plain, history, record)


def _steps_per_epoch(dataset: Dataset, config: TrainConfig, fabric: Fabric) -> int:
    count = len(dataset.labels("train"))
    steps = count // (config.batch_size * fabric.world_size)
    if steps == 0:
        raise ValueError(
            f"batch_size={config.batch_size} on {fabric.world_size} process(es) needs as many training images, "
            f"{dataset.title} has {count}; lower batch_size"
        )
    return steps


def _make_network(dataset: Dataset, config: TrainConfig, network: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return make_model(
        config.model,
        network,
        num_classes=dataset.num_classes,
        in_channels=dataset.shape[0],
        image_size=dataset.shape[-1],
        num_groups=config.num_groups,
        eps=config.eps,
        pretrained=config.pretrained,
    )


def _progress(description: str, total: int, done: int, fabric: Fabric) -> tqdm:
    hidden = fabric.global_rank > 0
    return tqdm(
        total=total, initial=done, desc=description, unit="step", file=sys.stderr, mininterval=0.5, disable=hidden
    )


class _Batches:
    """The training images on the device, and the augmented batches that an epoch makes of them."""

    def __init__(
        self, dataset: Dataset, config: TrainConfig, network: str, layers: int, seed: int, steps: int, fabric: Fabric
    ):
        self.config, self.network, self.layers = config, network, layers
        self.seed, self.steps, self.fabric = seed, steps, fabric
        self.images = torch.as_tensor(dataset.images("train")).to(fabric.device)
        self.labels = torch.as_tensor(dataset.labels("train")).to(fabric.device)
        self.mean, self.std = (torch.tensor(each, device=fabric.device) for each in (dataset.mean, dataset.std))

    def of_epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, Draw]]:
        """(images, labels, what is drawn) of each step."""
        device, rank = self.fabric.device, self.fabric.global_rank
        shared = epoch_seed(self.seed, epoch)
        own = epoch_seed(self.seed, epoch, rank)
        torch.manual_seed(own)  # dropout
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(shared)).to(device)
        generator = torch.Generator(device).manual_seed(own)
        draws = torch.Generator().manual_seed(shared)  # apart, so that all networks see the same augmentation
        for number in range(self.steps):
            position = (number * self.fabric.world_size + rank) * self.config.batch_size
            chosen = order[position : position + self.config.batch_size]
            images = standardise(self.images[chosen], self.mean, self.std)
            images = augment(images, generator=generator, **self.config.augment)
            progress = (epoch + number / self.steps) / self.config.epochs
            drawn = draw(self.config, self.network, self.layers, progress, draws)
            yield images.contiguous(memory_format=torch.channels_last), self.labels[chosen], drawn


def _train_epoch(
    step: Step,
    batches: _Batches,
    epoch: int,
    config: TrainConfig,
    validation: Sequence[float],
    fabric: Fabric,
    progress: tqdm,
) -> dict:
    """One pass over the training images; its row of the history, but for the validation accuracy."""
    losses = torch.zeros(batches.steps, device=fabric.device)
    correct = torch.zeros((), device=fabric.device)
    for number, (images, labels, drawn) in enumerate(batches.of_epoch(epoch)):
        rate = learning_rate(config, epoch + number / batches.steps, validation)
        losses[number], right = step(images, labels, rate, drawn)
        correct += right
        progress.update()
    _check_finite(losses, epoch, rate)
    return {
        "epoch": epoch + 1,
        "learning_rate": rate,
        "train_loss": fabric.all_reduce(losses.mean()).item(),
        "train_accuracy": fabric.all_reduce(correct / (batches.steps * config.batch_size)).item(),
    }


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """One number per seed, epoch and process: nothing else has to be saved to continue, and no process repeats what another drew."""
    return seed * 100_003 + epoch + 10_000_019 * rank


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
            f"{error.args[0].split(';')[0]}; take larger images, leave the network 'ln_drawn' out, or set group_sizes above {smallest}"
        ) from None


def _check_finite(losses: torch.Tensor, epoch: int, rate: float) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FloatingPointError(
            f"the loss became {losses[step].item()} in epoch {epoch + 1}, step {step + 1}, at learning rate {rate:.3g}; "
            "lower learning_rate, or look at the images of this data set for constant ones"
        )


def _validate(model: torch.nn.Module, dataset: Dataset, config: TrainConfig, network: str, fabric: Fabric) -> float:
    """Clean accuracy on validation images as the network would be used: fixed statistics where it has them, else test batches."""
    mean, std = (torch.tensor(values, device=fabric.device) for values in (dataset.mean, dataset.std))
    images = standardise(torch.as_tensor(dataset.images("validation")).to(fabric.device), mean, std)
    labels = torch.as_tensor(dataset.labels("validation")).to(fabric.device)
    mode = "fixed" if NETWORKS[network].layer == "BN" else "batch"
    logits = predict(model, images, mode, batch_size=config.batch_size)
    return (logits.argmax(1) == labels).float().mean().item()
