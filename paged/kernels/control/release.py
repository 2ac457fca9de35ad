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
from paged.kernels.control.packing import (
    count_of,
    high_of,
    low_of,
    pack_flags,
    pack_pair,
    spread_lanes,
)  # fmt: skip
from paged.kernels.control.stage import stage
from paged.kernels.control.update import Events
from paged.kernels.control.update_ref import EventWriter, slots_of
from paged.kernels.launch import pdl

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
    published = tl.load(serial + page, mask=mine, other=0) > 0
    idle = mine & (holders == 0)
    freed = idle & ~published
    in_all = tl.sum(pack_pair(freed, idle & published), axis=0)
    at = (tail + tl.cumsum(freed.to(tl.int32), axis=0) - 1) % RING
    tl.store(ref_count + page, holders, mask=mine)
    tl.store(last_used + page, step.to(tl.int32), mask=idle & published)
    tl.store(free_ring + at, page, mask=freed)
    return tail + high_of(in_all), cached + low_of(in_all)


@triton.jit
def _count_of_field(field):
    """Where in `plan.counts` the field of the header is, or -1."""
    at = tl.where(field == 0, 7, tl.where(field == 1, 0, tl.where(field == 2, 1, -1)))
    at = tl.where(field == 8, 4, tl.where(field == 9, 5, tl.where(field == 10, 3, at)))
    return tl.where((field >= 11) & (field <= 14), field - 1, at)


@triton.jit
def _release_kernel(
    columns, counters, block_table, free_ring, ref_count, last_used, serial, release_slots, counts,
    seq_lens, events,
    R: tl.constexpr, S: tl.constexpr, MAX_PAGES: tl.constexpr, RING: tl.constexpr,
    DEPTH: tl.constexpr, EVENT_WORDS: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = spread_lanes(LANES)
    live = slot < R
    status = tl.load(columns + STATUS * R + slot, mask=live, other=0)
    keys = tl.load(seq_lens + slot, mask=slot < S, other=0).to(tl.int64)  # 0 past the batch
    step = tl.load(counters + STEP)
    head, tail = tl.load(counters + HEAD), tl.load(counters + TAIL)
    cached = tl.load(counters + NUM_CACHED)
    # What the plan knows of the header; a load behind the stores below would wait for each.
    field = tl.arange(0, 16)
    count = _count_of_field(field)
    header = tl.load(counts + count, mask=count >= 0, other=0).to(tl.int64)
    header = tl.where(field == 5, tl.load(counters + SHORTFALL), header)

    preempted = live & (status == PREEMPTED)
    leaves = preempted | (live & (status == FINISHED))
    flags = pack_flags(leaves, live & (status == RUNNING), live & (status == WAITING), preempted)
    flagged = tl.sum(flags, axis=0)
    num_leaving = count_of(flagged, 0)
    if num_leaving > 0:
        place = tl.cumsum(leaves.to(tl.int32), axis=0) - 1
        tl.store(release_slots + place, slot, mask=leaves)
        tl.debug_barrier()  # the list is read below by threads that did not write it
    lane = spread_lanes(TILE)
    for index in range(num_leaving):
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
    if num_leaving > 0:
        times = tl.load(columns + NUM_PREEMPTIONS * R + slot, mask=preempted, other=0)
        tl.store(columns + NUM_PREEMPTIONS * R + slot, times + 1, mask=preempted)
        tl.store(columns + NUM_COMPUTED * R + slot, 0, mask=preempted)
        tl.store(columns + NUM_PUBLISHED * R + slot, 0, mask=preempted)
        tl.store(columns + NUM_DROPPED * R + slot, 0, mask=preempted)
        tl.store(columns + NUM_PAGES * R + slot, 0, mask=leaves)
        tl.store(columns + STATUS * R + slot, tl.where(preempted, WAITING, FREE), mask=leaves)
        tl.store(counters + TAIL, tail)
        tl.store(counters + NUM_CACHED, cached)

    header = tl.where(field == 3, tail - head, header)
    header = tl.where(field == 4, cached, header)
    header = tl.where(field == 6, count_of(flagged, 1).to(tl.int64), header)
    num_waiting = count_of(flagged, 2) + count_of(flagged, 3)
    header = tl.where(field == 7, num_waiting.to(tl.int64), header)
    header = tl.where(field == 15, tl.sum(keys, axis=0), header)
    tag = ((step + 1) & 0xFFFF) << 48
    tl.store(events + (step % DEPTH) * EVENT_WORDS + field, tag | header)
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
        RING=pool.free_ring.shape[0], DEPTH=depth, EVENT_WORDS=width, LANES=lanes, TILE=512,
        num_warps=8 if lanes > 256 else 4, **pdl(),
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
