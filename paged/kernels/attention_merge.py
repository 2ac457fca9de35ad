"""Fold the splits of paged attention: device functions that its programs call.

A split is a self-contained softmax over split_size keys: m = the largest score (base 2),
l = sum of exp2(score - m), acc = sum of exp2(score - m) * v. Two of them merge as

    m = max(m_a, m_b);  l, acc = (l_a, acc_a) * exp2(m_a - m) + (l_b, acc_b) * exp2(m_b - m)

(Milakov and Gimelshein 2018; FlashDecoding). Splits are folded in order 0, 1, 2, ... by one
function, `merge_split`, in registers or from memory: both give the same bits. A split in which a
row sees no key is (-inf, 0, 0), an identity of the fold.
"""

import triton
import triton.language as tl


@triton.jit
def merge_split(m, l_sum, acc, m_split, l_split, acc_split):
    """Fold one split into the running softmax: m, l_sum [..., BLOCK_M], acc [..., BLOCK_M, D]."""
    m_new = tl.maximum(m, m_split)
    # a row that has seen no key yet: -inf - -inf would be NaN
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    old, new = tl.exp2(m - shift), tl.exp2(m_split - shift)
    # explicit fma: two kernels in which the compiler fuses a different product would differ in bits
    l_sum = tl.fma(l_sum, old, l_split * new)
    acc = tl.fma(acc, tl.expand_dims(old, -1), acc_split * tl.expand_dims(new, -1))
    return m_new, l_sum, acc


@triton.jit
def fold_splits(
    acc_ptrs, ml_ptrs, row_mask, mask, num_splits, acc_stride, ml_stride, UNROLL: tl.constexpr
):
    """Fold splits 0 to num_splits - 1 from memory; returns l_sum [BLOCK_M] and acc [BLOCK_M, D].

    acc_ptrs [BLOCK_M, D] and ml_ptrs [BLOCK_M] (m, then l behind it) point to split 0, the next one
    is a stride further. Masked rows and columns return l_sum = 1, acc = 0.
    """
    m = tl.full(ml_ptrs.shape, float("-inf"), tl.float32)
    l_sum = tl.full(ml_ptrs.shape, 0.0, tl.float32)
    acc = tl.full(acc_ptrs.shape, 0.0, tl.float32)
    for split_block in range(0, num_splits, UNROLL):
        # several splits at once, so that their loads do not wait for the fold
        for i in tl.static_range(UNROLL):
            split = split_block + i
            here = split < num_splits
            split_ml_ptrs = ml_ptrs + split * ml_stride
            m_split = tl.load(split_ml_ptrs, mask=row_mask & here, other=float("-inf"))
            l_split = tl.load(split_ml_ptrs + 1, mask=row_mask & here, other=0.0)
            acc_split = tl.load(acc_ptrs + split * acc_stride, mask=mask & here, other=0.0)
            m, l_sum, acc = merge_split(m, l_sum, acc, m_split, l_split, acc_split)
    return tl.where(row_mask, l_sum, 1.0), acc
