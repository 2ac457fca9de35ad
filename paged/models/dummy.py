"""Random weights of a given shape, made on the device: for timing, sizing and tests."""

import torch

from paged.models.spec import DecoderSpec
from paged.models.weights import empty_weights

STANDARD_DEVIATION = 0.02


def dummy_weights(
    spec: DecoderSpec, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Weights and biases from N(0, 0.02), norm weights 1; equal for equal seed and device kind."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = empty_weights(spec, device, dtype)
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(1.0 - spec.norm_weight_offset)
        else:
            weight.normal_(0.0, STANDARD_DEVIATION, generator=generator)
    return weights
