"""Time to live: pages published more than `steps` steps ago go first, the rest as in LRU."""

import triton
import triton.language as tl


@triton.jit
def score(page, now, steps=10000):
    return tl.where(now.step - page.born > steps, page.born - 1073741824, page.last_used)
