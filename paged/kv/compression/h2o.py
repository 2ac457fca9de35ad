"""Heavy hitters are kept, the pages that all queries so far attended to most, beside the `recent`
tokens (Zhang et al., "H2O: Heavy-Hitter Oracle", 2023).

There tokens go in each head; here pages for all heads and layers.
"""

import triton


@triton.jit
def score(token):
    return token.attention
