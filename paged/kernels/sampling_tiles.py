"""How sampling cuts a row of logits, and the memory between its kernels."""

from typing import NamedTuple

import torch
import triton

from paged.kernels.launch import interpreted

NUM_PARTIALS = 7
NUM_STATES = 6
NUM_COUNTERS = 2


class Tiles(NamedTuple):
    """How a row is cut, by its vocabulary alone, and how many rows a program takes."""

    block_v: int  # tokens a program of the first kernel
    block_warps: int
    block_registers: int  # a thread of it, at most; 0 for no limit
    strand: int  # tokens a strand: what a thread of the first kernel holds of its block
    chunk: int  # tokens a chunk
    picked: int  # chunks whose tokens can be candidates
    spread_v: int  # tokens a program takes at a time of rows that all programs draw together
    edit_v: int  # tokens a program of edit_logits takes
    rows: int


class SampleWorkspace(NamedTuple):
    """What a kernel leaves of each row for the next."""

    partials: torch.Tensor  # [rows, NUM_PARTIALS, blocks] float32
    strands: torch.Tensor  # [rows, strands] float32
    chunk_peaks: torch.Tensor  # [rows, chunks] float32
    picked: torch.Tensor  # [rows, Tiles.picked] int32
    states: torch.Tensor  # [rows, NUM_STATES] float32
    counters: torch.Tensor  # [NUM_COUNTERS] int32


def choose_tiles(rows: int, vocab_size: int) -> Tiles:
    """Tile sizes for rows of vocab_size logits."""
    if interpreted():
        block = min(max(256, triton.next_power_of_2(vocab_size)), 16384)
        together = min(triton.next_power_of_2(max(rows, 1)), 65536 // block)
        return Tiles(block, 1, 0, 32, 64, 128, block, block, together)
    whole = max(256, triton.next_power_of_2(vocab_size))
    block = min(whole, 2048)
    warps = max(1, block // 1024)
    strand, spread, edit = block // (32 * warps), min(whole, 8192), min(whole, 4096)
    return Tiles(block, warps, 64, strand, 64, 128, spread, edit, 1)


def sample_workspace(max_rows: int, vocab_size: int, device: torch.device | str) -> SampleWorkspace:
    """Memory for calls with up to max_rows rows of vocab_size logits."""
    tiles = choose_tiles(max_rows, vocab_size)
    blocks = triton.cdiv(vocab_size, tiles.block_v)
    strands = blocks * (tiles.block_v // tiles.strand)
    chunks = blocks * (tiles.block_v // tiles.chunk)
    return SampleWorkspace(
        torch.zeros(max_rows, NUM_PARTIALS, blocks, dtype=torch.float32, device=device),
        torch.zeros(max_rows, strands, dtype=torch.float32, device=device),
        torch.zeros(max_rows, chunks, dtype=torch.float32, device=device),
        torch.zeros(max_rows, tiles.picked, dtype=torch.int32, device=device),
        torch.zeros(max_rows, NUM_STATES, dtype=torch.float32, device=device),
        torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device),
    )
