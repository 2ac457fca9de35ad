"""Longest cached prefix first (SGLang, Zheng et al., 2024): reuse it before it is evicted."""

import triton


@triton.jit
def rank(row, now):
    return -row.cached_len
