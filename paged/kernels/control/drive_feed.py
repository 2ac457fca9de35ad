"""The half of drive.py that speaks: the commands of a step, and the guess of its capacity."""

import triton
import triton.language as tl

from paged.kernels.control.drive_state import (
    BLOCKED,
    CONSUMED,
    ENDED,
    ENTERED,
    FREE_SLOTS,
    LENGTH,
    NEXT_TURN,
    NOW,
    NUM_FREE,
    NUM_REQUESTS,
    PHASE,
    PREFILLING,
    REQUEST,
    RUNS,
    TO_PREFILL,
    TURN,
    UNBOUND,
    WAITS,
    WRITTEN,
)
from paged.kernels.control.ingest import SLOT, W_PROMPT_LEN
from paged.kernels.control.packing import high_of, low_of, pack_pair, spread_lanes


@triton.jit
def feed(
    state, arrivals, lengths, script, ledger, header, words, room,
    R: tl.constexpr, MAX_COMMANDS: tl.constexpr, COMMAND_WORDS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Send the requests that have come, as far as there are slots; returns the clock."""
    now, entered = tl.load(state + NOW), tl.load(state + ENTERED)
    num_requests, ended = tl.load(state + NUM_REQUESTS), tl.load(state + ENDED)
    written, consumed = tl.load(state + WRITTEN), tl.load(state + CONSUMED)
    num_free, turn = tl.load(state + NUM_FREE), tl.load(state + NEXT_TURN)
    idle = (ended == entered) & (entered < num_requests)
    now = tl.where(idle, tl.maximum(now, tl.load(arrivals + entered, mask=idle, other=0)), now)
    place = tl.arange(0, MAX_COMMANDS)
    request = entered + place
    there = request < num_requests
    due = there & (tl.load(arrivals + request, mask=there, other=0) <= now)
    tokens = tl.cumsum(tl.load(lengths + request, mask=there, other=0).to(tl.int64), axis=0)
    enters = due & (place < num_free) & (written - consumed + tokens <= room)
    count = tl.sum(enters.to(tl.int64), axis=0)
    tl.debug_barrier()  # all threads have read what is written now
    tl.store(header, count)
    tl.store(header + 1, (now.to(tl.float64) / 1e9 * 1000).to(tl.int64))
    tl.store(state + NOW, now)
    if count > 0:
        slot = tl.load(ledger + FREE_SLOTS * R + num_free - 1 - place, mask=enters, other=0)
        prompt = tl.load(script + request * COMMAND_WORDS + W_PROMPT_LEN, mask=enters, other=0)
        word = tl.arange(0, WIDTH)[None, :]
        source = script + request[:, None] * COMMAND_WORDS + word
        mask = enters[:, None] & (word < COMMAND_WORDS)
        command = tl.where(word == SLOT, slot[:, None].to(tl.int64), tl.load(source, mask=mask))
        tl.store(words + place[:, None] * COMMAND_WORDS + word, command, mask=mask)
        own = ledger + slot
        tl.store(own + REQUEST * R, request.to(tl.int32), mask=enters)
        tl.store(own + PHASE * R, tl.full([MAX_COMMANDS], WAITS, tl.int32), mask=enters)
        tl.store(own + TO_PREFILL * R, prompt.to(tl.int32), mask=enters)
        tl.store(own + LENGTH * R, prompt.to(tl.int32), mask=enters)
        tl.store(own + TURN * R, (turn + place).to(tl.int32), mask=enters)
        tl.store(own + PREFILLING * R, tl.full([MAX_COMMANDS], 1, tl.int32), mask=enters)
        sent = tl.sum(tl.where(place + 1 == count, tokens, 0), axis=0)
        tl.store(state + ENTERED, entered + count)
        tl.store(state + NUM_FREE, num_free - count)
        tl.store(state + NEXT_TURN, turn + count)
        tl.store(state + BLOCKED, tl.zeros((), tl.int64))
        tl.store(state + WRITTEN, written + sent)
    return now


@triton.jit
def guess(
    state, ledger, underway, capacities,
    R: tl.constexpr, S: tl.constexpr, NUM_CAPACITIES: tl.constexpr, LANES: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """(capacity, prompt tokens) of the step: `Ledger.guess`."""
    at = tl.arange(0, 16)
    size = tl.load(capacities + at, mask=at < NUM_CAPACITIES, other=UNBOUND)
    largest = tl.load(capacities + NUM_CAPACITIES - 1)
    blocked = tl.load(state + BLOCKED) != 0
    slot = spread_lanes(LANES)
    live = slot < R
    own = ledger + slot
    phase = tl.load(own + PHASE * R, mask=live, other=0)
    to_prefill = tl.load(own + TO_PREFILL * R, mask=live, other=0)
    prefilling = tl.load(own + PREFILLING * R, mask=live, other=0)
    runs, waits = phase == RUNS, phase == WAITS
    in_all = tl.sum(pack_pair(runs, waits), axis=0)
    num_running, num_waiting = high_of(in_all), low_of(in_all)
    seats = tl.where(blocked, 0, S - num_running)
    rows = tl.minimum(num_running + tl.minimum(seats, num_waiting), S)
    goes = waits & (seats > 0)
    if (seats > 0) & (seats < num_waiting):
        turn = tl.load(own + TURN * R, mask=live, other=0)
        ahead = tl.zeros([LANES], tl.int32)
        for first in range(0, R, CHUNK):
            other = first + tl.arange(0, CHUNK)
            theirs = ledger + other
            waits_too = tl.load(theirs + PHASE * R, mask=other < R, other=0) == WAITS
            before = tl.load(theirs + TURN * R, mask=other < R, other=0)[None, :] < turn[:, None]
            ahead += tl.sum((before & waits_too[None, :]).to(tl.int32), axis=1)
        goes = waits & (ahead < seats)
    counts = goes | (runs & (prefilling != 0))
    prompts = tl.sum(tl.where(counts, to_prefill, 0).to(tl.int64), axis=0)
    prompts = tl.maximum(prompts - underway, 0)
    enough = tl.min(tl.where(size >= prompts + rows, size, UNBOUND), axis=0)
    capacity = tl.minimum(enough, largest)
    return capacity, tl.minimum(prompts, tl.maximum(capacity - rows, 0))
