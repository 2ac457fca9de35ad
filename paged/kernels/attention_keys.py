"""The loop of paged attention over keys: device functions that its kernel calls.

One loop goes over the tiles of several splits, so that the loads of the next split are under way
while one ends. Per tile of BLOCK_N keys, in base 2 (scores carry log2 e):

    m' = max(m, max_j s_j);  l, acc = (l, acc) * exp2(m - m') + sum_j exp2(s_j - m') * (1, v_j)

after FlashAttention-2 (Dao 2023). l is summed by a product with ones, in the order of acc.
"""

import triton
import triton.language as tl

from paged.kernels.attention_merge import merge_split


@triton.jit
def attend_keys(
    m, l_sum, acc, m_split, l_split, acc_split,
    start, end, q, q_pos, slope, kv_start, kv_end, pages_ptr, k_ptr, v_ptr,
    score_scale, softcap_scale,
    FOLD: tl.constexpr, MASKED: tl.constexpr, PAIRS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, PAGE_STRIDE: tl.constexpr, SPLIT_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend to the keys of [start, end) in tiles of BLOCK_N; returns the state.

    State: m, l_sum [BLOCK_M] and acc [BLOCK_M, D] of the finished splits, to which FOLD adds each
    split where it ends; m_split [BLOCK_M], l_split [BLOCK_M, 16] (equal columns) and acc_split of
    the current one. Not MASKED: every row sees every key of the range.
    """
    TALL: tl.constexpr = q.shape[-2] >= 64
    lane = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, BLOCK_D)
    is_dim = dim < HEAD_DIM
    ones_shape: tl.constexpr = [PAIRS, BLOCK_N, 16] if PAIRS > 1 else [BLOCK_N, 16]
    ones = tl.full(ones_shape, 1.0, v_ptr.dtype.element_ty)
    next_page = 0
    if PAIRS == 1 and PAGE_SIZE >= BLOCK_N:
        next_page = tl.load(pages_ptr + start // PAGE_SIZE, mask=start < end, other=0)
    for tile_start in range(start, end, BLOCK_N):
        key = tile_start + lane
        is_key = (key >= kv_start) & (key < kv_end)
        if PAIRS == 1 and PAGE_SIZE >= BLOCK_N:
            # A tile ahead, so that the loads of keys do not wait for it
            page = next_page.to(tl.int64)
            after = tile_start + BLOCK_N
            next_page = tl.load(pages_ptr + after // PAGE_SIZE, mask=after < end, other=0)
            page_offset = page * PAGE_STRIDE + tile_start % PAGE_SIZE * HEAD_DIM
            offsets = tl.expand_dims(lane * HEAD_DIM, -1) + dim
            k_ptrs, v_ptrs = k_ptr + page_offset + offsets, v_ptr + page_offset + offsets
        else:
            if MASKED:
                page = tl.load(pages_ptr + key // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
            else:
                page = tl.load(pages_ptr + key // PAGE_SIZE).to(tl.int64)
            kv_offsets = page * PAGE_STRIDE + key % PAGE_SIZE * HEAD_DIM
            k_ptrs = tl.expand_dims(k_ptr + kv_offsets, -1) + dim
            v_ptrs = tl.expand_dims(v_ptr + kv_offsets, -1) + dim
        # 0 in place of what was never written: a NaN there times p = 0 would still be NaN
        if MASKED:
            k = tl.load(k_ptrs, mask=is_dim, other=0.0)  # [BLOCK_N, BLOCK_D]
            v = tl.load(v_ptrs, mask=tl.expand_dims(is_key, -1) & is_dim, other=0.0)
        elif HEAD_DIM == BLOCK_D:
            k, v = tl.load(k_ptrs), tl.load(v_ptrs)
        else:
            k, v = tl.load(k_ptrs, mask=is_dim, other=0.0), tl.load(v_ptrs, mask=is_dim, other=0.0)

        k = tl.trans(k, 0, 2, 1) if PAIRS > 1 else tl.trans(k)
        s = tl.dot(q, k, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        if SOFTCAP:
            s = 1.0 - 2.0 / (tl.exp2(s * softcap_scale) + 1.0)  # tanh
        if MASKED or ALIBI:
            distance = tl.expand_dims(q_pos, -1) - key
        if ALIBI:
            s = tl.fma(slope, -distance.to(tl.float32), s)
        if MASKED:
            is_seen = distance >= 0
            if WINDOW > 0:
                is_seen = is_seen & (distance < WINDOW)
            s = tl.where(is_seen, s, float("-inf"))

        m_new = tl.maximum(m_split, tl.max(s, axis=-1) * score_scale)
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(tl.fma(s, score_scale, -tl.expand_dims(shift, -1))).to(v.dtype)
        rescale = tl.expand_dims(tl.exp2(m_split - shift), -1)
        # both before the first product: between two in flight, ptxas would make them wait in turn
        l_split, acc_split = l_split * rescale, acc_split * rescale
        if TALL:
            acc_split = tl.dot(p, v, acc_split, input_precision="ieee")
            l_split = tl.dot(p, ones, l_split, input_precision="ieee")
        else:  # this order takes 168 registers in a short tile, the other 255 and scratch
            l_split = tl.dot(p, ones, l_split, input_precision="ieee")
            acc_split = tl.dot(p, v, acc_split, input_precision="ieee")
        m_split = m_new
        if FOLD:
            ends = (tile_start + BLOCK_N) % SPLIT_SIZE == 0
            l_tile = l_split
            # Used outside of the `if`: else the products stay in flight over its reads, and ptxas
            # serialises every wgmma of the loop (C7515; experiments/kernels/attention).
            l_split = l_tile * tl.where(ends, 0.0, 1.0)
            if ends:
                l_row = tl.max(l_tile, axis=-1)  # its 16 columns are equal
                m, l_sum, acc = merge_split(m, l_sum, acc, m_split, l_row, acc_split)
                m_split = tl.full(m_split.shape, float("-inf"), tl.float32)  # resets acc_split too
    return m, l_sum, acc, m_split, l_split, acc_split
