"""Shortest job first by predicted length (vllm-ltr, Fu et al., 2024). Does not preempt."""

import triton


@triton.jit
def rank(row, now):
    return row.predicted_len - row.prompt_len
