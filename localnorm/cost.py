"""What LocalNorm costs against BatchNorm, measured in one run: ``python -m localnorm.cost``.

Times on a shared machine drift by more than the difference in question, so the two are run in turn, and what is
reported is the median of the ratios of neighbouring runs with its quartiles. Memory is the allocator's own count.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch loads; else the memory profiler logs every call

import torch
from torch import Tensor, nn

from localnorm.convert import convert_to_localnorm
from localnorm.layers import LocalNorm2d, use_mode
from localnorm.machine import computes_bf16
from localnorm.models import make_model
from localnorm.prediction import predict

__all__ = ["Cost", "alternate", "main", "peak_memory", "ratios"]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYER_SHAPES = [(128, 16, 32, 32), (128, 64, 32, 32), (32, 256, 56, 56)]
NETWORKS = {"resnet32": (128, 3, 32, 32), "resnet50": (8, 3, 224, 224)}  # training batch
SINGLE_BATCH = 8  # images in a forward that normalises each alone
NUM_GROUPS = 8
COLUMNS = ("subject", "measure", "shape", "layout", "dtype", "assignment")  # printed
BOUNDS = {"step": 1.05, "memory": 1.05, "single": 1.15, "vote": float(NUM_GROUPS)}


@dataclass(frozen=True)
class Cost:
    """One row: a LocalNorm figure over a BatchNorm figure, in ms or MiB, with the quartiles of the ratio."""

    subject: str
    measure: str  # step (forward and backward), memory (of a step), single and vote (against evaluation)
    shape: str
    layout: str
    dtype: str
    assignment: str
    batchnorm: float
    localnorm: float
    ratio: float
    lower_quartile: float
    upper_quartile: float
    bound: float
    device: str
    machine: str
    torch: str
    threads: int


def alternate(functions: dict[str, Callable[[], object]], repeats: int = 20, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each run of each function, run in turn: {name: repeats values}.

    The order is reversed every other round, so that no function always follows the same one.

    Example:
        >>> seconds = alternate({"a": lambda: None, "b": lambda: time.sleep(0.001)}, repeats=3)
        >>> len(seconds["a"]), min(seconds["b"]) >= 0.001
        (3, True)
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds = {name: [] for name in functions}
    for round_ in range(repeats):
        for name in list(functions)[:: -1 if round_ % 2 else 1]:
            _wait()
            start = time.perf_counter()
            functions[name]()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratios of paired runs.

    Example:
        >>> ratios([2.0, 4.0, 6.0], [1.0, 2.0, 2.0])
        (2.0, 2.0, 2.5)
    """
    pairs = [a / b for a, b in zip(numerator, denominator, strict=True)]
    lower, median, upper = statistics.quantiles(pairs, n=4, method="inclusive")
    return median, lower, upper


def peak_memory(function: Callable[[], object]) -> int:
    """Most bytes that torch held at once during a call, above what it held before.

    Example:
        >>> peak_memory(lambda: torch.zeros(1000, dtype=torch.float64)) >= 8000
        True
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtypes() -> list[str]:
    """The number formats that the device computes in; one that it emulates would be measured for hours, and used by nobody."""
    return [name for name, dtype in DTYPES.items() if dtype != torch.bfloat16 or computes_bf16(_device())]


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _images(shape: tuple[int, ...], layout: str) -> Tensor:
    return torch.randn(shape, device=_device()).contiguous(memory_format=LAYOUTS[layout])


def _layer_step(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    inputs = (x, *layer.to(x.device).parameters())

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, grad)

    return step


def _network_step(network: nn.Module, images: Tensor, dtype: str) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(images.device.type, dtype=DTYPES[dtype], enabled=dtype != "float32"):
            loss = network(images).float().square().mean()
        loss.backward()
        network.zero_grad()  # a step ends with the memory that it began with, or peaks of two steps would not compare

    return step


def _forward(network: nn.Module, images: Tensor, mode: str | None) -> Callable[[], None]:
    network = network.eval()

    def forward() -> None:
        with torch.no_grad():
            if mode is None:
                network(images)
            else:
                with use_mode(mode):
                    network(images)

    return forward


def _row(subject, measure, shape, layout, dtype, assignment, batchnorm, localnorm) -> Cost:
    scale = 2**-20 if measure == "memory" else 1e3
    return Cost(
        subject,
        measure,
        "x".join(map(str, shape)),
        layout,
        dtype,
        assignment,
        statistics.median(batchnorm) * scale,
        statistics.median(localnorm) * scale,
        *ratios(localnorm, batchnorm),
        BOUNDS[measure],
        _device_name(),
        _machine(),
        torch.__version__,
        torch.get_num_threads(),
    )


def _layer_costs(shapes: list[tuple[int, ...]], repeats: int) -> Iterator[Cost]:
    for shape in shapes:
        for layout in LAYOUTS:
            for dtype in _dtypes():
                x = _images(shape, layout).to(DTYPES[dtype]).requires_grad_()
                grad = torch.randn_like(x)
                layers = {
                    name: LocalNorm2d(shape[1], NUM_GROUPS, assignment=name) for name in ("interleaved", "contiguous")
                }
                steps = {
                    name: _layer_step(layer, x, grad)
                    for name, layer in {"batch": nn.BatchNorm2d(shape[1]), **layers}.items()
                }
                seconds = alternate(steps, repeats)
                memory = {name: [peak_memory(step)] * 2 for name, step in steps.items()}
                for name in layers:
                    row = ("layer", shape, layout, dtype, name)
                    yield _row(row[0], "step", *row[1:], seconds["batch"], seconds[name])
                    yield _row(row[0], "memory", *row[1:], memory["batch"], memory[name])


def _network_costs(networks: dict[str, tuple[int, ...]], repeats: int) -> Iterator[Cost]:
    for name, shape in networks.items():
        for layout in LAYOUTS:
            assignment = "interleaved" if layout == "contiguous" else "contiguous"
            batch = make_model(name, "batch", num_classes=10).to(_device(), memory_format=LAYOUTS[layout])
            local = convert_to_localnorm(batch, NUM_GROUPS, assignment=assignment)
            images = _images(shape, layout)
            for dtype in _dtypes():
                row = (name, shape, layout, dtype, assignment)
                steps = {
                    "batch": _network_step(batch.train(), images, dtype),
                    "local": _network_step(local, images, dtype),
                }
                seconds = alternate(steps, repeats)
                yield _row(name, "step", *row[1:], seconds["batch"], seconds["local"])
                memory = {key: [peak_memory(step)] * 2 for key, step in steps.items()}
                yield _row(name, "memory", *row[1:], memory["batch"], memory["local"])
            few = images[:SINGLE_BATCH]
            row = (tuple(few.shape), layout, "float32", assignment)
            forwards = {
                "batch": _forward(batch, few, None),
                "single": _forward(local, few, "single"),
                "vote": lambda local=local, few=few: predict(local, few, "vote"),
            }
            seconds = alternate(forwards, repeats)
            for mode in ("single", "vote"):
                yield _row(name, mode, *row, seconds["batch"], seconds[mode])


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _print_header(rows: int, repeats: int) -> None:
    print(
        f"{_machine()}, {torch.get_num_threads()} threads, {_device_name()}, torch {torch.__version__}; ms, memory in MiB"
    )
    for name in DTYPES.keys() - set(_dtypes()):
        print(f"{name} is left out: this device only emulates it")
    print(f"{rows} rows of {repeats} rounds follow as they are measured; the networks come last and take longest")
    print(
        "".join(f"{c:15}" for c in COLUMNS)
        + f"{'BatchNorm':>10} {'LocalNorm':>10} {'ratio':>6} {'quartiles':>13} bound",
        flush=True,
    )


def _print_row(row: Cost) -> None:
    text = "".join(f"{getattr(row, c):15}" for c in COLUMNS)
    spread = f"{row.lower_quartile:.2f} to {row.upper_quartile:.2f}"
    verdict = "holds" if row.ratio <= row.bound else "MISSED"
    print(
        f"{text}{row.batchnorm:10.2f} {row.localnorm:10.2f} {row.ratio:6.2f} {spread:>13} {row.bound:.2f} {verdict}",
        flush=True,
    )


def _save(rows: list[Cost], path: Path) -> None:
    """Replace the rows of this device; those that were measured on others stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    others = []
    if path.is_file():
        with path.open(newline="") as file:
            others = [row for row in csv.DictReader(file) if row["device"] != rows[0].device]
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*others, *map(asdict, rows)], key=lambda row: row["device"] != "cpu"))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> list[Cost]:
    """Measure, print the table, write the CSV; `arguments` as on the command line."""
    parser = argparse.ArgumentParser(description="LocalNorm's time and memory against BatchNorm's.")
    parser.add_argument("--output", type=Path, default=Path("data/sweeps/cost.csv"))
    parser.add_argument("--repeats", type=int, default=20, help="rounds of alternating runs (at least 20 to report)")
    parser.add_argument("--quick", action="store_true", help="small shapes: whether it runs, not what it costs")
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error(f"--repeats must be at least 2 for a spread, got {options.repeats}")
    torch.manual_seed(0)
    shapes = [(16, 8, 8, 8)] if options.quick else LAYER_SHAPES
    networks = {"resnet32": (16, 3, 32, 32)} if options.quick else NETWORKS
    settings = len(LAYOUTS) * len(_dtypes())
    _print_header(4 * settings * len(shapes) + (2 * settings + 2 * len(LAYOUTS)) * len(networks), options.repeats)
    rows = []
    for row in chain(_layer_costs(shapes, options.repeats), _network_costs(networks, options.repeats)):
        _print_row(row)
        rows.append(row)
    _save(rows, options.output)
    return rows


if __name__ == "__main__":
    main()
