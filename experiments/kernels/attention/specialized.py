"""Prefill attention for Hopper in Gluon: two groups of rows that run against each other.

The arithmetic and its order, and so the bits, are those of the tall tiles of
`paged.kernels.paged_attention`, whose items it takes. What differs is who does what, and when. A
producer warp fills rings of keys and values by TMA; two warp groups of 64 rows each consume them,
with no barrier in common but the rings'. A step takes 128 keys: one product S = Q K^T of twice the
width, for which Q is read from shared memory once, then two updates of the softmax of 64 keys each,
as everywhere. The values of the second half are left in flight under the next S (FlashAttention-3,
Shah et al. 2024, algorithm 2), and with PINGPONG the groups issue their products in turn, so that
one computes its exponentials while the tensor cores work for the other.

Grid: (KV head, item). No window, soft cap, ALiBi or spread splits.
"""

import math

import torch
from specialized_groups import barrier, consume
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from paged.kernels.attention_items import ITEM_FIELDS
from paged.kernels.launch import pdl

ROWS = 64  # of a group: what one wgmma multiplies
KEYS = 64  # of an update of the softmax: BLOCK_N of `choose_config`, which shows in the bits


@gluon.jit
def _load_rows(
    desc, ring, full, slot, first_key, pages_ptr, kv_end, kv_head,
    NUM: gl.constexpr, BOX: gl.constexpr, HEAD_DIM: gl.constexpr, PAGE_SIZE: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
):  # fmt: skip
    """NUM rows of the cache from first_key on to `slot` of a ring; signals `full`.

    A slot is HEAD_DIM / 64 blocks of NUM rows of 64 columns: so are its boxes of BOX rows. Behind
    the last key the last page is read again.
    """
    mbarrier.expect(full, NUM * HEAD_DIM * 2)
    for box in gl.static_range(NUM // BOX):
        key = gl.minimum(first_key + box * BOX, kv_end - 1) // BOX * BOX
        page = gl.load(pages_ptr + key // PAGE_SIZE)
        row = (page * NUM_KV_HEADS + kv_head) * PAGE_SIZE + key % PAGE_SIZE
        for half in gl.static_range(HEAD_DIM // 64):
            place = (slot * (HEAD_DIM // 64) + half) * (NUM // BOX) + box
            tma.async_copy_global_to_shared(desc, [row, half * 64], full, ring.index(place))


@gluon.jit
def _produce(
    k_desc, v_desc, k_ring, v_ring, k_full, k_empty, v_full, v_empty, pages_ptr, kv_end, kv_head,
    BOX: gl.constexpr, HEAD_DIM: gl.constexpr, PAGE_SIZE: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr, KEYS: gl.constexpr, K_STAGES: gl.constexpr,
    V_STAGES: gl.constexpr,
):  # fmt: skip
    """The warp that fills the rings."""
    PER_SLOT: gl.constexpr = KEYS // BOX * (HEAD_DIM // 64)
    dtype: gl.constexpr = k_ring.dtype
    k_boxes = k_ring._reinterpret(dtype, [K_STAGES * 2 * PER_SLOT, BOX, 64], k_desc.layout)
    v_boxes = v_ring._reinterpret(dtype, [V_STAGES * PER_SLOT, BOX, 64], v_desc.layout)
    for j in range((kv_end + 2 * KEYS - 1) // (2 * KEYS)):
        slot = j % K_STAGES
        mbarrier.wait(k_empty.index(slot), (j // K_STAGES & 1) ^ 1)
        _load_rows(
            k_desc, k_boxes, k_full.index(slot), slot, j * 2 * KEYS, pages_ptr, kv_end, kv_head,
            2 * KEYS, BOX, HEAD_DIM, PAGE_SIZE, NUM_KV_HEADS,
        )  # fmt: skip
        for half in gl.static_range(2):
            tile = 2 * j + half
            slot = tile % V_STAGES
            mbarrier.wait(v_empty.index(slot), (tile // V_STAGES & 1) ^ 1)
            _load_rows(
                v_desc, v_boxes, v_full.index(slot), slot, tile * KEYS, pages_ptr, kv_end, kv_head,
                KEYS, BOX, HEAD_DIM, PAGE_SIZE, NUM_KV_HEADS,
            )  # fmt: skip


@gluon.jit(do_not_specialize=["max_items"])
def _specialized_attention_kernel(
    q_ptr,
    k_desc,
    v_desc,
    block_table_ptr,
    items_ptr,
    out_ptr,
    score_scale,
    q_stride,
    block_table_stride,
    max_items,
    FIELDS: gl.constexpr,
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    PAGE_SIZE: gl.constexpr,
    SPLIT_SIZE: gl.constexpr,
    ROWS: gl.constexpr,
    KEYS: gl.constexpr,
    K_STAGES: gl.constexpr,
    V_STAGES: gl.constexpr,
    PINGPONG: gl.constexpr,
    REGISTERS: gl.constexpr,
    PDL: gl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    ONES: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])
    BOX: gl.constexpr = k_desc.block_shape[0]
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    kv_head = gl.program_id(0)
    item = max_items - 1 - gl.program_id(1)  # the later of a prompt's tiles have more keys: first
    record = items_ptr + item * FIELDS
    seq = gl.load(record)
    first_row = gl.load(record + 1).to(gl.int64)
    position = gl.load(record + 2)
    num_tokens = gl.load(record + 3)
    if position + num_tokens == 0:
        return
    pages_ptr = block_table_ptr + seq.to(gl.int64) * block_table_stride
    q_smem = gl.allocate_shared_memory(dtype, [2, ROWS, HEAD_DIM], SHARED)
    ones = gl.allocate_shared_memory(
        dtype,
        [KEYS, 16],
        gl.NVMMASharedLayout(32, 16, rank=2),
        gl.full([KEYS, 16], 1.0, dtype, ONES),
    )
    k_ring = gl.allocate_shared_memory(dtype, [K_STAGES, 2 * KEYS, HEAD_DIM], SHARED)
    v_ring = gl.allocate_shared_memory(dtype, [V_STAGES, KEYS, HEAD_DIM], SHARED)
    k_full = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(K_STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)  # the groups
    for i in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    barrier()
    gl.warp_specialize(
        [
            (consume, (
                q_ptr, out_ptr, q_smem, ones, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
                first_row, position, num_tokens, kv_head, q_stride, score_scale,
                0, PINGPONG, HEADS, NUM_HEADS, HEAD_DIM, SPLIT_SIZE, ROWS, KEYS,
                K_STAGES, V_STAGES,
            )),
            (consume, (
                q_ptr, out_ptr, q_smem, ones, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
                first_row, position, num_tokens, kv_head, q_stride, score_scale,
                1, PINGPONG, HEADS, NUM_HEADS, HEAD_DIM, SPLIT_SIZE, ROWS, KEYS,
                K_STAGES, V_STAGES,
            )),
            (_produce, (
                k_desc, v_desc, k_ring, v_ring, k_full, k_empty, v_full, v_empty, pages_ptr,
                position + num_tokens, kv_head,
                BOX, HEAD_DIM, PAGE_SIZE, NUM_KV_HEADS, KEYS, K_STAGES, V_STAGES,
            )),
        ],
        [4, 1],
        [REGISTERS, 24],
    )  # fmt: skip


def specialized_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    items: torch.Tensor,
    out: torch.Tensor,
    softmax_scale: float,
    tokens_per_tile: int,
    split_size: int,
    k_stages: int = 2,
    v_stages: int = 4,
    pingpong: bool = True,
    registers: int = 240,
) -> torch.Tensor:
    """Attend as `paged.kernels.paged_attention` does, from tiles of 128 rows of 16-bit values."""
    _, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    heads = num_heads // num_kv_heads
    if tokens_per_tile * heads != 2 * ROWS or head_dim % 64 or q.element_size() != 2:
        raise ValueError(
            f"specialized_attention must have {2 * ROWS} rows a tile of 16-bit heads of 64 or 128, "
            f"got {tokens_per_tile} tokens of {heads} heads of {head_dim}, {q.dtype}"
        )
    layout = gl.NVMMASharedLayout(128, 16, rank=2)
    box = [min(page_size, KEYS), 64]
    descriptors = [
        TensorDescriptor.from_tensor(cache.view(-1, head_dim), box, layout)
        for cache in (k_cache, v_cache)
    ]
    _specialized_attention_kernel[(num_kv_heads, items.shape[0])](
        q,
        *descriptors,
        block_table,
        items,
        out,
        math.log2(math.e) * softmax_scale,
        q.stride(0),
        block_table.stride(0),
        items.shape[0],
        FIELDS=ITEM_FIELDS,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEADS=heads,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        SPLIT_SIZE=split_size,
        ROWS=ROWS,
        KEYS=KEYS,
        K_STAGES=k_stages,
        V_STAGES=v_stages,
        PINGPONG=pingpong,
        REGISTERS=registers,
        num_warps=4,
        **pdl(),
    )
    return out
