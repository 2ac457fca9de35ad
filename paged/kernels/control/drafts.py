"""Speculation: tokens that a proposer expects are computed along, and kept as far as it was right.

Both kernels are one program, a lane a sequence of the step; E(.) and I(.) are exclusive and
inclusive sums over lanes. `grant_drafts` runs between `schedule` and `prepare`. It adds drafts to
sequences that draw, only from what the plan leaves over, so that the plan is what it would be
without them. Of sequences whose requests edit logits or report them, and of beams, it takes none:

    drafts_i = min(num_drafts_i, max_len_i - 1 - total_i), then clamp(left - E(drafts), 0, drafts_i)
    room_i   = tokens that the pages held or booked have room for
    ahead_i  = pages for drafts_i - room_i tokens more; where I(ahead) > free - num_seqs, none, and
               drafts_i = min(drafts_i, room_i)

So a free page is left for every sequence of the step. Each drawing sequence gets a sampled row for
its next token and one behind each draft. Draft tokens are read from `draft_tokens`; a row of
`token_ids` holds known tokens only.

`verify_drafts` runs between the draw and `update`. Every row was drawn with the request's noise for
its own position, so what the rows hold is what plain decoding would draw, one by one, for as long
as the drafts in front of them are right:

    accepted_i = leading drafts that equal the draw of the row in front, and do not end the request

Those become tokens, and the row behind the last of them becomes the sequence's draw: `update` then
appends it and detects ends as ever. The keys and values of drafts that were wrong lie behind the
computed tokens, where the next step writes over them.

Leviathan et al., "Fast inference from transformers via speculative decoding" (2023). There a draft
x is accepted with probability p(x), and else p without x is drawn from; to draw from p first, and
accept if that is x, gives the same distribution, and here the same bits as well.
"""

import triton
import triton.language as tl

from paged.kernels.control.columns import (
    BEAM_WIDTH,
    HEAD,
    LOGIT_EDITS,
    MASK_LEN,
    MAX_LEN,
    MIN_LEN,
    NUM_LOGPROBS,
    NUM_PAGES,
    NUM_STOP_IDS,
    SHORTFALL,
    TAIL,
    TOTAL_LEN,
)  # fmt: skip
from paged.kernels.launch import pdl


@triton.jit(do_not_specialize=["budget"])
def _grant_drafts_kernel(
    columns, counters, counts, grant_ptr, slot_sample, seq_slots, seq_start, seq_held, seq_pages,
    seq_ring, num_drafts, cu_seqlens_q, seq_lens, sample_slots, sample_offsets, logits_indices,
    budget,
    R: tl.constexpr, S: tl.constexpr, PAGE_SIZE: tl.constexpr, DRAFTS: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    lane = tl.arange(0, LANES)
    num_seqs = tl.load(counts + 1)
    live = lane < num_seqs
    slot = tl.load(seq_slots + lane, mask=live, other=0)
    draws = live & (tl.load(slot_sample + slot, mask=live, other=-1) >= 0)
    total = tl.load(columns + TOTAL_LEN * R + slot, mask=live, other=0)
    max_len = tl.load(columns + MAX_LEN * R + slot, mask=live, other=0)
    asks = tl.load(columns + LOGIT_EDITS * R + slot, mask=live, other=0)
    asks |= tl.load(columns + NUM_LOGPROBS * R + slot, mask=live, other=0)
    asks |= tl.load(columns + MASK_LEN * R + slot, mask=live, other=0)
    asks |= tl.load(columns + BEAM_WIDTH * R + slot, mask=live, other=0)
    drafts = tl.minimum(tl.load(num_drafts + lane, mask=live, other=0), DRAFTS)
    drafts = tl.maximum(tl.minimum(drafts, max_len - 1 - total), 0)
    drafts = tl.where(draws & (asks == 0), drafts, 0)
    left = tl.maximum(budget - tl.load(counts + 0), 0)
    drafts = tl.minimum(tl.maximum(left - (tl.cumsum(drafts, axis=0) - drafts), 0), drafts)

    start = tl.load(seq_start + lane, mask=live, other=0)
    grant = tl.load(grant_ptr + slot, mask=live, other=0)
    held = tl.load(seq_held + lane, mask=live, other=0)
    pages = tl.load(seq_pages + lane, mask=live, other=0)
    head = tl.load(counters + HEAD)
    free = (tl.load(counters + TAIL) - head).to(tl.int32)
    spare = tl.where(tl.load(counters + SHORTFALL) > 0, 0, free - num_seqs)
    room = (held + pages) * PAGE_SIZE - start - grant
    ahead = (tl.maximum(drafts - room, 0) + PAGE_SIZE - 1) // PAGE_SIZE
    fits = (ahead == 0) | (tl.cumsum(ahead, axis=0) <= spare)
    drafts = tl.where(fits, drafts, tl.minimum(drafts, room))
    ahead = tl.where(fits, ahead, 0)

    grant += drafts
    pages += ahead
    tokens_incl = tl.cumsum(grant, axis=0)
    num_tokens = tl.sum(grant, axis=0)
    tl.store(num_drafts + lane, drafts, mask=live)
    tl.store(grant_ptr + slot, grant, mask=live)
    tl.store(seq_pages + lane, pages, mask=live)
    tl.store(seq_ring + lane, tl.cumsum(pages, axis=0) - pages, mask=live)
    tl.store(columns + NUM_PAGES * R + slot, held + pages, mask=live)
    tl.store(counters + HEAD, head + tl.sum(ahead, axis=0))
    tl.store(cu_seqlens_q + 1 + lane, tl.where(live, tokens_incl, num_tokens), mask=lane < S)
    tl.store(seq_lens + lane, start + grant, mask=live)
    rows = tl.where(draws, 1 + drafts, 0)
    first = tl.cumsum(rows, axis=0) - rows
    tl.store(slot_sample + slot, first, mask=draws)
    behind = tl.arange(0, WIDTH)[None, :]
    there = behind < rows[:, None]
    row = first[:, None] + behind
    tl.store(sample_slots + row, slot[:, None] + 0 * behind, mask=there)
    tl.store(sample_offsets + row, behind + 0 * row, mask=there)
    tl.store(logits_indices + row, (tokens_incl - 1 - drafts)[:, None] + behind, mask=there)
    tl.store(counts + 0, num_tokens)
    tl.store(counts + 2, tl.sum(rows, axis=0))
    tl.store(counts + 10, tl.sum(drafts, axis=0))


@triton.jit
def _verify_drafts_kernel(
    columns, token_ids, stop_ids, counts, grant_ptr, slot_sample, seq_slots, num_drafts,
    draft_tokens, sampled_tokens, num_accepted,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, DRAFTS: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    lane = tl.arange(0, LANES)
    live = lane < tl.load(counts + 1)
    slot = tl.load(seq_slots + lane, mask=live, other=0)
    first = tl.load(slot_sample + slot, mask=live, other=-1)
    draws = live & (first >= 0)
    drafts = tl.load(num_drafts + lane, mask=draws, other=0)
    total = tl.load(columns + TOTAL_LEN * R + slot, mask=draws, other=0)
    min_len = tl.load(columns + MIN_LEN * R + slot, mask=draws, other=0)
    place = tl.arange(0, WIDTH)[None, :]
    there = place < drafts[:, None]
    drawn = tl.load(sampled_tokens + first[:, None] + place, mask=there, other=-1)
    draft = tl.load(draft_tokens + lane[:, None] * DRAFTS + place, mask=there, other=-1)
    right = there & (drawn == draft) & (drawn >= 0)
    may_stop = total[:, None] + place >= min_len[:, None]
    for way in tl.static_range(NUM_STOP_IDS):
        stop_id = tl.load(stop_ids + slot * NUM_STOP_IDS + way, mask=draws, other=-1)
        right = right & ~(may_stop & (drawn == stop_id[:, None]))
    leading = (tl.cumsum((~right).to(tl.int32), axis=1) == 0).to(tl.int32)
    accepted = tl.sum(leading, axis=1)

    row = token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS + total
    tl.store(row[:, None] + place, drawn, mask=place < accepted[:, None])
    tl.store(columns + TOTAL_LEN * R + slot, total + accepted, mask=draws)
    grant = tl.load(grant_ptr + slot, mask=draws, other=0)
    tl.store(grant_ptr + slot, grant - drafts + accepted, mask=draws)
    tl.store(slot_sample + slot, first + accepted, mask=draws)
    tl.store(num_accepted + slot, accepted, mask=draws)
    tl.store(counts + 11, tl.sum(accepted, axis=0))


def _shape(sizes, width: int) -> dict[str, int]:
    lanes = triton.next_power_of_2(sizes.max_num_seqs)
    return {
        "R": sizes.num_slots, "DRAFTS": sizes.num_draft_tokens, "LANES": lanes,
        "WIDTH": triton.next_power_of_2(width), "num_warps": 8 if lanes > 256 else 4,
    }  # fmt: skip


def grant_drafts(requests, pool, plan, *, budget: int) -> None:
    """Add the proposer's drafts to `plan`, up to `budget` tokens of the step in all.

    `plan.num_drafts` then says how many each sequence got; its proposals lie in
    `plan.draft_tokens`.
    """
    sizes = requests.sizes
    _grant_drafts_kernel[(1,)](
        requests.columns, pool.counters, plan.counts, plan.grant, plan.slot_sample, plan.seq_slots,
        plan.seq_start, plan.seq_held, plan.seq_pages, plan.seq_ring, plan.num_drafts,
        plan.cu_seqlens_q, plan.seq_lens, plan.sample_slots, plan.sample_offsets,
        plan.logits_indices, budget, S=sizes.max_num_seqs, PAGE_SIZE=sizes.page_size,
        **_shape(sizes, 1 + sizes.num_draft_tokens), **pdl(),
    )  # fmt: skip


def verify_drafts(requests, plan) -> None:
    """Take the drafts that were drawn as tokens, and leave each sequence its last draw."""
    sizes = requests.sizes
    _verify_drafts_kernel[(1,)](
        requests.columns, requests.token_ids, requests.stop_ids, plan.counts, plan.grant,
        plan.slot_sample, plan.seq_slots, plan.num_drafts, plan.draft_tokens, plan.sampled_tokens,
        plan.num_accepted, MAX_LEN_TOKENS=sizes.max_model_len,
        **_shape(sizes, sizes.num_draft_tokens), **pdl(),
    )  # fmt: skip


def grant_drafts_ref(requests, pool, plan, *, budget: int) -> None:
    """The same, sequence by sequence."""
    size, counters = requests.sizes.page_size, pool.counters
    num_seqs, left = int(plan.num_seqs), budget - int(plan.num_tokens)
    spare = int(counters[TAIL.value] - counters[HEAD.value]) - num_seqs
    if int(counters[SHORTFALL.value]) > 0:
        spare = 0
    booked = tokens = sample = num_drafts = wanted = 0
    for seq, slot in enumerate(plan.seq_slots[:num_seqs].tolist()):
        total, grant = int(requests.total_len[slot]), int(plan.grant[slot])
        held, pages = int(plan.seq_held[seq]), int(plan.seq_pages[seq])
        draws = int(plan.slot_sample[slot]) >= 0
        asks = (requests.logit_edits, requests.num_logprobs, requests.mask_len, requests.beam_width)
        drafts = min(int(plan.num_drafts[seq]), requests.sizes.num_draft_tokens, max(left, 0))
        drafts = max(min(drafts, int(requests.max_len[slot]) - 1 - total), 0)
        if not draws or any(int(column[slot]) for column in asks):
            drafts = 0
        left -= drafts
        room = (held + pages) * size - int(plan.seq_start[seq]) - grant
        ahead = -(-max(drafts - room, 0) // size)
        wanted += ahead
        if ahead and wanted > spare:
            drafts, ahead = min(drafts, room), 0
        grant, pages = grant + drafts, pages + ahead
        plan.num_drafts[seq], plan.grant[slot] = drafts, grant
        plan.seq_pages[seq], plan.seq_ring[seq] = pages, booked
        requests.num_pages[slot] = held + pages
        plan.cu_seqlens_q[seq], plan.seq_lens[seq] = tokens, plan.seq_start[seq] + grant
        booked, tokens, num_drafts = booked + pages, tokens + grant, num_drafts + drafts
        counters[HEAD.value] += ahead
        if draws:
            plan.slot_sample[slot] = sample
            for behind in range(1 + drafts):
                plan.sample_slots[sample], plan.sample_offsets[sample] = slot, behind
                plan.logits_indices[sample] = tokens - 1 - drafts + behind
                sample += 1
    plan.cu_seqlens_q[num_seqs:] = tokens
    plan.counts[0], plan.counts[2], plan.counts[10] = tokens, sample, num_drafts


def verify_drafts_ref(requests, plan) -> None:
    """The same, sequence by sequence."""
    in_all = 0
    for seq, slot in enumerate(plan.seq_slots[: int(plan.num_seqs)].tolist()):
        first, total = int(plan.slot_sample[slot]), int(requests.total_len[slot])
        if first < 0:
            continue
        drafts, accepted = int(plan.num_drafts[seq]), 0
        while accepted < drafts:
            drawn = int(plan.sampled_tokens[first + accepted])
            may_stop = total + accepted >= int(requests.min_len[slot])
            if drawn < 0 or drawn != int(plan.draft_tokens[seq, accepted]):
                break
            if may_stop and drawn in requests.stop_ids[slot].tolist():
                break
            requests.token_ids[slot, total + accepted] = drawn
            accepted += 1
        requests.total_len[slot] = total + accepted
        plan.grant[slot] -= drafts - accepted
        plan.slot_sample[slot] = first + accepted
        plan.num_accepted[slot] = accepted
        in_all += accepted
    plan.num_accepted_tokens.fill_(in_all)
