"""The linear layer for few rows: weights stream through shared memory, asked for before the wait.

    out = act(softcap(x @ weight.T + bias))     or     out = act(x @ gate.T) * (x @ up.T)

With few rows a linear layer reads its weights and waits: for the launch before, for x, for its
first bytes. Weights are constants, so a program fills a ring of them before `gdc_wait`, while the
launches before it still run; x comes behind the wait, in a ring of its own. A launch that leaves
shared memory for the next one so keeps memory busy from launch to launch.

A step over K is UNITS units of 64 columns, 128 bytes a row: the width of TMA's swizzle. x comes in
boxes of as many rows as the capacity has (16, 32 or 64), or of half as many where those hold all
tokens. A wgmma reads 64 rows, of which the others are then the units behind: its rows do not meet.

Grid: as many programs as stay resident, program p taking tiles p, p + P, ... The chain over K is
that of `paged.kernels.linear`: the same bits. Gluon, NVIDIA Hopper.
"""

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from paged.kernels.activation import activate
from paged.kernels.launch import pdl
from paged.kernels.linear_persistent import multiprocessors
from paged.kernels.linear_rings import ask_rows, ask_weights, expect_rows, next_step
from paged.kernels.linear_tiles import StreamTiles
from paged.kernels.warp_groups import barrier, has_warp_groups

STREAM_ROWS = 64  # at most: what one wgmma multiplies
UNIT = 64  # columns


@gluon.jit
def _finish(
    acc, bias_ptr, out_ptr, tile_n, num_tokens, out_features, softcap, dtype: gl.constexpr,
    HAS_BIAS: gl.constexpr, HAS_SOFTCAP: gl.constexpr, ACTIVATION: gl.constexpr,
    GATED: gl.constexpr,
):  # fmt: skip
    """`linear_epilogue.finish_tile`; a gated tile is all gates, then all ups."""
    BLOCK_M: gl.constexpr = acc.shape[0]
    COLUMNS: gl.constexpr = acc.shape[1] // 2 if GATED else acc.shape[1]
    if HAS_BIAS:
        index = gl.arange(0, acc.shape[1], gl.SliceLayout(0, acc.type.layout))
        if GATED:
            bias_row = gl.minimum(tile_n * COLUMNS + index % COLUMNS, out_features - 1)
            bias_row += index // COLUMNS * out_features
        else:
            bias_row = gl.minimum(tile_n * COLUMNS + index, out_features - 1)
        acc += gl.expand_dims(gl.load(bias_ptr + bias_row).to(gl.float32), 0)
    if GATED:
        rounded = acc.to(dtype).to(gl.float32)
        gate, up = rounded.reshape([BLOCK_M, 2, COLUMNS]).permute((0, 2, 1)).split()
        y = activate(gate, ACTIVATION) * up
    else:
        y = acc
        if HAS_SOFTCAP:
            y = softcap * (2.0 / (1.0 + gl.exp(-2.0 / softcap * y)) - 1.0)
        y = activate(y, ACTIVATION)
    token = gl.arange(0, BLOCK_M, gl.SliceLayout(1, y.type.layout))
    column = tile_n * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, y.type.layout))
    rows = gl.expand_dims(token, 1).to(gl.int64)
    columns = gl.expand_dims(column, 0)
    mask = (rows < num_tokens) & (columns < out_features)
    out_ptrs = out_ptr + rows * out_features + columns
    gl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def _streamed_linear_kernel(
    x_desc,
    x_half_desc,
    weight_desc,
    bias_ptr,
    out_ptr,
    num_tokens_ptr,
    out_features,
    in_features,
    softcap,
    HAS_BIAS: gl.constexpr,
    HAS_SOFTCAP: gl.constexpr,
    ACTIVATION: gl.constexpr,
    GATED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    UNITS: gl.constexpr,
    W_STAGES: gl.constexpr,
    X_STAGES: gl.constexpr,
    PDL: gl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_tokens = gl.load(num_tokens_ptr, cache_modifier=".cg")
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    dtype: gl.constexpr = x_desc.dtype
    ROWS: gl.constexpr = x_desc.block_shape[0]
    BOXES: gl.constexpr = 2 if GATED else 1
    WIDTH: gl.constexpr = UNITS * 64
    COLUMNS: gl.constexpr = BLOCK_N // BOXES
    # behind the last unit of x the rows that its wgmma reads and nobody looks at
    x_units = gl.allocate_shared_memory(
        dtype, [X_STAGES * UNITS + BLOCK_M // ROWS - 1, ROWS, 64], SHARED
    )
    x_rows = x_units._reinterpret(dtype, [X_STAGES * UNITS * (ROWS // 8), 8, 64], SHARED)
    w_units = gl.allocate_shared_memory(dtype, [W_STAGES * UNITS, BLOCK_N, 64], SHARED)
    if GATED:
        w_boxes = w_units._reinterpret(dtype, [W_STAGES * UNITS * 2, COLUMNS, 64], SHARED)
    else:
        w_boxes = w_units._reinterpret(dtype, [W_STAGES, BLOCK_N, WIDTH], SHARED)
    x_full = gl.allocate_shared_memory(gl.int64, [X_STAGES, 1], mbarrier.MBarrierLayout())
    w_full = gl.allocate_shared_memory(gl.int64, [W_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(X_STAGES):
        mbarrier.init(x_full.index(i), count=1)
    for i in gl.static_range(W_STAGES):
        mbarrier.init(w_full.index(i), count=1)
    fence_async_shared()
    barrier()

    num_tiles = (out_features + COLUMNS - 1) // COLUMNS
    first = gl.program_id(0)
    programs = gl.num_programs(0)
    num_k = (in_features + WIDTH - 1) // WIDTH
    num_steps = gl.maximum((num_tiles - first + programs - 1) // programs, 0) * num_k
    if num_tokens == 0:
        num_tiles, num_steps = 0, 0
    end_k = num_k * WIDTH
    w_tile, w_k = first, 0
    for i in gl.static_range(W_STAGES):
        if i < num_steps:
            ask_weights(
                weight_desc, w_boxes, w_full, i, w_tile, w_k, out_features,
                BOXES, UNITS, W_STAGES,
            )  # fmt: skip
            w_tile, w_k = next_step(w_tile, w_k, programs, end_k, WIDTH)
    is_half = num_tokens <= ROWS // 2
    unit_stride = ROWS // 8  # of a unit of x, in groups of 8 rows
    if is_half:
        unit_stride //= 2
    for i in gl.static_range(X_STAGES):
        if i < num_steps:
            expect_rows(x_full.index(i), ROWS * WIDTH, is_half)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x_tile, x_k = first, 0
    for i in gl.static_range(X_STAGES):
        if i < num_steps:
            ask_rows(
                x_desc, x_half_desc, x_units, x_full, i, x_k, is_half,
                X_STAGES,
            )  # fmt: skip
            x_tile, x_k = next_step(x_tile, x_k, programs, end_k, WIDTH)

    step = 0
    for tile in range(first, num_tiles, programs):
        acc = gl.full([BLOCK_M, BLOCK_N], 0.0, gl.float32, ACC)
        for k in range(num_k):
            w_slot = step % W_STAGES
            x_slot = step % X_STAGES
            mbarrier.wait(w_full.index(w_slot), (step // W_STAGES) & 1)
            mbarrier.wait(x_full.index(x_slot), (step // X_STAGES) & 1)
            for unit in gl.static_range(UNITS):
                x = x_rows.index((x_slot * UNITS + unit) * unit_stride)
                x = x._reinterpret(dtype, [BLOCK_M, 64], SHARED)
                weight = w_units.index(w_slot * UNITS + unit).permute((1, 0))
                if unit == 0:
                    token = warpgroup_mma(x, weight, acc, use_acc=k > 0, is_async=True)
                else:
                    token = warpgroup_mma(x, weight, token, is_async=True)
            # the step before has ended: what it read is asked for anew
            acc = warpgroup_mma_wait(UNITS, deps=[token])
            w_step = step + W_STAGES - 1
            x_step = step + X_STAGES - 1
            more_weights = (step > 0) & (w_step < num_steps)
            more_inputs = (step > 0) & (x_step < num_steps)
            if more_weights | more_inputs:
                barrier()
            if more_weights:
                ask_weights(
                    weight_desc, w_boxes, w_full, w_step, w_tile, w_k, out_features,
                    BOXES, UNITS, W_STAGES,
                )  # fmt: skip
                w_tile, w_k = next_step(w_tile, w_k, programs, end_k, WIDTH)
            if more_inputs:
                expect_rows(x_full.index(x_step % X_STAGES), ROWS * WIDTH, is_half)
                ask_rows(
                    x_desc, x_half_desc, x_units, x_full, x_step, x_k,
                    is_half, X_STAGES,
                )  # fmt: skip
                x_tile, x_k = next_step(x_tile, x_k, programs, end_k, WIDTH)
            step += 1
        acc = warpgroup_mma_wait(0, deps=[acc])
        _finish(
            acc, bias_ptr, out_ptr, tile, num_tokens,
            out_features, softcap, dtype, HAS_BIAS, HAS_SOFTCAP, ACTIVATION, GATED,
        )  # fmt: skip


def can_stream(x: torch.Tensor, weight: torch.Tensor, capacity: int) -> bool:
    """Whether a launch may take this kernel: Hopper, few rows, 16 bits, what TMA can address."""
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in (x, weight))
    return (
        0 < capacity <= STREAM_ROWS
        and weight.dtype in (torch.float16, torch.bfloat16)
        and min(weight.shape) > 0
        and weight.shape[1] % 8 == 0
        and aligned
        and has_warp_groups()
    )


def launch_streamed(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    logit_softcap: float | None,
    gated: bool,
    tiles: StreamTiles,
) -> None:
    """Launch over checked arguments: those of `linear`, or with `gated` those of `gated_linear`."""
    capacity, out_features = out.shape
    layout = gl.NVMMASharedLayout(128, 16, rank=2)
    rows = max(16, triton.next_power_of_2(capacity))
    columns = tiles.block_n // 2 if gated else tiles.block_n
    width = tiles.units * UNIT
    x_desc = TensorDescriptor.from_tensor(x, [rows, width], layout)
    x_half_desc = TensorDescriptor.from_tensor(x, [rows // 2, width], layout)
    box = [columns, UNIT if gated else width]
    weight_desc = TensorDescriptor.from_tensor(weight, box, layout)
    programs = min(
        triton.cdiv(out_features, columns), tiles.per_processor * multiprocessors(x.device)
    )
    _streamed_linear_kernel[(programs,)](
        x_desc,
        x_half_desc,
        weight_desc,
        bias,
        out,
        num_tokens,
        out_features,
        x.shape[1],
        logit_softcap,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=logit_softcap is not None,
        ACTIVATION=activation,
        GATED=gated,
        BLOCK_M=STREAM_ROWS,
        BLOCK_N=tiles.block_n,
        UNITS=tiles.units,
        W_STAGES=tiles.weight_stages,
        X_STAGES=tiles.input_stages,
        num_warps=4,
        **pdl(),
    )
