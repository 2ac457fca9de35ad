"""Causal attention over a paged KV cache, for decode, chunks and whole prefills in one launch.

out[t] = softmax(q[t] . K / sqrt(d) restricted to the keys t may see) . V, after PagedAttention
(Kwon et al. 2023) and FlashAttention-2 (Dao 2023). A tile is up to `tokens_per_tile` query tokens
of one sequence times the `num_heads / num_kv_heads` query heads that share a KV head: row =
token * group + head (GQA packing), so a KV page is read once for the whole group.

Bits. Keys are cut at multiples of split_size from the start of the sequence; each split is an
online softmax of its own over tiles of BLOCK_N keys, and splits are folded in order by
`merge_split`. The sequential way folds in registers; the parallel way (`partials` given) gives
splits to programs of their own and folds in `attention_merge`. BLOCK_N does not depend on the
batch, row sums run on the tensor core like P.V (their order does not follow the tile's layout),
and a masked key adds exactly 0: so the bits of a token depend neither on the way taken nor on
decode or prefill, chunking, page size or who shares the batch.

Grid: (tile, KV head, split program). q may be strided over tokens; all else is contiguous. In the
interpreter a program takes PAIRS > 1 of (tile, KV head) at once: every vector and matrix below
then has a leading axis PAIRS, which the shapes in comments leave out.
"""

import math

import torch
import triton
import triton.language as tl

from paged.kernels.attention_merge import attention_merge, merge_split
from paged.kernels.attention_tiles import choose_key_block
from paged.kernels.launch import check_tensor, interpreted

LOG2_E = math.log2(math.e)


@triton.jit(do_not_specialize=["max_tiles", "max_splits"])
def _paged_attention_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    tiles_ptr,
    alibi_slopes_ptr,
    out_ptr,
    partial_acc_ptr,
    partial_ml_ptr,
    score_scale,
    softcap_scale,
    alibi_scale,
    q_stride,
    block_table_stride,
    max_tiles,
    max_splits,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    PARALLEL: tl.constexpr,
    SPLIT_PROGRAMS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    if PAIRS > 1:
        pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)[:, None]
        kv_head = pair % NUM_KV_HEADS
        # pairs past the end repeat the last tile: they write what it writes
        record = tiles_ptr + tl.minimum(pair // NUM_KV_HEADS, max_tiles - 1) * 4
        zeros_l = tl.full([PAIRS, BLOCK_M, 16], 0.0, tl.float32)
        ones = tl.full([PAIRS, BLOCK_N, 16], 1.0, v_cache_ptr.dtype.element_ty)
    else:
        kv_head = tl.program_id(1)
        record = tiles_ptr + tl.program_id(0) * 4
        zeros_l = tl.full([BLOCK_M, 16], 0.0, tl.float32)
        ones = tl.full([BLOCK_N, 16], 1.0, v_cache_ptr.dtype.element_ty)
    num_tokens = tl.load(record + 3)
    seq = tl.load(record)
    first_row = tl.load(record + 1).to(tl.int64)
    position = tl.load(record + 2)
    # [0, kv_start) no row sees and may be freed | [kv_start, kv_end) | not written yet
    kv_end = position + num_tokens
    kv_start = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else position * 0
    if PAIRS > 1:
        min_start, max_end = tl.min(kv_start), tl.max(kv_end)
    else:
        min_start, max_end = kv_start, kv_end
    if max_end == 0:
        return

    row = tl.arange(0, BLOCK_M)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    is_row = token < num_tokens
    # rows past the end repeat the last position: they must not look at keys beyond kv_end
    q_pos = position + tl.minimum(token, tl.maximum(num_tokens - 1, 0))
    dim = tl.arange(0, BLOCK_D)
    is_dim = dim < HEAD_DIM
    q_mask = tl.expand_dims(is_row, -1) & is_dim
    q_ptrs = q_ptr + first_row * q_stride + (token * q_stride + head * HEAD_DIM)
    q = tl.load(tl.expand_dims(q_ptrs, -1) + dim, mask=q_mask, other=0.0)  # [BLOCK_M, BLOCK_D]
    if ALIBI:
        slope = tl.expand_dims(tl.load(alibi_slopes_ptr + head) * alibi_scale, -1)

    page_stride = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    k_head_ptr = k_cache_ptr + kv_head * PAGE_SIZE * HEAD_DIM
    v_head_ptr = v_cache_ptr + kv_head * PAGE_SIZE * HEAD_DIM
    pages_ptr = block_table_ptr + seq.to(tl.int64) * block_table_stride
    lane = tl.arange(0, BLOCK_N)

    zeros = tl.full(q_pos.shape, 0.0, tl.float32)
    zeros_acc = tl.full(q.shape, 0.0, tl.float32)
    m, l_sum, acc = zeros - float("inf"), zeros, zeros_acc
    first_split = min_start // SPLIT_SIZE + tl.program_id(2)
    num_splits = (max_end + SPLIT_SIZE - 1) // SPLIT_SIZE
    for split in range(first_split, num_splits, SPLIT_PROGRAMS):
        m_split, l_split, acc_split = zeros - float("inf"), zeros_l, zeros_acc
        split_start = tl.maximum(split * SPLIT_SIZE, min_start // BLOCK_N * BLOCK_N)
        split_end = tl.minimum((split + 1) * SPLIT_SIZE, max_end)
        for tile_start in range(split_start, split_end, BLOCK_N):
            key = tile_start + lane
            is_key = (key >= kv_start) & (key < kv_end)
            if PAIRS == 1 and PAGE_SIZE >= BLOCK_N:
                page = tl.load(pages_ptr + tile_start // PAGE_SIZE).to(tl.int64)
                kv_offsets = page * page_stride + (tile_start % PAGE_SIZE + lane) * HEAD_DIM
            else:
                page = tl.load(pages_ptr + key // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
                kv_offsets = page * page_stride + (key % PAGE_SIZE) * HEAD_DIM
            # 0 in place of what was never written: a NaN there times p = 0 would still be NaN
            kv_mask = tl.expand_dims(is_key, -1) & is_dim
            k_ptrs = tl.expand_dims(k_head_ptr + kv_offsets, -1) + dim
            v_ptrs = tl.expand_dims(v_head_ptr + kv_offsets, -1) + dim
            k = tl.load(k_ptrs, mask=kv_mask, other=0.0)  # [BLOCK_N, BLOCK_D]
            v = tl.load(v_ptrs, mask=kv_mask, other=0.0)

            k = tl.trans(k, 0, 2, 1) if PAIRS > 1 else tl.trans(k)
            s = tl.dot(q, k, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
            if SOFTCAP:
                s = 1.0 - 2.0 / (tl.exp2(s * softcap_scale) + 1.0)  # tanh
            distance = tl.expand_dims(q_pos, -1) - key
            if ALIBI:
                s = tl.fma(slope, -distance.to(tl.float32), s)
            is_seen = distance >= 0
            if WINDOW > 0:
                is_seen = is_seen & (distance < WINDOW)
            s = tl.where(is_seen, s, float("-inf"))

            m_new = tl.maximum(m_split, tl.max(s, axis=-1) * score_scale)
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(tl.fma(s, score_scale, -tl.expand_dims(shift, -1))).to(v.dtype)
            rescale = tl.expand_dims(tl.exp2(m_split - shift), -1)
            l_split = tl.dot(p, ones, l_split * rescale, input_precision="ieee")
            acc_split = tl.dot(p, v, acc_split * rescale, input_precision="ieee")
            m_split = m_new

        l_row = tl.max(l_split, axis=-1)  # its 16 columns are equal
        if PARALLEL:
            partial = ((first_row + token) * NUM_HEADS + head) * max_splits + split
            partial_ptrs = tl.expand_dims(partial_acc_ptr + partial * HEAD_DIM, -1) + dim
            tl.store(partial_ptrs, acc_split, mask=q_mask)
            tl.store(partial_ml_ptr + partial * 2, m_split, mask=is_row)
            tl.store(partial_ml_ptr + partial * 2 + 1, l_row, mask=is_row)
        else:
            m, l_sum, acc = merge_split(m, l_sum, acc, m_split, l_row, acc_split)

    if not PARALLEL:
        out_row = (first_row + token) * NUM_HEADS + head
        out_ptrs = tl.expand_dims(out_ptr + out_row * HEAD_DIM, -1) + dim
        out = acc / tl.expand_dims(l_sum, -1)
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=q_mask)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    tiles: torch.Tensor,
    out: torch.Tensor,
    softmax_scale: float,
    tokens_per_tile: int,
    split_size: int,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    partials: tuple[torch.Tensor, torch.Tensor] | None = None,
    pairs: int | None = None,
) -> torch.Tensor:
    """Attend from the query tokens of `tiles` to their sequences' pages.

    Args:
        q: [T, H, D], a view with stride D over heads and any stride over tokens.
        k_cache, v_cache: [num_pages, num_kv_heads, page_size, D], the keys of this step included.
        block_table: [S, M] int32, pages of each sequence of the step.
        tiles: [max_tiles, 4] int32 from `attention_tiles` with the same `tokens_per_tile`.
        out: [T, H, D]; rows of no tile are left alone.
        split_size: keys a split, a power of two from 128 up.
        sliding_window: a query sees this many keys, its own included.
        logit_softcap: scores become cap * tanh(score / cap).
        alibi_slopes: [H] float32; scores become score - slope * (query position - key position).
        partials: ([T, H, max_splits, D], [T, H, max_splits, 2]) float32 workspace for the parallel
            way; max_splits * split_size must cover every sequence. None: the sequential way.
        pairs: (tile, KV head) pairs of a program, a power of two; default 1, and many in the
            interpreter, which takes as long for an operation on many as on one.

    Returns:
        `out`.

    Raises:
        ValueError: a tensor does not fit the rest.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_pages, num_kv_heads, page_size, _ = k_cache.shape
    if q.stride(2) != 1 or q.stride(1) != head_dim:
        raise ValueError(f"q must have strides [any, {head_dim}, 1], got {q.stride()}")
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of {num_kv_heads}, got {num_heads}")
    powers = {
        "page_size": (page_size, 16),
        "split_size": (split_size, 128),
        "pairs": (pairs or 1, 1),
    }
    for name, (value, least) in powers.items():
        if value < least or value & (value - 1):
            raise ValueError(f"{name} must be a power of two from {least} up, got {value}")
    positive = {"logit_softcap": logit_softcap, "sliding_window": sliding_window}
    for name, value in ({"softmax_scale": softmax_scale} | positive).items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    check_tensor("k_cache", k_cache, (num_pages, num_kv_heads, page_size, head_dim), q.dtype)
    check_tensor("v_cache", v_cache, (num_pages, num_kv_heads, page_size, head_dim), q.dtype)
    check_tensor("block_table", block_table, (None, None), torch.int32)
    check_tensor("tiles", tiles, (None, 4), torch.int32)
    check_tensor("out", out, (num_tokens, num_heads, head_dim))
    if alibi_slopes is not None:
        check_tensor("alibi_slopes", alibi_slopes, (num_heads,), torch.float32)
    if tiles.shape[0] == 0:
        return out
    max_splits = partials[0].shape[2] if partials else 1
    split_programs = min(max_splits, 32)
    group = num_heads // num_kv_heads
    block_m = max(16, triton.next_power_of_2(tokens_per_tile * group))
    block_n = choose_key_block(q.dtype)
    block_d = max(16, triton.next_power_of_2(head_dim))
    score_scale = LOG2_E * (softmax_scale if logit_softcap is None else logit_softcap)
    num_pairs = tiles.shape[0] * num_kv_heads
    if pairs is None:
        pairs = min(32, triton.next_power_of_2(num_pairs)) if interpreted() else 1
    tile_grid = (tiles.shape[0], num_kv_heads) if pairs == 1 else (triton.cdiv(num_pairs, pairs), 1)
    _paged_attention_kernel[(*tile_grid, split_programs)](
        q,
        k_cache,
        v_cache,
        block_table,
        tiles,
        alibi_slopes if alibi_slopes is not None else q,
        out,
        partials[0] if partials else out,
        partials[1] if partials else out,
        score_scale,
        2 * LOG2_E * softmax_scale / logit_softcap if logit_softcap else 0.0,
        LOG2_E / score_scale,
        q.stride(0),
        block_table.stride(0),
        tiles.shape[0],
        max_splits,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        SPLIT_SIZE=split_size,
        WINDOW=sliding_window or 0,
        SOFTCAP=logit_softcap is not None,
        ALIBI=alibi_slopes is not None,
        PARALLEL=partials is not None,
        SPLIT_PROGRAMS=split_programs,
        PAIRS=pairs,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_warps=8 if block_m >= 64 else 4,
        # half the stages go to the block table's loads, which K and V wait for
        num_stages=5 if block_n * block_d * q.element_size() <= 2**14 else 3,
    )
    if partials is not None:
        cut = (num_kv_heads, tokens_per_tile, split_size, sliding_window)
        attention_merge(tiles, *partials, out, *cut)
    return out
