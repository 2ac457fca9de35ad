"""A persistent linear layer with tiles of one and a half times BLOCK_N columns, with the same bits.

A tile of a power of two columns cuts 6,144 columns and 512 rows into 96 or 192 tiles for 132
multiprocessors; one of 192 columns cuts them into 128. Triton's tensors have powers of two, so a
program keeps two accumulators, [BLOCK_M, BLOCK_N] and [BLOCK_M, BLOCK_N / 2], over one load of x.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from paged.kernels.launch import pdl
from paged.kernels.linear_epilogue import store_columns
from paged.kernels.linear_tiles import Tiles


@triton.jit
def wide_kernel(
    x_desc,
    weight_desc,
    rest_desc,
    out_ptr,
    num_tokens_ptr,
    out_features,
    in_features,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_tokens = tl.load(num_tokens_ptr, cache_modifier=".cg")
    if PDL:
        tl.extra.cuda.gdc_wait()
    COLUMNS: tl.constexpr = BLOCK_N + BLOCK_N // 2
    tiles_m = (num_tokens + BLOCK_M - 1) // BLOCK_M
    tiles_n = (out_features + COLUMNS - 1) // COLUMNS
    num_tiles = tiles_m * tiles_n
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=FLATTEN):
        group = tile // (GROUP_M * tiles_n)
        group_rows = min(tiles_m - group * GROUP_M, GROUP_M)
        in_group = tile - group * (GROUP_M * tiles_n)
        row = (group * GROUP_M + in_group % group_rows) * BLOCK_M
        column = in_group // group_rows * COLUMNS

        acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        rest = tl.zeros([BLOCK_M, BLOCK_N // 2], dtype=tl.float32)
        for start in range(0, in_features, BLOCK_K):
            x = x_desc.load([row, start])
            weight = weight_desc.load([column, start])
            weight_rest = rest_desc.load([column + BLOCK_N, start])
            acc = tl.dot(x, weight.T, acc)
            rest = tl.dot(x, weight_rest.T, rest)
        token = row + tl.arange(0, BLOCK_M)
        store_columns(acc, out_ptr, token, column, num_tokens, out_features)
        store_columns(rest, out_ptr, token, column + BLOCK_N, num_tokens, out_features)


def wide(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    tiles: Tiles,
    multiprocessors: int,
) -> None:
    """out [T, N] = x [T, K] @ weight [N, K].T, in tiles of 3/2 block_n columns."""
    capacity, out_features = out.shape
    in_features = x.shape[1]
    row, shape = [in_features, 1], list(weight.shape)
    columns = tiles.block_n + tiles.block_n // 2
    count = triton.cdiv(capacity, tiles.block_m) * triton.cdiv(out_features, columns)
    wide_kernel[(min(tiles.per_processor * multiprocessors, count),)](
        TensorDescriptor(x, list(x.shape), row, [tiles.block_m, tiles.block_k]),
        TensorDescriptor(weight, shape, row, [tiles.block_n, tiles.block_k]),
        TensorDescriptor(weight, shape, row, [tiles.block_n // 2, tiles.block_k]),
        out,
        num_tokens,
        out_features,
        in_features,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=8,
        FLATTEN=tiles.flatten,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **pdl(),
    )
