"""Slopes of ALiBi's linear biases (Press et al. 2022)."""

import torch


def alibi_slopes(num_heads: int, device: torch.device | str | None = None) -> torch.Tensor:
    """[num_heads] float32: 2^(-8i/n), i = 1..n, for the largest power of two n <= num_heads.

    Further heads take every other slope of the sequence for 2n, as the paper's code and BLOOM do.
    """
    nearest = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / nearest) for i in range(1, nearest + 1)]
    slopes += [2 ** (-4 * i / nearest) for i in range(1, 2 * (num_heads - nearest), 2)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)
