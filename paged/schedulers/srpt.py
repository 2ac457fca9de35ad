"""Shortest remaining predicted output first: a short arrival overtakes, and preempts, a long one.

Schrage, 1968; for language models with predicted lengths vllm-ltr (Fu et al., 2024).
"""

import triton
import triton.language as tl


@triton.jit
def rank(row, now):
    return tl.maximum(row.predicted_len - row.total_len, 0)
