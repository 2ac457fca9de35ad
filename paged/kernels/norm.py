"""RMSNorm and LayerNorm of each row, with the residual addition in front.

    h = x                          or   residual += x; h = residual
    rms:    out = round(h / sqrt(mean(h^2) + eps)) * (weight + weight_offset)
    layer:  out = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias

Grid: (capacity / BLOCK_T,), a program holds whole rows. All tensors contiguous, arithmetic fp32.
A row is reduced in the same layout whatever the batch, so its bits do not depend on the others.
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
)


@triton.jit
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_tokens_ptr,
    hidden_size,
    eps,
    weight_offset,
    IS_LAYER: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
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
    if PDL:
        tl.extra.cuda.gdc_wait()
    if tl.program_id(0) * BLOCK_T >= num_tokens:
        return
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask = (token < num_tokens)[:, None] & in_row[None, :]
    offsets = token.to(tl.int64)[:, None] * hidden_size + column[None, :]

    h = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_H]
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        # the norm sees what the next layer will read back: the sum in the residual's dtype
        stored = h.to(residual_ptr.dtype.element_ty)
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
    tl.store(out_ptr + offsets, h.to(out_ptr.dtype.element_ty), mask=mask)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    kind: str = "rms",
    weight_offset: float = 0.0,
) -> None:
    """Normalise the first `num_tokens` rows of `x` into `out`; `residual += x` first, if given.

    x, out, residual [T, H]; weight, bias [H]; num_tokens [1] int32. `out` may be `x` itself.
    Side effect: `residual` is updated in place, in its dtype. Raises ValueError on a wrong shape,
    dtype or kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_tensor("x", x, (None, None))
    capacity, hidden_size = x.shape
    check_tensor("weight", weight, (hidden_size,))
    check_tensor("num_tokens", num_tokens, (1,), torch.int32)
    check_tensor("out", out, (capacity, hidden_size), x.dtype)
    if bias is not None:
        check_tensor("bias", bias, (hidden_size,))
    if residual is not None:
        check_tensor("residual", residual, (capacity, hidden_size), x.dtype)
    block_h = triton.next_power_of_2(hidden_size)
    block_t = rows_per_program(capacity, block_h)
    if capacity == 0:
        return
    _norm_kernel[(triton.cdiv(capacity, block_t),)](
        x,
        residual,
        weight,
        bias,
        out,
        num_tokens,
        hidden_size,
        eps,
        weight_offset,
        IS_LAYER=kind == "layer",
        HAS_RESIDUAL=residual is not None,
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
    kind: str = "rms",
    weight_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The live rows of (out, residual), both [num_tokens, H] in the dtype of `x`."""
    h = x[: int(num_tokens)].float()
    if residual is not None:
        residual = (h + residual[: int(num_tokens)].float()).to(residual.dtype)
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
    weight_offset: float = 0.0,
) -> dict:
    """Arguments of `norm`: rows of mean 0.5, NaN in `out` and in dead rows of x and residual."""
    generator = torch.Generator().manual_seed(0)

    def rows() -> torch.Tensor:
        values = torch.randn(capacity, hidden_size, generator=generator) + 0.5
        values[num_tokens:] = float("nan")
        return values.to(device, dtype)

    def column() -> torch.Tensor:
        return torch.randn(hidden_size, generator=generator).to(device, dtype)

    return {
        "x": rows(),
        "weight": column(),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32, device=device),
        "out": torch.full((capacity, hidden_size), float("nan"), dtype=dtype, device=device),
        "eps": 1e-5,
        "bias": column() if with_bias else None,
        "residual": rows() if with_residual else None,
        "kind": kind,
        "weight_offset": weight_offset,
    }
