"""Causal attention over a paged KV cache, for decode, chunks and whole prefills.

out[t] = softmax(q[t] . K / sqrt(d) restricted to the keys t may see) . V, after PagedAttention
(Kwon et al. 2023) and FlashAttention-2 (Dao 2023). A tile is up to `tokens_per_tile` query tokens
of one sequence times the `num_heads / num_kv_heads` query heads that share a KV head: row =
token * group + head (GQA packing), so a KV page is read once for the whole group. An item of
`attention_items` is a tile and a range of its splits.

Bits. Keys are cut at multiples of split_size from the start of the sequence; each split is an
online softmax of its own over tiles of BLOCK_N keys, and splits are folded in order by
`merge_split`. A tile in one item folds in registers. A tile in several writes its splits to
`partials`, and the program that arrives last folds them from there, in the same order. BLOCK_N does
not depend on the batch, row sums run on the tensor core like P.V (their order does not follow the
tile's layout), and a masked key adds exactly 0, so skipping the mask where it masks nothing changes
nothing: the bits of a token depend neither on the way taken nor on decode or prefill, chunking,
page size or who shares the batch.

Grid: (KV head, item). q may be strided over tokens; all else is contiguous. In the interpreter a
program without partials takes PAIRS > 1 of (item, KV head) at once: every vector and matrix below
then has a leading axis PAIRS, which the shapes in comments leave out.
"""

import math

import torch
import triton
import triton.language as tl

from paged.kernels.attention_arguments import (
    AttentionConfig,
    Partials,
    check_arguments,
    check_scalars,
    choose_config,
)
from paged.kernels.attention_items import ITEM_FIELDS
from paged.kernels.attention_keys import attend_keys
from paged.kernels.attention_merge import fold_splits, merge_split
from paged.kernels.launch import interpreted, pdl

LOG2_E = math.log2(math.e)


@triton.jit(do_not_specialize=["max_items"])
def _paged_attention_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    items_ptr,
    alibi_slopes_ptr,
    out_ptr,
    partial_acc_ptr,
    partial_ml_ptr,
    arrived_ptr,
    score_scale,
    softcap_scale,
    alibi_scale,
    q_stride,
    block_table_stride,
    max_items,
    FIELDS: tl.constexpr,
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
    PAIRS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    TALL: tl.constexpr = PAIRS == 1 and BLOCK_M >= 64
    PAGE_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if PAIRS > 1:
        pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)[:, None]
        kv_head = pair % NUM_KV_HEADS
        # pairs past the end repeat the last item: they write what it writes
        item = tl.minimum(pair // NUM_KV_HEADS, max_items - 1)
        zeros_l = tl.full([PAIRS, BLOCK_M, 16], 0.0, tl.float32)
    else:
        kv_head = tl.program_id(0)
        item = tl.program_id(1)
        if not PARALLEL:
            item = max_items - 1 - item  # the later of a prompt's tiles have more keys: they first
        zeros_l = tl.full([BLOCK_M, 16], 0.0, tl.float32)
    record = items_ptr + item * FIELDS
    num_tokens = tl.load(record + 3)
    seq = tl.load(record)
    first_row = tl.load(record + 1).to(tl.int64)
    position = tl.load(record + 2)
    # [0, kv_start) no row sees and may be freed | [kv_start, kv_end) | not written yet
    kv_end = position + num_tokens
    kv_start = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else position * 0
    if PAIRS > 1:
        start, end = tl.min(kv_start), tl.max(kv_end)
    else:
        start, end = kv_start, kv_end
    if end == 0:
        return
    row = tl.arange(0, BLOCK_M)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    is_row = token < num_tokens
    # rows past the end repeat the last position: they must not look at keys beyond kv_end
    q_pos = position + tl.minimum(token, tl.maximum(num_tokens - 1, 0))
    dim = tl.arange(0, BLOCK_D)
    q_mask = tl.expand_dims(is_row, -1) & (dim < HEAD_DIM)
    q_ptrs = q_ptr + first_row * q_stride + (token * q_stride + head * HEAD_DIM)
    q = tl.load(tl.expand_dims(q_ptrs, -1) + dim, mask=q_mask, other=0.0)  # [BLOCK_M, BLOCK_D]
    slope = 0.0
    if ALIBI:
        slope = tl.expand_dims(tl.load(alibi_slopes_ptr + head) * alibi_scale, -1)

    zeros = tl.full(q_pos.shape, 0.0, tl.float32)
    zeros_acc = tl.full(q.shape, 0.0, tl.float32)
    out_row = (first_row + token) * NUM_HEADS + head
    k_ptr = k_cache_ptr + kv_head * PAGE_SIZE * HEAD_DIM
    v_ptr = v_cache_ptr + kv_head * PAGE_SIZE * HEAD_DIM
    pages_ptr = block_table_ptr + seq.to(tl.int64) * block_table_stride
    m, l_sum, acc = zeros - float("inf"), zeros, zeros_acc
    m_split, l_split, acc_split = zeros - float("inf"), zeros_l, zeros_acc
    start = start // BLOCK_N * BLOCK_N
    whole, done = True, True
    if PARALLEL:
        num_items = tl.load(record + 6)
        whole = num_items == 1
        done = whole
    if whole:
        # Masks cost where arithmetic bounds: tall tiles take the keys that every row sees without,
        # and the window's edge and the diagonal with. Short tiles wait for memory, and each further
        # loop would wait for it again.
        full_start, full_end = end, end
        if TALL:
            full_start = start
            if WINDOW > 0:
                full_start = (tl.maximum(kv_end - WINDOW, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
            full_start = tl.minimum(full_start, end)
            full_end = tl.maximum((position + 1) // BLOCK_N * BLOCK_N, full_start)
        for phase in tl.static_range(1 if TALL and WINDOW == 0 else 0, 3 if TALL else 1):
            m, l_sum, acc, m_split, l_split, acc_split = attend_keys(
                m, l_sum, acc, m_split, l_split, acc_split,
                start if phase == 0 else (full_start if phase == 1 else full_end),
                full_start if phase == 0 else (full_end if phase == 1 else end),
                q, q_pos, slope, kv_start, kv_end, pages_ptr, k_ptr, v_ptr,
                score_scale, softcap_scale,
                True, phase != 1, PAIRS, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE,
                SPLIT_SIZE, WINDOW, SOFTCAP, ALIBI, BLOCK_N, BLOCK_D,
            )  # fmt: skip
        # the last split, where it is not full; a folded one is (-inf, 0, 0) now and adds nothing
        m, l_sum, acc = merge_split(m, l_sum, acc, m_split, tl.max(l_split, axis=-1), acc_split)
    if PARALLEL and not whole:
        slot = tl.load(record + 7).to(tl.int64)
        first_split = start // SPLIT_SIZE
        partial_row = (slot + token) * NUM_HEADS + head
        acc_ptrs = partial_acc_ptr + tl.expand_dims(partial_row * HEAD_DIM, -1) + dim
        ml_ptrs = partial_ml_ptr + partial_row * 2
        split_stride = num_tokens * NUM_HEADS
        for split in range(tl.load(record + 4), tl.load(record + 5)):
            m_split, l_split, acc_split = zeros - float("inf"), zeros_l, zeros_acc
            _, _, _, m_split, l_split, acc_split = attend_keys(
                m, l_sum, acc, m_split, l_split, acc_split,
                tl.maximum(split * SPLIT_SIZE, start),
                tl.minimum((split + 1) * SPLIT_SIZE, end),
                q, q_pos, slope, kv_start, kv_end, pages_ptr, k_ptr, v_ptr,
                score_scale, softcap_scale,
                False, True, PAIRS, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE,
                SPLIT_SIZE, WINDOW, SOFTCAP, ALIBI, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            offset = (split - first_split) * split_stride
            tl.store(acc_ptrs + offset * HEAD_DIM, acc_split, mask=q_mask)
            tl.store(ml_ptrs + offset * 2, m_split, mask=is_row)
            tl.store(ml_ptrs + offset * 2 + 1, tl.max(l_split, axis=-1), mask=is_row)
        # The barrier orders every thread's stores before the atomic of one thread; its release
        # publishes them. The last to arrive has acquired all others' so, and a second barrier,
        # by which Triton hands the atomic's result to all threads, orders their loads behind.
        tl.debug_barrier()
        arrived = arrived_ptr + slot * NUM_KV_HEADS + kv_head
        done = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == num_items - 1
        if done:
            tl.store(arrived, 0)  # for the next launch
            num_splits = (end + SPLIT_SIZE - 1) // SPLIT_SIZE - first_split
            l_sum, acc = fold_splits(
                acc_ptrs, ml_ptrs, is_row, q_mask, num_splits,
                split_stride * HEAD_DIM, split_stride * 2, UNROLL,
            )  # fmt: skip
    if done:
        out_ptrs = tl.expand_dims(out_ptr + out_row * HEAD_DIM, -1) + dim
        out = acc / tl.expand_dims(l_sum, -1)
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=q_mask)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    items: torch.Tensor,
    out: torch.Tensor,
    softmax_scale: float,
    tokens_per_tile: int,
    split_size: int,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    partials: Partials | None = None,
    pairs: int | None = None,
    config: AttentionConfig | None = None,
) -> torch.Tensor:
    """Attend from the query tokens of `items` to their sequences' pages.

    Args:
        q: [T, H, D], a view with stride D over heads and any stride over tokens.
        k_cache, v_cache: [num_pages, num_kv_heads, page_size, D], the keys of this step included.
        block_table: [S, M] int32, pages of each sequence of the step.
        items: [max_items, 8] int32 from `attention_items` with the same `tokens_per_tile`,
            `split_size` and `sliding_window`.
        out: [T, H, D]; rows of no item are left alone.
        split_size: keys a split, a power of two from 128 up.
        sliding_window: a query sees this many keys, its own included.
        logit_softcap: scores become cap * tanh(score / cap).
        alibi_slopes: [H] float32; scores become score - slope * (query position - key position).
        partials: workspace of as many rows as `attention_items` was told; None if no tile of
            `items` is in several.
        pairs: (item, KV head) pairs of a program, a power of two; default 1, and many in the
            interpreter, which takes as long for an operation on many as on one.
        config: for measurements; default by `choose_config`.

    Returns:
        `out`.

    Raises:
        ValueError: a tensor does not fit the rest.
    """
    check_scalars(softmax_scale, k_cache.shape[2], split_size, sliding_window, logit_softcap, pairs)
    check_arguments(q, k_cache, v_cache, block_table, items, out, alibi_slopes, partials)
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    max_items = items.shape[0]
    if max_items == 0:
        return out
    group = num_heads // num_kv_heads
    block_m = max(16, triton.next_power_of_2(tokens_per_tile * group))
    block_d = max(16, triton.next_power_of_2(head_dim))
    block_n, num_warps, num_stages = config or choose_config(
        q.dtype, block_m, block_d, num_tokens, page_size
    )
    score_scale = LOG2_E * (softmax_scale if logit_softcap is None else logit_softcap)
    num_pairs = max_items * num_kv_heads
    if pairs is None:
        many = interpreted() and partials is None
        pairs = min(32, triton.next_power_of_2(num_pairs)) if many else 1
    grid = (num_kv_heads, max_items) if pairs == 1 else (triton.cdiv(num_pairs, pairs),)
    _paged_attention_kernel[grid](
        q,
        k_cache,
        v_cache,
        block_table,
        items,
        alibi_slopes if alibi_slopes is not None else q,
        out,
        *(partials or (out, out, items)),
        score_scale,
        2 * LOG2_E * softmax_scale / logit_softcap if logit_softcap else 0.0,
        LOG2_E / score_scale,
        q.stride(0),
        block_table.stride(0),
        max_items,
        FIELDS=ITEM_FIELDS,
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
        PAIRS=pairs,
        UNROLL=1 if interpreted() else 4,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_warps=num_warps,
        num_stages=num_stages,
        **pdl(),
    )
    return out
