"""Keys unlike the others are kept: of a cosine far from their mean direction (Park et al.,
"KeyDiff: Key Similarity-Based KV Cache Eviction", 2025)."""

import triton
import triton.language as tl


@triton.jit
def score(token):
    product = tl.sum(token.key * token.mean_key, axis=-1)
    lengths = tl.sum(token.key * token.key, axis=-1) * tl.sum(
        token.mean_key * token.mean_key, axis=-1
    )
    return -product / tl.sqrt(lengths)
