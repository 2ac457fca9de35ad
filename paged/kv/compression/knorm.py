"""Keys of a small L2 norm are kept: they draw attention (Devoto et al., "A Simple and Effective L2
Norm-Based Strategy for KV Cache Compression", 2024)."""

import triton
import triton.language as tl


@triton.jit
def score(token):
    return -tl.sqrt(tl.sum(token.key * token.key, axis=-1))
