"""Gated activation of an MLP: out = act(gate) * up, gate and up side by side in one buffer.

Grid: (capacity / BLOCK_T, I / BLOCK_I). Both buffers contiguous. Arithmetic is fp32, rounded once.
`activate` is also the epilogue of the linear kernel. The gate is Shazeer, "GLU Variants Improve
Transformer" (2020); GELU is Hendrycks and Gimpel (2016), exact and with the tanh approximation.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted, pdl, rows_per_program

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
GATED_ACTIVATION_VARIANTS = tuple({"activation": name} for name in ACTIVATIONS[:-1])


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply the named activation to fp32 `x`; None returns it unchanged."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 * (1 + tanh(u)) == sigmoid(2u): no library tanh, and nothing cancels
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    return x


@triton.jit
def _gated_activation_kernel(
    gate_up_ptr,
    out_ptr,
    num_tokens_ptr,
    width,
    ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    num_tokens = tl.load(num_tokens_ptr)
    if tl.program_id(0) * BLOCK_T >= num_tokens:
        return
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = (token < num_tokens)[:, None] & (column < width)[None, :]
    offsets = token.to(tl.int64)[:, None] * width + column[None, :]  # into out, [T, I]
    gate_ptrs = gate_up_ptr + offsets + token.to(tl.int64)[:, None] * width
    gate = tl.load(gate_ptrs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + width, mask=mask, other=0.0).to(tl.float32)
    out = activate(gate, ACTIVATION) * up
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


def check_activation(name: str) -> None:
    """Raise ValueError unless `name` is an activation the kernels know."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")


def gated_activation(
    gate_up: torch.Tensor, num_tokens: torch.Tensor, out: torch.Tensor, activation: str
) -> None:
    """Write act(gate) * up into the first `num_tokens` rows of `out`.

    gate_up [T, 2I] holds the gate in its first I columns; num_tokens [1] int32; out [T, I].
    Raises ValueError on a wrong shape, dtype or activation.
    """
    check_activation(activation)
    check_tensor("out", out, (None, None), gate_up.dtype)
    capacity, width = out.shape
    check_tensor("gate_up", gate_up, (capacity, 2 * width))
    check_tensor("num_tokens", num_tokens, (1,), torch.int32)
    block_i = min(triton.next_power_of_2(width), 8192) if interpreted() else 1024
    block_t = rows_per_program(capacity, block_i)
    grid = (triton.cdiv(capacity, block_t), triton.cdiv(width, block_i))
    if capacity == 0:
        return
    _gated_activation_kernel[grid](
        gate_up,
        out,
        num_tokens,
        width,
        ACTIVATION=activation,
        BLOCK_T=block_t,
        BLOCK_I=block_i,
        num_warps=4,
        **pdl(),
    )


def activate_ref(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """The named activation, by torch, in the dtype of `x`; None returns `x`."""
    if activation is None:
        return x
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[activation](x)


def gated_activation_ref(
    gate_up: torch.Tensor, num_tokens: torch.Tensor, out: torch.Tensor, activation: str
) -> torch.Tensor:
    """The live rows of the result, [num_tokens, I] in the dtype of `out`."""
    gate, up = gate_up[: int(num_tokens)].float().chunk(2, dim=-1)
    return (activate_ref(gate, activation) * up).to(out.dtype)


def gated_activation_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    capacity: int = 20,
    num_tokens: int = 17,
    width: int = 129,
    activation: str = "silu",
) -> dict:
    """Arguments of `gated_activation`: normal gate and up, NaN in `out` and in dead rows."""
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(capacity, 2 * width, generator=generator) * 2
    gate_up[num_tokens:] = float("nan")
    return {
        "gate_up": gate_up.to(device, dtype),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32, device=device),
        "out": torch.full((capacity, width), float("nan"), dtype=dtype, device=device),
        "activation": activation,
    }
