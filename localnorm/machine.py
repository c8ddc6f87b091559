"""What this machine can compute, and how torch uses it: bf16, threads, memory."""

import ctypes
import platform

import torch

__all__ = ["computes_bf16", "device_name", "use_cpu"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16. Without them torch emulates bf16, far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if platform.machine() in ("x86_64", "AMD64"):  # oneDNN's own check counts AVX-512 that emulates it
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def device_name(device: torch.device) -> str:
    """The name of a device as records show it: a GPU's own name, or "CPU (x86_64)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


def use_cpu(threads: int | None = None) -> None:
    """Set the number of threads, and keep freed memory in this process for the next training step.

    By default glibc returns the memory of a feature map to the system as soon as it is freed. The next step then asks for it again, and
    the system clears every page first. Afterwards this process keeps its peak of memory until it ends. Other C libraries than glibc are
    left as they are.

    Args:
        threads: None leaves the number to torch.
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
