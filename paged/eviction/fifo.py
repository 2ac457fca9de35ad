"""First in, first out: the page published first goes first."""

import triton


@triton.jit
def score(page, now):
    return page.born
