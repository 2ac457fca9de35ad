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
from paged.kernels.control.update import HEADER_WORDS


@triton.jit
def look(
    columns, counters, row,
    R: tl.constexpr, S: tl.constexpr, PAGE_SIZE: tl.constexpr, NUM_POOL_PAGES: tl.constexpr,
    RESERVES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Log what the memory is for that the last step left."""
    slot = tl.arange(0, LANES)
    status = tl.load(columns + STATUS * R + slot, mask=slot < R, other=0)
    running = status == RUNNING
    computed = tl.load(columns + NUM_COMPUTED * R + slot, mask=running, other=0)
    held = tl.load(columns + NUM_PAGES * R + slot, mask=running, other=0)
    longest = tl.load(columns + MAX_LEN * R + slot, mask=running, other=0)
    unused = held * PAGE_SIZE - computed
    to_come = tl.minimum(unused, tl.maximum(longest - computed, 0))
    beyond = tl.sum(unused.to(tl.int64), axis=0)
    reserved = tl.sum(to_come.to(tl.int64), axis=0)
    cached = tl.load(counters + NUM_CACHED) * PAGE_SIZE
    free = (tl.load(counters + TAIL) - tl.load(counters + HEAD)) * PAGE_SIZE
    taken = NUM_POOL_PAGES * PAGE_SIZE - cached - free
    external = free * 0
    if RESERVES:
        has_seat = tl.sum(running.to(tl.int32), axis=0) < S
        waited_for = tl.sum((status == WAITING).to(tl.int32), axis=0) > 0
        external = tl.where(has_seat & waited_for, free, 0)
    tl.store(row + SPLIT + 0, taken - beyond)
    tl.store(row + SPLIT + 1, reserved)
    tl.store(row + SPLIT + 2, beyond - reserved)
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
    field = tl.arange(0, 16)
    header = tl.load(entry + field, mask=field < NUM_FIELDS, other=0) & LOW_48
    tl.store(row + field, header, mask=field < NUM_FIELDS)
    begin, duration, now = _pass_time(state, flight, entry, cost, capacities, NUM_CAPACITIES)
    tl.store(row + BEGIN, begin)
    tl.store(row + DURATION, duration)
    slot = tl.arange(0, LANES)
    num_events = (tl.load(entry) & LOW_48).to(tl.int32)
    for first in range(0, num_events, LANES):
        there = first + slot < num_events
        word = tl.load(entry + HEADER_WORDS + 2 * (first + slot), mask=there, other=0)
        kind, of = (word >> 44) & 15, (word >> 24) & 0xFFFFF
        value = (word & 0xFFFFFF).to(tl.int32)
        tl.store(ledger + (HEARD + kind - 1) * R + of, value + 1, mask=there)
    tl.debug_barrier()  # events lie by slot now
    live = slot < R
    own = ledger + slot
    cached = tl.load(own + HEARD * R, mask=live, other=0) - 1
    dropped = tl.load(own + (HEARD + 1) * R, mask=live, other=0) - 1
    drew = tl.load(own + (HEARD + 2) * R, mask=live, other=0) > 0
    reason = tl.load(own + (HEARD + 3) * R, mask=live, other=0) - 1
    for kind in tl.static_range(4):
        tl.store(own + (HEARD + kind) * R, 0, mask=live)
    admitted, preempted, ended = cached >= 0, dropped >= 0, reason >= 0

    phase = tl.load(own + PHASE * R, mask=live, other=0)
    length = tl.load(own + LENGTH * R, mask=live, other=0)
    to_prefill = tl.load(own + TO_PREFILL * R, mask=live, other=0)
    prefilling = tl.load(own + PREFILLING * R, mask=live, other=0)
    phase = tl.where(admitted, RUNS, tl.where(preempted, WAITS, phase))
    to_prefill = tl.where(admitted, length - cached, tl.where(preempted, length, to_prefill))
    prefilling = tl.where(admitted, 1, prefilling)
    tl.store(own + PHASE * R, tl.where(ended, NOBODY, phase), mask=live)
    tl.store(own + LENGTH * R, length + drew.to(tl.int32), mask=live)
    tl.store(own + TO_PREFILL * R, to_prefill, mask=live)
    tl.store(own + PREFILLING * R, tl.where(drew, 0, prefilling), mask=live)
    again = preempted.to(tl.int64)
    turn = tl.load(state + NEXT_TURN) + tl.cumsum(again, axis=0) - again
    tl.store(own + TURN * R, turn.to(tl.int32), mask=preempted)
    gone = ended.to(tl.int64)
    num_free, num_gone = tl.load(state + NUM_FREE), tl.sum(gone, axis=0)
    place = num_free + tl.cumsum(gone, axis=0) - gone
    tl.store(ledger + FREE_SLOTS * R + place, slot, mask=ended)

    request = tl.load(own + REQUEST * R, mask=live, other=0).to(tl.int64)
    outcome = outcomes + request * OUTCOME_WORDS
    first_time = tl.load(outcome + QUEUED, mask=admitted, other=0) < 0
    tl.store(outcome + QUEUED, tl.zeros_like(request) + begin, mask=admitted & first_time)
    lost = tl.load(outcome + DROPPED_TOKENS, mask=admitted, other=0)
    recomputed = tl.where(admitted, tl.maximum(lost - cached, 0), 0)
    hits = tl.load(outcome + CACHED_TOKENS, mask=admitted, other=0)
    tl.store(outcome + CACHED_TOKENS, hits + cached, mask=admitted)
    tl.store(outcome + DROPPED_TOKENS, dropped, mask=admitted | preempted)  # -1: none
    times = tl.load(outcome + PREEMPTIONS, mask=preempted, other=0)
    tl.store(outcome + PREEMPTIONS, times + 1, mask=preempted)
    unseen = tl.load(outcome + FIRST_TOKEN, mask=drew, other=0) < 0
    tl.store(outcome + FIRST_TOKEN, tl.zeros_like(request) + now, mask=drew & unseen)
    tl.store(outcome + LAST_TOKEN, tl.zeros_like(request) + now, mask=drew)
    drawn = tl.load(outcome + NUM_TOKENS, mask=drew, other=0)
    tl.store(outcome + NUM_TOKENS, drawn + 1, mask=drew)
    tl.store(outcome + REASON, reason, mask=ended)
    tl.store(row + CACHED, tl.sum(tl.where(admitted, cached, 0).to(tl.int64), axis=0))
    tl.store(row + DROPPED, tl.sum(tl.where(preempted, dropped, 0).to(tl.int64), axis=0))
    tl.store(row + RECOMPUTED, tl.sum(recomputed, axis=0))

    full = (tl.load(entry + 1) & LOW_48) >= tl.load(flight + CAPACITY)
    blocked = ((tl.load(entry + 7) & LOW_48) > 0) & ((tl.load(entry + 9) & LOW_48) == 0)
    num_ended, num_steps = tl.load(state + ENDED), tl.load(state + NUM_STEPS)
    next_turn = tl.load(state + NEXT_TURN)
    tl.debug_barrier()  # all threads have read what is written now
    tl.store(state + IDLE_SINCE, begin + duration)
    tl.store(state + BLOCKED, (blocked & ~full & (num_gone == 0)).to(tl.int64))
    tl.store(state + FREE_PAGES, tl.load(entry + 3) & LOW_48)
    tl.store(state + WANTED_PAGES, tl.load(entry + 5) & LOW_48)
    tl.store(state + CONSUMED, tl.load(flight + SENT))
    tl.store(state + NOW, now)
    tl.store(state + NUM_FREE, num_free + num_gone)
    tl.store(state + NEXT_TURN, next_turn + tl.sum(again, axis=0))
    tl.store(state + ENDED, num_ended + num_gone)
    tl.store(state + NUM_STEPS, num_steps + 1)
