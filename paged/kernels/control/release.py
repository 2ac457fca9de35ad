"""release: give back the pages of finished and preempted rows, and close the step.

One program: it lists the rows (by slot), then takes them one after another, a tile of pages at a
time, so the order in which pages return to the free ring is fixed. A page whose last holder leaves
becomes cached if it is published, else free. Finished rows become free, preempted rows wait again
with nothing computed.

Closing the step writes the header of its entry in the event ring and advances the step counter.
Header words carry the step's tag in their top 16 bits and a 48-bit value: number of events,
tokens, sequences, free pages, cached pages, shortfall, running rows, waiting rows, preempted,
admitted, published rows, draft tokens, accepted ones, tokens swapped out, tokens swapped in, keys
attended to (the sum of the sequences' lengths).
"""

import triton
import triton.language as tl

from paged.kernels.control.columns import (
    FINISHED,
    FREE,
    HEAD,
    NUM_CACHED,
    NUM_COMPUTED,
    NUM_DROPPED,
    NUM_PAGES,
    NUM_PREEMPTIONS,
    NUM_PUBLISHED,
    PREEMPTED,
    RUNNING,
    SHORTFALL,
    STATUS,
    STEP,
    TAIL,
    WAITING,
)  # fmt: skip
from paged.kernels.control.stage import stage
from paged.kernels.control.update import Events, EventWriter, slots_of

HEADER_FIELDS = (
    "num_events", "num_tokens", "num_seqs", "free_pages", "cached_pages", "shortfall",
    "num_running", "num_waiting", "num_preempted", "num_admitted", "num_published_rows",
    "num_draft_tokens", "num_accepted_tokens", "num_swapped_out", "num_swapped_in",
    "num_keys",
)  # fmt: skip


@triton.jit
def let_go(
    page, mine, tail, cached, step, free_ring, ref_count, last_used, serial, RING: tl.constexpr
):
    """One holder less of every page [P] in `mine`: after the last it is cached if it was published,
    else free. Returns the ring's tail and the count of cached pages; no page may be there twice."""
    holders = tl.load(ref_count + page, mask=mine, other=0) - 1
    tl.store(ref_count + page, holders, mask=mine)
    published = tl.load(serial + page, mask=mine, other=0) > 0
    idle = mine & (holders == 0)
    tl.store(last_used + page, step.to(tl.int32), mask=idle & published)
    cached += tl.sum((idle & published).to(tl.int64), axis=0)
    freed = (idle & ~published).to(tl.int64)
    at = (tail + tl.cumsum(freed, axis=0) - freed) % RING
    tl.store(free_ring + at, page, mask=freed != 0)
    return tail + tl.sum(freed, axis=0), cached


@triton.jit
def _release_kernel(
    columns, counters, block_table, free_ring, ref_count, last_used, serial, release_slots, counts,
    seq_lens, events,
    R: tl.constexpr, S: tl.constexpr, MAX_PAGES: tl.constexpr, RING: tl.constexpr,
    DEPTH: tl.constexpr, EVENT_WORDS: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    slot = tl.arange(0, LANES)
    live = slot < R
    status = tl.load(columns + STATUS * R + slot, mask=live, other=0)
    leaves = (live & ((status == FINISHED) | (status == PREEMPTED))).to(tl.int32)
    tl.store(release_slots + tl.cumsum(leaves, axis=0) - leaves, slot, mask=leaves != 0)
    tl.debug_barrier()  # the list is read below by threads that did not write it

    step = tl.load(counters + STEP)
    tail = tl.load(counters + TAIL)
    cached = tl.load(counters + NUM_CACHED)
    lane = tl.arange(0, TILE)
    for index in range(tl.sum(leaves, axis=0)):
        row = tl.load(release_slots + index)
        held = tl.load(columns + NUM_PAGES * R + row)
        for first in range(0, held, TILE):
            mine = first + lane < held
            page = tl.load(
                block_table + row.to(tl.int64) * MAX_PAGES + first + lane, mask=mine, other=0
            )
            tail, cached = let_go(
                page, mine, tail, cached, step, free_ring, ref_count, last_used, serial, RING
            )
            tl.debug_barrier()  # the next row may hold the same pages
    preempted = live & (status == PREEMPTED)
    times = tl.load(columns + NUM_PREEMPTIONS * R + slot, mask=preempted, other=0)
    tl.store(columns + NUM_PREEMPTIONS * R + slot, times + 1, mask=preempted)
    tl.store(columns + NUM_COMPUTED * R + slot, 0, mask=preempted)
    tl.store(columns + NUM_PUBLISHED * R + slot, 0, mask=preempted)
    tl.store(columns + NUM_DROPPED * R + slot, 0, mask=preempted)
    tl.store(columns + NUM_PAGES * R + slot, 0, mask=leaves != 0)
    tl.store(columns + STATUS * R + slot, tl.where(preempted, WAITING, FREE), mask=leaves != 0)
    tl.store(counters + TAIL, tail)
    tl.store(counters + NUM_CACHED, cached)

    header = events + (step % DEPTH) * EVENT_WORDS
    tag = ((step + 1) & 0xFFFF) << 48
    tl.store(header + 0, tag | tl.load(counts + 7).to(tl.int64))
    tl.store(header + 1, tag | tl.load(counts + 0).to(tl.int64))
    tl.store(header + 2, tag | tl.load(counts + 1).to(tl.int64))
    tl.store(header + 3, tag | (tail - tl.load(counters + HEAD)))
    tl.store(header + 4, tag | cached)
    tl.store(header + 5, tag | tl.load(counters + SHORTFALL))
    running = tl.sum((live & (status == RUNNING)).to(tl.int64), axis=0)
    waiting = tl.sum((live & ((status == WAITING) | preempted)).to(tl.int64), axis=0)
    tl.store(header + 6, tag | running)
    tl.store(header + 7, tag | waiting)
    tl.store(header + 8, tag | tl.load(counts + 4).to(tl.int64))
    tl.store(header + 9, tag | tl.load(counts + 5).to(tl.int64))
    tl.store(header + 10, tag | tl.load(counts + 3).to(tl.int64))
    tl.store(header + 11, tag | tl.load(counts + 10).to(tl.int64))
    tl.store(header + 12, tag | tl.load(counts + 11).to(tl.int64))
    tl.store(header + 13, tag | tl.load(counts + 12).to(tl.int64))
    tl.store(header + 14, tag | tl.load(counts + 13).to(tl.int64))
    keys = tl.load(seq_lens + slot, mask=slot < S, other=0).to(tl.int64)  # 0 past the batch
    tl.store(header + 15, tag | tl.sum(keys, axis=0))
    tl.store(counters + STEP, step + 1)


@stage
def release(requests, pool, plan, events: Events) -> None:
    """Release the rows that ended or were preempted, and close the step."""
    sizes = requests.sizes
    depth, width = events.words.shape
    lanes = triton.next_power_of_2(sizes.num_slots)
    _release_kernel[(1,)](
        requests.columns, pool.counters, requests.block_table, pool.free_ring, pool.ref_count,
        pool.last_used, pool.serial, plan.release_slots, plan.counts, plan.seq_lens, events.words,
        R=sizes.num_slots, S=sizes.max_num_seqs, MAX_PAGES=sizes.max_pages_per_seq,
        RING=pool.free_ring.shape[0], DEPTH=depth, EVENT_WORDS=width, LANES=lanes, TILE=1024,
        num_warps=8 if lanes > 256 else 4,
    )  # fmt: skip


def let_go_ref(pool, page: int) -> None:
    """One holder less of a page: after the last it is cached if it was published, else free."""
    pool.ref_count[page] -= 1
    if int(pool.ref_count[page]) > 0:
        return
    if int(pool.serial[page]) > 0:
        pool.last_used[page] = int(pool.counters[STEP.value])
        pool.counters[NUM_CACHED.value] += 1
    else:
        pool.free_ring[int(pool.counters[TAIL.value]) % pool.free_ring.shape[0]] = page
        pool.counters[TAIL.value] += 1


def release_ref(requests, pool, plan, events: Events) -> None:
    """The same, page by page."""
    step = int(pool.counters[STEP.value])
    preempted = slots_of(requests, PREEMPTED.value)
    leaving = sorted(slots_of(requests, FINISHED.value) + preempted)
    for index, slot in enumerate(leaving):
        plan.release_slots[index] = slot
        for page in requests.block_table[slot, : int(requests.num_pages[slot])].tolist():
            let_go_ref(pool, page)
        requests.num_pages[slot] = 0
        requests.status[slot] = FREE.value
    for slot in preempted:
        requests.status[slot] = WAITING.value
        requests.num_preemptions[slot] += 1
        requests.num_computed_tokens[slot] = requests.num_published[slot] = 0
        requests.num_dropped[slot] = 0

    writer = EventWriter(events, step)
    values = {
        "num_events": plan.num_events,
        "num_tokens": plan.num_tokens,
        "num_seqs": plan.num_seqs,
        "free_pages": pool.counters[TAIL.value] - pool.counters[HEAD.value],
        "cached_pages": pool.counters[NUM_CACHED.value],
        "shortfall": pool.counters[SHORTFALL.value],
        "num_running": len(slots_of(requests, RUNNING.value)),
        "num_waiting": len(slots_of(requests, WAITING.value)),
        "num_preempted": plan.num_preempted,
        "num_admitted": plan.num_admitted,
        "num_published_rows": plan.num_published_rows,
        "num_draft_tokens": plan.num_draft_tokens,
        "num_accepted_tokens": plan.num_accepted_tokens,
        "num_swapped_out": plan.num_swapped_out,
        "num_swapped_in": plan.num_swapped_in,
        "num_keys": plan.seq_lens.sum(),
    }
    for index, name in enumerate(HEADER_FIELDS):
        writer.entry[index] = writer.word(int(values[name]))
    pool.counters[STEP.value] = step + 1
