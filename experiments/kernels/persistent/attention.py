"""Attention of a decode step by splits of the keys: norm, rotation, cache write, softmax, merge.

An item is (row, KV head, split): the query heads that share the KV head against the split's share
of the pages. The step's own key and value are never read back from the cache: split 0 starts its
online softmax with them and writes them. So a page can be read before the step has computed a key.
"""

import triton
import triton.language as tl
from grid import ask_l2, zero
from words import get_words


@triton.jit
def split_range(seq_lens_ptr, row, split, HEADS: tl.constexpr):
    """(first key, end, position of the step's token): whole pages of the keys before it."""
    position = tl.load(seq_lens_ptr + row) - 1
    pages = (position + HEADS[3] - 1) // HEADS[3]
    per_split = (pages + HEADS[4] - 1) // HEADS[4] * HEADS[3]
    start = split * per_split
    return start, tl.minimum(start + per_split, position), position


@triton.jit
def load_page(
    cache_ptr, block_table_ptr, row, kv_head, start, end, nothing, value_offset, max_pages,
    HEADS: tl.constexpr,
):  # fmt: skip
    """The page that starts at key `start`: both halves of its keys [PAGE_SIZE, D / 2], its values
    [PAGE_SIZE, D]; 0 from key `end` on."""
    HEAD_DIM: tl.constexpr = HEADS[2]
    PAGE_SIZE: tl.constexpr = HEADS[3]
    key = tl.arange(0, PAGE_SIZE) + nothing
    page_ptr = block_table_ptr + row * max_pages + start // PAGE_SIZE
    page = tl.load(page_ptr, mask=start < end, other=0)
    base = cache_ptr + (page.to(tl.int64) * HEADS[1] + kv_head) * (PAGE_SIZE * HEAD_DIM)
    mask = (start + key < end)[:, None]
    ptrs = base + (key[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM // 2)[None, :])
    first = tl.load(ptrs, mask=mask, other=0.0)
    second = tl.load(ptrs + HEAD_DIM // 2, mask=mask, other=0.0)
    v_ptrs = base + value_offset + (key[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
    return first, second, tl.load(v_ptrs, mask=mask, other=0.0)


@triton.jit
def load_keys(
    cache_ptr, block_table_ptr, seq_lens_ptr, item, num_items, value_offset, max_pages,
    HEADS: tl.constexpr,
):  # fmt: skip
    """The first page of an item; zeros if there is no such item."""
    SPLITS: tl.constexpr = HEADS[4]
    is_item = item < num_items
    item = tl.where(is_item, item, 0)
    row, kv_head = item // (HEADS[1] * SPLITS), item // SPLITS % HEADS[1]
    start, end, _ = split_range(seq_lens_ptr, row, item % SPLITS, HEADS)
    end = tl.where(is_item, end, 0)
    return load_page(
        cache_ptr, block_table_ptr, row, kv_head, start, end, zero(HEADS[6]), value_offset,
        max_pages, HEADS,
    )  # fmt: skip


@triton.jit
def prefetch_pages(
    cache_ptr, block_table_ptr, seq_lens_ptr, num_tokens, value_offset, max_pages,
    HEADS: tl.constexpr, GRID: tl.constexpr,
):  # fmt: skip
    """Ask L2 for the first 8 pages of the program's first item, whose threads divide them."""
    HEAD_DIM: tl.constexpr = HEADS[2]
    PAGE_SIZE: tl.constexpr = HEADS[3]
    ELEMENT_BYTES: tl.constexpr = cache_ptr.dtype.element_ty.primitive_bitwidth // 8
    THREADS_PER_PAGE: tl.constexpr = GRID[1] // 8
    ASKING: tl.constexpr = max(THREADS_PER_PAGE // 32, 1)  # at most a thread a warp
    PART: tl.constexpr = PAGE_SIZE * HEAD_DIM * ELEMENT_BYTES // ASKING
    item = tl.program_id(0)
    row, kv_head = item // (HEADS[1] * HEADS[4]), item // HEADS[4] % HEADS[1]
    if row < num_tokens:
        start, end, _ = split_range(seq_lens_ptr, row, item % HEADS[4], HEADS)
        thread = tl.arange(0, GRID[1])
        key = start + thread // THREADS_PER_PAGE * PAGE_SIZE
        page = tl.load(
            block_table_ptr + row * max_pages + key // PAGE_SIZE, mask=key < end, other=0
        )
        base = cache_ptr + (page.to(tl.int64) * HEADS[1] + kv_head) * (PAGE_SIZE * HEAD_DIM)
        address = base.to(tl.int64, bitcast=True) + thread % THREADS_PER_PAGE // 32 * PART
        asks = (key < end) & (thread % THREADS_PER_PAGE % 32 == 0)
        size = asks.to(tl.int32) * PART
        ask_l2(address, size)
        ask_l2(address + value_offset * ELEMENT_BYTES, size)


@triton.jit
def attend_page(m, l_sum, acc, q_first, q_second, k_first, k_second, v, start, end, score_scale):
    """Online softmax over one more page, base 2; keys from `end` on count nothing."""
    s = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
    s = tl.dot(q_second, tl.trans(k_second), s, input_precision="ieee") * score_scale
    is_key = start + tl.arange(0, k_first.shape[0]) < end
    s = tl.where(is_key[None, :], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, axis=1))
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen: -inf - -inf would be NaN
    p = tl.exp2(s - shift[:, None])
    rescale = tl.exp2(m - shift)
    l_sum = l_sum * rescale + tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return m_new, l_sum, acc


@triton.jit
def attend_split(
    k_first, k_second, v, qkv_ptr, q_norm_ptr, k_norm_ptr, cos_sin_ptr, cache_ptr, block_table_ptr,
    seq_lens_ptr, partial_ptr, lse_ptr, item, value_offset, max_pages, score_scale, eps, epoch,
    zeros, HEADS: tl.constexpr,
):  # fmt: skip
    """One item, whose first page is there already; writes its partial result, and split 0 the KV.

    Rows of the tile: the GROUP query heads, the key, which is normed and rotated like them, and the
    value. qkv may be words, with zeros [16, D / 2].
    partial [row, split, head, D] is normalised, lse [row, split, head] its log2 of the sum.
    """
    DTYPE: tl.constexpr = cache_ptr.dtype.element_ty
    NUM_HEADS: tl.constexpr = HEADS[0]
    NUM_KV_HEADS: tl.constexpr = HEADS[1]
    HEAD_DIM: tl.constexpr = HEADS[2]
    PAGE_SIZE: tl.constexpr = HEADS[3]
    SPLITS: tl.constexpr = HEADS[4]
    COMPILED: tl.constexpr = HEADS[6]
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    HALF: tl.constexpr = HEAD_DIM // 2
    WIDTH: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    row, kv_head = item // (NUM_KV_HEADS * SPLITS), item // SPLITS % NUM_KV_HEADS
    split = item % SPLITS
    start, end, position = split_range(seq_lens_ptr, row, split, HEADS)
    nothing = zero(COMPILED)
    line = tl.arange(0, 16) + nothing
    half, dim = tl.arange(0, HALF) + nothing, tl.arange(0, HEAD_DIM) + nothing
    head = NUM_HEADS + (line > GROUP).to(tl.int32) * NUM_KV_HEADS + kv_head
    head = tl.where(line < GROUP, kv_head * GROUP + line, head)
    ptrs = qkv_ptr + row * WIDTH + head[:, None] * HEAD_DIM + half[None, :]
    if qkv_ptr.dtype.element_ty == tl.int64:
        a = get_words(ptrs, zeros, epoch, COMPILED)
        b = get_words(ptrs + HALF, zeros, epoch, COMPILED)
        is_value = (line == GROUP + 1)[:, None]
        v_first = tl.sum(tl.where(is_value, a, 0.0), axis=0)
        v_second = tl.sum(tl.where(is_value, b, 0.0), axis=0)
        v_new = tl.reshape(tl.trans(tl.join(v_first, v_second)), [HEAD_DIM]).to(DTYPE)
    else:
        a = tl.load(ptrs, cache_modifier=".cg").to(tl.float32)
        b = tl.load(ptrs + HALF, cache_modifier=".cg").to(tl.float32)
        v_column = (NUM_HEADS + NUM_KV_HEADS + kv_head) * HEAD_DIM + dim
        v_new = tl.load(qkv_ptr + row * WIDTH + v_column, cache_modifier=".cg")
    is_key = (line == GROUP)[:, None]
    cos = tl.load(cos_sin_ptr + position * HEAD_DIM + half)[None, :]
    sin = tl.load(cos_sin_ptr + position * HEAD_DIM + HALF + half)[None, :]
    norm = tl.where(is_key, k_norm_ptr, q_norm_ptr) + half[None, :]
    w_a, w_b = tl.load(norm).to(tl.float32), tl.load(norm + HALF).to(tl.float32)
    scale = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / HEAD_DIM + eps)[:, None]
    a = ((a * scale).to(DTYPE).to(tl.float32) * w_a).to(DTYPE).to(tl.float32)
    b = ((b * scale).to(DTYPE).to(tl.float32) * w_b).to(DTYPE).to(tl.float32)
    q_first, q_second = (a * cos - b * sin).to(DTYPE), (b * cos + a * sin).to(DTYPE)
    new_first = tl.sum(tl.where(is_key, q_first.to(tl.float32), 0.0), axis=0)
    new_second = tl.sum(tl.where(is_key, q_second.to(tl.float32), 0.0), axis=0)

    owns = split == 0  # the step's own key and value
    page = tl.load(block_table_ptr + row * max_pages + position // PAGE_SIZE).to(tl.int64)
    slot = (page * NUM_KV_HEADS + kv_head) * PAGE_SIZE + position % PAGE_SIZE
    slot_ptr = cache_ptr + slot * HEAD_DIM
    tl.store(slot_ptr + half, new_first.to(DTYPE), mask=owns)
    tl.store(slot_ptr + HALF + half, new_second.to(DTYPE), mask=owns)
    tl.store(slot_ptr + value_offset + dim, v_new, mask=owns)

    s_new = q_first.to(tl.float32) * new_first[None, :] + q_second.to(tl.float32) * new_second
    m = tl.where(owns, tl.sum(s_new, axis=1) * score_scale, float("-inf"))
    l_sum = tl.where(owns, 1.0, 0.0) + tl.zeros_like(m)
    acc = tl.where(owns, 1.0, 0.0) * v_new.to(tl.float32)[None, :]
    acc += tl.zeros([16, HEAD_DIM], tl.float32)
    m, l_sum, acc = attend_page(
        m, l_sum, acc, q_first, q_second, k_first, k_second, v, start, end, score_scale
    )
    for first in tl.range(start + PAGE_SIZE, end, PAGE_SIZE, num_stages=HEADS[5]):
        k_first, k_second, v = load_page(
            cache_ptr, block_table_ptr, row, kv_head, first, end, nothing, value_offset, max_pages,
            HEADS,
        )  # fmt: skip
        m, l_sum, acc = attend_page(
            m, l_sum, acc, q_first, q_second, k_first, k_second, v, first, end, score_scale
        )
    out_row = (row * SPLITS + split) * NUM_HEADS + kv_head * GROUP + line
    out = acc / tl.maximum(l_sum, 1e-30)[:, None]
    out_ptrs = partial_ptr + out_row[:, None] * HEAD_DIM + dim[None, :]
    tl.store(out_ptrs, out.to(DTYPE), mask=(line < GROUP)[:, None])
    tl.store(lse_ptr + out_row, m + tl.log2(tl.maximum(l_sum, 1e-30)), mask=line < GROUP)


@triton.jit
def merged_pieces(
    partial_ptr, lse_ptr, num_tokens, SHAPE: tl.constexpr, HEADS: tl.constexpr, GRID: tl.constexpr
):  # fmt: skip
    """What attention gives, [ROWS, heads * D], as pieces of BLOCK_K columns: x of o."""
    DTYPE: tl.constexpr = partial_ptr.dtype.element_ty
    NUM_HEADS: tl.constexpr = HEADS[0]
    HEAD_DIM: tl.constexpr = HEADS[2]
    SPLITS: tl.constexpr = HEADS[4]
    BLOCK_K: tl.constexpr = SHAPE[4]
    SEGMENTS: tl.constexpr = GRID[3]
    PER_PIECE: tl.constexpr = BLOCK_K // HEAD_DIM
    PER_SEGMENT: tl.constexpr = PER_PIECE // max(SEGMENTS, 1)
    nothing = zero(GRID[5])
    dim = tl.arange(0, HEAD_DIM) + nothing
    pieces = ()
    for chunk in tl.static_range(NUM_HEADS * HEAD_DIM // BLOCK_K):
        if SEGMENTS == 0:
            head = chunk * PER_PIECE + tl.arange(0, PER_PIECE) + nothing
            token = head * 0
        else:
            head = tl.arange(0, SEGMENTS)[:, None, None] * PER_SEGMENT + nothing
            head = chunk * PER_PIECE + head + tl.arange(0, PER_SEGMENT)[None, None, :]
            token = tl.arange(0, GRID[2])[None, :, None] + nothing + head * 0
            head = head + token * 0
        is_live = token < num_tokens
        offset = token * (SPLITS * NUM_HEADS) + head
        value_ptrs = partial_ptr + tl.expand_dims(offset * HEAD_DIM, -1) + dim
        value_mask = tl.expand_dims(is_live, -1)
        values, sums = (), ()
        for split in tl.static_range(SPLITS):
            log = tl.load(
                lse_ptr + offset + split * NUM_HEADS, mask=is_live, other=0.0, cache_modifier=".cg"
            )
            sums += (log,)
            if SEGMENTS == 0:  # else they would not fit into registers
                ptrs = value_ptrs + split * (NUM_HEADS * HEAD_DIM)
                values += (tl.load(ptrs, mask=value_mask, other=0.0, cache_modifier=".cg"),)
        top = sums[0]
        for split in tl.static_range(1, SPLITS):
            top = tl.maximum(top, sums[split])
        total = tl.zeros_like(top)
        x = tl.expand_dims(total, -1) + tl.full([HEAD_DIM], 0.0, tl.float32)
        for split in tl.static_range(SPLITS):
            if SEGMENTS == 0:
                value = values[split]
            else:
                ptrs = value_ptrs + split * (NUM_HEADS * HEAD_DIM)
                value = tl.load(ptrs, mask=value_mask, other=0.0, cache_modifier=".cg")
            share = tl.exp2(sums[split] - top)
            total += share
            x += tl.expand_dims(share, -1) * value.to(tl.float32)
        x = (x / tl.expand_dims(total, -1)).to(DTYPE)
        if SEGMENTS == 0:
            pieces += (tl.reshape(x, [BLOCK_K]),)
        else:
            pieces += (tl.reshape(x, [SEGMENTS, GRID[2], BLOCK_K // SEGMENTS]),)
    return pieces
