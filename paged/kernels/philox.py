"""Gumbel noise a draw can be repeated from: counter-based, so it depends on nothing but its key.

The noise of token `id` in the draw at `position` of a request with `seed` is

    bits = Philox4x32-10(key=seed, counter=(id // 4, position, level, 0))[id % 4]
    u    = min((bits + 1/2) / 2^32, 1 - 2^-24)
    g    = -log(-log(1 - u))                            standard Gumbel, between -2.8 and 22.9

One Philox call serves four neighbouring tokens. Level 0 is the noise of tokens; at level 1 the
first three words of counter (0, position, 1, 0) are the u of a draw without filters
(plain_draw.py). u is the small side of the uniform: the draw is decided by large g, that is by u
near 0, where fp32 is finest.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
Maddison, Tarlow, Minka: "A* sampling" (2014) for the Gumbel-max trick.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.fast_math import fast_log
from paged.kernels.sampling_rows import column

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
TOKENS_LEVEL, DRAW_LEVEL = (tl.constexpr(level) for level in range(2))
LARGEST_U = tl.constexpr(1 - 2**-24)
SMALL_U = tl.constexpr(2**-4)


@triton.jit
def gumbel_noise(
    seeds, positions, groups, ROWS: tl.constexpr, BLOCK: tl.constexpr, NVIDIA: tl.constexpr
):
    """Noise of tokens for draws of seeds and positions [ROWS]: fp32 [ROWS, BLOCK], four neighbours
    for each of groups [ROWS or 1, BLOCK // 4] int32, the ids over 4."""
    zero = tl.full([ROWS, BLOCK // 4], 0, tl.int32)
    groups, positions = zero + groups, zero + column(positions, ROWS)
    seeds = column(seeds, ROWS)
    first, second, third, fourth = tl.philox(seeds, groups, positions, zero + TOKENS_LEVEL, zero)
    bits = tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), [ROWS, BLOCK])
    u = _uniform(bits)
    # 1 - u loses the low bits of a small u, so there the series of -log(1 - u) takes over.
    series = u * (1 + u * (0.5 + u * (1 / 3 + u * (0.25 + u * 0.2))))
    exponential = tl.where(u < SMALL_U, series, -fast_log(1 - u, NVIDIA))
    return -fast_log(exponential, NVIDIA)


@triton.jit
def draw_numbers(seeds, positions):
    """Three uniform numbers a draw, each [ROWS], for seeds and positions [ROWS]."""
    zero = positions * 0
    first, second, third, _fourth = tl.philox(seeds, zero, positions, zero + DRAW_LEVEL, zero)
    return _uniform(first), _uniform(second), _uniform(third)


@triton.jit
def _uniform(bits):
    """Numbers over 0 and under 1 of uint32 bits."""
    return tl.minimum((bits.to(tl.float32) + 0.5) * 2.0**-32, LARGEST_U)


def philox_ref(
    seed: int, position: int, num_groups: int, device: str | torch.device = "cpu", level: int = 0
) -> torch.Tensor:
    """Philox4x32-10 by the book, in int64: words of counters (0.., position, level, 0)."""
    mask = 0xFFFFFFFF
    words = [torch.arange(num_groups, dtype=torch.int64, device=device)]
    words += [torch.full_like(words[0], word) for word in (position, level, 0)]
    low, high = seed & mask, (seed >> 32) & mask
    for _ in range(ROUNDS):
        first = _wide_product(words[0], MULTIPLIERS[0])
        second = _wide_product(words[2], MULTIPLIERS[1])
        words = [second[0] ^ words[1] ^ low, second[1], first[0] ^ words[3] ^ high, first[1]]
        low, high = (low + KEY_STEPS[0]) & mask, (high + KEY_STEPS[1]) & mask
    return torch.stack(words, dim=1).flatten()


def _wide_product(words: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of words * factor, without overflowing int64."""
    low = words * (factor & 0xFFFF)
    high = words * (factor >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def gumbel_noise_ref(
    seed: int, position: int, count: int, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Noise of the first `count` tokens of one draw: fp32 [count]."""
    u = _uniform_ref(philox_ref(seed, position, triton.cdiv(count, 4), device)[:count])
    return -torch.log(-torch.log1p(-u.double())).float()


def draw_numbers_ref(seed: int, position: int) -> list[float]:
    """The three uniform numbers of a draw without filters."""
    return _uniform_ref(philox_ref(seed, position, 1, level=DRAW_LEVEL.value)[:3]).tolist()


def _uniform_ref(bits: torch.Tensor) -> torch.Tensor:
    return ((bits.float() + 0.5) * 2.0**-32).clamp_max(LARGEST_U.value)
