"""Linear layer with its epilogue: out = act(softcap(x @ weight.T + bias)).

    softcap(y) = cap * tanh(y / cap)        (Gemma 2; only with logit_softcap)

Grid: one program an output tile, sized by the capacity of `out`; the live row count is read on the
device, so the live tiles come first in the grid, in groups of GROUP_M row tiles that share weight
tiles in L2. All tensors contiguous. Accumulation is fp32, fp32 operands are multiplied in fp32. For
16 bits and where the hardware has descriptors, others do the same: `paged.kernels.linear_stream`
for few rows, `paged.kernels.linear_persistent` for many.

Batch invariance: every output is one sequential chain over K, without splits. On a tensor core the
tile does not change its order: 154 tiles gave the same bits on an H200 at every shape tried
(experiments/kernels/linear, which times no tile with other bits), and a test holds the table to it.
So the tile may follow the number of rows, and the bits of a row still do not depend on the batch.
(Not so in the interpreter, whose BLAS sums a row differently at the edge of a tile: see
`paged.testing.interpreting.rowwise_dots`; there the step over K depends on the weight alone.)
"""

import torch
import triton
import triton.language as tl

from paged.kernels.activation import activate_ref, check_activation
from paged.kernels.launch import check_tensor, interpreted, pdl
from paged.kernels.linear_epilogue import finish_tile, weight_rows
from paged.kernels.linear_persistent import can_persist, launch_persistent
from paged.kernels.linear_stream import can_stream, launch_streamed
from paged.kernels.linear_tiles import persistent_tiles, pointer_tiles, stream_tiles

LINEAR_VARIANTS = (
    {"with_bias": True, "activation": "relu"},
    {"logit_softcap": 30.0},
    {"activation": "gelu"},
    {"activation": "gelu_tanh"},
    {"activation": "silu", "in_features": 512},
    {"capacity": 512, "in_features": 200, "with_bias": True, "logit_softcap": 30.0},
    {"capacity": 512, "out_features": 16400, "in_features": 256, "out_dtype": torch.float32},
    *(
        {"capacity": capacity, "out_features": columns, "in_features": 256}
        for capacity, columns in ((16, 64), (64, 4096), (64, 16400), (256, 4096), (4096, 4096))
    ),
)


@triton.jit
def _linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_tokens_ptr,
    out_features,
    in_features,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    ONE_ROW_TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    program = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_tokens = tl.load(num_tokens_ptr, cache_modifier=".cg")
    if PDL:
        tl.extra.cuda.gdc_wait()
    COLUMNS: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N
    # plain arithmetic, not tl.cdiv: a nested call costs the interpreter a millisecond
    tiles_m = (num_tokens + BLOCK_M - 1) // BLOCK_M
    tiles_n = (out_features + COLUMNS - 1) // COLUMNS
    if program >= tiles_m * tiles_n:
        return
    if ONE_ROW_TILE:
        tile_m, tile_n = 0, program
    else:
        group = program // (GROUP_M * tiles_n)
        group_rows = min(tiles_m - group * GROUP_M, GROUP_M)
        in_group = program - group * (GROUP_M * tiles_n)
        tile_m = group * GROUP_M + in_group % group_rows
        tile_n = in_group // group_rows

    token = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    is_live = token < num_tokens
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token.to(tl.int64)[:, None] * in_features + k[None, :]
    # columns past the end repeat the last one: no mask for the weight, nothing stored
    weight_row = weight_rows(tile_n, out_features, GATED, BLOCK_N).to(tl.int64)
    weight_ptrs = weight_ptr + weight_row[:, None] * in_features + k[None, :]

    acc = tl.full([BLOCK_M, BLOCK_N], 0.0, dtype=tl.float32)
    for start in range(0, in_features, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=is_live[:, None], other=0.0)  # [BLOCK_M, BLOCK_K]
            weight = tl.load(weight_ptrs)  # [BLOCK_N, BLOCK_K]
        else:
            in_row = (k < in_features - start)[None, :]
            x = tl.load(x_ptrs, mask=is_live[:, None] & in_row, other=0.0)
            weight = tl.load(weight_ptrs, mask=in_row, other=0.0)
        acc = tl.dot(x, weight.T, acc, input_precision="ieee")
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    finish_tile(
        acc,
        bias_ptr,
        out_ptr,
        token,
        tile_n,
        num_tokens,
        out_features,
        softcap,
        HAS_BIAS=HAS_BIAS,
        HAS_SOFTCAP=HAS_SOFTCAP,
        ACTIVATION=ACTIVATION,
        GATED=GATED,
        HALVES=False,
        DTYPE=x_ptr.dtype.element_ty,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
    )


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    logit_softcap: float | None = None,
) -> None:
    """Write the first `num_tokens` rows of `out`.

    x [S, K] with S >= T; weight [N, K] in the dtype of x; bias [N]; num_tokens [1] int32;
    out [T, N] in any float dtype. Raises ValueError on a wrong shape, dtype or activation.
    """
    if activation is not None:
        check_activation(activation)
    check_tensor("weight", weight, (None, None))
    out_features = weight.shape[0]
    launch_linear(x, weight, num_tokens, out, out_features, bias, activation, logit_softcap)


def launch_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    out_features: int,
    bias: torch.Tensor | None,
    activation: str | None,
    logit_softcap: float | None,
) -> None:
    """Check and launch for `linear` and `gated_linear`, which has two weight rows an output."""
    weight_features, in_features = weight.shape
    check_tensor("x", x, (None, in_features), weight.dtype)
    check_tensor("out", out, (None, out_features))
    capacity = out.shape[0]
    check_tensor("num_tokens", num_tokens, (1,), torch.int32)
    if bias is not None:
        check_tensor("bias", bias, (weight_features,))
    if x.shape[0] < capacity:
        raise ValueError(f"x must have at least the {capacity} rows of out, got {x.shape[0]}")
    gated = weight_features != out_features
    streamed = stream_tiles(capacity, weight_features, in_features)
    if streamed is not None and can_stream(x, weight, capacity):
        launch_streamed(
            x, weight, num_tokens, out, bias, activation, logit_softcap, gated, streamed
        )
        return
    if can_persist(x, weight, capacity):
        tiles = persistent_tiles(capacity, weight_features, in_features)
        launch_persistent(x, weight, num_tokens, out, bias, activation, logit_softcap, gated, tiles)
        return
    tiles = pointer_tiles(capacity, weight_features, in_features, weight.dtype, interpreted())
    row_tiles = triton.cdiv(capacity, tiles.block_m)
    programs = row_tiles * triton.cdiv(weight_features, tiles.block_n)
    if programs == 0:
        return
    _linear_kernel[(programs,)](
        x,
        weight,
        bias,
        out,
        num_tokens,
        out_features,
        in_features,
        logit_softcap,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=logit_softcap is not None,
        ACTIVATION=activation,
        GATED=gated,
        EVEN_K=in_features % tiles.block_k == 0,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=8,
        ONE_ROW_TILE=row_tiles == 1,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **pdl(),
    )


def linear_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    logit_softcap: float | None = None,
) -> torch.Tensor:
    """The live rows of the result, [num_tokens, N] in the dtype of `out`."""
    y = x[: int(num_tokens)].float() @ weight.float().T
    if bias is not None:
        y += bias.float()
    if logit_softcap is not None:
        y = logit_softcap * torch.tanh(y / logit_softcap)
    return activate_ref(y, activation).to(out.dtype)


def linear_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    capacity: int = 15,
    num_tokens: int | None = None,
    in_features: int = 129,
    out_features: int = 200,
    with_bias: bool = False,
    activation: str | None = None,
    logit_softcap: float | None = None,
    out_dtype: torch.dtype | None = None,
) -> dict:
    """Arguments of `linear`, outputs of unit size; NaN in `out` and in the rows not to be read."""
    num_tokens = capacity if num_tokens is None else num_tokens
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * capacity, in_features, generator=generator)
    x[num_tokens:] = float("nan")
    weight = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
    bias = torch.randn(out_features, generator=generator)
    shape, out_dtype = (capacity, out_features), out_dtype or dtype
    return {
        "x": x.to(device, dtype),
        "weight": weight.to(device, dtype),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32, device=device),
        "out": torch.full(shape, float("nan"), dtype=out_dtype, device=device),
        "bias": bias.to(device, dtype) if with_bias else None,
        "activation": activation,
        "logit_softcap": logit_softcap,
    }
