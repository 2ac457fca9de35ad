"""RMSNorm and LayerNorm of each row, with the residual addition in front.

    h = x                          or   residual += x; h = residual
    h = x[rows]                    or   h = x[rows] + residual[rows]
    rms:    out = round(h / sqrt(mean(h^2) + eps)) * (weight + weight_offset)
    layer:  out = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias

Grid: (rows of out / BLOCK_T,), a program holds whole rows. All tensors contiguous, arithmetic
fp32. A row is reduced in the same layout whatever the batch, so its bits do not depend on the
others, nor on being selected. Selected rows are written packed; then `residual` is only read.
RMSNorm is Zhang and Sennrich (2019), rounded before the weight as Llama does; with a weight offset
(Gemma stores weight - 1) it is rounded once, at the end. LayerNorm is Ba et al. (2016).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, pdl, rows_per_program

KINDS = ("rms", "layer")
NORM_VARIANTS = (
    {"with_residual": True},
    {"weight_offset": 1.0},
    {"kind": "layer", "with_bias": True},
    {"kind": "layer", "with_bias": True, "with_residual": True},
    {"with_rows": True},
    {"with_rows": True, "with_residual": True},
)


@triton.jit
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    rows_ptr,
    out_ptr,
    num_tokens_ptr,
    hidden_size,
    eps,
    weight_offset,
    IS_LAYER: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROUND_BEFORE_WEIGHT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    column = tl.arange(0, BLOCK_H)
    in_row = column < hidden_size
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_tokens = tl.load(num_tokens_ptr, cache_modifier=".cg")
    weight = tl.load(weight_ptr + column, mask=in_row, other=0.0).to(tl.float32) + weight_offset
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = token
    if HAS_ROWS:
        row = tl.load(rows_ptr + token, mask=token < num_tokens, other=0, cache_modifier=".cg")
    if PDL:
        tl.extra.cuda.gdc_wait()
    if tl.program_id(0) * BLOCK_T >= num_tokens:
        return
    mask = (token < num_tokens)[:, None] & in_row[None, :]
    offsets = row.to(tl.int64)[:, None] * hidden_size + column[None, :]

    h = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_H]
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        # the norm sees what the next layer will read back: the sum in the residual's dtype
        stored = h.to(residual_ptr.dtype.element_ty)
        if not HAS_ROWS:
            tl.store(residual_ptr + offsets, stored, mask=mask)
        h = stored.to(tl.float32)
    if IS_LAYER:
        mean = tl.sum(h, axis=1, keep_dims=True) / hidden_size
        h = tl.where(mask, h - mean, 0.0)
    variance = tl.sum(h * h, axis=1, keep_dims=True) / hidden_size
    h *= tl.rsqrt(variance + eps)
    if ROUND_BEFORE_WEIGHT:
        h = h.to(out_ptr.dtype.element_ty).to(tl.float32)
    h *= weight[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + column, mask=in_row, other=0.0).to(tl.float32)
        h += bias[None, :]
    if HAS_ROWS:
        offsets = token.to(tl.int64)[:, None] * hidden_size + column[None, :]
    tl.store(out_ptr + offsets, h.to(out_ptr.dtype.element_ty), mask=mask)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    kind: str = "rms",
    weight_offset: float = 0.0,
) -> None:
    """Write the first `num_tokens` rows of `out`; `residual += x` first, if given.

    x, out, residual [T, H]; weight, bias [H]; num_tokens [1] int32. `out` may be `x` itself.
    Side effect: `residual` is updated in place, in its dtype. With rows [B] int32, row i of
    `out` [B, H] is made of row rows[i] of x and residual, which stay as they are; `out` must then
    be memory of its own. Raises ValueError on a wrong shape, dtype or kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_tensor("x", x, (None, None))
    hidden_size = x.shape[1]
    capacity = len(x) if rows is None else len(rows)
    check_tensor("weight", weight, (hidden_size,))
    check_tensor("num_tokens", num_tokens, (1,), torch.int32)
    check_tensor("out", out, (capacity, hidden_size), x.dtype)
    if bias is not None:
        check_tensor("bias", bias, (hidden_size,))
    if residual is not None:
        check_tensor("residual", residual, (len(x), hidden_size), x.dtype)
    if rows is not None:
        check_tensor("rows", rows, (None,), torch.int32)
    block_h = triton.next_power_of_2(hidden_size)
    block_t = rows_per_program(capacity, block_h)
    if capacity == 0:
        return
    _norm_kernel[(triton.cdiv(capacity, block_t),)](
        x,
        residual,
        weight,
        bias,
        rows,
        out,
        num_tokens,
        hidden_size,
        eps,
        weight_offset,
        IS_LAYER=kind == "layer",
        HAS_RESIDUAL=residual is not None,
        HAS_ROWS=rows is not None,
        HAS_BIAS=bias is not None,
        ROUND_BEFORE_WEIGHT=kind == "rms" and weight_offset == 0.0,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        num_warps=min(16, max(1, block_h // 512)),
        **pdl(),
    )


def norm_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    kind: str = "rms",
    weight_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The live rows of (out, x + residual), both [num_tokens, H] in the dtype of `x`."""
    live = torch.arange(int(num_tokens), device=x.device)
    if rows is not None:
        live = rows[live].long()
    h = x[live].float()
    if residual is not None:
        residual = (h + residual[live].float()).to(residual.dtype)
        h = residual.float()
    scale = weight.float() + weight_offset
    if kind == "layer":
        shift = None if bias is None else bias.float()
        return F.layer_norm(h, weight.shape, scale, shift, eps).to(x.dtype), residual
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    if weight_offset == 0.0:
        h = h.to(x.dtype).float()
    h = h * scale
    if bias is not None:
        h = h + bias.float()
    return h.to(x.dtype), residual


def norm_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    capacity: int = 20,
    num_tokens: int = 17,
    hidden_size: int = 129,
    kind: str = "rms",
    with_bias: bool = False,
    with_residual: bool = False,
    with_rows: bool = False,
    weight_offset: float = 0.0,
) -> dict:
    """Arguments of `norm`: rows of mean 0.5, NaN in `out` and in unread rows of x and residual."""
    generator = torch.Generator().manual_seed(0)
    read = torch.arange(capacity)
    if with_rows:
        read = torch.randperm(2 * capacity, generator=generator)[:capacity]
    height = 2 * capacity if with_rows else capacity

    def tokens() -> torch.Tensor:
        values = torch.full((height, hidden_size), float("nan"))
        live = read[:num_tokens]
        values[live] = torch.randn(len(live), hidden_size, generator=generator) + 0.5
        return values.to(device, dtype)

    def column() -> torch.Tensor:
        return torch.randn(hidden_size, generator=generator).to(device, dtype)

    rows = read.int()
    rows[num_tokens:] = torch.iinfo(torch.int32).min
    return {
        "x": tokens(),
        "weight": column(),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32, device=device),
        "out": torch.full((capacity, hidden_size), float("nan"), dtype=dtype, device=device),
        "eps": 1e-5,
        "bias": column() if with_bias else None,
        "residual": tokens() if with_residual else None,
        "rows": rows.to(device) if with_rows else None,
        "kind": kind,
        "weight_offset": weight_offset,
    }
