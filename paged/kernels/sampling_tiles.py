"""How sampling cuts a row of logits, and the memory between its two kernels."""

from typing import NamedTuple

import torch
import triton

from paged.kernels.launch import interpreted

NUM_PARTIALS = 7


class Tiles(NamedTuple):
    """How a row is cut, by its vocabulary alone, and how many rows a program takes."""

    block_v: int  # tokens a program of the first kernel
    block_warps: int
    chunk: int  # tokens a chunk
    picked: int  # chunks whose tokens can be candidates
    row_warps: int  # of the second kernel
    walk: int  # tokens at a time where a whole row is walked
    pivots: int  # floors tried at a time there
    rows: int


class SampleWorkspace(NamedTuple):
    """What the first kernel leaves of each row for the second."""

    partials: torch.Tensor  # [rows, NUM_PARTIALS, blocks] float32
    chunk_peaks: torch.Tensor  # [rows, chunks] float32
    picked: torch.Tensor  # [rows, Tiles.picked] int32


def choose_tiles(rows: int, vocab_size: int) -> Tiles:
    """Tile sizes for rows of vocab_size logits."""
    if interpreted():
        block = min(max(256, triton.next_power_of_2(vocab_size)), 16384)
        together = min(triton.next_power_of_2(max(rows, 1)), 65536 // block)
        return Tiles(block, 1, 64, 128, 1, block, 8, together)
    block = min(max(256, triton.next_power_of_2(vocab_size)), 4096)
    return Tiles(block, max(1, block // 1024), 64, 128, 8, block, 2, 1)


def sample_workspace(max_rows: int, vocab_size: int, device: torch.device | str) -> SampleWorkspace:
    """Memory for calls with up to max_rows rows of vocab_size logits."""
    tiles = choose_tiles(max_rows, vocab_size)
    blocks = triton.cdiv(vocab_size, tiles.block_v)
    chunks = blocks * (tiles.block_v // tiles.chunk)
    return SampleWorkspace(
        torch.zeros(max_rows, NUM_PARTIALS, blocks, dtype=torch.float32, device=device),
        torch.zeros(max_rows, chunks, dtype=torch.float32, device=device),
        torch.zeros(max_rows, tiles.picked, dtype=torch.int32, device=device),
    )
