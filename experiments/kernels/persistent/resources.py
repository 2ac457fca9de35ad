"""Registers, scratch and shared memory of the whole step on sm_90, without a GPU.

    TRITON_INTERPRET=0 python experiments/kernels/persistent/resources.py [--keep FOLDER]

A program of 8 warps has the multiprocessor for itself from 129 registers on.
"""

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path

import triton
from step import Step
from variants import VARIANTS

from paged.testing.compiling import SM90, compiled_launches

COMPILE = triton.compile


def compile_one(source, target, options):
    """Compile with the divisibility that real arguments have."""
    for position, name in enumerate(source.fn.arg_names):
        if name == "value_offset" or source.signature[name].startswith("*"):
            source.attrs[(position,)] = [["tt.divisibility", 16]]
    return COMPILE(source, target=target, options=options)


def usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return f"registers {registers}, stack {stack}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="write PTX and cubin of each variant here")
    parser.add_argument("--only", nargs="+", help="names of variants")
    args = parser.parse_args()

    def compile_and_print(source, target, options):
        started = time.monotonic()
        kernel = compile_one(source, target, options)
        seconds = time.monotonic() - started
        print(f"{usage(kernel.asm['cubin'])}, shared {kernel.metadata.shared}, {seconds:.0f} s")
        if args.keep:
            args.keep.mkdir(exist_ok=True)
            (args.keep / f"{label}.ptx").write_text(kernel.asm["ptx"])
            (args.keep / f"{label}.ttgir").write_text(kernel.asm["ttgir"])
            (args.keep / f"{label}.cubin").write_bytes(kernel.asm["cubin"])
        return kernel

    triton.compile = compile_and_print
    with compiled_launches(SM90):
        for rows in VARIANTS:
            step = Step([512] * rows, 2, device="cpu")
            for name, config in VARIANTS[rows].items():
                if args.only and name not in args.only:
                    continue
                label = f"{rows}_{name.replace(' ', '_')}"
                print(f"{rows} {name}: ", end="", flush=True)
                step.launch(config)


if __name__ == "__main__":
    main()
