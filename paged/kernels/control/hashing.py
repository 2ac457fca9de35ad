"""Keys of the prefix table.

The key of a prefix is the sum, modulo 2^64, of a mixed word for each of its tokens and their
positions, so one cumulative sum yields the key of every prefix. Keys only find candidates: a hit
is verified token by token, so a collision, accidental or forged, can cost time but not correctness.
"""

import torch
import triton
import triton.language as tl

MULTIPLIER_TOKEN = tl.constexpr(-7046029254386353131)  # 0x9E3779B97F4A7C15
MULTIPLIER_1 = tl.constexpr(-4658895280553007687)  # 0xBF58476D1CE4E5B9
MULTIPLIER_2 = tl.constexpr(-7723592293110705685)  # 0x94D049BB133111EB


@triton.jit
def mix(token, position):
    """The finaliser of splitmix64 (Steele et al., 2014) over a token and its position; int64."""
    x = (token.to(tl.int64) + 1) * MULTIPLIER_TOKEN + (position.to(tl.int64) << 32)
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MULTIPLIER_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MULTIPLIER_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def mix_ref(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """`mix` on int64 tensors, which wrap as the kernel's do."""
    x = (token.long() + 1) * MULTIPLIER_TOKEN.value + (position.long() << 32)
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MULTIPLIER_1.value
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MULTIPLIER_2.value
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
