"""What the linear kernels share behind their loop over K: bias, activation, gate, masked stores.

A gated tile takes its weight rows in pairs, gate n beside up n, so both accumulators of an output
lie in one thread and the split moves nothing.
"""

import triton
import triton.language as tl

from paged.kernels.activation import activate


@triton.jit
def weight_rows(tile_n, out_features, GATED: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rows of the weight in a tile, [BLOCK_N]; past the end they repeat the last one."""
    index = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if GATED:
        return tl.minimum(index // 2, out_features - 1) + index % 2 * out_features
    return tl.minimum(index, out_features - 1)


@triton.jit
def store_columns(y, out_ptr, token, first_column, num_tokens, out_features):
    """Store y [BLOCK_M, any] from `first_column` on, live rows and columns only."""
    column = first_column + tl.arange(0, y.shape[1])
    out_ptrs = out_ptr + token.to(tl.int64)[:, None] * out_features + column[None, :]
    mask = (token < num_tokens)[:, None] & (column < out_features)[None, :]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def finish_tile(
    acc,
    bias_ptr,
    out_ptr,
    token,
    tile_n,
    num_tokens,
    out_features,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HALVES: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Turn acc [BLOCK_M, BLOCK_N] into outputs and store them.

    GATED rounds gate and up to DTYPE first: the bits of a linear layer and a gated activation.
    HALVES stores a wide tile in two parts, which take less shared memory.
    """
    if HAS_BIAS:
        bias_row = weight_rows(tile_n, out_features, GATED, BLOCK_N)
        acc += tl.load(bias_ptr + bias_row).to(tl.float32)[None, :]
    if GATED:
        HALF: tl.constexpr = BLOCK_N // 2
        pairs = acc.to(DTYPE).to(tl.float32).reshape(BLOCK_M, HALF, 2)
        gate, up = pairs.split()
        y = activate(gate, ACTIVATION) * up
        store_columns(y, out_ptr, token, tile_n * HALF, num_tokens, out_features)
    else:
        if HAS_SOFTCAP:
            acc = softcap * (2.0 / (1.0 + tl.exp(-2.0 / softcap * acc)) - 1.0)
        if ACTIVATION is not None:
            acc = activate(acc, ACTIVATION)
        first = tile_n * BLOCK_N
        if HALVES:
            WIDTH: tl.constexpr = BLOCK_N // 2
            left, right = acc.reshape(BLOCK_M, 2, WIDTH).permute(0, 2, 1).split()
            store_columns(left, out_ptr, token, first, num_tokens, out_features)
            store_columns(right, out_ptr, token, first + WIDTH, num_tokens, out_features)
        else:
            store_columns(acc, out_ptr, token, first, num_tokens, out_features)
