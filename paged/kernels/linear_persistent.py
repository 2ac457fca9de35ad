"""The linear layer for many rows: a persistent grid over tiles that TMA brings in.

    out = act(softcap(x @ weight.T + bias))     or     out = act(x @ gate.T) * (x @ up.T)

Grid: as many programs as stay resident, program p taking tiles p, p + P, ... The live row count is
read on the device; tiles come in groups of GROUP_M row tiles that share weight tiles in L2. x and
weight are read through descriptors made on the host, which a CUDA graph captures by value. A gated
weight [2I, K] is described as [I, 2, K], so that one box holds gate and up rows in pairs.
The chain over K is that of the pointer kernel in `paged.kernels.linear`: the same bits.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from paged.kernels.launch import interpreted, pdl
from paged.kernels.linear_epilogue import finish_tile
from paged.kernels.linear_tiles import FEW_ROWS, Tiles


@triton.jit
def _persistent_linear_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    out_ptr,
    num_tokens_ptr,
    out_features,
    in_features,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_tokens = tl.load(num_tokens_ptr, cache_modifier=".cg")
    if PDL:
        tl.extra.cuda.gdc_wait()
    COLUMNS: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N
    tiles_m = (num_tokens + BLOCK_M - 1) // BLOCK_M
    tiles_n = (out_features + COLUMNS - 1) // COLUMNS
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        group = tile // (GROUP_M * tiles_n)
        group_rows = min(tiles_m - group * GROUP_M, GROUP_M)
        in_group = tile - group * (GROUP_M * tiles_n)
        row = (group * GROUP_M + in_group % group_rows) * BLOCK_M
        tile_n = in_group // group_rows

        acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for start in range(0, in_features, BLOCK_K):
            x = x_desc.load([row, start])  # zeros past the end of x and of K
            if GATED:
                weight = weight_desc.load([tile_n * COLUMNS, 0, start])
                weight = weight.reshape(BLOCK_N, BLOCK_K)
            else:
                weight = weight_desc.load([tile_n * COLUMNS, start])
            acc = tl.dot(x, weight.T, acc)
        finish_tile(
            acc,
            bias_ptr,
            out_ptr,
            row + tl.arange(0, BLOCK_M),
            tile_n,
            num_tokens,
            out_features,
            softcap,
            HAS_BIAS=HAS_BIAS,
            HAS_SOFTCAP=HAS_SOFTCAP,
            ACTIVATION=ACTIVATION,
            GATED=GATED,
            HALVES=BLOCK_N > 128,
            DTYPE=x_desc.dtype,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
        )


@functools.cache
def has_tensor_memory() -> bool:
    """True where descriptors are the hardware's: NVIDIA from sm_90 on, or with no GPU to ask."""
    if interpreted():
        return False
    if not torch.cuda.is_available():
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability()[0] >= 9


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of an H200 where there is none."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def can_persist(x: torch.Tensor, weight: torch.Tensor, capacity: int) -> bool:
    """Whether a launch may take the persistent kernel: many rows, 16 bits, what TMA can address."""
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in (x, weight))
    return (
        capacity > FEW_ROWS
        and weight.dtype != torch.float32
        and weight.shape[0] > 0
        and weight.shape[1] > 0
        and weight.shape[1] % 8 == 0
        and aligned
        and has_tensor_memory()
    )


def launch_persistent(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    logit_softcap: float | None,
    gated: bool,
    tiles: Tiles,
) -> None:
    """Launch over checked arguments: those of `linear`, or with `gated` those of `gated_linear`."""
    capacity, out_features = out.shape
    in_features = x.shape[1]
    block_m, block_n, block_k = tiles.block_m, tiles.block_n, tiles.block_k
    row = [in_features, 1]
    x_desc = TensorDescriptor(x, list(x.shape), row, [block_m, block_k])
    if gated:
        shape, strides = (
            [out_features, 2, in_features],
            [in_features, out_features * in_features, 1],
        )
        weight_desc = TensorDescriptor(weight, shape, strides, [block_n // 2, 2, block_k])
    else:
        weight_desc = TensorDescriptor(weight, list(weight.shape), row, [block_n, block_k])
    count = triton.cdiv(capacity, block_m) * triton.cdiv(weight.shape[0], block_n)
    programs = min(count, tiles.per_processor * multiprocessors(x.device))
    _persistent_linear_kernel[(programs,)](
        x_desc,
        weight_desc,
        bias,
        out,
        num_tokens,
        out_features,
        in_features,
        logit_softcap,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=logit_softcap is not None,
        ACTIVATION=activation,
        GATED=gated,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP_M=8,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **pdl(),
    )
