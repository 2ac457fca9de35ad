"""Hits times what a miss costs: frequency and cost as in GreedyDual-Size-Frequency (Cherkasova,
1998), without its ageing.

A prompt that misses the page at depth d computes again from there: each page of it costs the linear
layers, the same for all, and attention, which grows with its depth and equals them at `even` pages.
Prompts are taken to have `pages` pages, so a page costs no less than those behind it.
"""

import triton
import triton.language as tl


@triton.jit
def score(page, now, pages=512, even=256):
    behind = tl.maximum(pages - page.depth, 1).to(tl.int64)
    cost = behind * (2 * even + pages + page.depth)
    return tl.minimum((page.hits + 1) * cost, 2147483647).to(tl.int32)
