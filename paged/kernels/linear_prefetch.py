"""Asking for weights before the kernel before has ended, so that L2 has them when its outputs come.

Between two launches memory would idle: a program that waits for its inputs has no load under way.
The weights of a linear layer are constants, so each program asks for the beginnings of its own rows
first. Nothing is read into the program: the bits cannot change.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.linear_tiles import Tiles

ALIGNMENT = 16  # of addresses and sizes of cp.async.bulk, in bytes


@triton.jit
def prefetch_weights(weight_ptr, weight_row, in_features, row_bytes, THREADS: tl.constexpr):
    """Ask L2 for the first row_bytes bytes of each row in weight_row [BLOCK_N] int64.

    One of THREADS per row asks for the whole row. (An address in a tensor smaller than the program
    would be asked for by several of its threads.) Requests of a warp go out one by one.
    """
    first = (weight_ptr + weight_row * in_features).to(tl.int64, bitcast=True)
    thread = tl.arange(0, THREADS)
    tl.inline_asm_elementwise(
        "{ .reg .pred first; setp.eq.u32 first, $3, 0; mov.u32 $0, 0;"
        " @first cp.async.bulk.prefetch.L2.global [$1], $2; }",
        "=r,l,r,r",
        [first[:, None], row_bytes, thread[None, :]],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def prefetch_bytes(weight: torch.Tensor, tiles: Tiles, row_tiles: int) -> int:
    """How much of each of its rows a program asks for.

    Nothing where several row tiles share a weight tile: which of them live is not known before the
    wait.
    """
    row_bytes = weight.shape[1] * weight.element_size()
    aligned = weight.data_ptr() % ALIGNMENT == 0 and row_bytes % ALIGNMENT == 0
    if row_tiles != 1 or not aligned:
        return 0
    return min(tiles.prefetch // tiles.block_n // ALIGNMENT * ALIGNMENT, row_bytes)
