"""Least frequently used: fewest prefix hits, among those the least recent."""

import triton
import triton.language as tl


@triton.jit
def score(page, now):
    age = now.step - page.last_used
    return tl.minimum(page.hits, 32767) * 65536 - tl.minimum(age, 65535)
