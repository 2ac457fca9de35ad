"""Activations of an MLP, in the epilogue of its linear layers.

GELU is Hendrycks and Gimpel (2016), exact and with the tanh approximation; SiLU is Elfwing et al.
(2017).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


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


def check_activation(name: str) -> None:
    """Raise ValueError unless `name` is an activation the kernels know."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")


def activate_ref(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """The named activation, by torch, in the dtype of `x`; None returns `x`."""
    if activation is None:
        return x
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[activation](x)
