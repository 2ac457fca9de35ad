"""beam_repoint: give each beam the pages of the sequence it goes on with.

Runs after beam_select.py, in the same step. All beams of a group have computed `total` tokens, and
page i < total / page_size of a sequence is full: there the row takes the other row's page and lets
its own go. The page behind them is partly filled and stays the row's own: its contents are copied
(copy_pages.py) from the other's. So no page has to be found, whatever beams are chosen: every beam
that goes on elsewhere leaves the page it would have filled to the one that takes its row.

    block_table[slot, i] = block_table[source, i], reference counts with it       for i < full
    copy_beam_target, copy_beam_source                    the pages at index `full`, if any

A source is always a row that goes on with its own sequence, so rows can be settled one after
another. One program, so that pages return to the free ring in a fixed order.
"""

import triton
import triton.language as tl

from paged.kernels.control.columns import NUM_CACHED, NUM_PUBLISHED, STEP, TAIL, TOTAL_LEN
from paged.kernels.control.release import let_go_ref


@triton.jit
def _beam_repoint_kernel(
    columns, counters, block_table, canonical, chain_serial, free_ring, ref_count, last_used,
    serial, beam_source, moved_slots, copy_source, copy_target, counts,
    R: tl.constexpr, MAX_PAGES: tl.constexpr, RING: tl.constexpr, PAGE_SIZE: tl.constexpr,
    LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, LANES)
    from_slot = tl.load(beam_source + lanes, mask=lanes < R, other=-1)
    moves = ((from_slot >= 0) & (from_slot != lanes)).to(tl.int32)
    tl.store(moved_slots + tl.cumsum(moves, axis=0) - moves, lanes, mask=moves != 0)
    tl.debug_barrier()  # the list is read below by threads that did not write it

    step = tl.load(counters + STEP)
    tail = tl.load(counters + TAIL)
    cached = tl.load(counters + NUM_CACHED)
    num_copies = tl.zeros((), dtype=tl.int32)
    lane = tl.arange(0, TILE)
    for index in range(tl.sum(moves, axis=0)):
        slot = tl.load(moved_slots + index)
        source = tl.load(beam_source + slot)
        total = tl.load(columns + TOTAL_LEN * R + slot)
        full = total // PAGE_SIZE
        published = tl.load(columns + NUM_PUBLISHED * R + source)
        mine = slot.to(tl.int64) * MAX_PAGES
        theirs = source.to(tl.int64) * MAX_PAGES
        for first in range(0, full, TILE):
            at = first + lane
            old = tl.load(block_table + mine + at, mask=at < full, other=0)
            new = tl.load(block_table + theirs + at, mask=at < full, other=0)
            changes = (at < full) & (old != new)
            holders = tl.load(ref_count + new, mask=changes, other=0)
            tl.store(ref_count + new, holders + 1, mask=changes)
            left = tl.load(ref_count + old, mask=changes, other=0) - 1
            tl.store(ref_count + old, left, mask=changes)
            known = tl.load(serial + old, mask=changes, other=0) > 0
            idle = changes & (left == 0)
            tl.store(last_used + old, step.to(tl.int32), mask=idle & known)
            cached += tl.sum((idle & known).to(tl.int64), axis=0)
            freed = (idle & ~known).to(tl.int64)
            tl.store(
                free_ring + (tail + tl.cumsum(freed, axis=0) - freed) % RING, old, mask=freed != 0
            )
            tail += tl.sum(freed, axis=0)
            tl.store(block_table + mine + at, new, mask=changes)
            chain = tl.load(canonical + theirs + at, mask=at < published, other=0)
            tl.store(canonical + mine + at, chain, mask=at < published)
            tl.debug_barrier()  # the next row may hold the same pages
        tl.store(columns + NUM_PUBLISHED * R + slot, published)
        tl.store(chain_serial + slot, tl.load(chain_serial + source))
        if total % PAGE_SIZE > 0:
            tl.store(copy_source + num_copies, tl.load(block_table + theirs + full))
            tl.store(copy_target + num_copies, tl.load(block_table + mine + full))
            num_copies += 1
    tl.store(counters + TAIL, tail)
    tl.store(counters + NUM_CACHED, cached)
    tl.store(counts + 9, num_copies)


def beam_repoint(requests, pool, plan) -> None:
    """Settle the pages of the beams that `plan.beam_source` moves."""
    sizes = requests.sizes
    lanes = triton.next_power_of_2(sizes.num_slots)
    _beam_repoint_kernel[(1,)](
        requests.columns, pool.counters, requests.block_table, requests.canonical,
        requests.chain_serial, pool.free_ring, pool.ref_count, pool.last_used, pool.serial,
        plan.beam_source, plan.moved_slots, plan.copy_beam_source, plan.copy_beam_target,
        plan.counts,
        R=sizes.num_slots, MAX_PAGES=sizes.max_pages_per_seq, RING=pool.free_ring.shape[0],
        PAGE_SIZE=sizes.page_size, LANES=lanes, TILE=256, num_warps=8 if lanes > 256 else 4,
    )  # fmt: skip


def beam_repoint_ref(requests, pool, plan) -> None:
    """The same, page by page; `canonical` past the published pages is unspecified."""
    moved = num_copies = 0
    for slot, source in enumerate(plan.beam_source.tolist()):
        if source in (-1, slot):
            continue
        plan.moved_slots[moved] = slot
        moved += 1
        full, filled = divmod(int(requests.total_len[slot]), requests.sizes.page_size)
        ours, theirs = requests.block_table[slot], requests.block_table[source]
        for old, new in zip(ours[:full].tolist(), theirs[:full].tolist()):
            pool.ref_count[new] += 1
            let_go_ref(pool, old)
        ours[:full] = theirs[:full]
        requests.canonical[slot] = requests.canonical[source]
        requests.num_published[slot] = requests.num_published[source]
        requests.chain_serial[slot] = requests.chain_serial[source]
        if filled:
            plan.copy_beam_source[num_copies] = theirs[full]
            plan.copy_beam_target[num_copies] = ours[full]
            num_copies += 1
    plan.num_beam_copies.fill_(num_copies)
