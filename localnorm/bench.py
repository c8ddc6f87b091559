"""How fast the parts of the pipeline are, each compared with the usual way of doing the same: ``python -m localnorm.bench``.

It measures training against a loop with a DataLoader, training that keeps freed memory against training that returns it, noise against
loops over pixels, the noise of the answers against the forward passes of the network, and importing localnorm against importing torch.
Preparing the data sets that are on this machine is measured against a fixed bound. Both sides of a comparison run in turn, in one run.
`localnorm.cost` compares the layer with BatchNorm.
"""

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stderr
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from localnorm import noise, paths
from localnorm.answers import noisy_images
from localnorm.data import prepare
from localnorm.data.augment import augment, standardise
from localnorm.data.dataset import Dataset
from localnorm.machine import computes_bf16, use_cpu
from localnorm.models import make_model
from localnorm.prediction import predict
from localnorm.settings import AnswersConfig
from localnorm.timing import alternate, ratios

__all__ = ["PIXEL_FORMULAS", "Row", "main", "pixel_loop"]

BATCH = 128
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of CIFAR-10, about: the time does not depend on them


@dataclass(frozen=True)
class Row:
    """One comparison of this package's way with the usual way.

    Args:
        subject: what is compared with what.
        unit: of the next two values: "s", or "images/s".
        usual, ours: medians over the repeats.
        ratio, lower_quartile, upper_quartile: median and quartiles of ours / usual, taken repeat by repeat.
        wanted: the bound that the ratio should keep: ">= 1.5", or "<= 0.1".
    """

    subject: str
    unit: str
    usual: float
    ours: float
    ratio: float
    lower_quartile: float
    upper_quartile: float
    wanted: str

    @property
    def holds(self) -> bool:
        comparison, bound = self.wanted.split()
        return self.ratio >= float(bound) if comparison == ">=" else self.ratio <= float(bound)


# (suite, noise) -> the formula for one value x of a pixel at the level s, as the released scripts compute it. `kept` says whether the
# pixel survives with probability 1 - s, which all its channels share. A noise that is not here is not compared with a loop.
PIXEL_FORMULAS: dict[tuple[str, str], Callable[[float, float, bool, np.random.Generator], float]] = {
    ("released", "gaussian_pos"): lambda x, s, kept, rng: x * (1 + s * rng.uniform(0, 1)),
    ("released", "gaussian_neg"): lambda x, s, kept, rng: x * (1 + s * rng.uniform(-0.5, 0.5)),
    ("released", "poisson"): lambda x, s, kept, rng: x * (1 + rng.poisson(s)),
    ("released", "bernoulli"): lambda x, s, kept, rng: x * kept,
    ("released", "mnist_foreground"): lambda x, s, kept, rng: x + s * rng.uniform(0, 1),
    ("released", "mnist_background"): lambda x, s, kept, rng: s * rng.uniform(0, 1) if x == 0 else 1,
    ("named", "gaussian"): lambda x, s, kept, rng: x + s * rng.normal(),
    ("named", "gaussian_multiplicative"): lambda x, s, kept, rng: x * (1 + s * rng.normal()),
    ("named", "poisson"): lambda x, s, kept, rng: rng.poisson(x / s**2) * s**2,
    ("named", "bernoulli"): lambda x, s, kept, rng: x * kept,
    ("named", "brightness"): lambda x, s, kept, rng: x * (1 - s),
    ("named", "contrast"): lambda x, s, kept, rng: (x - 0.5) * (1 - s) + 0.5,
}


def pixel_loop(suite: str, name: str, images: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Noisy images, computed value by value with Python loops: the slow way that `localnorm.noise.apply` is compared with.

    Args:
        suite, name: a key of PIXEL_FORMULAS.
        images: (B, C, H, W), in the domain of the suite.
        level: of the noise, above 0.
        rng: source of the draws.

    Returns:
        (B, C, H, W), clipped to [0, 1] unless the suite is "released".
    """
    formula, out = PIXEL_FORMULAS[suite, name], np.empty_like(images)
    batch, channels, height, width = images.shape
    for image in range(batch):
        for row in range(height):
            for column in range(width):
                kept = rng.random() >= level
                for channel in range(channels):
                    y = formula(images[image, channel, row, column], level, kept, rng)
                    out[image, channel, row, column] = y if suite == "released" else min(max(y, 0), 1)
    return out


# -------------------------------------------------------------------------------------------------------------- training


class _Pictures(torch.utils.data.Dataset):
    """Images as torchvision.datasets.CIFAR10 keeps them: one array in memory, and per item a PIL image that is then transformed."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        from torchvision import transforms  # here: it takes seconds, and the processes of `_memory` need none of it

        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([m / 255 for m in MEAN], [s / 255 for s in STD]),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, precision: torch.dtype
) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = F.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _training(model: str, steps: int, repeats: int) -> Iterator[Row]:
    """The usual loop is in float32 and contiguous memory; ours is in channels_last, and in bf16 where the CPU computes it."""
    ours_in = torch.bfloat16 if computes_bf16(torch.device("cpu")) else torch.float32
    training = f"{model} training in {'bf16' if ours_in == torch.bfloat16 else 'float32'}"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (steps * BATCH, 32, 32, 3), np.uint8)
    classes = rng.integers(0, 10, len(pixels))
    resident, labels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes)
    loops: dict[str, Callable[[], None]] = {}
    # one run is one epoch: workers that went on fetching would slow down the runs that follow
    loader = DataLoader(
        _Pictures(pixels, classes), BATCH, shuffle=True, num_workers=os.cpu_count(), persistent_workers=True
    )
    for name, key in (("usual", "bn"), ("bn", "bn"), ("ln", "ln")):
        torch.manual_seed(0)
        network = make_model(model, key, num_classes=10, image_size=32, num_groups=8)
        if name != "usual":
            network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)

        def usual(network=network, optimizer=optimizer) -> None:
            for images, targets in loader:
                _step(network, optimizer, images, targets, torch.float32)

        def ours(network=network, optimizer=optimizer) -> None:
            for _ in range(steps):
                chosen = torch.randint(len(resident), (BATCH,))
                images = augment(standardise(resident[chosen], MEAN, STD), flip=True, shift=0.125)
                images = images.contiguous(memory_format=torch.channels_last)
                _step(network, optimizer, images, labels[chosen], ours_in)

        loops[name] = usual if name == "usual" else ours
    seconds = alternate(loops, repeats, warmup=1)
    speeds = {name: [steps * BATCH / value for value in values] for name, values in seconds.items()}
    yield _row(
        f"{training}, BatchNorm, against a float32 DataLoader loop",
        "images/s",
        speeds["usual"],
        speeds["bn"],
        ">= 1.5",
    )
    yield _row(
        f"{training}, LocalNorm against BatchNorm",
        "images/s",
        speeds["bn"],
        speeds["ln"],
        ">= 0.95",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = alternate({name: loops[name] for name in ("bn", "ln")}, repeats, warmup=1)
    finally:
        torch.set_num_threads(threads)
    yield _row(
        f"{training}, the same on one core, as params.yaml does it",
        "images/s",
        [steps * BATCH / value for value in seconds["bn"]],
        [steps * BATCH / value for value in seconds["ln"]],
        ">= 0.95",
    )


def _start(model: str, kept: bool) -> None:
    """Make this process ready to train on one core, and let it keep freed memory or return it, as the C library does."""
    global _train
    if kept:
        use_cpu(1)
    else:
        torch.set_num_threads(1)
    network = make_model(model, "ln", num_classes=10, image_size=32, num_groups=8)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
    images = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,))

    def _train(steps: int) -> None:
        for _ in range(steps):
            _step(network, optimizer, images, labels, torch.float32)


def _steps(steps: int) -> None:
    _train(steps)


def _memory(model: str, steps: int, repeats: int) -> Iterator[Row]:
    """Each side has a process of its own, since a process cannot go back to the default of the C library."""
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(model, name == "ours"))
            )
            for name in ("usual", "ours")
        }
        loops = {name: lambda p=process: p.submit(_steps, steps).result() for name, process in processes.items()}
        seconds = alternate(loops, repeats, warmup=1)
    speeds = {name: [steps * BATCH / value for value in values] for name, values in seconds.items()}
    yield _row(
        f"{model} training in float32 on one core, freed memory kept against given back",
        "images/s",
        speeds["usual"],
        speeds["ours"],
        ">= 1",
    )


# ----------------------------------------------------------------------------------------------------------------- noise


def _noises(images: int, repeats: int) -> Iterator[Row]:
    pixels = torch.rand(images, 3, 32, 32)
    few = pixels[:1].double().numpy()
    for suite, name in PIXEL_FORMULAS:
        level = noise.levels(name, suite)[3]
        rng = np.random.default_rng(0)
        seconds = alternate(
            {
                "usual": lambda s=suite, n=name, v=level, r=rng: pixel_loop(s, n, few, v, r),
                "ours": lambda s=suite, n=name, v=level: noise.apply(pixels, n, v, suite=s),
            },
            repeats,
        )
        speeds = {key: [count / v for v in seconds[key]] for key, count in (("usual", 1), ("ours", images))}
        subject = f"noise {name} ({suite}) against a loop over pixels"
        yield _row(subject, "images/s", speeds["usual"], speeds["ours"], ">= 100")


def _answering(model: str, images: int, repeats: int) -> Iterator[Row]:
    """The time to draw every noise of both suites at one level, against the time of the network's forward passes on them."""
    network = make_model(model, "ln", num_classes=10, image_size=32, num_groups=8).to(memory_format=torch.channels_last)
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
    about = Dataset(Path(), "random", "random", ("0",), (3, 32, 32), MEAN, STD, {}, {})
    names = {suite: [n for n in noise.noises(suite) if not n.startswith("mnist")] for suite in ("released", "named")}
    config = AnswersConfig(noises=names, statistics={}, batch_size=BATCH)
    span = noise.Extrema(torch.zeros(3), torch.full((3,), 255.0))

    def draw() -> None:
        for suite, listed in names.items():
            for name in listed:
                noisy_images(pixels, about, suite, name, noise.levels(name, suite)[3], config, span)

    def forward() -> None:
        for _ in range(sum(map(len, names.values()))):
            predict(network, standardise(pixels, MEAN, STD), "batch", batch_size=BATCH)

    seconds = alternate({"forward": forward, "noise": draw}, repeats, warmup=1)
    yield _row(
        f"the noise of {model}'s answers against their forwards", "s", seconds["forward"], seconds["noise"], "<= 0.1"
    )


# --------------------------------------------------------------------------------------------------------------- preparing


def _preparing() -> Iterator[Row]:
    for name, size, bound in (("cifar10", None, 30), ("cars", 128, 60)):
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            start = time.perf_counter()
            try:
                prepare(name, Path(folder) / name, image_size=size, test=0.2)
            except (OSError, RuntimeError, ValueError) as error:
                print(
                    f"{name} is not on this machine, so preparing it is not measured: {str(error).splitlines()[0]}",
                    file=sys.stderr,
                )
                continue
            seconds = time.perf_counter() - start
        yield Row(
            f"preparing {name}" + (f" at {size} pixels" if size else "") + " against its bound",
            "s",
            bound,
            seconds,
            *[seconds / bound] * 3,
            "<= 1",
        )


# ------------------------------------------------------------------------------------------------------------------ import


def _importing(repeats: int, warmup: int) -> Iterator[Row]:
    def start(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    names = {"torch": "import torch", "localnorm": "from localnorm import LocalNorm2d, predict"}
    seconds = alternate({name: start(code) for name, code in names.items()}, repeats, warmup)
    yield _row("importing localnorm against torch alone", "s", seconds["torch"], seconds["localnorm"], "<= 1.3")


# ------------------------------------------------------------------------------------------------------------------ report


def _row(subject: str, unit: str, usual: list[float], ours: list[float], wanted: str) -> Row:
    return Row(subject, unit, float(np.median(usual)), float(np.median(ours)), *ratios(ours, usual), wanted)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure everything, print the table and write it as a CSV file.

    Args:
        arguments: those of the command line; None takes this process's own.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(prog="python -m localnorm.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=None, help="CSV; default: data/results/bench.csv of the project")
    parser.add_argument("--repeats", type=int, default=20, help="rounds of alternating runs (at least 20 to report)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, no data sets: whether it runs, not what it costs"
    )
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error(f"--repeats must be at least 2 for a spread, got {options.repeats}")
    torch.manual_seed(0)
    model, steps, images = ("small", 1, 250) if options.quick else ("resnet32", 6, 1000)
    parts = [
        _training(model, steps, options.repeats),
        _memory(model, steps, options.repeats),
        _noises(images, options.repeats),
        _answering(model, images, min(options.repeats, 5)),
        _importing(options.repeats, warmup=0 if options.quick else 2),
    ]
    rows = []
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':70} {'usual':>9} {'ours':>9} {'ratio':>7} {'quartiles':>17} wanted")
    for part in parts if options.quick else [*parts, _preparing()]:
        for row in part:
            rows.append(row)
            spread = f"{row.lower_quartile:.2f} to {row.upper_quartile:.2f}"
            verdict = "holds" if row.holds else "MISSED"
            print(
                f"{row.subject:70} {row.usual:9.4g} {row.ours:9.4g} {row.ratio:7.2f} {spread:>17} {row.wanted} {row.unit}: {verdict}",
                flush=True,
            )
    output = options.output or paths.project() / "data" / "results" / "bench.csv"
    paths.write(output, pd.DataFrame(map(asdict, rows)).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return rows


if __name__ == "__main__":
    main()
