"""schedule_ref: the reference of `schedule`, a row at a time in plain Python."""

from collections import Counter
from dataclasses import dataclass

import triton

from paged.kernels.control.columns import (
    HEAD,
    NUM_CACHED,
    PREEMPTED,
    RUNNING,
    SHORTFALL,
    TAIL,
    TICKET,
    TOKEN_LIMIT,
    WAITING,
)
from paged.kernels.control.swap import resumes_ref


@dataclass
class _Lane:
    """One active row in service order, for the reference."""

    slot: int
    running: bool
    start: int
    total: int
    want: int
    reserve: int
    held: int  # pages of its block table and dropped ones, or prefix hits to take
    dropped: int  # pages that compression has taken out of its block table
    demand: int
    joins: bool  # also a static batch that runs: it shares another's prompt, or was chosen
    hits: int = 0  # tokens of its cached prefix, of a waiting row
    group: int = -1  # of beams: the ticket of the first
    draws: bool = False  # a beam whose group draws now, together or not at all

    def pages(self, num_tokens: int, page_size: int) -> int:
        """Pages to add so that `num_tokens` and the reserve have room."""
        return max(triton.cdiv(max(num_tokens, self.reserve), page_size) - self.held, 0)


def _lanes(requests, plan, chunk: int, reserve) -> list[_Lane]:
    size = requests.sizes.page_size
    lanes = []
    ready = _groups_at_their_end(requests, plan) if plan.beams else set()
    for slot in plan.order.tolist():
        status = int(requests.status[slot])
        if status not in (RUNNING.value, WAITING.value):
            continue
        running = status == RUNNING.value
        total, cached = int(requests.total_len[slot]), int(requests.cached_len[slot])
        start = _start(requests, slot)
        fresh = total == int(requests.prompt_len[slot]) and start < total - 1
        pauses = fresh and int(requests.num_forks[slot]) > 0
        group = int(requests.parent_arrival[slot])
        beam = plan.beams and int(requests.beam_width[slot]) > 0
        if beam:
            pauses = group not in ready
        held_back = int(requests.mask_len[slot]) not in (0, total)
        room = 0
        if reserve is not None:
            room = int(reserve(int(requests.prompt_len[slot]), total, int(requests.max_len[slot])))
        want = 0 if held_back else min(total - start - pauses, chunk)
        budget, dropped = requests.page_budget, int(requests.num_dropped[slot]) if running else 0
        if budget is not None:
            prompt_len = int(requests.prompt_len[slot])
            stop = prompt_len if start < prompt_len else (start // size + 1) * size
            want = min(want, stop - start)
        lane = _Lane(
            slot=slot,
            running=running,
            start=start,
            total=total,
            want=want,
            reserve=min(room, requests.sizes.max_model_len),
            held=int(requests.num_pages[slot]) + dropped if running else cached // size,
            dropped=dropped,
            demand=0,
            joins=int(requests.parent[slot]) > 0 or int(requests.admitted[slot]) > 0,
            hits=cached,
            group=group if beam else -1,
            draws=beam and group in ready,
        )
        if running:
            lane.demand = lane.pages(start + lane.want, size)
        elif budget is not None:
            peak = budget.peak(prompt_len, total, size)
            lane.demand = max(peak - lane.held, 0) + int(requests.idle_hits[slot])
        else:
            lane.demand = lane.pages(total, size) + int(requests.idle_hits[slot])
        lanes.append(lane)
    return lanes


def _start(requests, slot: int) -> int:
    """Tokens that the row need not compute."""
    if int(requests.status[slot]) == RUNNING.value:
        return int(requests.num_computed_tokens[slot])
    cached, swapped = int(requests.cached_len[slot]), int(requests.num_swapped[slot])
    unsaved = int(requests.num_unsaved[slot])
    return swapped if resumes_ref(swapped, unsaved, cached, requests.sizes.page_size) else cached


def _groups_at_their_end(requests, plan) -> set[int]:
    """The tickets of groups of beams that have all but their last token computed, every one."""
    came: dict[int, int] = {}
    ready = set()
    for slot in plan.order.tolist():
        status, width = int(requests.status[slot]), int(requests.beam_width[slot])
        if width == 0 or status not in (RUNNING.value, WAITING.value):
            continue
        group = int(requests.parent_arrival[slot])
        came[group] = came.get(group, 0) + (
            _start(requests, slot) == int(requests.total_len[slot]) - 1
        )
        if came[group] == width:
            ready.add(group)
    return ready


def _keep_and_preempt(lanes: list[_Lane], avail: int, seats: int, watermark: int, static: bool):
    """The lanes that may run, in order, and those that give way."""
    num_running = sum(lane.running for lane in lanes)
    demand, num_kept = 0, 0
    for lane in lanes:
        demand += lane.demand
        behind = sum(o.held - o.dropped for o in lanes[num_kept + 1 :] if o.running)
        spare = 0 if lane.running or lane.group >= 0 else watermark
        fits = demand + spare <= avail + behind and num_kept < seats
        if static and not (lane.running or lane.joins) and num_running:
            fits = False
        if num_kept == 0 and (lane.running or num_running == 0):
            fits = True
        if not fits:
            demand -= lane.demand
            break
        num_kept += 1
    joining = sum(not lane.running for lane in lanes[:num_kept])
    rest = [lane for lane in lanes[num_kept:] if lane.running]
    victims: list[_Lane] = []
    while rest and (
        avail + sum(lane.held - lane.dropped for lane in victims) < demand
        or num_running + joining - len(victims) > seats
    ):
        victims.append(rest.pop())
    return lanes[:num_kept] + rest, victims


def schedule_ref(
    requests, pool, plan, *, budget: int, chunk: int, watermark: int = 0, reserve=None,
    static_batch: bool = False,
) -> None:  # fmt: skip
    """What `schedule` does; `reserve` is a Python function here."""
    sizes, counters = requests.sizes, pool.counters
    head, tail = int(counters[HEAD.value]), int(counters[TAIL.value])
    free = tail - head
    budget = min(budget, int(counters[TOKEN_LIMIT.value]))
    avail = free + int(counters[NUM_CACHED.value])
    lanes = _lanes(requests, plan, chunk, reserve)
    eligible, victims = _keep_and_preempt(lanes, avail, sizes.max_num_seqs, watermark, static_batch)

    if static_batch and not any(lane.running for lane in lanes):
        for lane in eligible:
            requests.admitted[lane.slot] = 1

    plan.grant.zero_()
    plan.admitted.zero_()
    plan.slot_sample.fill_(-1)
    asked = booked = seq = sample = tokens = num_admitted = num_copies = 0
    line_open = True
    running_lanes: list[tuple[_Lane, int, int]] = []
    for lane in eligible:
        grant = min(lane.want, budget)
        budget -= grant
        pages = lane.pages(lane.start + grant, sizes.page_size) if grant else 0
        asked += pages
        runs = grant > 0 and (pages == 0 or asked <= free) and (lane.running or line_open)
        line_open = line_open and (lane.running or runs or lane.want == 0)
        if runs:
            running_lanes.append((lane, grant, pages))
    drawn = Counter(lane.group for lane, _, _ in running_lanes if lane.draws)
    for lane, grant, pages in running_lanes:
        slot = lane.slot
        if lane.draws and drawn[lane.group] < int(requests.beam_width[slot]):
            continue
        plan.grant[slot] = grant
        plan.seq_slots[seq], plan.seq_start[seq] = slot, lane.start
        plan.seq_held[seq] = lane.held - lane.dropped
        plan.seq_hits[seq] = 0 if lane.running else lane.held
        plan.seq_pages[seq], plan.seq_ring[seq] = pages, booked
        copies = not lane.running and lane.hits % sizes.page_size > 0
        plan.seq_copy[seq] = num_copies if copies else -1
        num_copies += copies
        gone = lane.dropped * sizes.page_size
        plan.cu_seqlens_q[seq], plan.seq_lens[seq] = tokens, lane.start + grant - gone
        seq, booked, tokens = seq + 1, booked + pages, tokens + grant
        if lane.start + grant == lane.total:
            plan.slot_sample[slot], plan.sample_slots[sample] = sample, slot
            plan.logits_indices[sample] = tokens - 1
            sample += 1
        requests.num_pages[slot] = lane.held - lane.dropped + pages
        if not lane.running:
            num_admitted += 1
            requests.status[slot] = RUNNING.value
            requests.num_computed_tokens[slot] = lane.start
            requests.admitted[slot] = counters[TICKET.value] + num_admitted
            plan.admitted[slot] = 1
    for lane in victims:
        requests.status[lane.slot] = PREEMPTED.value
    plan.cu_seqlens_q[seq:] = tokens
    plan.seq_lens[seq:] = 0
    plan.ring_base.fill_(head)
    plan.counts[0], plan.counts[1], plan.counts[2] = tokens, seq, sample
    plan.counts[4], plan.counts[5], plan.counts[8] = len(victims), num_admitted, num_copies
    counters[HEAD.value] = head + booked
    counters[TICKET.value] += num_admitted
    counters[SHORTFALL.value] = max(asked - free, 0)
