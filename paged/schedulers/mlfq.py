"""Skip-join multi-level feedback queue (FastServe, Wu et al., 2023).

Five queues; the quantum of each is twice that of the one before, in decode steps. A request joins
the queue that its prompt's cost says, skipping those whose quantum it would exceed at once, and
sinks as it is served. Waiting for `promote_ms` lifts it by a queue, so that none starves.
"""

import triton
import triton.language as tl


@triton.jit
def rank(row, now, quantum=16, prompt_tokens_per_step=64, promote_ms=10000):
    served = row.prompt_len // prompt_tokens_per_step + row.total_len - row.prompt_len
    upper = tl.where(served >= quantum, 1, 0) + tl.where(served >= 3 * quantum, 1, 0)
    lower = tl.where(served >= 7 * quantum, 1, 0) + tl.where(served >= 15 * quantum, 1, 0)
    return upper + lower - (now.ms - row.arrival_ms) // promote_ms
