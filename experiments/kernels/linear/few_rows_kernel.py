"""A linear layer for few rows with what the kernel of `paged.kernels.linear` does not do yet.

    out = sum over SEGMENTS of K, left to right, of x[:, segment] @ weight[:, segment].T

SEGMENTS: chains over K side by side, as a batch of the dot product: with as many warps each has a
warp of its own, and the chain of dependent mma instructions, about 33 cycles each, is that much
shorter. The cut depends on the weight alone, so it can hold for every number of rows; but a kernel
for many rows must then keep two accumulators.
PREFETCH: bytes of weights that a program asks into L2 before it waits for the kernel before.
CLAMP: rows past num_tokens repeat the last live one, so x waits for num_tokens; else they are read.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.linear_tiles import Tiles


@triton.jit
def few_rows_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_tokens_ptr,
    out_features,
    in_features,
    SEGMENTS: tl.constexpr,
    PREFETCH: tl.constexpr,
    PIECES: tl.constexpr,
    CLAMP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    first_column = tl.program_id(0) * BLOCK_N
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if PREFETCH > 0:  # PIECES of each row, PREFETCH bytes of each
            index = tl.arange(0, BLOCK_N * PIECES)
            row = tl.minimum(first_column + index % BLOCK_N, out_features - 1).to(tl.int64)
            start = index // BLOCK_N * (in_features // PIECES)
            address = (weight_ptr + row * in_features + start).to(tl.int64)
            tl.inline_asm_elementwise(
                "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
                "=r,l,r",
                [address, tl.full([BLOCK_N * PIECES], PREFETCH, tl.int32)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
        tl.extra.cuda.gdc_wait()
    num_tokens = tl.load(num_tokens_ptr)
    token = tl.arange(0, BLOCK_M)
    row = tl.minimum(token, num_tokens - 1) if CLAMP else token
    row = row.to(tl.int64)
    column = first_column + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(column, out_features - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    # a multiple of BLOCK_K; untold, the compiler would copy 16 / SEGMENTS bytes at a time
    length = tl.multiple_of(in_features // SEGMENTS, 16)
    if SEGMENTS == 1:
        x_ptrs = x_ptr + row[:, None] * in_features + k[None, :]
        weight_ptrs = weight_ptr + weight_row[:, None] * in_features + k[None, :]
        acc = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
        for _ in range(0, length, BLOCK_K):
            acc = tl.dot(tl.load(x_ptrs), tl.load(weight_ptrs).T, acc)
            x_ptrs += BLOCK_K
            weight_ptrs += BLOCK_K
    else:
        start = (tl.arange(0, SEGMENTS) * length)[:, None, None] + k[None, None, :]
        x_ptrs = x_ptr + row[None, :, None] * in_features + start
        weight_ptrs = weight_ptr + weight_row[None, :, None] * in_features + start
        parts = tl.full([SEGMENTS, BLOCK_M, BLOCK_N], 0.0, tl.float32)
        for _ in range(0, length, BLOCK_K):
            weight = tl.trans(tl.load(weight_ptrs), (0, 2, 1))
            parts = tl.dot(tl.load(x_ptrs), weight, parts)
            x_ptrs += BLOCK_K
            weight_ptrs += BLOCK_K
        if SEGMENTS == 2:
            a, b = tl.permute(parts, (1, 2, 0)).split()
            acc = a + b
        elif SEGMENTS == 4:
            pairs = tl.permute(parts.reshape(2, 2, BLOCK_M, BLOCK_N), (2, 3, 1, 0))
            ab, cd = pairs.split()
            a, b = ab.split()
            c, d = cd.split()
            acc = ((a + b) + c) + d
        else:
            cube = tl.permute(parts.reshape(2, 2, 2, BLOCK_M, BLOCK_N), (3, 4, 2, 1, 0))
            abcd, efgh = cube.split()
            ab, cd = abcd.split()
            ef, gh = efgh.split()
            a, b = ab.split()
            c, d = cd.split()
            e, f = ef.split()
            g, h = gh.split()
            acc = ((((((a + b) + c) + d) + e) + f) + g) + h
    out_ptrs = out_ptr + token.to(tl.int64)[:, None] * out_features + column[None, :]
    mask = (token < num_tokens)[:, None] & (column < out_features)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


def few_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    tiles: Tiles,
    segments: int = 1,
    prefetch: int = 0,
    clamp: bool = True,
    pdl: bool = True,
) -> None:
    """out [T, N] = x [T, K] @ weight [N, K].T with T <= block_m.

    `prefetch` is in bytes a program. Raises ValueError unless the segments of K are steps of
    block_k.
    """
    out_features, in_features = weight.shape
    if in_features % (segments * tiles.block_k):
        raise ValueError(
            f"in_features must be a multiple of segments x block_k = "
            f"{segments * tiles.block_k}, got {in_features}"
        )
    pieces = max(segments, min(8, 32 * tiles.num_warps // tiles.block_n), 1)
    piece = min(prefetch // tiles.block_n, in_features * 2) // pieces // 16 * 16
    few_rows_kernel[(triton.cdiv(out_features, tiles.block_n),)](
        x,
        weight,
        out,
        num_tokens,
        out_features,
        in_features,
        SEGMENTS=segments,
        PREFETCH=piece,
        PIECES=pieces,
        CLAMP=clamp,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        PDL=pdl,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **({"launch_pdl": True} if pdl else {}),
    )
