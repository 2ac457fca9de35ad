"""update: append the drawn tokens, detect the ends, and tell the host.

One program, a lane per slot. Events are pairs of 64-bit words in a ring of pinned memory, each
word valid by itself: its top 16 bits repeat the step, so the host needs no flag and no order of
writes. Kinds in one step come admitted, preempted, token, end, sequence; within a kind by slot.

    word 0: step+1 (16) | kind (4) | slot (20) | value (24)
    word 1: step+1 (16) | beam (16) | float32 bits

Rows that are beams do not end by a token: beam_select.py ends their group and lists the sequences
that have ended, each with the beam it was. `beam` says which beam's sequence a token was appended
to; its float is the sum of the sequence's log-probabilities.

A sequence whose drafts were right (drafts.py) has several tokens: the accepted ones, which its row
holds already, come in front of the one drawn behind them.

A drawn token below 0 says the row's logits held NaN: the request ends with an error, the token is
not appended, and its pages are not published.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    BEAM_INDEX,
    BEAM_WIDTH,
    CACHED_LEN,
    FINISH_REASON,
    FINISHED,
    MAX_LEN,
    MIN_LEN,
    NUM_COMPUTED,
    NUM_DROPPED,
    NUM_PUBLISHED,
    NUM_STOP_IDS,
    PREEMPTED,
    PROMPT_LEN,
    REASON_ERROR,
    REASON_LENGTH,
    REASON_STOP,
    RUNNING,
    STATUS,
    STEP,
    TOTAL_LEN,
)  # fmt: skip
from paged.kernels.control.packing import count_of, pack_flags, spread_lanes
from paged.kernels.control.stage import stage
from paged.kernels.launch import pdl

EVENT_ADMITTED = tl.constexpr(1)  # value: tokens taken from the prefix cache
EVENT_PREEMPTED = tl.constexpr(2)  # value: tokens whose KV is dropped
EVENT_TOKEN = tl.constexpr(3)  # value: token id; word 1: its log-probability
EVENT_END = tl.constexpr(4)  # value: finish reason
EVENT_SEQUENCE = tl.constexpr(5)  # value: last token; word 1: sum of log-probabilities

HEADER_WORDS = tl.constexpr(16)  # written by `release`, see there
EVENTS_PER_SLOT = 4  # admitted, token, end and sequence in one step; with drafts more tokens


class Events(NamedTuple):
    """The device's side of the mailbox: `words` [depth, HEADER + 2 * events] int64, pinned."""

    words: torch.Tensor


def event_words(num_slots: int, num_draft_tokens: int = 0) -> int:
    """Words of one step's entry in the ring."""
    return HEADER_WORDS.value + 2 * (EVENTS_PER_SLOT + num_draft_tokens) * num_slots


@triton.jit
def _write(entry, tag, index, happened, kind, slot, value, extra):
    """Write events of one kind to their places."""
    word = tag | (kind << 44) | (slot.to(tl.int64) << 24) | (value.to(tl.int64) & 0xFFFFFF)
    at = entry + HEADER_WORDS + 2 * index
    tl.store(at, word, mask=happened)
    tl.store(at + 1, tag | (extra & 0xFFFFFFFFFFFF), mask=happened)


@triton.jit
def _emit(entry, tag, base, happened, kind, slot, value, extra):
    """Write the events of one kind after `base` others; returns how many there are now."""
    count = happened.to(tl.int32)
    index = base + tl.cumsum(count, axis=0) - count
    _write(entry, tag, index, happened, kind, slot, value, extra)
    return base + tl.sum(count, axis=0)


@triton.jit
def _emit_drafted(
    entry, tag, base, drew, slot, token, bits, accepted, sample, sampled_tokens, sampled_logprobs,
    DRAFTS: tl.constexpr,
):  # fmt: skip
    """Write the accepted tokens of each slot, and the drawn one behind them, after `base` events.

    The last accepted token is that of the row in front of the drawn one's, `sample`.
    """
    count = accepted + drew.to(tl.int32)
    index = base + tl.cumsum(count, axis=0) - count
    for place in tl.static_range(DRAFTS):
        there = place < accepted
        row = sample - accepted + place
        before = tl.load(sampled_tokens + row, mask=there, other=0)
        logprob = tl.load(sampled_logprobs + row, mask=there, other=0.0)
        extra = logprob.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        _write(entry, tag, index + place, there, 3, slot, before, extra)
    _write(entry, tag, index + accepted, drew, 3, slot, token, bits)
    return base + tl.sum(count, axis=0)


@triton.jit
def _update_kernel(
    columns, counters, token_ids, stop_ids, grant, admitted, slot_sample, sampled_tokens,
    sampled_logprobs, num_accepted, beam_source, ended_source, ended_token, ended_score, counts,
    published_slots, publish_arrivals, events,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, PAGE_SIZE: tl.constexpr, DEPTH: tl.constexpr,
    EVENT_WORDS: tl.constexpr, BEAMS: tl.constexpr, DRAFTS: tl.constexpr, KNOWN: tl.constexpr,
    LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = spread_lanes(LANES)
    live = slot < R
    # All loads of the rows come before the first store: one behind it could not be moved up.
    status = tl.load(columns + STATUS * R + slot, mask=live, other=0)
    sample = tl.load(slot_sample + slot, mask=live, other=-1)
    granted = tl.load(grant + slot, mask=live, other=0)
    joined = tl.load(admitted + slot, mask=live, other=0) != 0
    computed = tl.load(columns + NUM_COMPUTED * R + slot, mask=live, other=0)
    total = tl.load(columns + TOTAL_LEN * R + slot, mask=live, other=0)
    min_len = tl.load(columns + MIN_LEN * R + slot, mask=live, other=0)
    max_len = tl.load(columns + MAX_LEN * R + slot, mask=live, other=0)
    prompt_len = tl.load(columns + PROMPT_LEN * R + slot, mask=live, other=0)
    published = tl.load(columns + NUM_PUBLISHED * R + slot, mask=live, other=0)
    cached = tl.load(columns + CACHED_LEN * R + slot, mask=live, other=0)
    whole = tl.load(columns + NUM_DROPPED * R + slot, mask=live, other=0) == 0
    beam = tl.load(columns + BEAM_WIDTH * R + slot, mask=live, other=0) > 0
    given = tl.load(columns + FINISH_REASON * R + slot, mask=live, other=0)
    way = tl.arange(0, NUM_STOP_IDS)[None, :]
    stops = tl.load(stop_ids + slot[:, None] * NUM_STOP_IDS + way, mask=live[:, None], other=-1)
    step = tl.load(counters + STEP)
    running = live & (status == RUNNING)
    sampled = running & (sample >= 0)
    if KNOWN:
        known = token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS + total
        token = tl.load(known, mask=sampled, other=0)
    else:
        token = tl.load(sampled_tokens + sample, mask=sampled, other=0)
    logprob = tl.load(sampled_logprobs + sample, mask=sampled, other=0.0)
    failed = sampled & (token < 0)
    drew = sampled & (token >= 0)
    is_stop = tl.max((stops == token[:, None]).to(tl.int32), axis=1) != 0

    stopped = drew & is_stop & (total >= min_len) & ~beam
    full = drew & (total + 1 >= max_len)
    ended = stopped | full | failed
    aborted = live & (status == FINISHED)
    reason = tl.where(failed, REASON_ERROR, tl.where(stopped, REASON_STOP, REASON_LENGTH))
    reason = tl.where(aborted, given, reason)
    computed_now = computed + tl.where(running, granted, 0)
    lasting = tl.where(beam, tl.minimum(computed_now, prompt_len), computed_now)
    publishes = drew & whole & (lasting // PAGE_SIZE > published)
    preempted = live & (status == PREEMPTED)
    flags = pack_flags(joined, preempted, ended | aborted, publishes)
    before, flagged = tl.cumsum(flags, axis=0) - flags, tl.sum(flags, axis=0)

    tl.store(columns + NUM_COMPUTED * R + slot, computed_now, mask=running)
    tl.store(token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS + total, token, mask=drew)
    tl.store(columns + TOTAL_LEN * R + slot, total + 1, mask=drew)
    tl.store(columns + STATUS * R + slot, FINISHED, mask=ended)
    tl.store(columns + FINISH_REASON * R + slot, reason, mask=ended)
    tl.store(published_slots + count_of(before, 3), slot, mask=publishes)
    tl.store(counts + 3, count_of(flagged, 3))
    tl.store(publish_arrivals, 0)

    tag = ((step + 1) & 0xFFFF) << 48
    entry = events + (step % DEPTH) * EVENT_WORDS
    nothing = tl.zeros_like(slot).to(tl.int64)
    _write(entry, tag, count_of(before, 0), joined, 1, slot, cached, nothing)
    count = count_of(flagged, 0)
    _write(entry, tag, count + count_of(before, 1), preempted, 2, slot, computed, nothing)
    count += count_of(flagged, 1)
    bits = logprob.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    if BEAMS:
        source = tl.load(beam_source + slot, mask=drew & beam, other=-1)
        parent = tl.load(columns + BEAM_INDEX * R + source, mask=source >= 0, other=0)
        bits = bits | (parent.to(tl.int64) << 32)
        tl.store(beam_source + slot, -1, mask=live)
    if DRAFTS > 0:
        accepted = tl.load(num_accepted + slot, mask=sampled, other=0)
        count = _emit_drafted(
            entry, tag, count, drew, slot, token, bits, accepted, sample, sampled_tokens,
            sampled_logprobs, DRAFTS,
        )  # fmt: skip
    else:
        count = _emit(entry, tag, count, drew, 3, slot, token, bits)
    at = count + count_of(before, 2)
    _write(entry, tag, at, ended | aborted, 4, slot, reason, nothing)
    count += count_of(flagged, 2)
    if BEAMS:
        source = tl.load(ended_source + slot, mask=live, other=-1)
        token = tl.load(ended_token + slot, mask=live, other=0)
        score = tl.load(ended_score + slot, mask=live, other=0.0)
        bits = score.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        count = _emit(entry, tag, count, source >= 0, 5, source, token, bits)
        tl.store(ended_source + slot, -1, mask=live)
    tl.store(counts + 7, count)


@stage
def update(requests, pool, plan, events: Events, known: bool = False) -> None:
    """Advance every row by what this step computed and drew.

    With `known`, in a step without a model, the drawn tokens are those that `token_ids` hold in
    advance and not `plan.sampled_tokens`; their log-probabilities mean nothing.
    """
    sizes = requests.sizes
    depth, width = events.words.shape
    lanes = triton.next_power_of_2(sizes.num_slots)
    _update_kernel[(1,)](
        requests.columns, pool.counters, requests.token_ids, requests.stop_ids, plan.grant,
        plan.admitted, plan.slot_sample, plan.sampled_tokens, plan.sampled_logprobs,
        plan.num_accepted, plan.beam_source, plan.ended_source, plan.ended_token, plan.ended_score,
        plan.counts, plan.published_slots, pool.publish_arrivals, events.words,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, PAGE_SIZE=sizes.page_size,
        DEPTH=depth, EVENT_WORDS=width, BEAMS=plan.beams, DRAFTS=sizes.num_draft_tokens,
        KNOWN=known, LANES=lanes, num_warps=8 if lanes > 256 else 4, **pdl(),
    )  # fmt: skip
