"""What every launcher shares: where kernels run, and checks of what they are given."""

import functools
import os

import torch
import triton
from triton.runtime.jit import KernelInterface


def interpreted() -> bool:
    """True when Triton runs kernels on the CPU through its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def rows_per_program(capacity: int, width: int) -> int:
    """Rows of `width` columns that a program takes where rows do not meet: 1 on a GPU.

    An operation of the interpreter takes as long for many rows as for one: there up to 64.
    """
    if not interpreted():
        return 1
    return max(1, min(64, triton.next_power_of_2(max(capacity, 1)), 2**18 // width))


@functools.cache
def on_nvidia() -> bool:
    """True on an NVIDIA GPU."""
    return not interpreted() and torch.cuda.is_available() and torch.version.hip is None


@functools.cache
def pdl() -> dict[str, bool]:
    """Launch options of a kernel with a `PDL` flag: programmatic dependent launch, where it exists.

    Its programs may start while the kernel before is still running. So every program, whatever its
    exit, first calls `gdc_launch_dependents`, may then read weights and the plan of the step, and
    calls `gdc_wait` once before anything else: it returns when the kernel before, and with it all
    before that one, has ended and its writes are visible. Never inside a loop, which the compiler
    may pipeline across it.

    The plan is what was written before `embedding`, the first kernel of a forward pass. That one
    launches its dependents only behind its own wait: what starts after it finds the plan complete.
    Its readers bypass L1 (".cg"), which may hold a line from before.

    Needs NVIDIA's sm_90; elsewhere the flag is off, and everywhere with PAGED_PDL=0 in the
    environment: the same bits, so a fault that goes away with it is one of order between launches.
    """
    wanted = os.environ.get("PAGED_PDL", "1") != "0"
    if wanted and on_nvidia() and torch.cuda.get_device_capability()[0] >= 9:
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def check_tensor(
    name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> None:
    """Raise ValueError unless `tensor` is contiguous, of `shape` (None: any) and of `dtypes`."""
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")
    if dtypes and tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"{name} must be {allowed}, got {str(tensor.dtype).removeprefix('torch.')}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


def is_kernel_function(function: object) -> bool:
    """True for a `@triton.jit` function, compiled or interpreted: it can be inlined in a kernel."""
    return isinstance(function, KernelInterface)
