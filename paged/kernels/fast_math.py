"""Exponential and logarithm in one instruction where the GPU has it.

The compiler's own logarithm is a call of some twenty instructions, and its exponential has a branch
for results under 2^-126, which no draw can tell from 0.
"""

import math

import triton
import triton.language as tl

LN_2 = tl.constexpr(math.log(2))
LOG2_E = tl.constexpr(1 / math.log(2))


@triton.jit
def fast_log(x, NVIDIA: tl.constexpr):
    """Natural logarithm. On NVIDIA of error 2^-22: absolute between 0.5 and 2, else relative."""
    if NVIDIA:
        return LN_2 * tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log(x)


@triton.jit
def fast_exp2(x, NVIDIA: tl.constexpr):
    """2^x. On NVIDIA of relative error 2^-22, and 0 under 2^-126."""
    if NVIDIA:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)
