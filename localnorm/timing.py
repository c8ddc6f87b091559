"""How the benchmarks measure time and memory, and what they record about the machine.

On a shared machine the time of the same work drifts by more than the differences that are measured here. So the functions that are
compared run in turn, and the result is the median of the ratios of neighbouring runs, with the quartiles. Memory is what torch's own
allocator counts.
"""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch loads; else the memory profiler logs every call

import torch

__all__ = ["about_machine", "alternate", "bench_device", "peak_memory", "ratios"]


def alternate(functions: dict[str, Callable[[], object]], repeats: int = 20, warmup: int = 2) -> dict[str, list[float]]:
    """Time several functions, which run in turn.

    The order is reversed in every other round, so that no function always runs after the same one.

    Args:
        functions: name -> the function, called without arguments.
        repeats: rounds that are timed.
        warmup: rounds before them that are not.

    Returns:
        name -> the seconds of each of its `repeats` runs.

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
    """Median, lower and upper quartile of the ratios of paired runs.

    Example:
        >>> ratios([2.0, 4.0, 6.0], [1.0, 2.0, 2.0])
        (2.0, 2.0, 2.5)
    """
    pairs = [a / b for a, b in zip(numerator, denominator, strict=True)]
    lower, median, upper = statistics.quantiles(pairs, n=4, method="inclusive")
    return median, lower, upper


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that torch held at once during a call, not counting what it held before the call.

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


def bench_device() -> torch.device:
    """The device that is measured: the GPU if there is one, and otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def about_machine() -> dict[str, str | int]:
    """Where a row of a benchmark was measured: device, machine (its processor), driver, torch, triton and number of threads."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": _processor(),
        "driver": _driver(),
        "torch": torch.__version__,
        "triton": triton,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str:
    """The version of NVIDIA's driver, as its kernel module states it; empty where there is none."""
    version = Path("/sys/module/nvidia/version")
    return version.read_text().strip() if torch.cuda.is_available() and version.is_file() else ""
