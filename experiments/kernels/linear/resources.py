"""Shared memory, registers and spills of every tile in the tables, on sm_90, without a GPU.

    TRITON_INTERPRET=0 python experiments/kernels/linear/resources.py

A tile over the 227 KB of a multiprocessor cannot be launched; one that spills (stack) is slow.
Each tile is compiled for an output in the dtype of x, for logits in fp32, and gated.
"""

import re
import subprocess
import tempfile

import torch
import triton

from paged.kernels import linear as module
from paged.kernels.gated_linear import gated_linear, gated_linear_inputs
from paged.kernels.linear import linear, linear_inputs
from paged.kernels.linear_tiles import ANY, FULL_TILES, PERSISTENT_TILES, POINTER_TILES
from paged.testing.compiling import SM90, compiled_launches

SHARED_BYTES = 227 * 1024
COMPILE = triton.compile
CUOBJDUMP = triton.knobs.nvidia.cuobjdump.path


def measure(source, target, options):
    """Compile with the divisibility that real shapes have; print and return the kernel."""
    for position, name in enumerate(source.fn.arg_names):
        if source.signature[name] in ("i32",) or source.signature[name].startswith("*"):
            source.attrs[(position,)] = [["tt.divisibility", 16]]
    kernel = COMPILE(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    shared = kernel.metadata.shared
    marks = " TOO LARGE" * (shared > SHARED_BYTES) + " SPILLS" * (int(stack) > 0)
    wgmma, async_copies = (kernel.asm["ptx"].count(op) for op in ("wgmma.mma_async", "cp.async"))
    print(
        f"  shared {shared:>7} registers {registers:>3} stack {stack:>3} "
        f"wgmma {wgmma:>2} cp.async {async_copies:>3}{marks}",
        flush=True,
    )
    return kernel


def size_in(limit: int, smaller: list[int]) -> int:
    """A size that looks up this limit and no smaller one."""
    return limit if limit < ANY else 2 * max(smaller, default=64)


def launches(table, dtype):
    for limits in table:
        known = [[other[axis] for other in table if other[axis] < ANY] for axis in range(3)]
        capacity, rows, columns = (size_in(x, seen) for x, seen in zip(limits, known))
        columns = min(columns, 4096)
        print(f"capacity {capacity} weight [{rows}, {columns}]", flush=True)
        inputs = linear_inputs(dtype=dtype, capacity=1, in_features=16, out_features=16)
        weight = torch.empty(rows, columns, dtype=dtype)
        x = torch.empty(capacity, columns, dtype=dtype)
        for out_dtype in {dtype: None, torch.float32: None}:
            print(f"  {out_dtype}:")
            out = torch.empty(capacity, rows, dtype=out_dtype)
            linear(**inputs | {"x": x, "weight": weight, "out": out})
        gated = gated_linear_inputs(dtype=dtype, capacity=1, in_features=16, width=16)
        out = torch.empty(capacity, rows // 2, dtype=dtype)
        print("  gated:")
        gated_linear(**gated | {"x": x, "weight": weight, "out": out})


def main() -> None:
    triton.compile = measure
    with compiled_launches(SM90):
        print("persistent kernel")
        launches(PERSISTENT_TILES, torch.bfloat16)
        print("kernel of pointers")
        module.can_persist = lambda *_: False
        launches(POINTER_TILES, torch.bfloat16)
        launches(FULL_TILES, torch.float32)


if __name__ == "__main__":
    main()
