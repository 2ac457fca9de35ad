"""schedule_ref: the reference of `schedule`, a row at a time in plain Python."""

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
    WAITING,
)


@dataclass
class _Lane:
    """One active row in service order, for the reference."""

    slot: int
    running: bool
    start: int
    total: int
    want: int
    reserve: int
    held: int  # live pages of its block table, or prefix hits to take
    demand: int

    def pages(self, num_tokens: int, page_size: int) -> int:
        """Pages to add so that `num_tokens` and the reserve have room."""
        return max(triton.cdiv(max(num_tokens, self.reserve), page_size) - self.held, 0)


def _lanes(requests, plan, chunk: int, reserve) -> list[_Lane]:
    size = requests.sizes.page_size
    lanes = []
    for slot in plan.order.tolist():
        status = int(requests.status[slot])
        if status not in (RUNNING.value, WAITING.value):
            continue
        running = status == RUNNING.value
        total, cached = int(requests.total_len[slot]), int(requests.cached_len[slot])
        start = int(requests.num_computed_tokens[slot]) if running else cached
        room = 0
        if reserve is not None:
            room = int(reserve(int(requests.prompt_len[slot]), total, int(requests.max_len[slot])))
        lane = _Lane(
            slot=slot,
            running=running,
            start=start,
            total=total,
            want=min(total - start, chunk),
            reserve=min(room, requests.sizes.max_model_len),
            held=int(requests.num_pages[slot]) if running else cached // size,
            demand=0,
        )
        if running:
            lane.demand = lane.pages(start + lane.want, size)
        else:
            lane.demand = lane.pages(total, size) + int(requests.idle_hits[slot])
        lanes.append(lane)
    return lanes


def _keep_and_preempt(lanes: list[_Lane], avail: int, seats: int, watermark: int, static: bool):
    """The lanes that may run, in order, and those that give way."""
    num_running = sum(lane.running for lane in lanes)
    demand, num_kept = 0, 0
    for lane in lanes:
        demand += lane.demand
        behind = sum(other.held for other in lanes[num_kept + 1 :] if other.running)
        fits = demand + (0 if lane.running else watermark) <= avail + behind and num_kept < seats
        if static and not lane.running and num_running:
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
        avail + sum(lane.held for lane in victims) < demand
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
    avail = free + int(counters[NUM_CACHED.value])
    lanes = _lanes(requests, plan, chunk, reserve)
    eligible, victims = _keep_and_preempt(lanes, avail, sizes.max_num_seqs, watermark, static_batch)

    plan.grant.zero_()
    plan.admitted.zero_()
    plan.slot_sample.fill_(-1)
    plan.counts[[0, 1, 2, 4, 5]] = 0
    asked = booked = seq = sample = tokens = num_admitted = 0
    line_open = True
    for lane in eligible:
        grant = min(lane.want, budget)
        budget -= grant
        pages = lane.pages(lane.start + grant, sizes.page_size) if grant else 0
        asked += pages
        runs = grant > 0 and (pages == 0 or asked <= free) and (lane.running or line_open)
        line_open = line_open and (lane.running or runs)
        if not runs:
            continue
        slot = lane.slot
        plan.grant[slot] = grant
        plan.seq_slots[seq], plan.seq_start[seq], plan.seq_held[seq] = slot, lane.start, lane.held
        plan.seq_hits[seq] = 0 if lane.running else lane.held
        plan.seq_pages[seq], plan.seq_ring[seq] = pages, booked
        plan.cu_seqlens_q[seq], plan.seq_lens[seq] = tokens, lane.start + grant
        seq, booked, tokens = seq + 1, booked + pages, tokens + grant
        if lane.start + grant == lane.total:
            plan.slot_sample[slot], plan.sample_slots[sample] = sample, slot
            plan.logits_indices[sample] = tokens - 1
            sample += 1
        requests.num_pages[slot] = lane.held + pages
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
    plan.counts[4], plan.counts[5] = len(victims), num_admitted
    counters[HEAD.value] = head + booked
    counters[TICKET.value] += num_admitted
    counters[SHORTFALL.value] = max(asked - free, 0)
