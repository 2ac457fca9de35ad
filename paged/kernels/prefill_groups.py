"""The consumers of `prefill_attention`: a group of 64 rows attends to what the producer has loaded.

Per 64 keys the arithmetic is that of `paged.kernels.attention_keys`, in the same order.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from paged.kernels.warp_groups import barrier


@gluon.jit
def _merge_split(m, l_sum, acc, m_split, l_split, acc_split):
    """`attention_merge.merge_split`, where the layouts of what it takes differ."""
    ROW: gl.constexpr = m.type.layout
    m_split = gl.convert_layout(m_split, ROW)
    l_split = gl.convert_layout(gl.max(l_split, axis=1), ROW)  # its 16 columns are equal
    m_new = gl.maximum(m, m_split)
    shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    old, new = gl.exp2(m - shift), gl.exp2(m_split - shift)
    l_sum = gl.fma(l_sum, old, l_split * new)
    acc = gl.fma(acc, gl.expand_dims(old, 1), acc_split * gl.expand_dims(new, 1))
    return m_new, l_sum, acc


@gluon.jit
def _softmax(
    s, m_old, first_key, q_pos, score_scale,
    dtype: gl.constexpr, P: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """The weights of 64 keys: m [ROWS], p [ROWS, KEYS], and what the sums so far are scaled by."""
    if MASKED:
        S: gl.constexpr = s.type.layout
        key = first_key + gl.arange(0, s.shape[1], gl.SliceLayout(0, S))
        is_seen = gl.expand_dims(q_pos, 1) >= gl.expand_dims(key, 0)
        s = gl.where(is_seen, s, float("-inf"))
    m_new = gl.maximum(m_old, gl.max(s, axis=1) * score_scale)
    shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(gl.fma(s, score_scale, -gl.expand_dims(shift, 1))).to(dtype)
    return m_new, gl.convert_layout(p, P), gl.exp2(m_old - shift)


@gluon.jit
def _rescale(l_split, acc_split, rescale):
    ACC: gl.constexpr = acc_split.type.layout
    L: gl.constexpr = l_split.type.layout
    acc_split = acc_split * gl.expand_dims(gl.convert_layout(rescale, gl.SliceLayout(1, ACC)), 1)
    l_split = l_split * gl.expand_dims(gl.convert_layout(rescale, gl.SliceLayout(1, L)), 1)
    return l_split, acc_split


@gluon.jit
def _add_values(p, v, ones, l_split, acc_split, use_acc):
    """Issue acc + P V and l + P 1, or P V and P 1 where a split begins; returns their tokens."""
    p_l = gl.convert_layout(p, gl.DotOperandLayout(0, l_split.type.layout, 2))
    acc_token = warpgroup_mma(p, v, acc_split, use_acc=use_acc, is_async=True)
    l_token = warpgroup_mma(p_l, ones, l_split, use_acc=use_acc, is_async=True)
    return l_token, acc_token


@gluon.jit
def _clear(v, num_keys, COPY: gl.constexpr):
    """Zero the rows from num_keys on, which were never written: NaN times p = 0 would be NaN.

    Both groups do so with a tile that they share; what one writes the other has written too, or
    will before it reads.
    """
    row = gl.arange(0, v.shape[0], gl.SliceLayout(1, COPY))
    is_key = gl.expand_dims(row < num_keys, 1)
    v.store(gl.where(is_key, v.load(COPY), 0.0))
    fence_async_shared()
    barrier()


@gluon.jit
def _attend(
    m, l_sum, acc, m_split, l_split, acc_split, p,
    first, end, q_smem, ones, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
    q_pos, kv_end, score_scale,
    MASKED: gl.constexpr, SPLIT_SIZE: gl.constexpr,
    KEYS: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, COPY: gl.constexpr,
):  # fmt: skip
    """Steps first to end - 1 of 2 KEYS keys each; returns the state.

    The state is that of `attention_keys.attend_keys`, but acc_split and l_split lack the last KEYS
    keys, whose weights are p [ROWS, KEYS]. Step 0 finds p = 0, and what it makes of values that are
    not there yet is dropped, because a split begins with it.
    """
    S: gl.constexpr = q_pos.type.layout.parent
    PAIR: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * KEYS, 16])
    ROWS: gl.constexpr = q_pos.shape[0]
    dtype: gl.constexpr = p.dtype
    P: gl.constexpr = p.type.layout
    zeros = gl.full([ROWS, 2 * KEYS], 0.0, gl.float32, PAIR)
    for j in range(first, end):
        start = j * 2 * KEYS
        begins = start % SPLIT_SIZE == 0
        has_last = j > 0
        k_slot = j % K_STAGES
        last = 2 * j + V_STAGES - 1
        v_slot = last % V_STAGES
        mbarrier.wait(k_full.index(k_slot), (j // K_STAGES) & 1)
        mbarrier.wait(v_full.index(v_slot), (last // V_STAGES - 1) & 1, pred=has_last)
        k = k_ring.index(k_slot).permute((1, 0))
        s_token = warpgroup_mma(q_smem, k, zeros, use_acc=False, is_async=True)
        l_token, acc_token = _add_values(p, v_ring.index(v_slot), ones, l_split, acc_split, True)
        s, l_split, acc_split, p = warpgroup_mma_wait(0, deps=[s_token, l_token, acc_token, p])
        mbarrier.arrive(k_empty.index(k_slot))
        mbarrier.arrive(v_empty.index(v_slot), pred=has_last)
        s_0, s_1 = s.reshape([ROWS, 2, KEYS]).permute((0, 2, 1)).split()
        s_0 = gl.convert_layout(s_0, S, assert_trivial=True)
        s_1 = gl.convert_layout(s_1, S, assert_trivial=True)

        m_old = gl.where(begins, float("-inf"), m_split)
        m_0, p_0, rescale = _softmax(s_0, m_old, start, q_pos, score_scale, dtype, P, MASKED)
        if begins & has_last:
            m, l_sum, acc = _merge_split(m, l_sum, acc, m_split, l_split, acc_split)
        l_split, acc_split = _rescale(l_split, acc_split, rescale)
        v_slot = 2 * j % V_STAGES
        mbarrier.wait(v_full.index(v_slot), (2 * j // V_STAGES) & 1)
        v = v_ring.index(v_slot)
        if MASKED and start + KEYS > kv_end:
            _clear(v, kv_end - start, COPY)
        l_token, acc_token = _add_values(p_0, v, ones, l_split, acc_split, begins == 0)
        m_split, p, rescale = _softmax(s_1, m_0, start + KEYS, q_pos, score_scale, dtype, P, MASKED)
        l_split, acc_split, p_0 = warpgroup_mma_wait(0, deps=[l_token, acc_token, p_0])
        mbarrier.arrive(v_empty.index(v_slot))
        l_split, acc_split = _rescale(l_split, acc_split, rescale)
    return m, l_sum, acc, m_split, l_split, acc_split, p


@gluon.jit
def consume(
    q_ptr, out_ptr, q_smem, ones, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
    first_row, position, num_tokens, kv_head, q_stride, score_scale,
    GROUP: gl.constexpr, HEADS: gl.constexpr, NUM_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr, SPLIT_SIZE: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
    K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
):  # fmt: skip
    """One group of ROWS rows of the tile: loads its queries, attends, stores."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16])
    # 8 elements, 16 bytes, a thread
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    kv_end = position + num_tokens
    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, COPY))
    dim = gl.expand_dims(gl.arange(0, HEAD_DIM, gl.SliceLayout(0, COPY)), 0)
    token = row // HEADS
    head = kv_head * HEADS + row % HEADS
    is_row = gl.expand_dims(token < num_tokens, 1)
    q_offsets = gl.expand_dims(token * q_stride + head * HEAD_DIM, 1) + dim
    q_smem = q_smem.index(GROUP)
    q_smem.store(gl.load(q_ptr + first_row * q_stride + q_offsets, mask=is_row, other=0.0))
    fence_async_shared()
    barrier()

    # rows past the end repeat the last position: they must not look at keys beyond kv_end
    q_row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    q_pos = position + gl.minimum(q_row // HEADS, num_tokens - 1)
    m = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, ACC))
    l_sum = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, ACC))
    acc = gl.full([ROWS, HEAD_DIM], 0.0, gl.float32, ACC)
    m_split = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S))
    l_split = gl.full([ROWS, 16], 0.0, gl.float32, L)
    acc_split = acc
    p = gl.full([ROWS, KEYS], 0.0, dtype, gl.DotOperandLayout(0, ACC, 2))
    num_steps = (kv_end + 2 * KEYS - 1) // (2 * KEYS)
    num_full = (position + 1) // (2 * KEYS)  # steps whose keys every row sees
    for masked in gl.static_range(2):
        m, l_sum, acc, m_split, l_split, acc_split, p = _attend(
            m, l_sum, acc, m_split, l_split, acc_split, p,
            num_full if masked else 0, num_steps if masked else num_full,
            q_smem, ones, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
            q_pos, kv_end, score_scale,
            masked == 1, SPLIT_SIZE, KEYS, K_STAGES, V_STAGES, COPY,
        )  # fmt: skip
    last = 2 * num_steps - 1
    v_slot = last % V_STAGES
    mbarrier.wait(v_full.index(v_slot), (last // V_STAGES) & 1)
    v = v_ring.index(v_slot)
    if (last + 1) * KEYS > kv_end:
        _clear(v, kv_end - last * KEYS, COPY)
    l_token, acc_token = _add_values(p, v, ones, l_split, acc_split, True)
    l_split, acc_split, p = warpgroup_mma_wait(0, deps=[l_token, acc_token, p])
    m, l_sum, acc = _merge_split(m, l_sum, acc, m_split, l_split, acc_split)
    out = (acc / gl.expand_dims(l_sum, 1)).to(out_ptr.dtype.element_ty)
    q_smem.store(out)  # the queries are not needed any more: whole rows are stored from there
    out_row = (first_row + token) * NUM_HEADS + head
    out_ptrs = out_ptr + gl.expand_dims(out_row * HEAD_DIM, 1) + dim
    gl.store(out_ptrs, q_smem.load(COPY), mask=is_row)
