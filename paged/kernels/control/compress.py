"""compress: take full pages out of the block tables of running rows that are over their budget.

    full_i  = computed_i / page_size - dropped_i                    of row i, after its new tokens
    excess  = full_i + 1 - kept(computed_i)                                       (budget.py)
    drop_i  = clamp(excess, 0, full_i - sink_pages - pages of the `recent` last tokens)

where a row has just computed the end of its prompt, or filled a page after that; at no other
length. So what is dropped is a function of the row's tokens alone, and a row that was preempted
drops the same again. The drop_i pages of the lowest score go, of equal scores the oldest.

Three launches around the policy's scores: `compress_rows` lists the rows, `mark_pages` ranks the
pages of each by counting smaller ones, `drop_pages` lets them go and closes the gaps. Keys are
stored rotated, so attention over the rest needs nothing but their number: `num_computed_tokens`
stays the position of the next token, and the block table is shorter by `num_dropped` pages.

A page that others hold or that is published is let go of, not destroyed. One program drops, so
that pages return to the free ring in a fixed order.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.budget import kept_pages
from paged.kernels.control.columns import (
    NUM_CACHED,
    NUM_COMPUTED,
    NUM_DROPPED,
    NUM_PAGES,
    PROMPT_LEN,
    RUNNING,
    STATUS,
    STEP,
    TAIL,
)  # fmt: skip
from paged.kernels.control.release import let_go, let_go_ref
from paged.kernels.launch import interpreted


class Drops:
    """What one step drops. By row, in the order of slots, S rows at most; M pages of a row."""

    def __init__(self, sizes, device: torch.device | str) -> None:
        seqs, pages = sizes.max_num_seqs, sizes.max_pages_per_seq

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.num_rows = ints(1)
        self.slots = ints(seqs)
        self.counts = ints(seqs)  # pages to drop, from 1
        self.ends = ints(seqs)  # entries of the block table from sink_pages to here may be dropped
        self.lens = ints(seqs)  # keys in the cache
        self.marks = ints(seqs, pages)  # 1 = goes; by entry of the block table
        self.scores = torch.zeros(seqs, pages, dtype=torch.float32, device=device)
        # What pages were paid, by entry of the block tables [R, M] int64: see page_attention.py.
        self.attention: torch.Tensor | None = None


@triton.jit
def _compress_rows_kernel(
    columns, num_rows, slots, counts, ends, lens,
    R: tl.constexpr, PAGE_SIZE: tl.constexpr, PAGES: tl.constexpr, SHARE: tl.constexpr,
    SINK_PAGES: tl.constexpr, RECENT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    slot = tl.arange(0, LANES)
    live = slot < R
    running = live & (tl.load(columns + STATUS * R + slot, mask=live, other=0) == RUNNING)
    computed = tl.load(columns + NUM_COMPUTED * R + slot, mask=running, other=0)
    prompt_len = tl.load(columns + PROMPT_LEN * R + slot, mask=running, other=0)
    dropped = tl.load(columns + NUM_DROPPED * R + slot, mask=running, other=0)
    fills = (computed > prompt_len) & (computed % PAGE_SIZE == 0)
    full = computed // PAGE_SIZE - dropped
    excess = full + 1 - kept_pages(computed, PAGE_SIZE, PAGES, SHARE)
    recent = tl.maximum(RECENT - computed % PAGE_SIZE, 0)
    end = full - (recent + PAGE_SIZE - 1) // PAGE_SIZE
    count = tl.minimum(excess, end - SINK_PAGES)
    drops = running & (fills | (computed == prompt_len)) & (count > 0)
    row = tl.cumsum(drops.to(tl.int32), axis=0) - 1
    tl.store(slots + row, slot, mask=drops)
    tl.store(counts + row, count, mask=drops)
    tl.store(ends + row, end, mask=drops)
    tl.store(lens + row, computed - dropped * PAGE_SIZE, mask=drops)
    tl.store(num_rows, tl.sum(drops.to(tl.int32), axis=0))


@triton.jit
def _mark_pages_kernel(
    num_rows, counts, ends, scores, marks,
    MAX_PAGES: tl.constexpr, SINK_PAGES: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    for row in range(tl.program_id(0), tl.load(num_rows), tl.num_programs(0)):
        count = tl.load(counts + row)
        end = tl.load(ends + row)
        mine = scores + tl.cast(row, tl.int64) * MAX_PAGES
        for first in range(tl.program_id(1) * TILE, end, tl.num_programs(1) * TILE):
            page = first + tl.arange(0, TILE)
            score = _sortable(tl.load(mine + page, mask=page < end, other=0.0))
            before = tl.zeros([TILE], dtype=tl.int32)
            for start in range(SINK_PAGES, end, CHUNK):
                other = start + tl.arange(0, CHUNK)
                theirs = _sortable(tl.load(mine + other, mask=other < end, other=float("inf")))
                older = (theirs[None, :] == score[:, None]) & (other[None, :] < page[:, None])
                smaller = (theirs[None, :] < score[:, None]) | older
                before += tl.sum((smaller & (other < end)[None, :]).to(tl.int32), axis=1)
            goes = (page >= SINK_PAGES) & (before < count)
            at = marks + tl.cast(row, tl.int64) * MAX_PAGES + page
            tl.store(at, goes.to(tl.int32), mask=page < end)


@triton.jit
def _sortable(score):
    """NaN has no place in an order, and exactly `count` pages must go: it goes first."""
    return tl.where(score == score, score, float("-inf"))


@triton.jit
def _drop_pages_kernel(
    columns, counters, block_table, free_ring, ref_count, last_used, serial, num_rows, slots, ends,
    marks, attention,
    R: tl.constexpr, MAX_PAGES: tl.constexpr, RING: tl.constexpr, ATTENTION: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    step = tl.load(counters + STEP)
    tail = tl.load(counters + TAIL)
    cached = tl.load(counters + NUM_CACHED)
    lane = tl.arange(0, TILE)
    for row in range(tl.load(num_rows)):
        slot = tl.load(slots + row).to(tl.int64)
        held = tl.load(columns + NUM_PAGES * R + slot)
        end = tl.load(ends + row)
        kept = tl.zeros((), dtype=tl.int32)
        for first in range(0, held, TILE):
            at = first + lane
            live = at < held
            page = tl.load(block_table + slot * MAX_PAGES + at, mask=live, other=0)
            mark = tl.load(marks + tl.cast(row, tl.int64) * MAX_PAGES + at, mask=at < end, other=0)
            goes = live & (mark != 0)
            tail, cached = let_go(
                page, goes, tail, cached, step, free_ring, ref_count, last_used, serial, RING
            )
            stays = live & ~goes
            paid = None
            if ATTENTION:
                paid = tl.load(attention + slot * MAX_PAGES + at, mask=stays, other=0)
            place = kept + tl.cumsum(stays.to(tl.int32), axis=0) - 1
            tl.debug_barrier()  # all have read; and the next row may hold the same pages
            tl.store(block_table + slot * MAX_PAGES + place, page, mask=stays)
            if ATTENTION:
                tl.store(attention + slot * MAX_PAGES + place, paid, mask=stays)
            kept += tl.sum(stays.to(tl.int32), axis=0)
        dropped = tl.load(columns + NUM_DROPPED * R + slot)
        tl.store(columns + NUM_DROPPED * R + slot, dropped + held - kept)
        tl.store(columns + NUM_PAGES * R + slot, kept)
    tl.store(counters + TAIL, tail)
    tl.store(counters + NUM_CACHED, cached)


def compress_rows(requests, drops: Drops) -> None:
    """List the rows that drop pages now, and which they may choose from."""
    sizes, budget = requests.sizes, requests.page_budget
    lanes = triton.next_power_of_2(sizes.num_slots)
    _compress_rows_kernel[(1,)](
        requests.columns, drops.num_rows, drops.slots, drops.counts, drops.ends, drops.lens,
        R=sizes.num_slots, PAGE_SIZE=sizes.page_size, PAGES=budget.pages, SHARE=budget.share,
        SINK_PAGES=budget.sink_pages, RECENT=budget.recent, LANES=lanes,
        num_warps=8 if lanes > 256 else 4,
    )  # fmt: skip


def drop_pages(requests, pool, drops: Drops) -> None:
    """Drop the pages with the lowest `drops.scores` of the listed rows."""
    sizes = requests.sizes
    width = triton.next_power_of_2(sizes.max_pages_per_seq)
    tile = width if interpreted() else min(32, width)
    grid = (1, 1) if interpreted() else (min(sizes.max_num_seqs, 64), min(8, width // tile))
    _mark_pages_kernel[grid](
        drops.num_rows, drops.counts, drops.ends, drops.scores, drops.marks,
        MAX_PAGES=sizes.max_pages_per_seq, SINK_PAGES=requests.page_budget.sink_pages, TILE=tile,
        CHUNK=min(256, width),
    )  # fmt: skip
    _drop_pages_kernel[(1,)](
        requests.columns, pool.counters, requests.block_table, pool.free_ring, pool.ref_count,
        pool.last_used, pool.serial, drops.num_rows, drops.slots, drops.ends, drops.marks,
        drops.attention, R=sizes.num_slots, MAX_PAGES=sizes.max_pages_per_seq,
        RING=pool.free_ring.shape[0], ATTENTION=drops.attention is not None,
        TILE=min(1024, width),
    )  # fmt: skip


def compress_rows_ref(requests, drops: Drops) -> None:
    """What `compress_rows` does, row by row."""
    size, budget = requests.sizes.page_size, requests.page_budget
    row = 0
    for slot in (requests.status == RUNNING.value).nonzero().flatten().tolist():
        computed, prompt_len, dropped = (
            int(column[slot])
            for column in (requests.num_computed_tokens, requests.prompt_len, requests.num_dropped)
        )
        if computed != prompt_len and (computed < prompt_len or computed % size):
            continue
        full = computed // size - dropped
        end = full - -(-max(budget.recent - computed % size, 0) // size)
        count = min(full + 1 - budget.kept(computed, size), end - budget.sink_pages)
        if count > 0:
            drops.slots[row], drops.counts[row], drops.ends[row] = slot, count, end
            drops.lens[row] = computed - dropped * size
            row += 1
    drops.num_rows.fill_(row)


def drop_pages_ref(requests, pool, drops: Drops) -> None:
    """What `drop_pages` does, row by row."""
    first = requests.page_budget.sink_pages
    for row, slot in enumerate(drops.slots[: int(drops.num_rows)].tolist()):
        end, count, held = int(drops.ends[row]), int(drops.counts[row]), requests.num_pages[slot]
        score = drops.scores[row, first:end]
        score = score.where(~score.isnan(), float("-inf"))
        gone = (score.sort(stable=True).indices[:count] + first).tolist()
        drops.marks[row, :end] = 0
        drops.marks[row, gone] = 1
        pages = requests.block_table[slot, : int(held)].tolist()
        for at in sorted(gone):
            let_go_ref(pool, pages[at])
        kept = [page for at, page in enumerate(pages) if at not in gone]
        requests.block_table[slot, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
        if drops.attention is not None:
            stays = [at for at in range(len(pages)) if at not in gone]
            drops.attention[slot, : len(kept)] = drops.attention[slot, stays]
        requests.num_pages[slot] = len(kept)
        requests.num_dropped[slot] += count
