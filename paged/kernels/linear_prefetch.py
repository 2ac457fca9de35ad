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
def prefetch_weights(weight_ptr, weight_row, in_features, piece_bytes, PIECES: tl.constexpr):
    """Ask L2 for the first PIECES * piece_bytes bytes of each row in weight_row [BLOCK_N] int64."""
    first = (weight_ptr + weight_row * in_features).to(tl.int64, bitcast=True)
    address = first[:, None] + (tl.arange(0, PIECES) * piece_bytes)[None, :]
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [address, piece_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def prefetch_pieces(weight: torch.Tensor, tiles: Tiles, row_tiles: int) -> tuple[int, int]:
    """(pieces of each row, bytes of a piece) of one program; (0, 0) for no prefetch.

    As many pieces as keep every thread busy once. None where several row tiles share a weight tile:
    which of them live is not known before the wait.
    """
    row_bytes = weight.shape[1] * weight.element_size()
    aligned = weight.data_ptr() % ALIGNMENT == 0 and row_bytes % ALIGNMENT == 0
    if row_tiles != 1 or not aligned:
        return 0, 0
    pieces = max(1, 32 * tiles.num_warps // tiles.block_n)
    share = min(tiles.prefetch // tiles.block_n, row_bytes)
    piece_bytes = share // pieces // ALIGNMENT * ALIGNMENT
    return (pieces, piece_bytes) if piece_bytes else (0, 0)
