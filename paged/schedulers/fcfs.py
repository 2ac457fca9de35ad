"""First come, first served: running requests decode before waiting ones are admitted.

Orca (Yu et al., OSDI 2022) with the token budget of Sarathi-Serve (Agrawal et al., 2024).
"""

import triton


@triton.jit
def rank(row, now):
    return row.arrival
