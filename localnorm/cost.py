"""Time and memory that LocalNorm takes compared with BatchNorm, measured in one run: ``python -m localnorm.cost``.

It measures training steps of single layers, alone and with ReLU, and of whole networks, with groups of equal size, drawn group sizes
and shrunken statistics; the memory of those steps; and predictions for 1 and for 32 images. On a GPU it also measures CUDA graphs, and
every LocalNorm row comes twice: with torch's kernels and with this package's Triton kernels. `localnorm.timing` explains how times
and ratios are taken.
"""

import argparse
import contextlib
import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

from localnorm import _triton, paths
from localnorm.convert import convert_to_localnorm
from localnorm.layers import LocalNorm2d, LocalNormAct2d, use_mode
from localnorm.machine import computes_bf16
from localnorm.models import make_model
from localnorm.prediction import Predictor
from localnorm.timing import about_machine, alternate, bench_device, peak_memory, ratios
from localnorm.training_statistics import estimate_statistics, learn_spread

__all__ = ["Cost", "main"]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYER_SHAPES = [(128, 16, 32, 32), (128, 64, 32, 32), (32, 256, 56, 56)]
NETWORKS = {  # training batch
    "resnet32": (128, 3, 32, 32),
    "resnet50": (8, 3, 224, 224),
    "efficientnet_lite0": (32, 3, 160, 160),
}
PREDICTED = (1, 32)  # images
PRIOR = 512  # positions: its value does not change what it costs
NUM_GROUPS = 8
# printed, with widths
COLUMNS = {"subject": 20, "measure": 9, "shape": 15, "layout": 14, "dtype": 10, "assignment": 13, "kernels": 8}


@dataclass(frozen=True)
class Cost:
    """One measurement of LocalNorm, the same of BatchNorm, and their ratio.

    Args:
        subject: "layer", or the network.
        measure: "step", "drawn" (a step with drawn group sizes), "shrunk" (a step with each image's statistics shrunk towards its
            group's), "graph" (a step as a CUDA graph), "relu" (a step of LocalNormAct2d against BatchNorm and an inplace ReLU) or
            "memory" in training; "single", "prior", "gated" or "vote" for predictions.
        shape, layout, dtype: of the images, or of the layer's input: "128x16x32x32", "channels_last", "float32".
        assignment: which images form a group: "interleaved" or "contiguous".
        kernels: what computed LocalNorm: "torch" or "triton".
        batchnorm, localnorm: medians, in ms or, for "memory", in MiB.
        ratio, lower_quartile, upper_quartile: median and quartiles of localnorm / batchnorm over the repeats.
        bound: the largest ratio that is wanted.
        device, machine, driver, torch, triton, threads: where it was measured, see `localnorm.timing.about_machine`.
    """

    subject: str
    measure: str
    shape: str
    layout: str
    dtype: str
    assignment: str
    kernels: str
    batchnorm: float
    localnorm: float
    ratio: float
    lower_quartile: float
    upper_quartile: float
    bound: float
    device: str
    machine: str
    driver: str
    torch: str
    triton: str
    threads: int


def bound_of(subject: str, measure: str, layout: str) -> float:
    """The largest ratio to BatchNorm that is wanted of a measure."""
    if measure == "memory":
        return 1.02
    if measure in ("single", "prior", "gated"):
        return 1.2
    if measure == "vote":
        return float(NUM_GROUPS)  # forwards
    if measure == "graph" or subject == "layer":
        return 1.05
    return 1.05 if layout == "channels_last" and bench_device().type == "cpu" else 1.03


def make_row(setting: dict, measure: str, batchnorm: list[float], localnorm: list[float]) -> Cost:
    """The row for one setting (subject, shape, layout, dtype, assignment, kernels), from paired values in seconds or bytes."""
    scale = 2**-20 if measure == "memory" else 1e3
    median, lower, upper = ratios(localnorm, batchnorm)
    return Cost(
        **{**setting, "shape": "x".join(map(str, setting["shape"]))},
        measure=measure,
        batchnorm=statistics.median(batchnorm) * scale,
        localnorm=statistics.median(localnorm) * scale,
        ratio=median,
        lower_quartile=lower,
        upper_quartile=upper,
        bound=bound_of(setting["subject"], measure, setting["layout"]),
        **about_machine(),
    )


# ---------------------------------------------------------------------------------------------------------- what is measured


def kernels_here() -> list[str]:
    """The kinds of kernels that this machine can run: torch's, and on a GPU with triton the Triton kernels too."""
    return ["torch", "triton"] if torch.cuda.is_available() and about_machine()["triton"] else ["torch"]


def networks_here() -> dict[str, tuple[int, ...]]:
    """The networks and the shapes of their training batches. ResNet-50 gets a larger batch on a GPU, where people train it."""
    return NETWORKS if bench_device().type == "cpu" else {**NETWORKS, "resnet50": (32, 3, 224, 224)}


def dtypes_here() -> list[str]:
    """The number formats that the device computes itself. An emulated one would take hours to measure, and nobody uses it."""
    return [n for n, dtype in DTYPES.items() if dtype != torch.bfloat16 or computes_bf16(bench_device())]


@contextlib.contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Let these kernels compute LocalNorm within a `with` block."""
    before, _triton.KERNELS = _triton.KERNELS, choice
    try:
        yield
    finally:
        _triton.KERNELS = before


def by(choice: str, function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with kernels(choice):
            function()

    return run


def draw_images(shape: tuple[int, ...], layout: str) -> Tensor:
    return torch.randn(shape, device=bench_device()).contiguous(memory_format=LAYOUTS[layout])


def make_pair(name: str, layout: str, image_size: int) -> tuple[nn.Module, nn.Module, str]:
    """A network with BatchNorm, the same with LocalNorm and stored statistics, and the assignment that suits the layout."""
    assignment = "interleaved" if layout == "contiguous" else "contiguous"
    batch = make_model(name, "bn", num_classes=10, image_size=image_size)
    batch = batch.to(bench_device(), memory_format=LAYOUTS[layout])
    return batch, convert_to_localnorm(batch, NUM_GROUPS, assignment=assignment), assignment


def layer_step(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    inputs = (x, *layer.to(x.device).parameters())

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, grad)

    return step


def network_step(network: nn.Module, images: Tensor, dtype: str) -> Callable[[], None]:
    network.train()

    def step() -> None:
        with torch.autocast(images.device.type, dtype=DTYPES[dtype], enabled=dtype != "float32"):
            loss = network(images).float().square().mean()
        loss.backward()
        network.zero_grad()  # a step ends with the memory that it began with, or peaks of two steps would not compare

    return step


def with_drawn_sizes(step: Callable[[], None], batch: int) -> Callable[[], None]:
    """The same step, with groups of 1, 2, 4, ... images in turn, up to the layer's own group size."""
    sizes = cycle([size for size in (1, 2, 4, 8, 16) if size <= max(1, batch // NUM_GROUPS)])

    def drawn() -> None:
        with use_mode("batch", group_size=next(sizes)):
            step()

    return drawn


def with_shrunken_statistics(step: Callable[[], None]) -> Callable[[], None]:
    """The same step, with each image's statistics shrunk towards its group's."""
    prior = torch.tensor(float(PRIOR), device=bench_device())  # as a training draws it

    def shrunk() -> None:
        with use_mode("batch", prior=prior):
            step()

    return shrunk


def as_graph(step: Callable[[], None]) -> Callable[[], None]:
    """The same step as a CUDA graph, which takes only the GPU's own time and none for Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def evaluation(network: nn.Module, images: Tensor) -> Callable[[], None]:
    network = network.eval()

    def forward() -> None:
        with torch.no_grad():
            network(images)

    return forward


def prediction(network: nn.Module, images: Tensor, mode: str) -> Callable[[], object]:
    predictor = Predictor(network, mode, prior=PRIOR if mode in ("prior", "gated") else None)
    return lambda: predictor(images)


# ------------------------------------------------------------------------------------------------------------------ the rows


def layer_costs(shape: tuple[int, ...], layout: str, dtype: str, repeats: int) -> Iterator[Cost]:
    x = draw_images(shape, layout).to(DTYPES[dtype]).requires_grad_()
    grad = torch.randn_like(x)
    channels = shape[1]
    kinds = {
        "step": (nn.BatchNorm2d(channels), LocalNorm2d),
        "relu": (
            nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            partial(LocalNormAct2d, act=nn.ReLU()),
        ),
    }
    for measure, (usual, make_ours) in kinds.items():
        steps = {"batch": layer_step(usual, x, grad)}
        for assignment in ("interleaved", "contiguous"):
            step = layer_step(make_ours(channels, NUM_GROUPS, assignment=assignment), x, grad)
            for choice in kernels_here():
                steps[assignment, choice] = by(choice, step)
        seconds = alternate(steps, repeats)
        memory = {name: [float(peak_memory(step))] * 2 for name, step in steps.items()} if measure == "step" else {}
        for assignment, choice in list(steps)[1:]:
            setting = {"subject": "layer", "shape": shape, "layout": layout, "dtype": dtype}
            setting |= {"assignment": assignment, "kernels": choice}
            yield make_row(setting, measure, seconds["batch"], seconds[assignment, choice])
            if memory:
                yield make_row(setting, "memory", memory["batch"], memory[assignment, choice])


def step_costs(name: str, shape: tuple[int, ...], layout: str, dtype: str, repeats: int) -> Iterator[Cost]:
    """A training step of a whole network: forward and backward pass. The optimiser's part is the same for both and is left out."""
    batch, local, assignment = make_pair(name, layout, shape[-1])
    images = draw_images(shape, layout)
    usual, ours = network_step(batch, images, dtype), network_step(local, images, dtype)
    steps = {"batch": usual}
    for choice in kernels_here():
        steps["step", choice] = by(choice, ours)
        steps["drawn", choice] = by(choice, with_drawn_sizes(ours, shape[0]))
        steps["shrunk", choice] = by(choice, with_shrunken_statistics(ours))
    seconds = alternate(steps, repeats)
    memory = {key: [float(peak_memory(step))] * 2 for key, step in steps.items()}
    for choice in kernels_here():
        setting = {"subject": name, "shape": shape, "layout": layout, "dtype": dtype}
        setting |= {"assignment": assignment, "kernels": choice}
        for measure in ("step", "drawn", "shrunk"):
            yield make_row(setting, measure, seconds["batch"], seconds[measure, choice])
        yield make_row(setting, "memory", memory["batch"], memory["step", choice])
        if bench_device().type == "cuda":
            with kernels(choice):
                replays = {"batch": as_graph(usual), "local": as_graph(ours)}
            seconds_of_graphs = alternate(replays, repeats)
            yield make_row(setting, "graph", seconds_of_graphs["batch"], seconds_of_graphs["local"])


def prediction_costs(
    name: str, shape: tuple[int, ...], layout: str, repeats: int, counts: tuple[int, ...] = PREDICTED
) -> Iterator[Cost]:
    """Predictions of a LocalNorm network, compared with a BatchNorm network in evaluation mode, which uses stored statistics."""
    batch, local, assignment = make_pair(name, layout, shape[-1])
    batches = [draw_images((2 * NUM_GROUPS, *shape[1:]), layout)]
    estimate_statistics(local, batches)
    learn_spread(local, batches)
    for count in counts:
        images = draw_images((count, *shape[1:]), layout)
        forwards = {"batch": evaluation(batch, images)}
        modes = ["single", "prior", "gated", "vote"]
        if count > 1 and name != "resnet32" and bench_device().type == "cpu":
            modes.remove("vote")  # K forwards of as many large images: it would take as long as all the rest
        for choice in kernels_here():
            for mode in modes:
                forwards[mode, choice] = by(choice, prediction(local, images, mode))
        seconds = alternate(forwards, repeats)
        for mode, choice in list(forwards)[1:]:
            setting = {"subject": name, "shape": tuple(images.shape), "layout": layout, "dtype": "float32"}
            setting |= {"assignment": assignment, "kernels": choice}
            yield make_row(setting, mode, seconds["batch"], seconds[mode, choice])


def all_costs(quick: bool, repeats: int) -> Iterator[Cost]:
    shapes = [(16, 8, 8, 8)] if quick else LAYER_SHAPES
    networks = {"resnet32": (16, 3, 32, 32)} if quick else networks_here()
    counts = (1, 2) if quick else PREDICTED
    settings = [(layout, dtype) for layout in LAYOUTS for dtype in dtypes_here()]
    for shape in shapes:
        for layout, dtype in settings:
            yield from layer_costs(shape, layout, dtype, repeats)
    for name, shape in networks.items():
        for layout, dtype in settings:
            yield from step_costs(name, shape, layout, dtype, repeats)
        for layout in LAYOUTS:
            yield from prediction_costs(name, shape, layout, repeats, counts)


# --------------------------------------------------------------------------------------------------------------- what is kept


def print_header(repeats: int) -> None:
    about = {name: value for name, value in about_machine().items() if value != ""}
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "; ms, memory in MiB")
    for name in DTYPES.keys() - set(dtypes_here()):
        print(f"{name} is left out: this device only emulates it")
    print(f"rows of {repeats} rounds follow as they are measured; the networks come last and take longest")
    print(
        f"{_in_columns(COLUMNS)}{'BatchNorm':>10} {'LocalNorm':>10} {'ratio':>6} {'quartiles':>13} bound",
        flush=True,
    )


def print_row(row: Cost) -> None:
    spread = f"{row.lower_quartile:.2f} to {row.upper_quartile:.2f}"
    verdict = "" if math.isnan(row.bound) else f"{row.bound:.2f} {'holds' if row.ratio <= row.bound else 'MISSED'}"
    columns = _in_columns(getattr(row, column) for column in COLUMNS)
    print(f"{columns}{row.batchnorm:10.3g} {row.localnorm:10.3g} {row.ratio:6.2f} {spread:>13} {verdict}", flush=True)


def _in_columns(values: Iterable[str]) -> str:
    return "".join(f"{value[: width - 1]:{width}}" for value, width in zip(values, COLUMNS.values(), strict=True))


def save(rows: list[Cost], path: Path) -> None:
    """Write the rows to a CSV file, in place of earlier rows of this device. Rows that were measured on other devices stay."""
    others = []
    if path.is_file():
        with path.open(newline="") as file:
            others = [row for row in csv.DictReader(file) if row["device"] != rows[0].device]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(rows[0])), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted([*others, *map(asdict, rows)], key=lambda row: row["device"] != "cpu"))
    paths.write(path, text.getvalue())


def main(arguments: list[str] | None = None) -> list[Cost]:
    """Measure everything, print the table and write it as a CSV file.

    Args:
        arguments: those of the command line; None takes this process's own.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description="LocalNorm's time and memory against BatchNorm's.")
    parser.add_argument("--output", type=Path, default=Path("data/results/cost.csv"))
    parser.add_argument("--repeats", type=int, default=20, help="rounds of alternating runs (at least 20 to report)")
    parser.add_argument("--quick", action="store_true", help="small shapes: whether it runs, not what it costs")
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error(f"--repeats must be at least 2 for a spread, got {options.repeats}")
    torch.manual_seed(0)
    print_header(options.repeats)
    rows = []
    for row in all_costs(options.quick, options.repeats):
        print_row(row)
        rows.append(row)
    save(rows, options.output)
    return rows


if __name__ == "__main__":
    main()
