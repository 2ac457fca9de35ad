"""Compiles every kernel of paged/kernels for sm_90 and gfx942; run with TRITON_INTERPRET=0.

Walks the modules: each `<op>_inputs` gives the arguments of the launcher `<op>`, and each entry of
`<OP>_VARIANTS` reaches other compile-time branches. Prints one JSON object: {kernel: [backends]},
with [] for a kernel that nothing compiled.
"""

import importlib
import json
import pkgutil
import sys

import torch
from triton.runtime.jit import JITFunction

import paged.kernels
from paged.testing.compiling import GFX942, SM90, compiled_launches

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def main(dtype: str) -> None:
    infos = pkgutil.iter_modules(paged.kernels.__path__)
    modules = [
        importlib.import_module(f"paged.kernels.{info.name}") for info in infos if not info.ispkg
    ]
    # Launchers and their inputs by name: a long reference may live in a module of its own.
    found = {name: value for module in modules for name, value in vars(module).items()}
    kernels = [
        name for name, value in found.items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    ]  # fmt: skip
    with compiled_launches(SM90, GFX942) as compiled:
        for name, inputs in found.items():
            if name.endswith("_inputs"):
                op = name.removesuffix("_inputs")
                for variant in ({}, *found.get(f"{op.upper()}_VARIANTS", ())):
                    found[op](**inputs(device="cpu", dtype=DTYPES[dtype], **variant))
    print(json.dumps({name: sorted(compiled.get(name, ())) for name in kernels}))


if __name__ == "__main__":
    main(sys.argv[1])
