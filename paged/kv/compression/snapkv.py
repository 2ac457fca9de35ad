"""What the end of the prompt attends to is kept, and all that is generated behind it as long as
pages of the prompt are left (Li et al., "SnapKV: LLM Knows What You are Looking for Before
Generation", 2024).

There scores are pooled over neighbouring tokens, in each head; here over a page, for all heads and
layers. There the prompt is cut down once; here its pages go on going as the budget asks.
"""

import triton


@triton.jit
def score(token):
    return token.attention
