"""By the request's priority, smallest first; later arrivals may preempt. vLLM, SGLang."""

import triton


@triton.jit
def rank(row, now):
    return row.priority
