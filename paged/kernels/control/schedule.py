"""schedule: grants, page booking, admission and preemption, in closed form.

One program; lane i is the i-th row in service order (`order`). With exclusive and inclusive sums
over lanes written E(.) and I(.):

    start_i  = num_computed_i if running, cached_len_i if waiting, or what it had computed when it
               was preempted, if its pages come back from host memory (swap.py)
    want_i   = min(total_i - start_i, chunk); a row whose prompt others wait to share (lookup.py)
               stops a token short of it, so that all of them draw from it together; one whose
               token mask is for another length wants nothing until its own has come. Beams of
               one group, which stand together, stop there too until all have come so far, in
               whatever steps; then all of them draw in one step or none does
    demand_i = pages the row needs beyond what it holds: for `want` if running, for its whole
               length and the idle pages of its prefix if waiting
    avail    = free + cached pages
    keep_i   = all lanes up to i fit: I(demand) <= avail + pages held by running lanes behind i,
               and i < max_num_seqs; a waiting lane also leaves `watermark` pages, unless it is a
               beam, without which its group cannot draw. Lane 0 always fits, unless it waits
               while others run
    victims  = the smallest suffix of running lanes, not kept, whose pages or seats the kept lanes
               need; they are preempted
    grant_i  = clamp(budget - E(want), 0, want_i) over kept and running lanes that are not victims
    pages_i  = cdiv(max(start + grant, reserve), page_size) - held_i
    run_i    = grant_i > 0 and (pages_i = 0 or I(pages) <= free), waiting lanes head of line

With a static batch, the waiting lanes that are kept while nothing runs are the batch: they are
marked, and may join in the steps after, whose tokens they need; who is not marked fits only when
nothing runs. A mark outlives a preemption.

A running lane that does not fit the free pages stalls; nothing is taken from it. Pages are booked
here, before the forward, so a step cannot run out of pages. What is wanted beyond the free pages
goes to the counter SHORTFALL, which the host answers with maintenance (evict.py).

`RESERVE(prompt_len, total_len, max_len) -> tokens to hold pages for` is the allocator's policy.

With compression (compress.py) held_i counts the pages that were dropped too, a waiting row demands
its peak, and a row stops where pages may be dropped: at the end of its prompt, then wherever a page
is full. So one that computes its output again, after a preemption, drops the same pages again.
"""

import triton
import triton.language as tl

from paged.kernels.control.budget import peak_pages
from paged.kernels.control.columns import (
    ADMITTED,
    BEAM_INDEX,
    BEAM_WIDTH,
    CACHED_LEN,
    HEAD,
    IDLE_HITS,
    MASK_LEN,
    MAX_LEN,
    NUM_CACHED,
    NUM_COMPUTED,
    NUM_DROPPED,
    NUM_FORKS,
    NUM_PAGES,
    NUM_SWAPPED,
    NUM_UNSAVED,
    PARENT,
    PARENT_ARRIVAL,
    PREEMPTED,
    PROMPT_LEN,
    RUNNING,
    SHORTFALL,
    STATUS,
    TAIL,
    TICKET,
    TOKEN_LIMIT,
    TOTAL_LEN,
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
from paged.kernels.control.swap import resumes
from paged.kernels.launch import pdl


@triton.jit
def _sum_between(values, first, last):
    """Sum of int32 values over the lanes first to last, inclusive, of each lane."""
    upto = tl.cumsum(values, axis=0)
    return tl.gather(upto, last, 0) - tl.gather(upto, first, 0) + tl.gather(values, first, 0)


@triton.jit
def _reserve_needed(prompt_len, total_len, max_len):
    return total_len * 0


@triton.jit(do_not_specialize=["budget", "chunk", "watermark"])
def _schedule_kernel(
    columns, counters, order, counts, ring_base, grant_out, slot_sample, admitted_out,
    seq_slots, seq_start, seq_held, seq_hits, seq_pages, seq_ring, seq_copy, cu_seqlens_q, seq_lens,
    sample_slots, logits_indices,
    budget, chunk, watermark,
    RESERVE: tl.constexpr, R: tl.constexpr, S: tl.constexpr, MAX_NUM_SEQS: tl.constexpr,
    MAX_MODEL_LEN: tl.constexpr, PAGE_SIZE: tl.constexpr, STATIC_BATCH: tl.constexpr,
    BEAMS: tl.constexpr, COMPRESS: tl.constexpr, BUDGET_PAGES: tl.constexpr,
    BUDGET_SHARE: tl.constexpr, PROTECTED: tl.constexpr, SWAP: tl.constexpr, LANES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    lane = spread_lanes(LANES)
    live = lane < R
    slot = tl.load(order + lane, mask=live, other=0)
    status = tl.load(columns + STATUS * R + slot, mask=live, other=0)
    running = live & (status == RUNNING)
    waiting = live & (status == WAITING)
    active = running | waiting
    # Not masked by the status, so that no load waits for it.
    total = tl.load(columns + TOTAL_LEN * R + slot, mask=live, other=0)
    held = tl.load(columns + NUM_PAGES * R + slot, mask=live, other=0)
    cached = tl.load(columns + CACHED_LEN * R + slot, mask=live, other=0)
    idle_hits = tl.load(columns + IDLE_HITS * R + slot, mask=live, other=0)
    prompt_len = tl.load(columns + PROMPT_LEN * R + slot, mask=live, other=0)
    max_len = tl.load(columns + MAX_LEN * R + slot, mask=live, other=0)
    computed = tl.load(columns + NUM_COMPUTED * R + slot, mask=live, other=0)
    num_forks = tl.load(columns + NUM_FORKS * R + slot, mask=live, other=0)
    mask_len = tl.load(columns + MASK_LEN * R + slot, mask=live, other=0)
    head = tl.load(counters + HEAD)
    ticket = tl.load(counters + TICKET)
    free = (tl.load(counters + TAIL) - head).to(tl.int32)
    avail = free + tl.load(counters + NUM_CACHED).to(tl.int32)
    budget = tl.minimum(tl.load(counters + TOKEN_LIMIT), budget).to(tl.int32)

    held = tl.where(running, held, 0)
    start = tl.where(running, computed, cached)
    if SWAP:
        swapped = tl.load(columns + NUM_SWAPPED * R + slot, mask=waiting, other=0)
        unsaved = tl.load(columns + NUM_UNSAVED * R + slot, mask=waiting, other=0)
        start = tl.where(resumes(swapped, unsaved, cached, PAGE_SIZE), swapped, start)
    pauses = (num_forks > 0) & (total == prompt_len) & (start < total - 1)
    spare = tl.where(waiting, watermark, 0)
    if BEAMS:
        width = tl.load(columns + BEAM_WIDTH * R + slot, mask=active, other=0)
        beam = width > 0
        index = tl.load(columns + BEAM_INDEX * R + slot, mask=active, other=0)
        group = tl.load(columns + PARENT_ARRIVAL * R + slot, mask=active & beam, other=-1)
        first = tl.maximum(tl.where(beam, lane - index, lane), 0)
        last = tl.minimum(tl.where(beam, first + width - 1, lane), LANES - 1)
        whole = (tl.gather(group, first, 0) == group) & (tl.gather(group, last, 0) == group)
        came = _sum_between((beam & (start == total - 1)).to(tl.int32), first, last)
        draws = beam & whole & (came == width)
        pauses = tl.where(beam, ~draws, pauses)
        spare = tl.where(beam, 0, spare)
    held_back = (mask_len > 0) & (mask_len != total)
    want = tl.minimum(total - start - pauses.to(tl.int32), chunk)
    want = tl.where(active & ~held_back, want, 0)
    dropped = tl.zeros_like(start)
    if COMPRESS:
        dropped = tl.load(columns + NUM_DROPPED * R + slot, mask=running, other=0)
        page_end = (start // PAGE_SIZE + 1) * PAGE_SIZE
        stop = tl.where(start < prompt_len, prompt_len, page_end)
        want = tl.minimum(want, stop - start)
    reserve = tl.minimum(RESERVE(prompt_len, total, max_len), MAX_MODEL_LEN)
    hits = cached // PAGE_SIZE
    held_or_hit = tl.where(running, held + dropped, hits)
    length = tl.maximum(tl.where(running, start + want, total), reserve)
    needed = (length + PAGE_SIZE - 1) // PAGE_SIZE
    if COMPRESS:
        peak = peak_pages(prompt_len, total, PAGE_SIZE, BUDGET_PAGES, BUDGET_SHARE, PROTECTED)
        needed = tl.where(running, needed, peak)
    demand = tl.maximum(needed - held_or_hit, 0) + tl.where(waiting, idle_hits, 0)
    demand = tl.where(active, demand, 0)

    pages_incl = tl.cumsum(pack_pair(demand, held), axis=0)
    demand_incl = high_of(pages_incl)
    in_all = tl.sum(pack_pair(held, running), axis=0)
    num_running = low_of(in_all)
    held_behind = high_of(in_all) - low_of(pages_incl)
    running_behind = num_running - tl.cumsum(running.to(tl.int32), axis=0)
    fits = (demand_incl + spare <= avail + held_behind) & (lane < MAX_NUM_SEQS)
    if STATIC_BATCH:
        joins = tl.load(columns + PARENT * R + slot, mask=waiting, other=0) > 0
        joins = joins | (tl.load(columns + ADMITTED * R + slot, mask=waiting, other=0) > 0)
        fits = fits & (running | (num_running == 0) | joins)
    fits = fits | ((lane == 0) & (running | (num_running == 0)))
    keep = active & (lane < tl.min(tl.where(active & ~fits, lane, LANES), axis=0))
    if STATIC_BATCH:
        chosen = keep & waiting & (num_running == 0)

    kept = tl.sum(pack_pair(tl.where(keep, demand, 0), keep & waiting), axis=0)
    seats_needed = num_running + low_of(kept) - MAX_NUM_SEQS
    victim = running & ~keep & (
        (avail + held_behind < high_of(kept)) | (running_behind < seats_needed)
    )  # fmt: skip
    eligible = (keep | running) & ~victim
    want = tl.where(eligible, want, 0)
    grant = tl.minimum(tl.maximum(budget - (tl.cumsum(want, axis=0) - want), 0), want)
    booked_len = tl.maximum(start + grant, reserve)
    pages = tl.maximum((booked_len + PAGE_SIZE - 1) // PAGE_SIZE - held_or_hit, 0)
    pages = tl.where(grant > 0, pages, 0)
    # A waiting lane that wants tokens wants a page, so once one fails, all after it fail too.
    run = (grant > 0) & ((pages == 0) | (tl.cumsum(pages, axis=0) <= free))
    if BEAMS:
        run = run & (~draws | (_sum_between((run & draws).to(tl.int32), first, last) == width))
    wanted = tl.sum(pack_pair(pages, victim), axis=0)

    grant = tl.where(run, grant, 0)
    pages = tl.where(run, pages, 0)
    samples = run & (start + grant == total)
    admitted = run & waiting
    copies = admitted & (cached % PAGE_SIZE > 0)
    flags = pack_flags(run, samples, admitted, copies)
    before, flagged = tl.cumsum(flags, axis=0) - flags, tl.sum(flags, axis=0)
    seq, sample = count_of(before, 0), count_of(before, 1)
    num_seqs, num_admitted = count_of(flagged, 0), count_of(flagged, 2)
    sizes = pack_pair(grant, pages)
    before_it, of_all = tl.cumsum(sizes, axis=0) - sizes, tl.sum(sizes, axis=0)
    tokens_incl, num_tokens = high_of(before_it) + grant, high_of(of_all)

    tl.store(grant_out + slot, grant, mask=live)
    tl.store(slot_sample + slot, tl.where(samples, sample, -1), mask=live)
    tl.store(admitted_out + slot, admitted.to(tl.int32), mask=live)
    tl.store(seq_slots + seq, slot, mask=run)
    tl.store(seq_start + seq, start, mask=run)
    tl.store(seq_held + seq, held_or_hit - dropped, mask=run)
    tl.store(seq_hits + seq, tl.where(waiting, hits, 0), mask=run)
    tl.store(seq_pages + seq, pages, mask=run)
    tl.store(seq_ring + seq, low_of(before_it), mask=run)
    tl.store(seq_copy + seq, tl.where(copies, count_of(before, 3), -1), mask=run)
    tl.store(cu_seqlens_q + 1 + seq, tokens_incl, mask=run)
    tl.store(seq_lens + seq, start + grant - dropped * PAGE_SIZE, mask=run)
    # Entries past the batch describe empty sequences, for kernels that read every row.
    tl.store(cu_seqlens_q, 0)
    tl.store(cu_seqlens_q + 1 + lane, num_tokens, mask=(lane >= num_seqs) & (lane < S))
    tl.store(seq_lens + lane, 0, mask=(lane >= num_seqs) & (lane < S))
    tl.store(sample_slots + sample, slot, mask=samples)
    tl.store(logits_indices + sample, tokens_incl - 1, mask=samples)

    if STATIC_BATCH:
        tl.store(columns + ADMITTED * R + slot, 1, mask=chosen & ~admitted)
    turn = ticket.to(tl.int32) + 1 + count_of(before, 2)
    tl.store(columns + STATUS * R + slot, RUNNING, mask=admitted)
    tl.store(columns + ADMITTED * R + slot, turn, mask=admitted)
    tl.store(columns + NUM_COMPUTED * R + slot, start, mask=admitted)
    tl.store(columns + NUM_PAGES * R + slot, held_or_hit - dropped + pages, mask=run)
    tl.store(columns + STATUS * R + slot, PREEMPTED, mask=victim)
    tl.store(counters + SHORTFALL, tl.maximum(high_of(wanted) - free, 0).to(tl.int64))
    tl.store(counters + TICKET, ticket + num_admitted)
    tl.store(ring_base, head)
    tl.store(counters + HEAD, head + low_of(of_all))
    tl.store(counts + 0, num_tokens)
    tl.store(counts + 1, num_seqs)
    tl.store(counts + 2, count_of(flagged, 1))
    tl.store(counts + 4, low_of(wanted))
    tl.store(counts + 5, num_admitted)
    tl.store(counts + 8, count_of(flagged, 3))


@stage
def schedule(
    requests, pool, plan, *, budget: int, chunk: int, watermark: int = 0, reserve=None,
    static_batch: bool = False,
) -> None:  # fmt: skip
    """Fill `plan` from `plan.order` and book the pages.

    Args:
        budget: tokens of this step at most (the scheduler's and the capacity of the buffers used).
        chunk: tokens of one request at most.
        watermark: pages an admission must leave available, unless nothing else runs.
        reserve: Triton function `(prompt_len, total_len, max_len) -> tokens`; None holds pages
            for computed tokens only.
        static_batch: admit what fits when no request runs, over as many steps as its prompts take,
            and nobody else but samples of those until all have ended.
    """
    sizes = requests.sizes
    kept = requests.page_budget
    lanes = triton.next_power_of_2(sizes.num_slots)
    _schedule_kernel[(1,)](
        requests.columns, pool.counters, plan.order, plan.counts, plan.ring_base, plan.grant,
        plan.slot_sample, plan.admitted, plan.seq_slots, plan.seq_start, plan.seq_held,
        plan.seq_hits, plan.seq_pages, plan.seq_ring, plan.seq_copy, plan.cu_seqlens_q,
        plan.seq_lens, plan.sample_slots, plan.logits_indices, budget, chunk, watermark,
        RESERVE=reserve or _reserve_needed, R=sizes.num_slots, S=sizes.max_num_seqs,
        MAX_NUM_SEQS=sizes.max_num_seqs, MAX_MODEL_LEN=sizes.max_model_len,
        PAGE_SIZE=sizes.page_size, STATIC_BATCH=static_batch, BEAMS=plan.beams,
        COMPRESS=kept is not None, BUDGET_PAGES=kept.pages if kept else 0,
        BUDGET_SHARE=kept.share if kept else 0,
        PROTECTED=kept.protected(sizes.page_size) if kept else 0, SWAP=pool.swaps is not None,
        LANES=lanes,
        num_warps=8 if lanes > 256 else 4, **pdl(),
    )  # fmt: skip
