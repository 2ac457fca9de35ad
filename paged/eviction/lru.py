"""Least recently used."""

import triton


@triton.jit
def score(page, now):
    return page.last_used
