"""swap: preempted rows leave their keys and values in host memory until they are admitted again.

Runs between `prepare` and the model, and decides what swap_pages.py copies:

    out  of a row preempted in this step, the pages that hold computed tokens, but for the leading
         ones that other rows hold too, into as many free host pages; or none, if there are fewer
    in   of a row admitted in this step, its host pages into the pages booked for it, from the end
         of the prefix that it found cached

A row that is taken back goes on where it was, for `schedule` starts it there:

    resumes = num_swapped > cached_len  and  cached_len / page_size >= num_unsaved

Where the cached prefix is as long, or the pages that others held are gone, the row computes again
what is not cached, as it does without swapping, and its host pages are free again; so are those of
a row that was aborted.

Why no copy races with anything: the pages of a preempted row return to the pool in `release`, at
the end of the step, so none of them is booked in this one, and the model writes to none before
they are copied out. Host pages are taken before any are given back, so none is both written and
read in one step.

One program, rows by slot, so that the order of the host's free ring is fixed. Swapping is that of
Kwon et al., "PagedAttention" (SOSP 2023), section 4.5.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    CACHED_LEN,
    FINISHED,
    NUM_COMPUTED,
    NUM_SWAPPED,
    NUM_UNSAVED,
    PREEMPTED,
    STATUS,
)  # fmt: skip
from paged.kernels.control.stage import stage

HOST_HEAD = tl.constexpr(0)  # host pages ever taken from their free ring
HOST_TAIL = tl.constexpr(1)  # host pages ever given back to it


class SwapSpace:
    """Which host pages are whose, and what one step copies. H host pages, R rows, M pages of one.

    A host page is in the free ring, or in one row's `host_table` from `num_unsaved` on, while the
    row has `num_swapped` tokens.
    """

    def __init__(self, sizes, device: torch.device | str) -> None:
        slots, pages = sizes.num_slots, sizes.num_host_pages

        def ints(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.counters = ints(2, dtype=torch.int64)
        self.counters[HOST_TAIL.value] = pages
        self.free_ring = ints(triton.next_power_of_2(pages))
        self.free_ring[:pages] = torch.arange(pages, dtype=torch.int32, device=device)
        self.host_table = ints(slots, sizes.max_pages_per_seq)
        self.slots = ints(slots)  # of the rows at work
        self.num_out, self.num_in = ints(1), ints(1)
        self.out_source, self.in_target = ints(pages), ints(pages)  # pages of the pool
        self.out_target, self.in_source = ints(pages), ints(pages)  # host pages


@triton.jit
def resumes(swapped, unsaved, cached, PAGE_SIZE: tl.constexpr):
    """Whether a waiting row's host pages bring back more than the prefix cache has."""
    return (swapped > cached) & (cached // PAGE_SIZE >= unsaved)


def resumes_ref(swapped: Any, unsaved: Any, cached: Any, page_size: int) -> Any:
    """The same of one row, or of arrays of them."""
    return (swapped > cached) & (cached // page_size >= unsaved)


@triton.jit
def _list_rows(slots, chosen, slot):
    """Write the chosen lanes to `slots`; returns how many there are."""
    count = chosen.to(tl.int32)
    tl.debug_barrier()  # an earlier list has been read
    tl.store(slots + tl.cumsum(count, axis=0) - count, slot, mask=chosen)
    tl.debug_barrier()  # the list is read by threads that did not write it
    return tl.sum(count, axis=0)


@triton.jit
def _swap_kernel(
    columns, block_table, ref_count, admitted, counts, counters, free_ring, host_table, slots,
    num_out, out_source, out_target, num_in, in_source, in_target,
    R: tl.constexpr, MAX_PAGES: tl.constexpr, PAGE_SIZE: tl.constexpr, RING: tl.constexpr,
    LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    slot = tl.arange(0, LANES)
    live = slot < R
    lane = tl.arange(0, TILE)
    status = tl.load(columns + STATUS * R + slot, mask=live, other=0)
    swapped = tl.load(columns + NUM_SWAPPED * R + slot, mask=live, other=0)
    joined = tl.load(admitted + slot, mask=live, other=0) != 0
    head = tl.load(counters + HOST_HEAD)
    tail = tl.load(counters + HOST_TAIL)

    out = tl.zeros((), dtype=tl.int32)
    tokens_out = tl.zeros((), dtype=tl.int32)
    num_rows = _list_rows(slots, live & (status == PREEMPTED), slot)
    for index in range(num_rows):
        row = tl.load(slots + index).to(tl.int64)
        computed = tl.load(columns + NUM_COMPUTED * R + row)
        held = (computed + PAGE_SIZE - 1) // PAGE_SIZE
        unsaved = tl.zeros((), dtype=tl.int32)
        for first in range(0, held, TILE):
            at = first + lane
            page = tl.load(block_table + row * MAX_PAGES + at, mask=at < held, other=0)
            mine = tl.load(ref_count + page, mask=at < held, other=1) == 1
            leading = (at < held) & (tl.cumsum(mine.to(tl.int32), axis=0) == 0)
            unsaved += tl.where(unsaved == first, tl.sum(leading.to(tl.int32), axis=0), 0)
        fits = held - unsaved <= (tail - head).to(tl.int32)
        end = tl.where(fits, held, unsaved)
        for first in range(unsaved, end, TILE):
            at = first + lane
            goes = at < end
            page = tl.load(block_table + row * MAX_PAGES + at, mask=goes, other=0)
            host = tl.load(free_ring + (head + at - unsaved) % RING, mask=goes, other=0)
            tl.store(host_table + row * MAX_PAGES + at, host, mask=goes)
            tl.store(out_source + out + at - unsaved, page, mask=goes)
            tl.store(out_target + out + at - unsaved, host, mask=goes)
        head += end - unsaved
        out += end - unsaved
        saved = tl.where(end > unsaved, computed, 0)
        tokens_out += tl.where(end > unsaved, computed - unsaved * PAGE_SIZE, 0)
        tl.store(columns + NUM_SWAPPED * R + row, saved)
        tl.store(columns + NUM_UNSAVED * R + row, unsaved)

    back = tl.zeros((), dtype=tl.int32)
    tokens_in = tl.zeros((), dtype=tl.int32)
    leaves = live & (swapped > 0) & (joined | (status == FINISHED))
    num_rows = _list_rows(slots, leaves, slot)
    for index in range(num_rows):
        row = tl.load(slots + index).to(tl.int64)
        saved = tl.load(columns + NUM_SWAPPED * R + row)
        unsaved = tl.load(columns + NUM_UNSAVED * R + row)
        cached = tl.load(columns + CACHED_LEN * R + row)
        goes_on = (tl.load(admitted + row) != 0) & resumes(saved, unsaved, cached, PAGE_SIZE)
        end = (saved + PAGE_SIZE - 1) // PAGE_SIZE
        begin = tl.where(goes_on, cached // PAGE_SIZE, end)
        for first in range(unsaved, end, TILE):
            at = first + lane
            host = tl.load(host_table + row * MAX_PAGES + at, mask=at < end, other=0)
            tl.store(free_ring + (tail + at - unsaved) % RING, host, mask=at < end)
            comes = (at >= begin) & (at < end)
            page = tl.load(block_table + row * MAX_PAGES + at, mask=comes, other=0)
            tl.store(in_source + back + at - begin, host, mask=comes)
            tl.store(in_target + back + at - begin, page, mask=comes)
        tail += end - unsaved
        back += end - begin
        tokens_in += tl.where(goes_on, saved - cached, 0)
        # What an admission reports is what the row need not compute.
        tl.store(columns + CACHED_LEN * R + row, tl.where(goes_on, saved, cached))
        tl.store(columns + NUM_SWAPPED * R + row, 0)

    tl.store(counters + HOST_HEAD, head)
    tl.store(counters + HOST_TAIL, tail)
    tl.store(num_out, out)
    tl.store(num_in, back)
    tl.store(counts + 12, tokens_out)
    tl.store(counts + 13, tokens_in)


@stage
def swap(requests, pool, plan) -> None:
    """List what this step copies out of and into the pool, and keep the books of the host pages."""
    sizes, swaps = requests.sizes, pool.swaps
    lanes = triton.next_power_of_2(sizes.num_slots)
    _swap_kernel[(1,)](
        requests.columns, requests.block_table, pool.ref_count, plan.admitted, plan.counts,
        swaps.counters, swaps.free_ring, swaps.host_table, swaps.slots, swaps.num_out,
        swaps.out_source, swaps.out_target, swaps.num_in, swaps.in_source, swaps.in_target,
        R=sizes.num_slots, MAX_PAGES=sizes.max_pages_per_seq, PAGE_SIZE=sizes.page_size,
        RING=swaps.free_ring.shape[0], LANES=lanes,
        TILE=min(1024, triton.next_power_of_2(sizes.max_pages_per_seq)),
        num_warps=8 if lanes > 256 else 4,
    )  # fmt: skip


def swap_ref(requests, pool, plan) -> None:
    """The same, row by row and page by page."""
    size, swaps, ring = requests.sizes.page_size, pool.swaps, pool.swaps.free_ring.shape[0]
    head, tail = swaps.counters.tolist()
    status, swapped = requests.status.tolist(), requests.num_swapped.tolist()
    tables = requests.block_table.tolist()
    preempted = [slot for slot, at in enumerate(status) if at == PREEMPTED.value]
    out: list[tuple[int, int]] = []
    plan.num_swapped_out.zero_()
    for index, slot in enumerate(preempted):
        swaps.slots[index] = slot
        computed = int(requests.num_computed_tokens[slot])
        pages = tables[slot][: -(-computed // size)]
        unsaved = 0
        while unsaved < len(pages) and int(pool.ref_count[pages[unsaved]]) > 1:
            unsaved += 1
        saves = unsaved < len(pages) and len(pages) - unsaved <= tail - head
        requests.num_swapped[slot] = computed if saves else 0
        requests.num_unsaved[slot] = unsaved
        for at in range(unsaved, len(pages) if saves else unsaved):
            swaps.host_table[slot, at] = host = int(swaps.free_ring[head % ring])
            out.append((pages[at], host))
            head += 1
        plan.num_swapped_out += (computed - unsaved * size) * saves

    back: list[tuple[int, int]] = []
    plan.num_swapped_in.zero_()
    leaving = [
        slot for slot, saved in enumerate(swapped)
        if saved and (int(plan.admitted[slot]) or status[slot] == FINISHED.value)
    ]  # fmt: skip
    for index, slot in enumerate(leaving):
        swaps.slots[index] = slot
        saved, unsaved = swapped[slot], int(requests.num_unsaved[slot])
        cached, end = int(requests.cached_len[slot]), -(-saved // size)
        hosts = swaps.host_table[slot, :end].tolist()
        for at in range(unsaved, end):
            swaps.free_ring[tail % ring] = hosts[at]
            tail += 1
        requests.num_swapped[slot] = 0
        if int(plan.admitted[slot]) and resumes_ref(saved, unsaved, cached, size):
            back += [(hosts[at], tables[slot][at]) for at in range(cached // size, end)]
            plan.num_swapped_in += saved - cached
            requests.cached_len[slot] = saved

    swaps.counters[:] = torch.tensor([head, tail])
    for pairs, count, sources, targets in (
        (out, swaps.num_out, swaps.out_source, swaps.out_target),
        (back, swaps.num_in, swaps.in_source, swaps.in_target),
    ):
        count.fill_(len(pairs))
        for at, (source, target) in enumerate(pairs):
            sources[at], targets[at] = source, target
