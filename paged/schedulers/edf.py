"""Earliest deadline first, for an objective on the first token and one on each after it.

The deadline of the first token is the request's own; token k after it is due k * tpot_ms later.
Liu and Layland, 1973; the objectives are those of DistServe's goodput (Zhong et al., OSDI 2024).
"""

import triton
import triton.language as tl


@triton.jit
def rank(row, now, tpot_ms=50):
    drawn = row.total_len - row.prompt_len
    return tl.minimum(row.deadline_ms, 1073741824) + drawn * tpot_ms
