"""Which tile a linear layer runs with: one readable table for each kernel, measured on an H200.

Rows are looked up in order: the first whose limits hold. In `experiments/kernels/linear` `chain.py`
measures the streamed tiles, in whole steps, and `tune.py` the others; its README has the times.
"""

from typing import NamedTuple, TypeVar

import torch
import triton

T = TypeVar("T")


class Tiles(NamedTuple):
    """Tile sizes of one launch: x [block_m, block_k] @ weight [block_n, block_k].T."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    per_processor: int = 1  # programs of a persistent grid on a multiprocessor


class StreamTiles(NamedTuple):
    """One launch of the streaming kernel; a step over K is `units` of 64 columns."""

    block_n: int  # rows of the weight, gate and up counted
    units: int
    weight_stages: int  # steps of weights in flight
    input_stages: int  # steps of x in flight
    per_processor: int = 1


# (largest capacity, largest rows of the weight, largest columns of the weight)
Limits = tuple[int, int, int]
ANY = 2**31
# kernel of pointers, 16 bits
POINTER_TILES: dict[Limits, Tiles] = {
    (16, 2048, 2048): Tiles(16, 32, 256, 4, 4),
    (16, 2048, ANY): Tiles(16, 16, 512, 2, 4),
    (16, 4096, 2048): Tiles(16, 16, 512, 2, 4),
    (16, 4096, 4096): Tiles(16, 64, 256, 4, 4),
    (16, 4096, ANY): Tiles(16, 16, 512, 2, 4),
    (16, 16384, 2048): Tiles(16, 32, 128, 4, 6),
    (16, 16384, ANY): Tiles(16, 64, 256, 4, 4),
    (16, 65536, ANY): Tiles(16, 32, 256, 4, 3),
    (16, ANY, ANY): Tiles(16, 64, 128, 2, 3),
    (64, 2048, ANY): Tiles(64, 16, 256, 4, 4),
    (64, 4096, 2048): Tiles(64, 32, 128, 4, 5),
    (64, 4096, ANY): Tiles(64, 32, 256, 4, 4),
    (64, 16384, ANY): Tiles(64, 64, 128, 4, 5),
    (64, 65536, ANY): Tiles(64, 64, 128, 4, 3),
    (64, ANY, ANY): Tiles(64, 128, 64, 4, 4),
    (256, 2048, ANY): Tiles(64, 64, 128, 4, 4),
    (256, 4096, ANY): Tiles(64, 128, 128, 4, 4),
    (256, 16384, ANY): Tiles(128, 128, 64, 8, 4),
    (256, ANY, ANY): Tiles(128, 256, 64, 8, 4),
    (ANY, 2048, ANY): Tiles(128, 128, 64, 8, 4),
    (ANY, 4096, ANY): Tiles(128, 256, 64, 8, 3),
    (ANY, 16384, ANY): Tiles(128, 128, 64, 8, 4),
    (ANY, ANY, ANY): Tiles(128, 256, 64, 8, 3),
}
# persistent kernel of descriptors, 16 bits, for more than FEW_ROWS
FEW_ROWS = 64
PERSISTENT_TILES: dict[Limits, Tiles] = {
    (256, 2048, ANY): Tiles(64, 64, 128, 4, 4),
    (256, 4096, ANY): Tiles(64, 128, 128, 4, 4),
    (256, 16384, ANY): Tiles(128, 128, 64, 8, 6),
    (256, ANY, ANY): Tiles(128, 256, 64, 8, 4),
    (512, 2048, ANY): Tiles(64, 64, 128, 4, 4),
    (512, 4096, ANY): Tiles(128, 128, 64, 8, 6),
    (512, 16384, 2048): Tiles(128, 128, 64, 4, 3, 2),
    (512, 16384, ANY): Tiles(128, 256, 64, 8, 4),
    (512, ANY, ANY): Tiles(128, 128, 64, 8, 6),
    (1024, 2048, ANY): Tiles(64, 128, 128, 4, 4),
    (1024, 4096, ANY): Tiles(128, 256, 64, 8, 3),
    (1024, 16384, 2048): Tiles(128, 128, 64, 8, 4),
    (1024, 16384, ANY): Tiles(128, 128, 64, 8, 6),
    (2048, 2048, ANY): Tiles(128, 128, 64, 8, 4),
    (ANY, ANY, ANY): Tiles(128, 256, 64, 8, 3),
}
# streaming kernel, 16 bits; None: another kernel is faster
STREAM_TILES: dict[Limits, StreamTiles | None] = {
    (16, 2048, 2048): StreamTiles(32, 4, 4, 4),
    (16, 2048, ANY): StreamTiles(32, 4, 8, 4),
    (16, 4096, 2048): StreamTiles(64, 4, 3, 3),
    (16, 4096, 4096): StreamTiles(32, 4, 8, 4),
    (16, 4096, ANY): StreamTiles(16, 4, 6, 4, 2),
    (16, 16384, 2048): StreamTiles(64, 4, 4, 4),
    (16, 16384, ANY): StreamTiles(32, 4, 3, 3, 2),
    (16, ANY, ANY): StreamTiles(64, 2, 4, 4, 2),
    (64, 2048, 2048): StreamTiles(16, 4, 6, 4),
    (64, 4096, 3072): StreamTiles(32, 4, 4, 3),
    (64, 4096, ANY): StreamTiles(32, 4, 5, 4),
    (64, 16384, ANY): StreamTiles(64, 2, 6, 4),
    (ANY, ANY, ANY): None,
}
# fp32, for checks against references and not for speed
FULL_TILES: dict[Limits, Tiles] = {
    (16, ANY, ANY): Tiles(16, 32, 32, 4, 4),
    (64, ANY, ANY): Tiles(32, 32, 32, 4, 4),
    (ANY, ANY, ANY): Tiles(64, 64, 32, 8, 3),
}
# in the interpreter few large tiles, and steps over K that need no mask where a size divides K
INTERPRETER_N = 2048
INTERPRETER_K = (512, 256, 128, 64)


def find_tiles(table: dict[Limits, T], *sizes: int) -> T:
    """The first tile whose limits hold `sizes`: capacity, rows and columns of the weight."""
    return next(
        tiles for limits, tiles in table.items()
        if all(size <= limit for size, limit in zip(sizes, limits, strict=True))
    )  # fmt: skip


def pointer_tiles(
    capacity: int, out_features: int, in_features: int, dtype: torch.dtype, interpreted: bool
) -> Tiles:
    """The tile of the pointer kernel, by capacity and shape of the weight (gate and up counted)."""
    if interpreted:
        block_m = min(max(16, triton.next_power_of_2(capacity)), 64)
        block_n = min(max(16, triton.next_power_of_2(out_features)), INTERPRETER_N)
        padded = min(max(16, triton.next_power_of_2(in_features)), INTERPRETER_K[0])
        block_k = next((size for size in INTERPRETER_K if in_features % size == 0), padded)
        return Tiles(block_m, block_n, block_k, 4, 1)
    table = FULL_TILES if dtype == torch.float32 else POINTER_TILES
    tiles = find_tiles(table, capacity, out_features, in_features)
    # A step over K that divides it needs no mask in the loop.
    smaller = (step for step in (512, 256, 128, 64, 32) if step <= tiles.block_k)
    padded = min(tiles.block_k, 128, max(16, triton.next_power_of_2(in_features)))
    block_k = next((step for step in smaller if in_features % step == 0), padded)
    return tiles._replace(block_k=block_k)


def persistent_tiles(capacity: int, out_features: int, in_features: int) -> Tiles:
    """The tile of the persistent kernel, by the same sizes."""
    return find_tiles(PERSISTENT_TILES, capacity, out_features, in_features)


def stream_tiles(capacity: int, out_features: int, in_features: int) -> StreamTiles | None:
    """The tile of the streaming kernel, by the same sizes; None where it is not the fastest."""
    return find_tiles(STREAM_TILES, capacity, out_features, in_features)
