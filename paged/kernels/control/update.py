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
from paged.kernels.control.stage import stage

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
    published_slots, events,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, PAGE_SIZE: tl.constexpr, DEPTH: tl.constexpr,
    EVENT_WORDS: tl.constexpr, BEAMS: tl.constexpr, DRAFTS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    slot = tl.arange(0, LANES)
    live = slot < R
    status = tl.load(columns + STATUS * R + slot, mask=live, other=0)
    computed = tl.load(columns + NUM_COMPUTED * R + slot, mask=live, other=0)
    total = tl.load(columns + TOTAL_LEN * R + slot, mask=live, other=0)
    running = live & (status == RUNNING)
    computed_now = computed + tl.where(running, tl.load(grant + slot, mask=live, other=0), 0)
    tl.store(columns + NUM_COMPUTED * R + slot, computed_now, mask=running)

    sample = tl.load(slot_sample + slot, mask=running, other=-1)
    drew = running & (sample >= 0)
    token = tl.load(sampled_tokens + sample, mask=drew, other=0)
    logprob = tl.load(sampled_logprobs + sample, mask=drew, other=0.0)
    failed = drew & (token < 0)
    drew = drew & (token >= 0)
    tl.store(token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS + total, token, mask=drew)
    tl.store(columns + TOTAL_LEN * R + slot, total + 1, mask=drew)

    way = tl.arange(0, NUM_STOP_IDS)
    stops = tl.load(
        stop_ids + slot[:, None] * NUM_STOP_IDS + way[None, :], mask=drew[:, None], other=-1
    )
    is_stop = tl.max((stops == token[:, None]).to(tl.int32), axis=1) != 0
    min_len = tl.load(columns + MIN_LEN * R + slot, mask=live, other=0)
    beam = tl.load(columns + BEAM_WIDTH * R + slot, mask=live, other=0) > 0
    stopped = drew & is_stop & (total >= min_len) & ~beam
    full = drew & (total + 1 >= tl.load(columns + MAX_LEN * R + slot, mask=live, other=0))
    ended = stopped | full | failed
    reason = tl.where(failed, REASON_ERROR, tl.where(stopped, REASON_STOP, REASON_LENGTH))
    tl.store(columns + STATUS * R + slot, FINISHED, mask=ended)
    tl.store(columns + FINISH_REASON * R + slot, reason, mask=ended)
    aborted = live & (status == FINISHED)
    reason = tl.where(
        aborted, tl.load(columns + FINISH_REASON * R + slot, mask=aborted, other=0), reason
    )

    published = tl.load(columns + NUM_PUBLISHED * R + slot, mask=live, other=0)
    prompt_len = tl.load(columns + PROMPT_LEN * R + slot, mask=live, other=0)
    lasting = tl.where(beam, tl.minimum(computed_now, prompt_len), computed_now)
    whole = tl.load(columns + NUM_DROPPED * R + slot, mask=live, other=0) == 0
    publishes = (drew & whole & (lasting // PAGE_SIZE > published)).to(tl.int32)
    tl.store(published_slots + tl.cumsum(publishes, axis=0) - publishes, slot, mask=publishes != 0)
    tl.store(counts + 3, tl.sum(publishes, axis=0))

    step = tl.load(counters + STEP)
    tag = ((step + 1) & 0xFFFF) << 48
    entry = events + (step % DEPTH) * EVENT_WORDS
    joined = live & (tl.load(admitted + slot, mask=live, other=0) != 0)
    cached = tl.load(columns + CACHED_LEN * R + slot, mask=live, other=0)
    nothing = tl.zeros_like(slot).to(tl.int64)
    count = _emit(entry, tag, 0, joined, 1, slot, cached, nothing)
    count = _emit(entry, tag, count, live & (status == PREEMPTED), 2, slot, computed, nothing)
    bits = logprob.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    if BEAMS:
        source = tl.load(beam_source + slot, mask=drew & beam, other=-1)
        parent = tl.load(columns + BEAM_INDEX * R + source, mask=source >= 0, other=0)
        bits = bits | (parent.to(tl.int64) << 32)
        tl.store(beam_source + slot, -1, mask=live)
    if DRAFTS > 0:
        accepted = tl.load(num_accepted + slot, mask=running & (sample >= 0), other=0)
        count = _emit_drafted(
            entry, tag, count, drew, slot, token, bits, accepted, sample, sampled_tokens,
            sampled_logprobs, DRAFTS,
        )  # fmt: skip
    else:
        count = _emit(entry, tag, count, drew, 3, slot, token, bits)
    count = _emit(entry, tag, count, ended | aborted, 4, slot, reason, nothing)
    if BEAMS:
        source = tl.load(ended_source + slot, mask=live, other=-1)
        token = tl.load(ended_token + slot, mask=live, other=0)
        score = tl.load(ended_score + slot, mask=live, other=0.0)
        bits = score.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        count = _emit(entry, tag, count, source >= 0, 5, source, token, bits)
        tl.store(ended_source + slot, -1, mask=live)
    tl.store(counts + 7, count)


@stage
def update(requests, pool, plan, events: Events) -> None:
    """Advance every row by what this step computed and drew."""
    sizes = requests.sizes
    depth, width = events.words.shape
    lanes = triton.next_power_of_2(sizes.num_slots)
    _update_kernel[(1,)](
        requests.columns, pool.counters, requests.token_ids, requests.stop_ids, plan.grant,
        plan.admitted, plan.slot_sample, plan.sampled_tokens, plan.sampled_logprobs,
        plan.num_accepted, plan.beam_source, plan.ended_source, plan.ended_token, plan.ended_score,
        plan.counts, plan.published_slots, events.words,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, PAGE_SIZE=sizes.page_size,
        DEPTH=depth, EVENT_WORDS=width, BEAMS=plan.beams, DRAFTS=sizes.num_draft_tokens,
        LANES=lanes, num_warps=8 if lanes > 256 else 4,
    )  # fmt: skip


class EventWriter:
    """Packs the events of one step as `update` does, for references."""

    def __init__(self, events: Events, step: int) -> None:
        self.entry = events.words[step % events.words.shape[0]]
        self.tag = ((step + 1) & 0xFFFF) << 48
        self.count = 0

    def word(self, value: int) -> int:
        """A tagged word, as the int64 with the same bits."""
        word = self.tag | value
        return word - (1 << 64) if word >> 63 else word

    def emit(self, kind: int, slot: int, value: int, extra: int = 0, beam: int = 0) -> None:
        at = HEADER_WORDS.value + 2 * self.count
        self.entry[at] = self.word((kind << 44) | (slot << 24) | (value & 0xFFFFFF))
        self.entry[at + 1] = self.word((beam << 32) | (extra & 0xFFFFFFFF))
        self.count += 1


def update_ref(requests, pool, plan, events: Events) -> None:
    """The same, row by row."""
    page_size = requests.sizes.page_size
    tokens: list[tuple[int, int, int, int]] = []
    ends = [(s, int(requests.finish_reason[s])) for s in slots_of(requests, FINISHED.value)]
    preempted = slots_of(requests, PREEMPTED.value)
    published_rows, logprob_bits = 0, plan.sampled_logprobs.view(torch.int32).tolist()
    for slot in slots_of(requests, RUNNING.value):
        requests.num_computed_tokens[slot] += plan.grant[slot]
        sample = int(plan.slot_sample[slot])
        if sample < 0:
            continue
        accepted = int(plan.num_accepted[slot]) if requests.sizes.num_draft_tokens else 0
        for row in range(sample - accepted, sample):
            tokens.append((slot, int(plan.sampled_tokens[row]), logprob_bits[row], 0))
        token, total = int(plan.sampled_tokens[sample]), int(requests.total_len[slot])
        if token < 0:
            reason = REASON_ERROR.value
        else:
            requests.token_ids[slot, total] = token
            requests.total_len[slot] = total + 1
            beam = int(requests.beam_width[slot]) > 0
            source = int(plan.beam_source[slot])
            origin = int(requests.beam_index[source]) if beam and source >= 0 else 0
            tokens.append((slot, token, logprob_bits[sample], origin))
            lasting = int(requests.num_computed_tokens[slot])
            if beam:
                lasting = min(lasting, int(requests.prompt_len[slot]))
            full_pages = lasting // page_size
            whole = int(requests.num_dropped[slot]) == 0
            if whole and full_pages > int(requests.num_published[slot]):
                plan.published_slots[published_rows] = slot
                published_rows += 1
            may_stop = total >= int(requests.min_len[slot]) and not beam
            if may_stop and token in requests.stop_ids[slot].tolist():
                reason = REASON_STOP.value
            elif total + 1 >= int(requests.max_len[slot]):
                reason = REASON_LENGTH.value
            else:
                continue
        requests.status[slot] = FINISHED.value
        requests.finish_reason[slot] = reason
        ends.append((slot, reason))

    writer = EventWriter(events, int(pool.counters[STEP.value]))
    for slot in plan.admitted.nonzero().flatten().tolist():
        writer.emit(EVENT_ADMITTED.value, slot, int(requests.cached_len[slot]))
    for slot in preempted:
        writer.emit(EVENT_PREEMPTED.value, slot, int(requests.num_computed_tokens[slot]))
    for slot, token, bits, beam in tokens:
        writer.emit(EVENT_TOKEN.value, slot, token, bits, beam)
    for slot, reason in sorted(ends):
        writer.emit(EVENT_END.value, slot, reason)
    for place in (plan.ended_source >= 0).nonzero().flatten().tolist():
        bits = int(plan.ended_score[place].view(torch.int32))
        token = int(plan.ended_token[place])
        writer.emit(EVENT_SEQUENCE.value, int(plan.ended_source[place]), token, bits)
    plan.beam_source.fill_(-1)
    plan.ended_source.fill_(-1)
    plan.num_published_rows.fill_(published_rows)
    plan.num_events.fill_(writer.count)


def slots_of(requests, status: int) -> list[int]:
    """The rows with a status, in order."""
    return (requests.status == status).nonzero().flatten().tolist()
