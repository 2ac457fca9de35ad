"""Segmented LRU (Karedla et al., 1994): pages hit at least once are protected; LRU in each part."""

import triton
import triton.language as tl


@triton.jit
def score(page, now):
    return tl.where(page.hits > 0, page.last_used, page.last_used - 1073741824)
