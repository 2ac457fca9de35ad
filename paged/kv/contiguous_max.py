"""Memory for the model's whole length, taken at admission: serving before PagedAttention.

The "Orca (Max)" baseline of Kwon et al., SOSP 2023. Every request holds the same number of pages
and they leave and return together, so each keeps one contiguous stretch of the pool.
"""

import triton


@triton.jit
def reserve_len(prompt_len, total_len, max_len):
    return total_len * 0 + 2147483647  # cut to the model's length by the scheduler kernel
