"""evict: return cached pages to the free ring, those with the smallest score first.

Maintenance, not a stage of the step: the host launches it when the free pages it last saw fall
under the low-water mark or a step reported a shortfall. How many pages go is decided on the device:

    k = clamp(max(low_water - free, shortfall), 0, min(cached, EVICT_LIMIT))

The policy is `score(page, now, *args) -> int32`, smallest goes first; equal scores by depth, the
deepest first, so that a chain is cut from its end; then by page id. A page whose parent was evicted
can no longer be found by anyone and goes before all others.

Exact selection of the k smallest by radix select over a 48-bit key (score 32, depth 16), 8 bits a
pass: a histogram over all pages (integer atomics that commute), and a narrowing of the digit, which
every program repeats for itself. Then pages are counted and written in page order, so every run of
the same commands does the same.

One launch, grid [programs], all on the device at once: a tile of pages each, whose keys stay in
registers; phases are separated by a barrier over the grid. A launch that finds k = 0 returns at
once, so that a graph of steps (drive.py) can have one in each. Everything contiguous.
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
from paged.kernels.control.packing import high_of, low_of, pack_pair, spread_lanes
from paged.kernels.control.stage import stage
from paged.kernels.grid_barrier import grid_barrier
from paged.kernels.launch import interpreted, pdl
from paged.kernels.linear_persistent import multiprocessors

RADIX_BITS = tl.constexpr(8)
RADIX = tl.constexpr(256)  # 1 << RADIX_BITS
KEY_BITS = tl.constexpr(48)
NUM_PASSES = tl.constexpr(KEY_BITS.value // RADIX_BITS.value)
NOT_CACHED = tl.constexpr(1 << 48)  # above every key
PAGES = 1024  # of a program, if the device has room for so many programs


@triton.jit
def _num_evicted(counters, low_water):
    free = tl.load(counters + TAIL) - tl.load(counters + HEAD)
    wanted = tl.maximum(low_water - free, tl.load(counters + SHORTFALL))
    most = tl.minimum(tl.load(counters + NUM_CACHED), tl.load(counters + EVICT_LIMIT))
    return tl.minimum(tl.maximum(wanted, 0), most)


@triton.jit
def _load_keys(
    counters, ref_count, last_used, hits, born, depth, parent, parent_serial, serial, score, args,
    page, live, SCORE: tl.constexpr,
):  # fmt: skip
    """Sort keys of pages, int64, the first to go the smallest."""
    held = tl.load(ref_count + page, mask=live, other=1)
    own = tl.load(serial + page, mask=live, other=0)
    cached = live & (held == 0) & (own > 0)
    level = tl.load(depth + page, mask=live, other=0)
    if SCORE is None:
        value = tl.load(score + page, mask=live, other=0)
    else:
        view = Page(
            last_used=tl.load(last_used + page, mask=live, other=0),
            hits=tl.load(hits + page, mask=live, other=0),
            born=tl.load(born + page, mask=live, other=0),
            depth=level,
        )
        value = (SCORE(view, load_now(counters), *args) + tl.zeros_like(page)).to(tl.int32)
    above = tl.load(parent + page, mask=cached, other=-1)
    above_serial = tl.load(serial + above, mask=cached & (above >= 0), other=0)
    orphan = cached & (above_serial != tl.load(parent_serial + page, mask=cached, other=0))
    rank = tl.where(orphan, 0, value.to(tl.int64) + 2147483648)
    word = (rank << 16) | (65535 - tl.minimum(level, 65535)).to(tl.int64)
    return tl.where(cached, word, NOT_CACHED)


@triton.jit(do_not_specialize=["low_water", "num_pages"])
def _evict_kernel(
    counters, ref_count, last_used, hits, born, depth, parent, parent_serial, serial, score,
    histogram, tile_counts, arrivals, free_ring, entry_of, table_page, table_hash, args,
    low_water, num_pages,
    SCORE: tl.constexpr, RING: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = _num_evicted(counters, low_water)
    if total == 0:
        tl.store(counters + SHORTFALL, tl.zeros((), tl.int64))
        return
    tail, num_cached = tl.load(counters + TAIL), tl.load(counters + NUM_CACHED)
    page = tl.program_id(0) * BLOCK + spread_lanes(BLOCK)
    key = _load_keys(
        counters, ref_count, last_used, hits, born, depth, parent, parent_serial, serial, score,
        args, page, page < num_pages, SCORE,
    )  # fmt: skip
    # The key prefix that the passes have fixed, and how many of its pages are wanted.
    threshold, ties = tl.zeros((), tl.int64), total
    lane = tl.arange(0, RADIX)
    for done in range(NUM_PASSES):
        shift = KEY_BITS - (done + 1) * RADIX_BITS
        counts = (key < NOT_CACHED) & ((key >> (shift + RADIX_BITS)) == threshold)
        digit = ((key >> shift) & (RADIX - 1)).to(tl.int32)
        of_tile = tl.histogram(digit, RADIX, mask=counts)
        tl.atomic_add(histogram + done * RADIX + lane, of_tile, mask=of_tile > 0)
        grid_barrier(arrivals)
        count = tl.load(histogram + done * RADIX + lane, cache_modifier=".cg")
        # The digit of the last page wanted: the first whose inclusive count reaches `ties`.
        before = tl.cumsum(count, axis=0) < ties
        chosen = tl.sum(pack_pair(before, tl.where(before, count, 0)), axis=0)
        ties -= low_of(chosen)
        threshold = (threshold << RADIX_BITS) | high_of(chosen)

    below = (key < threshold).to(tl.int32)
    equal = (key == threshold).to(tl.int32)
    in_tile = tl.sum(pack_pair(below, equal), axis=0)
    tl.store(tile_counts + tl.program_id(0) * 2, high_of(in_tile))
    tl.store(tile_counts + tl.program_id(0) * 2 + 1, low_of(in_tile))
    grid_barrier(arrivals)
    tile = tl.arange(0, PROGRAMS)
    earlier = tile < tl.program_id(0)
    below_before = tl.load(tile_counts + tile * 2, mask=earlier, other=0, cache_modifier=".cg")
    equal_before = tl.load(tile_counts + tile * 2 + 1, mask=earlier, other=0, cache_modifier=".cg")
    before = tl.sum(pack_pair(below_before, equal_before), axis=0)
    num_below, num_equal = high_of(before), low_of(before)
    taken_equal = (equal != 0) & (num_equal + tl.cumsum(equal, axis=0) <= ties)
    taken = ((below != 0) | taken_equal).to(tl.int32)
    ahead = num_below + tl.minimum(num_equal.to(tl.int64), ties)
    at = tail + ahead + tl.cumsum(taken, axis=0) - taken
    tl.store(free_ring + at % RING, page, mask=taken != 0)
    entry = tl.load(entry_of + page, mask=taken != 0, other=0)
    tl.store(table_page + entry, -1, mask=taken != 0)
    tl.store(table_hash + entry, 0, mask=taken != 0)
    tl.store(entry_of + page, -1, mask=taken != 0)
    tl.store(serial + page, 0, mask=taken != 0)
    if tl.program_id(0) == 0:  # all programs have read these, before the last barrier
        tl.store(counters + TAIL, tail + total)
        tl.store(counters + NUM_CACHED, num_cached - total)
        tl.store(counters + SHORTFALL, tl.zeros((), tl.int64))
        for cleared in range(NUM_PASSES):
            tl.store(histogram + cleared * RADIX + lane, 0)


@stage
def evict(pool, low_water: int, score=None, args: tuple = ()) -> None:
    """Return cached pages to the free ring until `low_water` are free and no shortfall is left.

    `score` is a Triton function, or None to use the scores in `pool.score` [N].
    """
    pages = pool.sizes.num_pages
    # Programs of an interpreter run one after another: there is but one, and no barrier waits.
    most = 1 if interpreted() else multiprocessors(pool.counters.device)
    programs = min(triton.cdiv(pages, PAGES), most)
    block = triton.next_power_of_2(triton.cdiv(pages, programs))
    _evict_kernel[(programs,)](
        pool.counters, pool.ref_count, pool.last_used, pool.hits, pool.born, pool.depth,
        pool.parent, pool.parent_serial, pool.serial, pool.score, pool.evict_histogram,
        pool.evict_counts, pool.evict_arrivals, pool.free_ring, pool.entry, pool.table_page,
        pool.table_hash, args, low_water,
        num_pages=pages, SCORE=score, RING=pool.free_ring.shape[0],
        PROGRAMS=triton.next_power_of_2(programs), BLOCK=block, num_warps=8, num_stages=1, **pdl(),
    )  # fmt: skip


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
