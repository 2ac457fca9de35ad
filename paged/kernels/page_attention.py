"""How much attention each page of a row has been paid: for compression by attention.

    p[t, h, j] = exp(q[t, h] . k[j] / sqrt(d) - lse[t, h])            what query t pays to key j
    attention[slot, i] += sum of round(2^30 p[t, h, j])    over the keys j of entry i of the row's
                          block table, the heads h and the counted queries t of this step

One call a layer; the first begins a sum that counts from a query of this step on. Counted are the
last `window` queries before the length at which pages may go next (control/compress.py): the end of
the prompt, then the end of each page. With `prompt_only` those of the prompt alone. A page that no
counted query could see has UNSEEN, more than any sum.

Two launches, each over the keys once: log-sum-exps of the counted queries by (KV head, sequence,
tile of queries), then sums by (tile of keys, sequence); all grids go by strides. Each sum has one
writer and adds integers, which is exact in any order: it depends neither on how the prompt was cut
into chunks nor on the batch. Positions here count the keys that are there. q may be strided over
tokens, all else is contiguous; arithmetic as in paged_attention.py.
"""

import math

import torch
import triton
import triton.language as tl

from paged.kernels.control.budget import UNLIMITED
from paged.kernels.launch import check_tensor, interpreted

LOG2_E = math.log2(math.e)
MAX_PROGRAMS = 2**14  # about; most have nothing to do
ONE = tl.constexpr(1 << 30)  # a probability of 1
UNSEEN = tl.constexpr(1 << 62)
PAGE_ATTENTION_VARIANTS = (
    {"num_heads": 5, "num_kv_heads": 1, "head_dim": 80, "page_size": 128, "window": 1},
    {"logit_softcap": 5.0, "window": 20, "prompt_only": True},
    {"first_layer": False},
)


@triton.jit
def _first_counted(
    seq, start, end, seq_slots, seq_start, prompt_len,
    PAGE_SIZE: tl.constexpr, WINDOW: tl.constexpr, PROMPT_ONLY: tl.constexpr,
    UNLIMITED: tl.constexpr,
):  # fmt: skip
    """Position of the first query that counts; `end` or more: none of this step's does.

    [start, end) are this step's queries, which are all before the next choice of pages.
    """
    prompt = tl.load(prompt_len + tl.load(seq_slots + seq))
    behind = tl.load(seq_start + seq)  # with dropped tokens
    in_prompt = behind < prompt
    if PROMPT_ONLY:
        first = tl.where(in_prompt, tl.maximum(prompt - WINDOW, 0), end)
    elif WINDOW == UNLIMITED:
        first = start * 0
    else:
        page_start = start // PAGE_SIZE * PAGE_SIZE
        choice = tl.where(in_prompt, prompt, page_start + PAGE_SIZE)
        before = tl.where(in_prompt, 0, tl.maximum(page_start, prompt - (behind - start)))
        first = tl.maximum(choice - WINDOW, before)
    return first


@triton.jit
def _scores(
    q, q_pos, key, end, table, k_ptr, score_scale, softcap_scale,
    HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, PAGE_STRIDE: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] in base 2; -inf where a query does not see a key."""
    dim = tl.arange(0, BLOCK_D)[None, :]
    is_key = key < end
    page = tl.load(table + key // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
    k_ptrs = k_ptr + (page * PAGE_STRIDE + key % PAGE_SIZE * HEAD_DIM)[:, None] + dim
    k = tl.load(k_ptrs, mask=is_key[:, None] & (dim < HEAD_DIM), other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if SOFTCAP:
        s = 1.0 - 2.0 / (tl.exp2(s * softcap_scale) + 1.0)  # tanh
    return tl.where(key[None, :] <= q_pos[:, None], s * score_scale, float("-inf"))


@triton.jit
def _query_lse_kernel(
    q_ptr, k_cache, block_table, cu_seqlens_q, seq_lens, num_seqs, seq_slots, seq_start, prompt_len,
    lse, score_scale, softcap_scale, q_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, MAX_PAGES: tl.constexpr, WINDOW: tl.constexpr,
    PROMPT_ONLY: tl.constexpr, UNLIMITED: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    PAGE_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    token = tl.arange(0, BLOCK_M) // GROUP
    dim = tl.arange(0, BLOCK_D)[None, :]
    for seq in range(tl.program_id(1), tl.load(num_seqs), tl.num_programs(1)):
        begin = tl.load(cu_seqlens_q + seq)
        end = tl.load(seq_lens + seq)
        start = end - (tl.load(cu_seqlens_q + seq + 1) - begin)
        first = _first_counted(
            seq, start, end, seq_slots, seq_start, prompt_len, PAGE_SIZE, WINDOW, PROMPT_ONLY,
            UNLIMITED,
        )  # fmt: skip
        table = block_table + tl.cast(seq, tl.int64) * MAX_PAGES
        tile_start = tl.maximum(first, start) + tl.program_id(2) * BLOCK_T
        for position in range(tile_start, end, tl.num_programs(2) * BLOCK_T):
            q_pos = position + token
            is_row = (token < BLOCK_T) & (q_pos < end)
            row = (begin + q_pos - start).to(tl.int64)
            for kv_head in range(tl.program_id(0), NUM_KV_HEADS, tl.num_programs(0)):
                head = kv_head * GROUP + tl.arange(0, BLOCK_M) % GROUP
                q_ptrs = q_ptr + (row * q_stride + head * HEAD_DIM)[:, None] + dim
                q = tl.load(q_ptrs, mask=is_row[:, None] & (dim < HEAD_DIM), other=0.0)
                k_ptr = k_cache + kv_head * PAGE_SIZE * HEAD_DIM
                m = tl.full([BLOCK_M], float("-inf"), tl.float32)
                l_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
                for key_start in range(0, tl.minimum(position + BLOCK_T, end), BLOCK_N):
                    s = _scores(
                        q, q_pos, key_start + tl.arange(0, BLOCK_N), end, table, k_ptr, score_scale,
                        softcap_scale, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE, SOFTCAP, BLOCK_D,
                    )  # fmt: skip
                    m_new = tl.maximum(m, tl.max(s, axis=1))  # finite: every query sees key 0
                    l_tile = tl.sum(tl.exp2(s - m_new[:, None]), axis=1)
                    l_sum = tl.fma(l_sum, tl.exp2(m - m_new), l_tile)
                    m = m_new
                tl.store(lse + row * NUM_HEADS + head, m + tl.log2(l_sum), mask=is_row)


@triton.jit
def _page_attention_kernel(
    q_ptr, k_cache, block_table, cu_seqlens_q, seq_lens, num_seqs, seq_slots, seq_start, prompt_len,
    lse, attention, score_scale, softcap_scale, q_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, MAX_PAGES: tl.constexpr, WINDOW: tl.constexpr,
    PROMPT_ONLY: tl.constexpr, UNLIMITED: tl.constexpr, FIRST_LAYER: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    PAGE_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    KEYS: tl.constexpr = BLOCK_N if BLOCK_N > PAGE_SIZE else PAGE_SIZE
    PAGES: tl.constexpr = KEYS // PAGE_SIZE
    token = tl.arange(0, BLOCK_M) // GROUP
    dim = tl.arange(0, BLOCK_D)[None, :]
    for seq in range(tl.program_id(1), tl.load(num_seqs), tl.num_programs(1)):
        begin = tl.load(cu_seqlens_q + seq)
        end = tl.load(seq_lens + seq)
        start = end - (tl.load(cu_seqlens_q + seq + 1) - begin)
        first = _first_counted(
            seq, start, end, seq_slots, seq_start, prompt_len, PAGE_SIZE, WINDOW, PROMPT_ONLY,
            UNLIMITED,
        )  # fmt: skip
        table = block_table + tl.cast(seq, tl.int64) * MAX_PAGES
        sums = attention + tl.load(seq_slots + seq).to(tl.int64) * MAX_PAGES
        for page_start in range(tl.program_id(0) * KEYS, end, tl.num_programs(0) * KEYS):
            total = tl.zeros([PAGES], dtype=tl.int64)
            for key_start in range(page_start, tl.minimum(page_start + KEYS, end), BLOCK_N):
                key = key_start + tl.arange(0, BLOCK_N)
                of_keys = tl.zeros([BLOCK_N], dtype=tl.int64)
                first_seeing = tl.maximum(tl.maximum(first, start), key_start)
                for position in range(first_seeing, end, BLOCK_T):
                    q_pos = position + token
                    is_row = (token < BLOCK_T) & (q_pos < end)
                    row = (begin + q_pos - start).to(tl.int64)
                    for kv_head in range(NUM_KV_HEADS):
                        head = kv_head * GROUP + tl.arange(0, BLOCK_M) % GROUP
                        q_ptrs = q_ptr + (row * q_stride + head * HEAD_DIM)[:, None] + dim
                        q = tl.load(q_ptrs, mask=is_row[:, None] & (dim < HEAD_DIM), other=0.0)
                        s = _scores(
                            q, q_pos, key, end, table, k_cache + kv_head * PAGE_SIZE * HEAD_DIM,
                            score_scale, softcap_scale, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE, SOFTCAP,
                            BLOCK_D,
                        )  # fmt: skip
                        of_row = tl.load(lse + row * NUM_HEADS + head, mask=is_row, other=0.0)
                        p = tl.where(is_row[:, None], tl.exp2(s - of_row[:, None]), 0.0)
                        of_keys += tl.sum((p * ONE + 0.5).to(tl.int32).to(tl.int64), axis=0)
                total += tl.sum(tl.reshape(of_keys, [PAGES, BLOCK_N // PAGES]), axis=1)
            page = page_start // PAGE_SIZE + tl.arange(0, PAGES)
            live = page * PAGE_SIZE < end
            counts = first < end
            is_new = page * PAGE_SIZE >= start
            if FIRST_LAYER:
                # what a page has of another row, or of an earlier choice, ends here
                fresh = is_new | (first >= start)
                old = tl.load(sums + page, mask=live & ~fresh, other=0)
                total = tl.where(counts, old + total, UNSEEN)
                tl.store(sums + page, total, mask=live & (counts | is_new))
            elif counts:
                tl.store(sums + page, tl.load(sums + page, mask=live) + total, mask=live)


def page_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    seq_slots: torch.Tensor,
    seq_start: torch.Tensor,
    prompt_len: torch.Tensor,
    lse: torch.Tensor,
    attention: torch.Tensor,
    softmax_scale: float,
    window: int = UNLIMITED,
    prompt_only: bool = False,
    first_layer: bool = True,
    logit_softcap: float | None = None,
    max_seq_len: int | None = None,
) -> None:
    """Add what this step's queries of one layer pay to the keys of their sequences.

    Args:
        q: [T, H, D], a view with stride D over heads and any stride over tokens.
        k_cache: [num_pages, num_kv_heads, page_size, D], this step's keys included.
        block_table, cu_seqlens_q, seq_lens, num_seqs: of the step, as in `AttentionMeta`.
        seq_slots: [S] int32, rows of `prompt_len` [R] int32 and `attention`.
        seq_start: [S] int32, tokens computed before this step, dropped ones included.
        lse: [T, H] float32, scratch.
        attention: [R, M] int64, updated.
        window: queries before each choice that count, UNLIMITED for all since the beginning.
        max_seq_len: bound of `seq_lens`; None is the width of the block table.

    Raises ValueError on a wrong shape, dtype or stride.
    """
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    num_rows, max_pages = attention.shape
    if q.stride(2) != 1 or q.stride(1) != head_dim or num_heads % num_kv_heads:
        raise ValueError(
            f"q must have strides [any, {head_dim}, 1] and a multiple of {num_kv_heads} heads, "
            f"got {q.stride()} and {num_heads} heads"
        )
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    seqs = seq_lens.shape[0]
    check_tensor("k_cache", k_cache, (None, num_kv_heads, page_size, head_dim), q.dtype)
    check_tensor("block_table", block_table, (seqs, max_pages), torch.int32)
    check_tensor("cu_seqlens_q", cu_seqlens_q, (seqs + 1,), torch.int32)
    for name, tensor in (("seq_slots", seq_slots), ("seq_start", seq_start)):
        check_tensor(name, tensor, (seqs,), torch.int32)
    check_tensor("prompt_len", prompt_len, (num_rows,), torch.int32)
    check_tensor("lse", lse, (None, num_heads), torch.float32)
    check_tensor("attention", attention, (None, None), torch.int64)
    # The same tiles for all capacities: a query's lse has the same bits in all of them.
    block_t = 64 if interpreted() else 16
    block_n = 256 if interpreted() else 64
    shape = {
        "NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim,
        "PAGE_SIZE": page_size, "MAX_PAGES": max_pages, "WINDOW": window,
        "PROMPT_ONLY": prompt_only, "UNLIMITED": UNLIMITED, "SOFTCAP": logit_softcap is not None,
        "BLOCK_T": block_t, "BLOCK_N": block_n,
        "BLOCK_M": max(16, triton.next_power_of_2(block_t * (num_heads // num_kv_heads))),
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
    }  # fmt: skip
    shape["num_warps"] = 8 if shape["BLOCK_M"] > 64 else 4
    scale = LOG2_E * (softmax_scale if logit_softcap is None else logit_softcap)
    scales = (scale, 2 * LOG2_E * softmax_scale / logit_softcap if logit_softcap else 0.0)
    batch = (cu_seqlens_q, seq_lens, num_seqs, seq_slots, seq_start, prompt_len, lse)
    heads, programs = num_kv_heads, min(seqs, num_tokens)
    tiles = min(triton.cdiv(num_tokens, block_t), 32)
    keys = triton.cdiv(max_seq_len or max_pages * page_size, max(block_n, page_size))
    keys = min(keys, MAX_PROGRAMS // programs + 1)
    if interpreted():
        heads = programs = tiles = keys = 1
    _query_lse_kernel[(heads, programs, tiles)](
        q, k_cache, block_table, *batch, *scales, q.stride(0), **shape
    )
    _page_attention_kernel[(keys, programs)](
        q, k_cache, block_table, *batch, attention, *scales, q.stride(0),
        FIRST_LAYER=first_layer, **shape,
    )  # fmt: skip
