"""prepare: give each scheduled sequence its pages, and lay out the model's inputs.

    block_table[slot, held + i] = free_ring[ring_base + seq_ring + i]      for the booked pages
    ref_count += 1                                  for the prefix hits, or the parent's full pages
    copy_source, copy_target            for the page of the parent behind those, into a booked one
    input_ids, positions, slot_mapping      for the granted tokens; draft tokens behind known ones

Of the pages a row begins with, those that are published count as published by it. Behind them a
parent may have full pages that it could not publish yet: whoever of its holders can will do so.

Positions count all tokens. Where compression has dropped pages, those behind stand so many places
further in front in the block table.

Programs stride over the sequences of the batch. Reference counts of shared pages are the only
memory two programs touch, by additions that commute, so the result does not depend on their order.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    NUM_CACHED,
    NUM_DROPPED,
    NUM_PUBLISHED,
    PARENT,
    STEP,
    TOTAL_LEN,
)  # fmt: skip
from paged.kernels.control.stage import stage
from paged.kernels.launch import interpreted, pdl


@triton.jit
def _prepare_kernel(
    columns, counters, token_ids, block_table, canonical, chain_serial, free_ring, ref_count,
    last_used, hits, serial, parent_serial, counts, ring_base, seq_slots, seq_start, seq_held,
    seq_hits, seq_pages, seq_ring, seq_copy, copy_source, copy_target, cu_seqlens_q, batch_table,
    draft_tokens, input_ids, positions, slot_mapping,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    RING: tl.constexpr, PAGE_SIZE: tl.constexpr, DRAFTS: tl.constexpr, COMPRESS: tl.constexpr,
    INPUTS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    step = tl.load(counters + STEP).to(tl.int32)
    lane = tl.arange(0, TILE)
    for seq in range(tl.program_id(0), tl.load(counts + 1), tl.num_programs(0)):
        slot = tl.load(seq_slots + seq)
        held = tl.load(seq_held + seq)
        pages = tl.load(seq_pages + seq)
        num_hits = tl.load(seq_hits + seq)
        copy = tl.load(seq_copy + seq)
        begin = tl.load(cu_seqlens_q + seq)
        count = tl.load(cu_seqlens_q + seq + 1) - begin
        start = tl.load(seq_start + seq)
        table = block_table + slot.to(tl.int64) * MAX_PAGES
        base = tl.load(ring_base) + tl.load(seq_ring + seq)
        for first in range(0, pages, TILE):
            index = first + lane
            new = index < pages
            page = tl.load(free_ring + (base + index) % RING, mask=new, other=0)
            tl.store(table + held + index, page, mask=new)
            tl.store(ref_count + page, 1, mask=new)
        if copy >= 0:
            parent = (tl.load(columns + PARENT * R + slot) - 1).to(tl.int64)
            tl.store(copy_source + copy, tl.load(block_table + parent * MAX_PAGES + num_hits))
            tl.store(copy_target + copy, tl.load(free_ring + base % RING))
        published = tl.zeros((), dtype=tl.int32)
        for first in range(0, num_hits, TILE):
            index = first + lane
            hit = index < num_hits
            page = tl.load(table + index, mask=hit, other=0)
            holders = tl.atomic_add(ref_count + page, 1, mask=hit)
            idle = tl.sum((hit & (holders == 0)).to(tl.int64), axis=0)
            tl.atomic_add(counters + NUM_CACHED, -idle)
            tl.atomic_add(hits + page, 1, mask=hit)
            tl.store(last_used + page, step, mask=hit)
            tl.store(canonical + slot.to(tl.int64) * MAX_PAGES + index, page, mask=hit)
            before = tl.load(table + index - 1, mask=hit & (index > 0), other=0)
            above = tl.load(serial + before, mask=hit & (index > 0), other=0)
            known = hit & (tl.load(serial + page, mask=hit, other=0) > 0)
            known = known & (tl.load(parent_serial + page, mask=known, other=-1) == above)
            ends = (~known).to(tl.int32)
            chain = known & (tl.cumsum(ends, axis=0) == 0) & (published == first)
            published += tl.sum(chain.to(tl.int32), axis=0)
        if num_hits > 0:
            tl.store(columns + NUM_PUBLISHED * R + slot, published)
        if published > 0:
            last = tl.load(table + published - 1)
            tl.store(chain_serial + slot, tl.load(serial + last))
        if INPUTS:
            tl.debug_barrier()  # the new entries of the table are read by other threads below

            for first in range(0, held + pages, TILE):
                index = first + lane
                live = index < held + pages
                page = tl.load(table + index, mask=live, other=0)
                tl.store(batch_table + tl.cast(seq, tl.int64) * MAX_PAGES + index, page, mask=live)
            moved = table
            if COMPRESS:
                moved = table - tl.load(columns + NUM_DROPPED * R + slot)
            for first in range(0, count, TILE):
                offset = first + lane
                live = offset < count
                position = start + offset
                token = tl.load(
                    token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS + position, mask=live, other=0
                )
                if DRAFTS > 0:
                    behind = position - tl.load(columns + TOTAL_LEN * R + slot)
                    draft = tl.load(
                        draft_tokens + seq * DRAFTS + behind, mask=live & (behind >= 0), other=0
                    )
                    token = tl.where(behind >= 0, draft, token)
                page = tl.load(moved + position // PAGE_SIZE, mask=live, other=0)
                tl.store(input_ids + begin + offset, token, mask=live)
                tl.store(positions + begin + offset, position, mask=live)
                tl.store(
                    slot_mapping + begin + offset,
                    page.to(tl.int64) * PAGE_SIZE + position % PAGE_SIZE,
                    mask=live,
                )


@stage
def prepare(requests, pool, plan) -> None:
    """Carry out the page bookings of `plan` and, if it has `inputs`, write the model's."""
    sizes = requests.sizes
    _prepare_kernel[(1 if interpreted() else sizes.max_num_seqs,)](
        requests.columns, pool.counters, requests.token_ids, requests.block_table,
        requests.canonical, requests.chain_serial, pool.free_ring, pool.ref_count, pool.last_used,
        pool.hits, pool.serial, pool.parent_serial, plan.counts, plan.ring_base, plan.seq_slots,
        plan.seq_start, plan.seq_held, plan.seq_hits, plan.seq_pages, plan.seq_ring, plan.seq_copy,
        plan.copy_source, plan.copy_target, plan.cu_seqlens_q, plan.block_table, plan.draft_tokens,
        plan.input_ids, plan.positions, plan.slot_mapping,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, MAX_PAGES=sizes.max_pages_per_seq,
        RING=pool.free_ring.shape[0], PAGE_SIZE=sizes.page_size,
        DRAFTS=sizes.num_draft_tokens, COMPRESS=requests.page_budget is not None,
        INPUTS=plan.inputs, TILE=1024 if interpreted() else 256, **pdl(),
    )  # fmt: skip


def prepare_ref(requests, pool, plan) -> None:
    """The same, sequence by sequence."""
    sizes, ring = requests.sizes, pool.free_ring.shape[0]
    step = int(pool.counters[STEP.value])
    for seq in range(int(plan.num_seqs)):
        slot, held, hits = (int(t[seq]) for t in (plan.seq_slots, plan.seq_held, plan.seq_hits))
        base = int(plan.ring_base) + int(plan.seq_ring[seq])
        for index in range(int(plan.seq_pages[seq])):
            page = int(pool.free_ring[(base + index) % ring])
            requests.block_table[slot, held + index] = page
            pool.ref_count[page] = 1
        copy = int(plan.seq_copy[seq])
        if copy >= 0:
            plan.copy_source[copy] = requests.block_table[int(requests.parent[slot]) - 1, hits]
            plan.copy_target[copy] = requests.block_table[slot, hits]
        published, above = 0, 0
        for index in range(hits):
            page = int(requests.block_table[slot, index])
            pool.counters[NUM_CACHED.value] -= int(pool.ref_count[page] == 0)
            pool.ref_count[page] += 1
            pool.hits[page] += 1
            pool.last_used[page] = step
            requests.canonical[slot, index] = page
            known = int(pool.serial[page]) > 0 and int(pool.parent_serial[page]) == above
            if known and published == index:
                published, above = index + 1, int(pool.serial[page])
        if hits:
            requests.num_published[slot] = published
        if published:
            requests.chain_serial[slot] = above
        total = held + int(plan.seq_pages[seq])
        plan.block_table[seq, :total] = requests.block_table[slot, :total]
        begin, end = plan.cu_seqlens_q[seq : seq + 2].tolist()
        position = torch.arange(end - begin, device=plan.positions.device) + plan.seq_start[seq]
        index = position // sizes.page_size - requests.num_dropped[slot]
        page = requests.block_table[slot, index].long()
        known = int(requests.total_len[slot]) - int(plan.seq_start[seq])
        plan.input_ids[begin:end][:known] = requests.token_ids[slot, position[:known]]
        if end - begin > known:
            plan.input_ids[begin + known : end] = plan.draft_tokens[seq, : end - begin - known]
        plan.positions[begin:end] = position.to(torch.int32)
        plan.slot_mapping[begin:end] = page * sizes.page_size + position % sizes.page_size
