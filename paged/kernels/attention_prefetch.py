"""Asking for keys and values before the kernel before has ended, so that L2 has them.

Between the launches of a layer memory idles. What earlier steps wrote to the cache does not change,
so a program of paged attention asks for it before it may read its queries. Nothing is read into the
program: the bits cannot change, nor do the keys that this step still writes matter.
"""

import triton
import triton.language as tl


@triton.jit
def prefetch_keys(
    k_cache_ptr, v_cache_ptr, pages_ptr, kv_head, start, end,
    EARLY_KEYS: tl.constexpr, PAGE_SIZE: tl.constexpr, PAGE_STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Ask L2 for a head's pages with the keys [start, min(start + EARLY_KEYS, end)).

    Each of THREADS threads asks for a page: a head's keys of a page are contiguous.
    """
    BYTES: tl.constexpr = PAGE_SIZE * HEAD_DIM * k_cache_ptr.dtype.element_ty.primitive_bitwidth // 8
    page_index = start // PAGE_SIZE + tl.arange(0, THREADS)
    is_wanted = page_index * PAGE_SIZE < tl.minimum(start + EARLY_KEYS, end)
    page = tl.load(pages_ptr + page_index, mask=is_wanted, other=0, cache_modifier=".cg")
    offset = page.to(tl.int64) * PAGE_STRIDE + kv_head * PAGE_SIZE * HEAD_DIM
    tl.inline_asm_elementwise(
        "{ .reg .pred wanted; setp.ne.u32 wanted, $3, 0; mov.u32 $0, 0;"
        f" @wanted cp.async.bulk.prefetch.L2.global [$1], {BYTES};"
        f" @wanted cp.async.bulk.prefetch.L2.global [$2], {BYTES}; }}",
        "=r,l,l,r",
        [
            (k_cache_ptr + offset).to(tl.int64, bitcast=True),
            (v_cache_ptr + offset).to(tl.int64, bitcast=True),
            is_wanted.to(tl.int32),
        ],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def early_keys(capacity: int) -> int:
    """Keys that a program asks for early: as many as memory brings while it would idle.

    With few tokens a program's whole range, with many the first tile of each.
    """
    if capacity <= 16:
        return 256
    return 64 if capacity <= 256 else 0
