"""Prefill attention for Hopper in Gluon: two groups of rows that run against each other.

The arithmetic and its order, and so the bits, are those of the tall tiles of
`paged.kernels.paged_attention`, whose items it takes. What differs is who does what, and when. A
producer warp fills rings of keys and values by TMA; two warp groups of 64 rows each consume them,
with no barrier in common but the rings'. A step takes 128 keys: one product S = Q K^T, for which Q
is read from shared memory once, then two updates of the softmax of 64 keys each, as everywhere. The
values of the second half are multiplied with the next S, and one group computes its exponentials
while the tensor cores work for the other (FlashAttention-3, Shah et al. 2024, section 3; letting
the groups take turns, as there, was slower: experiments/kernels/attention).

Grid: (KV head, item). q may be strided over tokens; all else is contiguous.
"""

import math

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from paged.kernels.attention_arguments import check_arguments, check_scalars
from paged.kernels.attention_items import ITEM_FIELDS
from paged.kernels.launch import pdl
from paged.kernels.paged_attention_ref import paged_attention_inputs, paged_attention_ref
from paged.kernels.prefill_groups import consume
from paged.kernels.warp_groups import barrier, has_warp_groups

ROWS = 64  # of a group: what one wgmma multiplies
STAGES = 2  # steps of 128 keys and values in flight
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
def _prefill_attention_kernel(
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
    PDL: gl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
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
                0, HEADS, NUM_HEADS, HEAD_DIM, SPLIT_SIZE, ROWS, KEYS,
                K_STAGES, V_STAGES,
            )),
            (consume, (
                q_ptr, out_ptr, q_smem, ones, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
                first_row, position, num_tokens, kv_head, q_stride, score_scale,
                1, HEADS, NUM_HEADS, HEAD_DIM, SPLIT_SIZE, ROWS, KEYS,
                K_STAGES, V_STAGES,
            )),
            (_produce, (
                k_desc, v_desc, k_ring, v_ring, k_full, k_empty, v_full, v_empty, pages_ptr,
                position + num_tokens, kv_head,
                BOX, HEAD_DIM, PAGE_SIZE, NUM_KV_HEADS, KEYS, K_STAGES, V_STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def fits_prefill_attention(q: torch.Tensor, k_cache: torch.Tensor, tokens_per_tile: int) -> bool:
    """Whether tiles without window, soft cap, ALiBi or spread splits may take this kernel."""
    _, num_heads, head_dim = q.shape
    rows = tokens_per_tile * (num_heads // k_cache.shape[1])
    return (
        q.dtype in (torch.float16, torch.bfloat16)
        and head_dim in (64, 128)
        and triton.next_power_of_2(rows) == 2 * ROWS
        and has_warp_groups()
    )


def prefill_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    items: torch.Tensor,
    out: torch.Tensor,
    softmax_scale: float,
    tokens_per_tile: int,
    split_size: int,
) -> torch.Tensor:
    """Attend as `paged_attention` does; for what `fits_prefill_attention` allows.

    Args and errors are those of `paged_attention`; `items` have no spread splits.
    """
    if not fits_prefill_attention(q, k_cache, tokens_per_tile):
        raise ValueError(
            "prefill_attention must have 16-bit values, head_dim 64 or 128, tiles of "
            f"{2 * ROWS} rows and a Hopper GPU, got {q.dtype}, q {list(q.shape)}, "
            f"k_cache {list(k_cache.shape)} and {tokens_per_tile} tokens a tile; "
            "take paged_attention"
        )
    check_scalars(softmax_scale, k_cache.shape[2], split_size, None, None, None)
    check_arguments(q, k_cache, v_cache, block_table, items, out, None, None)
    _, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    max_items = items.shape[0]
    if max_items == 0:
        return out
    layout = gl.NVMMASharedLayout(128, 16, rank=2)
    box = [min(page_size, KEYS), 64]
    descriptors = [
        TensorDescriptor.from_tensor(cache.view(-1, head_dim), box, layout)
        for cache in (k_cache, v_cache)
    ]
    _prefill_attention_kernel[(num_kv_heads, max_items)](
        q,
        *descriptors,
        block_table,
        items,
        out,
        math.log2(math.e) * softmax_scale,
        q.stride(0),
        block_table.stride(0),
        max_items,
        FIELDS=ITEM_FIELDS,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEADS=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        SPLIT_SIZE=split_size,
        ROWS=ROWS,
        KEYS=KEYS,
        K_STAGES=STAGES,
        V_STAGES=2 * STAGES,
        num_warps=4,
        **pdl(),
    )
    return out


prefill_attention_ref = paged_attention_ref


def prefill_attention_inputs(
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 128,
    page_size: int = 64,
    num_heads: int = 8,
    num_kv_heads: int = 2,
) -> dict:
    """Arguments for chunks of odd sizes; in bfloat16 for float32."""
    if dtype == torch.float32:
        dtype = torch.bfloat16
    lens = ((600, 600), (200, 1000), (77, 77), (1, 900), (33, 64), (64, 256), (65, 257))
    inputs = paged_attention_inputs(
        device,
        dtype,
        lens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        tokens_per_tile=2 * ROWS * num_kv_heads // num_heads,
        split_size=256,
    )
    return {
        name: value for name, value in inputs.items() if name not in ("alibi_slopes", "partials")
    }


PREFILL_ATTENTION_VARIANTS: tuple[dict, ...] = ({"head_dim": 64, "page_size": 16},)
