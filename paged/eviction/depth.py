"""Deepest first, among those the least recent: keeps beginnings, which more requests can share."""

import triton
import triton.language as tl


@triton.jit
def score(page, now):
    age = now.step - page.last_used
    return -tl.minimum(page.depth, 32767) * 65536 - tl.minimum(age, 65535)
