"""evict: return cached pages to the free ring, those with the smallest score first.

Maintenance, not a stage of the step: the host launches it when the free pages it last saw fall
under the low-water mark or a step reported a shortfall. How many pages go is decided on the device:

    k = clamp(max(low_water - free, shortfall), 0, min(cached, EVICT_LIMIT))

The policy is `score(page, now, *args) -> int32`, smallest goes first; equal scores by depth, the
deepest first, so that a chain is cut from its end; then by page id. A page whose parent was evicted
can no longer be found by anyone and goes before all others.

Exact selection of the k smallest by radix select over a 48-bit key (score 32, depth 16), 8 bits a
pass: a histogram (many programs, integer atomics that commute) and a narrowing of the digit, which
every program of the next pass repeats for itself. Two last launches count and write, so pages
return in page order and every run of the same commands does the same.
"""

import triton
import triton.language as tl

from paged.kernels.control.columns import (
    EVICT_LIMIT,
    HEAD,
    NUM_CACHED,
    SHORTFALL,
    TAIL,
    Page,
    load_now,
)  # fmt: skip
from paged.kernels.control.stage import stage
from paged.kernels.launch import interpreted

RADIX_BITS = tl.constexpr(8)
RADIX = tl.constexpr(256)  # 1 << RADIX_BITS
KEY_BITS = tl.constexpr(48)
NUM_PASSES = KEY_BITS.value // RADIX_BITS.value
NOT_CACHED = tl.constexpr(1 << 48)  # above every key


@triton.jit(do_not_specialize=["num_pages"])
def _score_kernel(
    counters, ref_count, last_used, hits, born, depth, parent, parent_serial, serial, score, key,
    args,
    SCORE: tl.constexpr, num_pages, BLOCK: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = page < num_pages
    held = tl.load(ref_count + page, mask=live, other=1)
    own = tl.load(serial + page, mask=live, other=0)
    cached = live & (held == 0) & (own > 0)
    level = tl.load(depth + page, mask=live, other=0)
    view = Page(
        last_used=tl.load(last_used + page, mask=live, other=0),
        hits=tl.load(hits + page, mask=live, other=0),
        born=tl.load(born + page, mask=live, other=0),
        depth=level,
    )
    if SCORE is None:
        value = tl.load(score + page, mask=live, other=0)
    else:
        value = (SCORE(view, load_now(counters), *args) + tl.zeros_like(page)).to(tl.int32)
        tl.store(score + page, value, mask=live)
    above = tl.load(parent + page, mask=cached, other=-1)
    above_serial = tl.load(serial + above, mask=cached & (above >= 0), other=0)
    orphan = cached & (above_serial != tl.load(parent_serial + page, mask=cached, other=0))
    rank = tl.where(orphan, 0, value.to(tl.int64) + 2147483648)
    word = (rank << 16) | (65535 - tl.minimum(level, 65535)).to(tl.int64)
    tl.store(key + page, tl.where(cached, word, NOT_CACHED), mask=live)


@triton.jit
def _num_evicted(counters, low_water):
    free = tl.load(counters + TAIL) - tl.load(counters + HEAD)
    wanted = tl.maximum(low_water - free, tl.load(counters + SHORTFALL))
    most = tl.minimum(tl.load(counters + NUM_CACHED), tl.load(counters + EVICT_LIMIT))
    return tl.minimum(tl.maximum(wanted, 0), most)


@triton.jit
def _narrow(counters, histogram, low_water, passes):
    """Key prefix that the first `passes` passes fixed, and how many of its pages are wanted.

    `passes` is a run-time value, so that one compiled histogram kernel serves every pass.
    """
    remaining = _num_evicted(counters, low_water)
    prefix = tl.zeros((), dtype=tl.int64)
    digit = tl.arange(0, RADIX)
    for done in range(passes):
        count = tl.load(histogram + done * RADIX + digit).to(tl.int64)
        below = tl.cumsum(count, axis=0)
        # The digit of the last page wanted: the first whose inclusive count reaches `remaining`.
        chosen = tl.sum((below < remaining).to(tl.int64), axis=0)
        remaining -= tl.sum(tl.where(digit < chosen, count, 0), axis=0)
        prefix = (prefix << RADIX_BITS) | chosen
    return prefix, remaining


@triton.jit(do_not_specialize=["low_water", "passes", "num_pages"])
def _histogram_kernel(
    counters, key, histogram, low_water, passes,
    num_pages, BLOCK: tl.constexpr,
):  # fmt: skip
    prefix, remaining = _narrow(counters, histogram, low_water, passes)
    if remaining == 0:
        return
    page = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(key + page, mask=page < num_pages, other=NOT_CACHED)
    shift = KEY_BITS - (passes + 1) * RADIX_BITS
    counts = (word < NOT_CACHED) & ((word >> (shift + RADIX_BITS)) == prefix)
    digit = ((word >> shift) & (RADIX - 1)).to(tl.int32)
    tl.atomic_add(histogram + passes * RADIX + digit, 1, mask=counts)


@triton.jit(do_not_specialize=["low_water", "passes", "num_pages"])
def _count_kernel(
    counters, key, histogram, block_counts, low_water, passes,
    num_pages, BLOCK: tl.constexpr,
):  # fmt: skip
    threshold, _ = _narrow(counters, histogram, low_water, passes)
    page = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(key + page, mask=page < num_pages, other=NOT_CACHED)
    at = block_counts + tl.program_id(0) * 2
    tl.store(at, tl.sum((word < threshold).to(tl.int32), axis=0))
    tl.store(at + 1, tl.sum((word == threshold).to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["low_water", "passes", "num_pages"])
def _collect_kernel(
    counters, key, histogram, block_counts, free_ring, serial, entry_of, table_page, table_hash,
    low_water, passes,
    num_pages, RING: tl.constexpr, BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    total = _num_evicted(counters, low_water)
    if total == 0:
        return
    threshold, ties = _narrow(counters, histogram, low_water, passes)
    block = tl.arange(0, NUM_BLOCKS)
    earlier = block < tl.program_id(0)
    below_before = tl.sum(tl.load(block_counts + block * 2, mask=earlier, other=0), axis=0)
    equal_before = tl.sum(tl.load(block_counts + block * 2 + 1, mask=earlier, other=0), axis=0)
    page = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(key + page, mask=page < num_pages, other=NOT_CACHED)
    equal = (word == threshold).to(tl.int64)
    taken_equal = (equal != 0) & (equal_before + tl.cumsum(equal, axis=0) <= ties)
    taken = ((word < threshold) | taken_equal).to(tl.int64)
    before = below_before + tl.minimum(equal_before.to(tl.int64), ties)
    at = tl.load(counters + TAIL) + before + tl.cumsum(taken, axis=0) - taken
    tl.store(free_ring + at % RING, page, mask=taken != 0)
    entry = tl.load(entry_of + page, mask=taken != 0, other=0)
    tl.store(table_page + entry, -1, mask=taken != 0)
    tl.store(table_hash + entry, 0, mask=taken != 0)
    tl.store(entry_of + page, -1, mask=taken != 0)
    tl.store(serial + page, 0, mask=taken != 0)


@triton.jit(do_not_specialize=["low_water"])
def _settle_kernel(counters, low_water):
    total = _num_evicted(counters, low_water)
    tail, cached = tl.load(counters + TAIL), tl.load(counters + NUM_CACHED)
    tl.store(counters + TAIL, tail + total)
    tl.store(counters + NUM_CACHED, cached - total)
    tl.store(counters + SHORTFALL, tl.zeros((), dtype=tl.int64))


@stage
def evict(pool, low_water: int, score=None, args: tuple = ()) -> None:
    """Return cached pages to the free ring until `low_water` are free and no shortfall is left.

    `score` is a Triton function, or None to use the scores in `pool.score` [N]; with a function,
    the scores it gave are stored there.
    """
    pages = pool.sizes.num_pages
    block = triton.next_power_of_2(pages) if interpreted() else 1024
    grid = (triton.cdiv(pages, block),)
    scratch = (pool.counters, pool.evict_key, pool.evict_histogram)
    pool.evict_histogram.zero_()
    _score_kernel[grid](
        pool.counters, pool.ref_count, pool.last_used, pool.hits, pool.born, pool.depth,
        pool.parent, pool.parent_serial, pool.serial, pool.score, pool.evict_key, args,
        SCORE=score, num_pages=pages, BLOCK=block,
    )  # fmt: skip
    for passes in range(NUM_PASSES):
        _histogram_kernel[grid](*scratch, low_water, passes, num_pages=pages, BLOCK=block)
    _count_kernel[grid](
        *scratch, pool.evict_counts, low_water, NUM_PASSES, num_pages=pages, BLOCK=block
    )
    _collect_kernel[grid](
        *scratch, pool.evict_counts, pool.free_ring, pool.serial, pool.entry, pool.table_page,
        pool.table_hash, low_water, NUM_PASSES,
        num_pages=pages, RING=pool.free_ring.shape[0], BLOCK=block,
        NUM_BLOCKS=triton.next_power_of_2(grid[0]),
    )  # fmt: skip
    _settle_kernel[(1,)](pool.counters, low_water)


def page_view(pool) -> Page:
    """The pool as `score` sees it, for policies written in torch; every field [N] int32."""
    return Page(last_used=pool.last_used, hits=pool.hits, born=pool.born, depth=pool.depth)


def evict_ref(pool, low_water: int) -> None:
    """The same from the scores in `pool.score`, by sorting."""
    free = int(pool.counters[TAIL.value] - pool.counters[HEAD.value])
    wanted = max(low_water - free, int(pool.counters[SHORTFALL.value]), 0)
    total = min(wanted, *(int(pool.counters[at.value]) for at in (NUM_CACHED, EVICT_LIMIT)))
    ranked = []
    for page in ((pool.ref_count == 0) & (pool.serial > 0)).nonzero().flatten().tolist():
        parent = int(pool.parent[page])
        above = int(pool.serial[parent]) if parent >= 0 else 0
        orphan = above != int(pool.parent_serial[page])
        rank = -(2**31) if orphan else int(pool.score[page])
        ranked.append((rank, -min(int(pool.depth[page]), 65535), page))
    tail = int(pool.counters[TAIL.value])
    for offset, page in enumerate(sorted(page for _, _, page in sorted(ranked)[:total])):
        pool.free_ring[(tail + offset) % pool.free_ring.shape[0]] = page
        pool.table_page[pool.entry[page]] = -1
        pool.table_hash[pool.entry[page]] = 0
        pool.entry[page], pool.serial[page] = -1, 0
    pool.counters[TAIL.value] += total
    pool.counters[NUM_CACHED.value] -= total
    pool.counters[SHORTFALL.value] = 0
