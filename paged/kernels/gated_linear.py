"""Gate and up projection of a gated MLP in one launch: out = act(x @ gate.T) * (x @ up.T).

The weight holds the I rows of the gate, then the I rows of up. Kernels, grid and batch invariance
are those of `paged.kernels.linear`, whose tile here takes gate and up rows in pairs. Both are
rounded to the dtype of x before they meet, as if a linear layer had written them. The gate is
Shazeer, "GLU Variants Improve Transformer" (2020).
"""

import torch

from paged.kernels.activation import activate_ref, check_activation
from paged.kernels.launch import check_tensor
from paged.kernels.linear import launch_linear, linear_ref

GATED_LINEAR_VARIANTS = (
    {"with_bias": True, "activation": "gelu"},
    {"activation": "gelu_tanh", "in_features": 512},
    {"capacity": 256, "in_features": 256},
    {"capacity": 4096, "in_features": 256, "with_bias": True},
)


def gated_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    activation: str,
    bias: torch.Tensor | None = None,
) -> None:
    """Write the first `num_tokens` rows of `out`.

    x [S, K] with S >= T; weight [2I, K] in the dtype of x, gate rows first; bias [2I];
    num_tokens [1] int32; out [T, I] in any float dtype. Raises ValueError on a wrong shape, dtype
    or activation.
    """
    check_activation(activation)
    check_tensor("out", out, (None, None))
    width = out.shape[1]
    check_tensor("weight", weight, (2 * width, None))
    launch_linear(x, weight, num_tokens, out, width, bias, activation, None)


def gated_linear_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    activation: str,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The live rows of the result, [num_tokens, I] in the dtype of `out`."""
    gate, up = linear_ref(x, weight, num_tokens, x, bias).float().chunk(2, dim=-1)
    return (activate_ref(gate, activation) * up).to(out.dtype)


def gated_linear_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    capacity: int = 15,
    num_tokens: int | None = None,
    in_features: int = 129,
    width: int = 100,
    with_bias: bool = False,
    activation: str = "silu",
) -> dict:
    """Arguments of `gated_linear`, gate and up of unit size; NaN in `out` and in dead rows."""
    num_tokens = capacity if num_tokens is None else num_tokens
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * capacity, in_features, generator=generator)
    x[num_tokens:] = float("nan")
    weight = torch.randn(2 * width, in_features, generator=generator) / in_features**0.5
    bias = torch.randn(2 * width, generator=generator)
    return {
        "x": x.to(device, dtype),
        "weight": weight.to(device, dtype),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32, device=device),
        "out": torch.full((capacity, width), float("nan"), dtype=dtype, device=device),
        "activation": activation,
        "bias": bias.to(device, dtype) if with_bias else None,
    }
