"""A persistent linear layer whose last wave of tiles is shared out, with the same bits.

All outputs stay one chain over K. When the tiles do not fill the last wave, the tiles of the last
two waves are cut evenly over the P programs, at any step of K. Every program then has at least one
tile's worth of steps, so a tile is cut once at most. The program with the later part of a cut tile
comes to it at the end of its range; the program with the first part begins with it, stores its fp32
accumulators and raises a flag. The waiting program is always the one with the higher number, and
the first part never waits: no order of starting can lock up, however few programs are resident.

Flag: stores, barrier of the program, release exchange by one thread; the reader's acquire
compare-and-swap takes the flag down again, so that a captured graph can be replayed, and its loads
follow in the barrier that hands the result of a scalar atomic to all threads.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from paged.kernels.linear_tiles import Tiles


@triton.jit
def stream_k_kernel(
    x_desc,
    weight_desc,
    out_ptr,
    num_tokens_ptr,
    partial_ptr,
    flag_ptr,
    out_features,
    in_features,
    SHARE: tl.constexpr,
    EXCHANGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    num_tokens = tl.load(num_tokens_ptr)
    tiles_m = (num_tokens + BLOCK_M - 1) // BLOCK_M
    tiles_n = (out_features + BLOCK_N - 1) // BLOCK_N
    tiles = tiles_m * tiles_n
    steps = (in_features + BLOCK_K - 1) // BLOCK_K
    programs = min(tl.num_programs(0), tiles)
    program = tl.program_id(0)
    if program >= programs:
        return
    waves = tiles // programs
    left = tiles - waves * programs
    if SHARE:
        shared_tiles = programs + left if left > 0 else 0
        # backwards, so that the program that waits has the higher number
        rank = programs - 1 - program
        first = shared_tiles * steps * rank // programs
        last = shared_tiles * steps * (rank + 1) // programs
        shared_items = (last + steps - 1) // steps - first // steps
        items = shared_items + (tiles - shared_tiles) // programs
    else:
        shared_tiles, shared_items, first, last = 0, 0, 0, 0
        items = waves + (1 if program < left else 0)
    corner = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    position = first
    for item in range(items):
        if item < shared_items:
            tile = position // steps
            skipped = position - tile * steps
            count = min(steps - skipped, last - position)
            position += count
        else:
            tile = shared_tiles + program + (item - shared_items) * programs
            skipped = 0
            count = steps
        resumes = (count < steps) & (skipped == 0)
        start = steps - count if resumes else 0
        group = tile // (GROUP_M * tiles_n)
        group_rows = min(tiles_m - group * GROUP_M, GROUP_M)
        in_group = tile - group * (GROUP_M * tiles_n)
        row = (group * GROUP_M + in_group % group_rows) * BLOCK_M
        first_column = in_group // group_rows * BLOCK_N
        acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        if SHARE and EXCHANGE:  # noqa: SIM102 - known when compiled, the next one is not
            if resumes:
                while tl.atomic_cas(flag_ptr + program - 1, 1, 0, sem="acquire") == 0:
                    pass
                saved = partial_ptr + (program - 1) * (BLOCK_M * BLOCK_N)
                acc = tl.load(saved + corner, cache_modifier=".cg")
        for step in range(start, start + count):
            x = x_desc.load([row, step * BLOCK_K])
            weight = weight_desc.load([first_column, step * BLOCK_K])
            acc = tl.dot(x, weight.T, acc)
        if SHARE and EXCHANGE and skipped > 0:
            tl.store(partial_ptr + program * (BLOCK_M * BLOCK_N) + corner, acc)
            tl.debug_barrier()
            tl.atomic_xchg(flag_ptr + program, 1, sem="release")
        else:
            token = row + tl.arange(0, BLOCK_M)
            column = first_column + tl.arange(0, BLOCK_N)
            out_ptrs = out_ptr + token.to(tl.int64)[:, None] * out_features + column[None, :]
            mask = (token < num_tokens)[:, None] & (column < out_features)[None, :]
            tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


def stream_k(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    partials: torch.Tensor,
    flags: torch.Tensor,
    tiles: Tiles,
    multiprocessors: int,
    share: bool = True,
    exchange: bool = True,
) -> None:
    """out [T, N] = x [T, K] @ weight [N, K].T.

    partials: at least programs x block_m x block_n fp32; flags: as many int32 zeros, left as zeros.
    Without `exchange` cut tiles are wrong: it shows what the exchange costs.
    """
    capacity, out_features = out.shape
    in_features = x.shape[1]
    row = [in_features, 1]
    count = triton.cdiv(capacity, tiles.block_m) * triton.cdiv(out_features, tiles.block_n)
    programs = min(tiles.per_processor * multiprocessors, count)
    stream_k_kernel[(programs,)](
        TensorDescriptor(x, list(x.shape), row, [tiles.block_m, tiles.block_k]),
        TensorDescriptor(weight, list(weight.shape), row, [tiles.block_n, tiles.block_k]),
        out,
        num_tokens,
        partials,
        flags,
        out_features,
        in_features,
        SHARE=share,
        EXCHANGE=exchange,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=8,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
