"""What every launcher shares: where kernels run, and checks of what they are given."""

import os

import torch
from triton.runtime.jit import KernelInterface


def interpreted() -> bool:
    """True when Triton runs kernels on the CPU through its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


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
