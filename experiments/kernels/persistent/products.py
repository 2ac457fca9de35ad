"""The matrix products of a decoder step, tile by tile, whose weights may be under way early.

A tile is BLOCK_N rows of a weight [N, K], all of K; program p has tiles p, p + NUM_PROGRAMS, ...
A unit is the BLOCK_K columns of a tile that are loaded at once. IN_FLIGHT units are under way in
registers, the one that is multiplied included.

SEGMENTS == 0: one row of x, products of single elements, summed over threads at the end. Else up
to ROWS rows on tensor cores, with K cut into SEGMENTS side by side (a batch of the dot product), a
warp each, so that the chain of dependent multiplies is that much shorter. A piece of x is [BLOCK_K]
or [SEGMENTS, ROWS, BLOCK_K / SEGMENTS].

Constants come in two tuples: SHAPE = (N, K, gated, BLOCK_N, BLOCK_K) of a weight and
GRID = (NUM_PROGRAMS, THREADS, ROWS, SEGMENTS, IN_FLIGHT, COMPILED).
"""

import triton
import triton.language as tl
from grid import prefetch_bytes, zero
from words import get_words, put_words


@triton.jit
def load_unit(weight_ptr, unit: tl.constexpr, SHAPE: tl.constexpr, GRID: tl.constexpr):
    """A unit of the program's weights: [BLOCK_N, BLOCK_K] or [SEGMENTS, BLOCK_N, K of a segment].

    Gated: the rows of a tile are pairs of a gate and an up row, which lie N / 2 rows apart.
    """
    N: tl.constexpr = SHAPE[0]
    K: tl.constexpr = SHAPE[1]
    BLOCK_N: tl.constexpr = SHAPE[3]
    BLOCK_K: tl.constexpr = SHAPE[4]
    NUM_PROGRAMS: tl.constexpr = GRID[0]
    SEGMENTS: tl.constexpr = GRID[3]
    nothing = zero(GRID[5])
    tile = tl.program_id(0) + unit // (K // BLOCK_K) * NUM_PROGRAMS
    row = tile * BLOCK_N + (tl.arange(0, BLOCK_N) + nothing)
    if SHAPE[2]:
        row = row // 2 + row % 2 * (N // 2)
    start = unit % (K // BLOCK_K) * BLOCK_K + nothing
    if SEGMENTS == 0:
        ptrs = weight_ptr + (row[:, None] * K + start + tl.arange(0, BLOCK_K)[None, :])
    else:
        LENGTH: tl.constexpr = BLOCK_K // SEGMENTS
        column = start + tl.arange(0, SEGMENTS)[:, None, None] * LENGTH
        column += tl.arange(0, LENGTH)[None, None, :]
        ptrs = weight_ptr + (row[None, :, None] * K + column)
    if N // BLOCK_N % NUM_PROGRAMS == 0:
        weight = tl.load(ptrs)
    else:
        weight = tl.load(ptrs, mask=tile * BLOCK_N < N, other=0.0)
    return weight


@triton.jit
def load_first(weight_ptr, SHAPE: tl.constexpr, GRID: tl.constexpr):
    """The first units of the program, at most IN_FLIGHT, as a tuple."""
    TILES: tl.constexpr = (SHAPE[0] // SHAPE[3] + GRID[0] - 1) // GRID[0]
    UNITS: tl.constexpr = TILES * (SHAPE[1] // SHAPE[4])
    COUNT: tl.constexpr = GRID[4] if GRID[4] < UNITS else UNITS
    units = ()
    for unit in tl.static_range(COUNT):
        units += (load_unit(weight_ptr, unit, SHAPE, GRID),)
    return units


@triton.jit
def prefetch_weight(weight_ptr, SHAPE: tl.constexpr, GRID: tl.constexpr):
    """Ask L2 for all tiles of the program; the rows of a tile are one or two blocks of memory."""
    N: tl.constexpr = SHAPE[0]
    K: tl.constexpr = SHAPE[1]
    BLOCK_N: tl.constexpr = SHAPE[3]
    NUM_PROGRAMS: tl.constexpr = GRID[0]
    BYTES: tl.constexpr = BLOCK_N * K * weight_ptr.dtype.element_ty.primitive_bitwidth // 8
    for i in tl.static_range((N // BLOCK_N + NUM_PROGRAMS - 1) // NUM_PROGRAMS):
        tile = tl.program_id(0) + i * NUM_PROGRAMS
        size = (tile * BLOCK_N < N).to(tl.int32) * BYTES
        if SHAPE[2]:
            gate = weight_ptr + tile * (BLOCK_N // 2 * K)
            prefetch_bytes(gate, size // 2, GRID[1])
            prefetch_bytes(gate + N // 2 * K, size // 2, GRID[1])
        else:
            prefetch_bytes(weight_ptr + tile * (BLOCK_N * K), size, GRID[1])


@triton.jit
def piece_index(chunk: tl.constexpr, SHAPE: tl.constexpr, GRID: tl.constexpr):
    """(columns, rows) of a piece of x, to be broadcast."""
    BLOCK_K: tl.constexpr = SHAPE[4]
    SEGMENTS: tl.constexpr = GRID[3]
    start = chunk * BLOCK_K + zero(GRID[5])
    if SEGMENTS == 0:
        k = start + tl.arange(0, BLOCK_K)
        token = k * 0
    else:
        LENGTH: tl.constexpr = BLOCK_K // SEGMENTS
        segment = tl.arange(0, SEGMENTS)[:, None, None] * LENGTH
        k = start + segment + tl.arange(0, LENGTH)[None, None, :]
        token = tl.arange(0, GRID[2])[None, :, None] + zero(GRID[5])
    return k, token


@triton.jit
def load_pieces(x_ptr, zeros, num_tokens, epoch, SHAPE: tl.constexpr, GRID: tl.constexpr):
    """x [ROWS, K] of a product as a tuple of pieces of BLOCK_K columns; x may be words,
    with zeros [BLOCK_K]."""
    pieces = ()
    for chunk in tl.static_range(SHAPE[1] // SHAPE[4]):
        k, token = piece_index(chunk, SHAPE, GRID)
        ptrs = x_ptr + (token * SHAPE[1] + k)
        if x_ptr.dtype.element_ty == tl.int64:
            pieces += (get_words(ptrs, zeros, epoch, GRID[5]),)
        else:
            pieces += (tl.load(ptrs, mask=token < num_tokens, other=0.0, cache_modifier=".cg"),)
    return pieces


@triton.jit
def normed_rows(x, norm_ptr, eps, SHAPE: tl.constexpr, GRID: tl.constexpr):
    """RMSNorm of x, a piece that is whole rows, rounded as by `paged.kernels.norm`."""
    DTYPE: tl.constexpr = norm_ptr.dtype.element_ty
    k, _ = piece_index(0, SHAPE, GRID)
    weight = tl.load(norm_ptr + k).to(tl.float32)
    x = x.to(tl.float32)
    if GRID[3] == 0:
        square = tl.sum(x * x, axis=0)
    else:
        square = tl.sum(tl.sum(x * x, axis=2), axis=0)[None, :, None]
    x = (x * tl.rsqrt(square / SHAPE[1] + eps)).to(DTYPE).to(tl.float32)
    return (x * weight).to(DTYPE)


@triton.jit
def multiply(acc, x, weight, SEGMENTS: tl.constexpr):
    """acc plus the products of a unit with a piece of x."""
    if SEGMENTS == 0:
        acc = tl.fma(weight.to(tl.float32), x.to(tl.float32)[None, :], acc)
    else:
        acc = tl.dot(x, tl.trans(weight, 0, 2, 1), acc, input_precision="ieee")
    return acc


@triton.jit
def project(
    units, pieces, weight_ptr, out_ptr, words_ptr, num_tokens, epoch, KIND: tl.constexpr,
    SHAPE: tl.constexpr, GRID: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """All tiles of the program: out = x @ weight.T ("store"), out += that, rounded ("add"), or
    out = silu(gate) * up ("gated").

    units: the first ones, of `load_first`; pieces: those of x. WORDS: out goes to words_ptr, and
    to out_ptr only if it is added.
    """
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    BLOCK_N: tl.constexpr = SHAPE[3]
    BLOCK_K: tl.constexpr = SHAPE[4]
    COLUMNS: tl.constexpr = BLOCK_N // 2 if SHAPE[2] else BLOCK_N
    WIDTH: tl.constexpr = SHAPE[0] // 2 if SHAPE[2] else SHAPE[0]
    CHUNKS: tl.constexpr = SHAPE[1] // BLOCK_K
    TILES: tl.constexpr = (SHAPE[0] // BLOCK_N + GRID[0] - 1) // GRID[0]
    ROWS: tl.constexpr = GRID[2]
    SEGMENTS: tl.constexpr = GRID[3]
    IN_FLIGHT: tl.constexpr = GRID[4]
    token = tl.arange(0, ROWS)[:, None] + zero(GRID[5])
    for i in tl.static_range(TILES):
        if SEGMENTS == 0:
            acc = tl.full([BLOCK_N, BLOCK_K], 0.0, tl.float32)
        else:
            acc = tl.full([SEGMENTS, ROWS, BLOCK_N], 0.0, tl.float32)
        for chunk in tl.static_range(CHUNKS):
            if i * CHUNKS + chunk + IN_FLIGHT < TILES * CHUNKS:
                units += (load_unit(weight_ptr, i * CHUNKS + chunk + IN_FLIGHT, SHAPE, GRID),)
            acc = multiply(acc, pieces[chunk], units[i * CHUNKS + chunk], SEGMENTS)
        y = tl.sum(acc, axis=1)[None, :] if SEGMENTS == 0 else tl.sum(acc, axis=0)
        y = y.to(DTYPE)
        first = (tl.program_id(0) + i * GRID[0]) * COLUMNS + zero(GRID[5])
        column = first + tl.arange(0, COLUMNS)[None, :]
        ptrs = out_ptr + token * WIDTH + column
        mask = (token < num_tokens) & (column < WIDTH)
        if KIND == "gated":
            gate, up = tl.split(tl.reshape(y, [ROWS, COLUMNS, 2]))
            gate, up = gate.to(tl.float32), up.to(tl.float32)
            y = (gate / (1.0 + tl.exp(-gate)) * up).to(DTYPE)
        if KIND == "add":
            before = tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
            y = (before + y.to(tl.float32)).to(DTYPE)
        if WORDS:
            put_words(words_ptr + token * WIDTH + column, y, epoch, mask)
        if not WORDS or KIND == "add":
            tl.store(ptrs, y, mask=mask)
