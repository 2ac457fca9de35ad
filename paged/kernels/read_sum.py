"""Sum of a tensor, in parts: reads it once and computes next to nothing.

    out[p] = sum of blocks p, p + P, p + 2P, ... of x

It measures the read bandwidth that floors are held against. Grid: (P,), P the size of `out`. Both
contiguous; the sums are fp32.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor

BLOCK = 4096


@triton.jit
def _read_sum_kernel(x_ptr, out_ptr, numel, BLOCK: tl.constexpr):
    first = tl.program_id(0) * BLOCK
    lane = tl.arange(0, BLOCK)
    total = tl.full([BLOCK], 0.0, dtype=tl.float32)
    for start in range(first, numel, tl.num_programs(0) * BLOCK):
        total += tl.load(x_ptr + start + lane, mask=lane < numel - start, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, axis=0))


def read_sum(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write partial sums of x [n] float32, n below 2^31 - 2^24, into out [P] float32."""
    check_tensor("x", x, (None,), torch.float32)
    check_tensor("out", out, (None,), torch.float32)
    if x.numel() >= 2**31 - 2**24:  # the last block of the last program must not overflow
        raise ValueError(f"x must have fewer than 2^31 - 2^24 elements, got {x.numel()}")
    if out.numel() == 0:
        return
    _read_sum_kernel[(out.numel(),)](x, out, x.numel(), BLOCK=BLOCK, num_warps=8)


def read_sum_ref(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The partial sums as a new tensor, in the shape of `out`."""
    blocks = torch.arange(x.numel(), device=x.device) // BLOCK
    sums = torch.zeros(out.numel(), dtype=torch.float64, device=x.device)
    return sums.index_add_(0, blocks % out.numel(), x.double()).float()


def read_sum_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    numel: int = 30_000,
    programs: int = 3,
) -> dict:
    """Arguments of `read_sum`: normal values, NaN in `out`; dtype is not used."""
    x = torch.randn(numel, generator=torch.Generator().manual_seed(0))
    return {"x": x.to(device), "out": torch.full((programs,), float("nan"), device=device)}
