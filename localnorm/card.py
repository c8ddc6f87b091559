"""Measure everything that this package has to know about a GPU, in at most ten minutes: ``python -m localnorm.card``.

The measurements answer five questions. Do the Triton kernels compute the right values on this GPU? What do they cost, compared with
torch's kernels and with BatchNorm? From which size on is it faster to normalise groups one by one than to copy the batch? Which kernels
take the time of a training step? Which tile sizes are fastest? All rows go into one CSV file, which is saved after each measurement.
The most important measurements come first, and those that the time does not allow are left out.
The entries of `localnorm._triton.MEASURED` come from that file.
"""

import argparse
import csv
import io
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from localnorm import _triton, cost, paths
from localnorm._cpu import GroupByGroup
from localnorm.cost import DTYPES, LAYOUTS, NUM_GROUPS, Cost
from localnorm.layers import local_norm
from localnorm.timing import about_machine, alternate, bench_device

__all__ = ["main"]

MEASURED_SHAPES = [(32, 256, 56, 56), (128, 16, 32, 32), (128, 64, 32, 32)]
ERRORS = [
    (32, 64, 28, 28),
    (30, 20, 7, 7),
    (5, 6, 9, 10),
]  # the second is ragged, the third has fewer images than groups
LOUDEST = 12  # kernels listed of a profile
LARGER_ERROR = 2.0  # times torch's, or times four roundings where torch has less by luck


def row_of(setting: dict, measure: str, batchnorm: float, localnorm: float, bound: float = math.nan) -> Cost:
    """A row for values that were measured once: an error, or the time of a kernel in ms."""
    ratio = localnorm / batchnorm if batchnorm else math.nan
    values = {"batchnorm": batchnorm, "localnorm": localnorm, "ratio": ratio, "lower_quartile": ratio}
    return Cost(**setting, measure=measure, **values, upper_quartile=ratio, bound=bound, **about_machine())


# -------------------------------------------------------------------------------------------------------------- correctness


def errors(shape: tuple[int, ...], layout: str, dtype: torch.dtype, assignment: str) -> Iterator[Cost]:
    """The largest error of the values and of each gradient, compared with float64 and divided by the largest exact value.

    The column batchnorm holds the error of torch's kernels, and the column localnorm that of the Triton kernels.
    """
    x = (cost.draw_images(shape, layout) + 3).to(dtype)
    grad = torch.randn_like(x)
    weight, bias = torch.randn(2, NUM_GROUPS, shape[1], device=x.device).unbind()
    exact = _values_and_gradients(local_norm, x.double(), weight.double(), bias.double(), grad.double(), assignment)
    with cost.kernels("torch"):
        usual = _values_and_gradients(local_norm, x, weight, bias, grad, assignment)
    ours = _values_and_gradients(_triton.local_norm, x, weight, bias, grad, assignment)
    for name, right, theirs, own in zip(("y", "x", "weight", "bias"), exact, usual, ours, strict=True):
        setting = {"subject": f"kernels: {name}", "shape": "x".join(map(str, shape)), "layout": layout}
        setting |= {"dtype": str(dtype).removeprefix("torch."), "assignment": assignment, "kernels": "triton"}
        theirs, own = (((t.double() - right).abs().max() / right.abs().max()).item() for t in (theirs, own))
        yield row_of(setting, "error", max(theirs, 4 * torch.finfo(dtype).eps), own, LARGER_ERROR)


def _values_and_gradients(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, assignment: str
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = function(leaves[0], NUM_GROUPS, *leaves[1:], assignment=assignment)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


# --------------------------------------------------------------------------------------------------------- without Triton


def by_group(shape: tuple[int, ...], layout: str, dtype: str, repeats: int) -> Iterator[Cost]:
    """The time of one layer that normalises its groups one by one, for groups that are contiguous in memory.

    Compared with the rows of `localnorm.cost.layer_costs`, it shows from which size on this beats one call on a copy of the batch.
    """
    x = cost.draw_images(shape, layout).to(DTYPES[dtype]).requires_grad_()
    grad = torch.randn_like(x)
    weight, bias = (torch.ones(NUM_GROUPS, shape[1], device=x.device, requires_grad=True) for _ in range(2))

    def step() -> None:
        y = GroupByGroup.apply(x, weight, bias, None, None, NUM_GROUPS, "contiguous", 1e-5, 0.0)
        torch.autograd.grad(y, (x, weight, bias), grad)

    seconds = alternate({"batch": cost.layer_step(torch.nn.BatchNorm2d(shape[1]), x, grad), "local": step}, repeats)
    setting = {"subject": "layer", "shape": shape, "layout": layout, "dtype": dtype}
    setting |= {"assignment": "contiguous", "kernels": "by group"}
    yield cost.make_row(setting, "step", seconds["batch"], seconds["local"])


# ------------------------------------------------------------------------------------------------------------------ profile


def profile(name: str, shape: tuple[int, ...], layout: str, dtype: str) -> Iterator[Cost]:
    """The kernels that take most of a training step, in ms: for the network with BatchNorm and for the one with LocalNorm."""
    batch, local, assignment = cost.make_pair(name, layout, shape[-1])
    images = cost.draw_images(shape, layout)
    usual = _kernel_times(cost.network_step(batch, images, dtype))
    for choice in cost.kernels_here():
        ours = _kernel_times(cost.by(choice, cost.network_step(local, images, dtype)))
        for kernel in sorted(ours, key=ours.get, reverse=True)[:LOUDEST]:
            setting = {
                "subject": f"{name}: {kernel}"[:80],
                "shape": "x".join(map(str, shape)),
                "layout": layout,
                "dtype": dtype,
            }
            setting |= {"assignment": assignment, "kernels": choice}
            yield row_of(setting, "profile", usual.get(kernel, 0.0), ours[kernel])


def _kernel_times(step: Callable[[], None]) -> dict[str, float]:
    for _ in range(3):
        step()
    on_gpu = bench_device().type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    wanted = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return {event.key: getattr(event, wanted) / 1e3 for event in profiler.key_averages() if getattr(event, wanted)}


# -------------------------------------------------------------------------------------------------------------------- tiles


def tiles(shape: tuple[int, ...], layout: str, dtype: str, repeats: int) -> Iterator[Cost]:
    """The time of one layer with several tile sizes, from which those in `_triton_kernels` are chosen."""
    from localnorm import _triton_kernels as kernels

    x = cost.draw_images(shape, layout).to(DTYPES[dtype]).requires_grad_()
    grad, layer = torch.randn_like(x), torch.nn.BatchNorm2d(shape[1])
    weight, bias = (torch.ones(NUM_GROUPS, shape[1], device=x.device, requires_grad=True) for _ in range(2))
    assignment = "interleaved" if layout == "contiguous" else "contiguous"

    def step() -> None:
        y = _triton.local_norm(x, NUM_GROUPS, weight, bias, assignment=assignment)
        torch.autograd.grad(y, (x, weight, bias), grad)

    usual, before = cost.layer_step(layer, x, grad), (kernels.TILE, kernels.WARPS, kernels.PROGRAMS)
    try:
        for chosen in product((1024, 2048, 4096), (4, 8), (512, 2048)):
            kernels.TILE, kernels.WARPS, kernels.PROGRAMS = chosen
            seconds = alternate({"batch": usual, "local": step}, repeats)
            values, warps, programs = chosen
            setting = {"subject": f"layer: TILE={values} WARPS={warps} PROGRAMS={programs}", "shape": shape}
            setting |= {"layout": layout, "dtype": dtype, "assignment": assignment, "kernels": "triton"}
            yield cost.make_row(setting, "step", seconds["batch"], seconds["local"])
    finally:
        kernels.TILE, kernels.WARPS, kernels.PROGRAMS = before


# ------------------------------------------------------------------------------------------------------------------- the run


def plan(quick: bool, repeats: int) -> Iterator[tuple[str, Callable[[], Iterator[Cost]]]]:
    """The name of each measurement and the function that makes it, the most important first."""
    shapes = [(4, 3, 2, 3)] if quick else ERRORS
    halves = () if quick else (torch.bfloat16, torch.float16)
    for shape, layout, dtype, assignment in product(
        shapes, LAYOUTS, (torch.float32, *halves), ("contiguous", "interleaved")
    ):
        yield f"errors {shape} {layout} {dtype} {assignment}", partial(errors, shape, layout, dtype, assignment)
    settings = [("channels_last", "float32")] if quick else list(product(LAYOUTS, cost.dtypes_here()))
    for shape, (layout, dtype) in product([(16, 8, 8, 8)] if quick else MEASURED_SHAPES, settings):
        yield f"layer {shape} {layout} {dtype}", partial(cost.layer_costs, shape, layout, dtype, repeats)
        yield f"layer by group {shape} {layout} {dtype}", partial(by_group, shape, layout, dtype, repeats)
    networks = {"small": (16, 3, 32, 32)} if quick else cost.networks_here()
    for (name, shape), (layout, dtype) in product(networks.items(), reversed(settings)):
        yield f"steps {name} {layout} {dtype}", partial(cost.step_costs, name, shape, layout, dtype, repeats)
    first, shape = next(iter(networks.items()))
    yield f"profile {first}", partial(profile, first, shape, *settings[-1])
    for (name, shape), layout in product(networks.items(), dict.fromkeys(layout for layout, _ in settings)):
        counts = (1, 2) if quick else cost.PREDICTED
        yield f"predictions {name} {layout}", partial(cost.prediction_costs, name, shape, layout, repeats, counts)
    if not quick:
        for layout, dtype in settings:
            yield f"tiles {layout} {dtype}", partial(tiles, MEASURED_SHAPES[0], layout, dtype, repeats)


def main(arguments: list[str] | None = None) -> list[Cost]:
    """Measure everything, print each row and save the rows as a CSV file after each measurement.

    Args:
        arguments: those of the command line; None takes this process's own.

    Returns:
        The rows.

    Raises:
        SystemExit: with status 1 where a measurement failed, or an error was larger than its bound.
    """
    parser = argparse.ArgumentParser(prog="python -m localnorm.card", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("data/results/card.csv"))
    parser.add_argument("--minutes", type=float, default=9, help="nothing is started after so many")
    parser.add_argument("--repeats", type=int, default=20, help="rounds of alternating runs (at least 20 to report)")
    parser.add_argument("--quick", action="store_true", help="small shapes: whether it runs, not what it costs")
    options = parser.parse_args(arguments)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not torch.cuda.is_available() and not (options.quick and interpreted):
        parser.error("this measures a GPU, and there is none; to see whether it runs: TRITON_INTERPRET=1 and --quick")
    torch.manual_seed(0)
    end = time.monotonic() + 60 * options.minutes
    cost.print_header(options.repeats)
    rows, failed = [], []
    for name, measure in plan(options.quick, options.repeats):
        if time.monotonic() > end:
            print(f"left out, since {options.minutes:g} minutes are over: {name}")
            continue
        try:
            for row in measure():
                cost.print_row(row)
                rows.append(row)
        except Exception:  # one measurement that fails must not cost the others
            traceback.print_exc()
            failed.append(name)
        if rows:
            save(rows, options.output)
    wrong = [row for row in rows if row.measure == "error" and not row.ratio <= row.bound]
    print(f"{len(rows)} rows in {options.output}; larger errors than torch's: {len(wrong)}; failed: {failed or 'none'}")
    if wrong or failed:
        raise SystemExit(1)
    return rows


def save(rows: list[Cost], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    paths.write(path, text.getvalue())


if __name__ == "__main__":
    main()
