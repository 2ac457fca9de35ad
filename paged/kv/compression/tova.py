"""The page that the last query attends to least goes (Oren et al., "Transformers are Multi-State
RNNs", 2024).

There a token a step goes, in each layer; here a page when one is full, for all heads and layers.
"""

import triton


@triton.jit
def score(token):
    return token.attention
