"""Compile launched kernels for GPUs that are not there.

The interpreter accepts code the compiler refuses. Here a launcher runs on CPU tensors with
TRITON_INTERPRET=0, and each launch is compiled for the given targets instead of being executed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

SM90 = GPUTarget("cuda", 90, 32)
GFX942 = GPUTarget("hip", "gfx942", 64)
SM90_SHARED_BYTES = 227 * 1024
NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


def signature_of(value: Any) -> Any:
    """Triton's signature of one launch argument."""
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, GluonDescriptor):
        return f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"
    if isinstance(value, tuple):
        parts = [signature_of(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    return "constexpr"


@contextmanager
def compiled_launches(*targets: GPUTarget) -> Iterator[dict[str, set[str]]]:
    """Inside, kernel launches compile for `targets` and do not run.

    Yields {kernel name: {backend, ...}} of what was compiled.
    """
    compiled: dict[str, set[str]] = {}

    def run(self, *args, grid, warmup, **kwargs):
        options = {k: kwargs.pop(k) for k in list(kwargs) if k not in self.arg_names}
        bound = dict(zip(self.arg_names, args)) | kwargs
        for param in self.params:
            if param.name not in bound and param.has_default:
                bound[param.name] = param.default
        signature, constexprs = {}, {}
        for position, param in enumerate(self.params):
            kind = "constexpr" if param.is_constexpr else signature_of(bound[param.name])
            signature[param.name] = kind
            if kind == "constexpr":
                constexprs[(position,)] = bound[param.name]
        source_type = GluonASTSource if self.is_gluon() else ASTSource
        for target in targets:
            if self.is_gluon() and target.backend != "cuda":
                continue  # Gluon names the instructions of one machine
            for_target = dict(constexprs)
            for flag in {"PDL", "NVIDIA"}.intersection(self.arg_names):
                for_target[(self.arg_names.index(flag),)] = target.backend == "cuda"
            source = source_type(fn=self, signature=signature, constexprs=for_target)
            kernel = triton.compile(source, target=target, options=options)
            if target == SM90 and kernel.metadata.shared > SM90_SHARED_BYTES:
                raise ValueError(
                    f"{self.fn.__name__} needs {kernel.metadata.shared} bytes of shared memory, "
                    f"and a program of sm_90 has {SM90_SHARED_BYTES}; {constexprs=}, {options=}"
                )
            compiled.setdefault(self.fn.__name__, set()).add(target.backend)

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield compiled
    finally:
        JITFunction.run = original
