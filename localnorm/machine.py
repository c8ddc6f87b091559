"""What the machine at hand can do, and how torch is told to use it: bf16, threads, memory."""

import ctypes
import platform

import torch

__all__ = ["computes_bf16", "device_name", "use_cpu"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for bf16. Without them bf16 is emulated, at a fraction of the speed of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if platform.machine() in ("x86_64", "AMD64"):  # oneDNN's own check counts AVX-512 that emulates it
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def device_name(device: torch.device) -> str:
    """The name of a GPU, or "CPU" with its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


def use_cpu(threads: int | None = None) -> None:
    """Compute on `threads` threads (None: torch's own choice), and keep memory that is freed for the next step.

    By default glibc gives a feature map back to the system as soon as it is freed and asks for it again in the next step, where
    each of its pages is cleared anew. The process keeps its peak of memory until it ends. Other C libraries are left as they are.
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
