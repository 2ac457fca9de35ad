"""Highest response ratio next (Brinch Hansen, 1971): (waited + service) / service, largest first.

Short requests go first until a long one has waited its own length's worth.
"""

import triton
import triton.language as tl


@triton.jit
def rank(row, now, ms_per_token=20):
    service = tl.maximum(row.predicted_len - row.prompt_len, 1) * ms_per_token
    waited = (now.ms - row.arrival_ms).to(tl.int64)
    return -tl.minimum(waited * 1024 // service, 2147483647).to(tl.int32)
