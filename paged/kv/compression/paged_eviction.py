"""The page with the lowest mean of |value| / |key| goes when the newest page is full
(Chitty-Venkata et al., "PagedEviction", 2025).

There a long prompt loses single tokens before it is cut into pages; here it loses whole pages too.
"""

import triton
import triton.language as tl


@triton.jit
def score(token):
    value = tl.sum(token.value * token.value, axis=-1)
    return tl.sqrt(value / tl.sum(token.key * token.key, axis=-1))
