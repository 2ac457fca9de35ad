"""The half of drive.py that hears: what the last step left, and what a step's events say."""

import triton
import triton.language as tl

from paged.kernels.control.columns import (
    HEAD,
    MAX_LEN,
    NUM_CACHED,
    NUM_COMPUTED,
    NUM_PAGES,
    RUNNING,
    STATUS,
    TAIL,
    WAITING,
)
from paged.kernels.control.drive_state import (
    BEGIN,
    BLOCKED,
    CACHED,
    CACHED_TOKENS,
    CAPACITY,
    CONSUMED,
    COST_WORDS,
    DROPPED,
    DROPPED_TOKENS,
    DURATION,
    ENDED,
    FIRST_TOKEN,
    FREE_PAGES,
    FREE_SLOTS,
    HEARD,
    IDLE_SINCE,
    LAST_TOKEN,
    LAUNCHED,
    LENGTH,
    LOW_48,
    NEXT_TURN,
    NOBODY,
    NOW,
    NUM_FIELDS,
    NUM_FREE,
    NUM_STEPS,
    NUM_TOKENS,
    OUTCOME_WORDS,
    PHASE,
    PREEMPTIONS,
    PREFILLING,
    QUEUED,
    REASON,
    RECOMPUTED,
    REQUEST,
    RUNS,
    SENT,
    SPLIT,
    TO_PREFILL,
    TURN,
    UNBOUND,
    WAITS,
    WANTED_PAGES,
)
from paged.kernels.control.packing import high_of, low_of, pack_pair, spread_lanes
from paged.kernels.control.update import HEADER_WORDS


@triton.jit
def look(
    columns, counters, row,
    R: tl.constexpr, S: tl.constexpr, PAGE_SIZE: tl.constexpr, NUM_POOL_PAGES: tl.constexpr,
    RESERVES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Log what the memory is for that the last step left."""
    slot = spread_lanes(LANES)
    status = tl.load(columns + STATUS * R + slot, mask=slot < R, other=0)
    computed = tl.load(columns + NUM_COMPUTED * R + slot, mask=slot < R, other=0)
    held = tl.load(columns + NUM_PAGES * R + slot, mask=slot < R, other=0)
    longest = tl.load(columns + MAX_LEN * R + slot, mask=slot < R, other=0)
    cached = tl.load(counters + NUM_CACHED) * PAGE_SIZE
    free = (tl.load(counters + TAIL) - tl.load(counters + HEAD)) * PAGE_SIZE
    running = status == RUNNING
    unused = tl.where(running, held * PAGE_SIZE - computed, 0)
    to_come = tl.minimum(unused, tl.maximum(longest - computed, 0))
    in_all = tl.sum(pack_pair(unused, to_come), axis=0)
    beyond, reserved = high_of(in_all), low_of(in_all)
    taken = NUM_POOL_PAGES * PAGE_SIZE - cached - free
    external = free * 0
    if RESERVES:
        has_seat = tl.sum(running.to(tl.int32), axis=0) < S
        waited_for = tl.sum((status == WAITING).to(tl.int32), axis=0) > 0
        external = tl.where(has_seat & waited_for, free, 0)
    tl.store(row + SPLIT + 0, taken - beyond)
    tl.store(row + SPLIT + 1, reserved.to(tl.int64))
    tl.store(row + SPLIT + 2, (beyond - reserved).to(tl.int64))
    tl.store(row + SPLIT + 3, external)
    tl.store(row + SPLIT + 4, cached)
    tl.store(row + SPLIT + 5, free - external)


@triton.jit
def _pass_time(state, flight, entry, cost, capacities, NUM_CAPACITIES: tl.constexpr):
    """(beginning, duration, the clock after it) of a step, by the graph that it was launched in."""
    graph = tl.arange(0, 16)
    size = tl.load(capacities + graph, mask=graph < NUM_CAPACITIES, other=UNBOUND)
    smaller = tl.sum((size < tl.load(flight + CAPACITY)).to(tl.int32), axis=0)
    cost += smaller * COST_WORDS
    tokens = tl.load(entry + 1) & LOW_48
    sequences, keys = tl.load(entry + 2) & LOW_48, tl.load(entry + 15) & LOW_48
    work = tl.load(cost + 1) + tl.load(cost + 2) * tl.maximum(tokens - tl.load(cost), 0)
    work += tl.load(cost + 3) * sequences + tl.load(cost + 4) * keys
    duration = tl.maximum(work // 1000000, 1)
    begin = tl.maximum(tl.load(flight + LAUNCHED), tl.load(state + IDLE_SINCE))
    now = tl.maximum(tl.load(state + NOW), begin + duration)
    return begin, duration, now


@triton.jit
def hear(
    entry, state, flight, ledger, outcomes, row, cost, capacities,
    R: tl.constexpr, NUM_CAPACITIES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What the host does with a step's events: its clock, its ledger, and the results."""
    # All that is known before the events is loaded first: no load can be moved over a store.
    field = tl.arange(0, 16)
    header = tl.load(entry + field, mask=field < NUM_FIELDS, other=0) & LOW_48
    begin, duration, now = _pass_time(state, flight, entry, cost, capacities, NUM_CAPACITIES)
    num_events = (tl.load(entry) & LOW_48).to(tl.int32)
    full = (tl.load(entry + 1) & LOW_48) >= tl.load(flight + CAPACITY)
    free_pages, wanted_pages = tl.load(entry + 3) & LOW_48, tl.load(entry + 5) & LOW_48
    num_waiting, num_admitted = tl.load(entry + 7) & LOW_48, tl.load(entry + 9) & LOW_48
    sent = tl.load(flight + SENT)
    next_turn, num_free = tl.load(state + NEXT_TURN), tl.load(state + NUM_FREE)
    num_ended, num_steps = tl.load(state + ENDED), tl.load(state + NUM_STEPS)
    slot = spread_lanes(LANES)
    live = slot < R
    own = ledger + slot
    phase = tl.load(own + PHASE * R, mask=live, other=0)
    length = tl.load(own + LENGTH * R, mask=live, other=0)
    to_prefill = tl.load(own + TO_PREFILL * R, mask=live, other=0)
    prefilling = tl.load(own + PREFILLING * R, mask=live, other=0)
    request = tl.load(own + REQUEST * R, mask=live, other=0).to(tl.int64)
    outcome = outcomes + request * OUTCOME_WORDS
    queued = tl.load(outcome + QUEUED, mask=live, other=0)
    first_token = tl.load(outcome + FIRST_TOKEN, mask=live, other=0)
    drawn = tl.load(outcome + NUM_TOKENS, mask=live, other=0)
    hits = tl.load(outcome + CACHED_TOKENS, mask=live, other=0)
    times = tl.load(outcome + PREEMPTIONS, mask=live, other=0)
    lost = tl.load(outcome + DROPPED_TOKENS, mask=live, other=0)

    for first in range(0, num_events, LANES):
        there = first + slot < num_events
        word = tl.load(entry + HEADER_WORDS + 2 * (first + slot), mask=there, other=0)
        kind, of = (word >> 44) & 15, (word >> 24) & 0xFFFFF
        value = (word & 0xFFFFFF).to(tl.int32)
        tl.store(ledger + (HEARD + kind - 1) * R + of, value + 1, mask=there)
    tl.debug_barrier()  # events lie by slot now
    cached = tl.load(own + HEARD * R, mask=live, other=0) - 1
    dropped = tl.load(own + (HEARD + 1) * R, mask=live, other=0) - 1
    drew = tl.load(own + (HEARD + 2) * R, mask=live, other=0) > 0
    reason = tl.load(own + (HEARD + 3) * R, mask=live, other=0) - 1
    for kind in tl.static_range(4):
        tl.store(own + (HEARD + kind) * R, 0, mask=live)
    admitted, preempted, ended = cached >= 0, dropped >= 0, reason >= 0

    phase = tl.where(admitted, RUNS, tl.where(preempted, WAITS, phase))
    to_prefill = tl.where(admitted, length - cached, tl.where(preempted, length, to_prefill))
    prefilling = tl.where(admitted, 1, prefilling)
    flags = pack_pair(preempted, ended)
    before, in_all = tl.cumsum(flags, axis=0) - flags, tl.sum(flags, axis=0)
    num_gone = low_of(in_all)
    recomputed = tl.where(admitted, tl.maximum(lost - cached, 0), 0)
    kept = pack_pair(tl.where(admitted, cached, 0), tl.where(preempted, dropped, 0))
    of_cache = tl.sum(kept, axis=0)

    tl.store(own + PHASE * R, tl.where(ended, NOBODY, phase), mask=live)
    tl.store(own + LENGTH * R, length + drew.to(tl.int32), mask=live)
    tl.store(own + TO_PREFILL * R, to_prefill, mask=live)
    tl.store(own + PREFILLING * R, tl.where(drew, 0, prefilling), mask=live)
    tl.store(own + TURN * R, (next_turn + high_of(before)).to(tl.int32), mask=preempted)
    tl.store(ledger + FREE_SLOTS * R + num_free + low_of(before), slot, mask=ended)
    tl.store(outcome + QUEUED, tl.zeros_like(request) + begin, mask=admitted & (queued < 0))
    tl.store(outcome + CACHED_TOKENS, hits + cached, mask=admitted)
    tl.store(outcome + DROPPED_TOKENS, dropped, mask=admitted | preempted)  # -1: none
    tl.store(outcome + PREEMPTIONS, times + 1, mask=preempted)
    tl.store(outcome + FIRST_TOKEN, tl.zeros_like(request) + now, mask=drew & (first_token < 0))
    tl.store(outcome + LAST_TOKEN, tl.zeros_like(request) + now, mask=drew)
    tl.store(outcome + NUM_TOKENS, drawn + 1, mask=drew)
    tl.store(outcome + REASON, reason, mask=ended)
    tl.store(row + field, header, mask=field < NUM_FIELDS)
    tl.store(row + BEGIN, begin)
    tl.store(row + DURATION, duration)
    tl.store(row + CACHED, high_of(of_cache).to(tl.int64))
    tl.store(row + DROPPED, low_of(of_cache).to(tl.int64))
    tl.store(row + RECOMPUTED, tl.sum(recomputed, axis=0))

    blocked = (num_waiting > 0) & (num_admitted == 0) & ~full & (num_gone == 0)
    tl.store(state + IDLE_SINCE, begin + duration)
    tl.store(state + BLOCKED, blocked.to(tl.int64))
    tl.store(state + FREE_PAGES, free_pages)
    tl.store(state + WANTED_PAGES, wanted_pages)
    tl.store(state + CONSUMED, sent)
    tl.store(state + NOW, now)
    tl.store(state + NUM_FREE, num_free + num_gone)
    tl.store(state + NEXT_TURN, next_turn + high_of(in_all))
    tl.store(state + ENDED, num_ended + num_gone)
    tl.store(state + NUM_STEPS, num_steps + 1)
