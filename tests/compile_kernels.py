"""Compile the Triton kernels for an H100, which takes no GPU, and print one line for each: run by test_triton.py."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from localnorm import _triton_kernels as kernels

SCALARS = {"share": "fp32", "eps": "fp32"}
TENSORS = {"x", "y", "grad", "grad_x"}
STRIDES = ("stride", "grad", "out")


def signature(kernel, dtype: str, innermost: str, options: dict) -> ASTSource:
    """The kernel's arguments as a call on an activation of 32 x 256 x 56 x 56 gives them: aligned, with one stride of 1."""
    types, constants, aligned = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        is_stride = name.rpartition("_")[0] in STRIDES and name[-2:] in ("_n", "_c", "_p")
        if name in options or (is_stride and name.endswith(innermost)):
            types[name], constants[(i,)] = "constexpr", options.get(name, 1)
        elif name.startswith("stored"):
            types[name], constants[(i,)] = "constexpr", None
        elif is_stride or name in ("positions", "channels"):
            types[name], aligned[(i,)] = "i32", [["tt.divisibility", 16]]
        elif name in ("steps", *kernels.UNSPECIALIZED):
            types[name] = "i32"
        elif name in SCALARS:
            types[name] = SCALARS[name]
        else:
            types[name], aligned[(i,)] = "*" + (dtype if name in TENSORS else "fp32"), [["tt.divisibility", 16]]
    return ASTSource(kernel, types, constants, aligned)


def main() -> None:
    each = {"INTERLEAVED": True, "AFFINE": True, "SHRINK": False, "RELU": True}
    for dtype, innermost, block_p, block_c in (("fp32", "_c", 32, 64), ("bf16", "_p", 2048, 1)):
        for kernel, chunks in (
            (kernels.reduce_kernel, 32),
            (kernels.normalize_kernel, 32),
            (kernels.normalize_kernel, 1),
            (kernels.reduce_backward_kernel, 32),
            (kernels.backward_kernel, 32),
            (kernels.backward_kernel, 1),
        ):
            options = {**each, "CHUNKS": chunks, "BLOCK_P": block_p, "BLOCK_C": block_c}
            options = {name: value for name, value in options.items() if name in kernel.arg_names}
            source = signature(kernel, dtype, innermost, options)
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
            with tempfile.TemporaryDirectory() as folder:
                binary = Path(folder) / "kernel.cubin"
                binary.write_bytes(compiled.asm["cubin"])
                tool = triton.knobs.nvidia.cuobjdump.path
                used = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
            spilled = re.search(r"STACK:(\d+)", used).group(1)
            width = 16 if "ld.global.v4.b32" in compiled.asm["ptx"] else 4
            name = f"{kernel.__name__}, {dtype}, {chunks} chunks"
            print(f"{name}: {spilled} bytes spilled, loads of {width} bytes")


if __name__ == "__main__":
    main()
