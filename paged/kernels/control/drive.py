"""drive: the host's side of a simulated step, on the device; before every other stage of the step.

What the host of an engine does between two steps, for requests whose arrivals are all known: hear
what the step `IN_FLIGHT` ago did, let the virtual clock follow, give slots to the requests that
have come, guess the step's capacity, and say whether pages are to be evicted first. It does so by
the host's own rules (ledger.py, command_queue.py, mailbox.py, engine.py), so that the decisions are
those of a host that drives the same steps: tests/simulator holds the two beside each other. So a
run needs nobody between its steps, and a graph of many of them can be replayed.

    begin   = max(time of launch, end of the step before)          nanoseconds, integers
    seconds = max(1, (c0 + c1 max(0, tokens - free) + c2 sequences + c3 keys) // 10^6)
              c0 and c1 of the graph that the step was launched in
    clock   = max(clock, begin + seconds); the next arrival's time if nothing is left to do

One program, a lane a slot. Times are int64 and no float decides, so every machine computes the
same; `NOW_MS` goes through float64 as the host's does. When all requests have ended a step does
nothing, and nothing is logged.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    EVICT_LIMIT,
    STEP,
    TOKEN_LIMIT,
)
from paged.kernels.control.drive_feed import feed, guess
from paged.kernels.control.drive_hear import hear, look
from paged.kernels.control.drive_state import (
    CAPACITY,
    COST_WORDS,
    ENDED,
    FLIGHT_WORDS,
    FREE_PAGES,
    LAUNCHED,
    LEDGER_ROWS,
    LOG_WORDS,
    NUM_REQUESTS,
    OUTCOME_WORDS,
    PROMPT_TOKENS,
    SENT,
    UNBOUND,
    WANTED_PAGES,
    WRITTEN,
    Drive,
)
from paged.kernels.control.ingest import Commands
from paged.kernels.control.update import Events
from paged.kernels.launch import check_tensor, pdl


@triton.jit(do_not_specialize=["low_water", "room"])
def _drive_kernel(
    columns, counters, headers, words, events, arrivals, lengths, script, outcomes, state,
    flights, ledger, log, cost, capacities,
    low_water, room,
    R: tl.constexpr, S: tl.constexpr, PAGE_SIZE: tl.constexpr, NUM_POOL_PAGES: tl.constexpr,
    RESERVES: tl.constexpr, IN_FLIGHT: tl.constexpr, DEPTH: tl.constexpr,
    EVENT_WORDS: tl.constexpr, MAX_COMMANDS: tl.constexpr, COMMAND_WORDS: tl.constexpr,
    LOG_WORDS: tl.constexpr, LOG_STEPS: tl.constexpr, NUM_CAPACITIES: tl.constexpr,
    WIDTH: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    step, ended = tl.load(counters + STEP), tl.load(state + ENDED)
    entry = step % DEPTH
    if ended == tl.load(state + NUM_REQUESTS):
        tl.store(headers + entry * 2, tl.zeros((), tl.int64))
        return
    if step > 0:
        row = log + (step - 1) % LOG_STEPS * LOG_WORDS
        look(columns, counters, row, R, S, PAGE_SIZE, NUM_POOL_PAGES, RESERVES, LANES)
        tl.debug_barrier()
    heard = step - IN_FLIGHT
    if heard >= 0:
        hear(
            events + heard % DEPTH * EVENT_WORDS, state, flights + heard % DEPTH * FLIGHT_WORDS,
            ledger, outcomes, log + heard % LOG_STEPS * LOG_WORDS, cost, capacities,
            R, NUM_CAPACITIES, LANES,
        )  # fmt: skip
        tl.debug_barrier()
    now = feed(
        state, arrivals, lengths, script, ledger, headers + entry * 2,
        words + entry * MAX_COMMANDS * COMMAND_WORDS, room, R, MAX_COMMANDS, COMMAND_WORDS, WIDTH,
    )  # fmt: skip
    tl.debug_barrier()
    sent = tl.load(state + WRITTEN)
    free_pages, wanted_pages = tl.load(state + FREE_PAGES), tl.load(state + WANTED_PAGES)
    underway = tl.zeros((), tl.int64)
    for back in tl.static_range(1, IN_FLIGHT):
        before = flights + (step - back + DEPTH) % DEPTH * FLIGHT_WORDS
        underway += tl.load(before + PROMPT_TOKENS, mask=step >= back, other=0)
    capacity, prompts = guess(
        state, ledger, underway, capacities, R, S, NUM_CAPACITIES, LANES, CHUNK
    )
    flight = flights + entry * FLIGHT_WORDS
    tl.store(flight + LAUNCHED, now)
    tl.store(flight + CAPACITY, capacity)
    tl.store(flight + PROMPT_TOKENS, prompts)
    tl.store(flight + SENT, sent)
    tl.store(counters + TOKEN_LIMIT, capacity)
    short = (free_pages < low_water) | (wanted_pages > 0)
    tl.store(counters + EVICT_LIMIT, tl.where(short, UNBOUND, 0).to(tl.int64))


def drive(
    requests, pool, plan, commands: Commands, events: Events, run: Drive, *, in_flight: int,
    low_water: int, room: int, reserves: bool,
) -> None:  # fmt: skip
    """Do the host's part of the device's current step.

    Args:
        in_flight: steps launched before the first is heard of.
        low_water: pages to keep free by eviction.
        room: prompt tokens on their way to the device at most.
        reserves: the allocator reserves ahead, so that what is free can be external waste.

    Raises ValueError if the rings are not for so many steps in flight, or the log is no ring.
    """
    sizes = requests.sizes
    depth, max_commands, width = commands.words.shape
    if not 1 <= in_flight < depth:
        raise ValueError(f"in_flight must be from 1 to {depth - 1} steps, got {in_flight}")
    steps = run.log.shape[0]
    if steps & (steps - 1) or steps <= in_flight:
        raise ValueError(f"the log must hold a power of two of steps, over in_flight, got {steps}")
    check_tensor("outcomes", run.outcomes, (len(run.arrivals), OUTCOME_WORDS.value), torch.int64)
    check_tensor("script", run.script, (len(run.arrivals), width), torch.int64)
    check_tensor("cost", run.cost, (len(run.capacities), COST_WORDS.value), torch.int64)
    check_tensor("ledger", run.ledger, (LEDGER_ROWS, sizes.num_slots), torch.int32)
    lanes = triton.next_power_of_2(sizes.num_slots)
    _drive_kernel[(1,)](
        requests.columns, pool.counters, commands.headers, commands.words,
        events.words, run.arrivals, run.lengths, run.script, run.outcomes, run.state, run.flights,
        run.ledger, run.log, run.cost, run.capacities, low_water, room,
        R=sizes.num_slots, S=sizes.max_num_seqs, PAGE_SIZE=sizes.page_size,
        NUM_POOL_PAGES=sizes.num_pages, RESERVES=reserves, IN_FLIGHT=in_flight, DEPTH=depth,
        EVENT_WORDS=events.words.shape[1], MAX_COMMANDS=max_commands, COMMAND_WORDS=width,
        LOG_WORDS=LOG_WORDS, LOG_STEPS=steps, NUM_CAPACITIES=len(run.capacities),
        WIDTH=triton.next_power_of_2(width), LANES=lanes, CHUNK=min(32, lanes),
        num_warps=8 if lanes > 256 else 4, **pdl(),
    )  # fmt: skip
