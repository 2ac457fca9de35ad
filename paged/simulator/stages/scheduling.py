"""order and schedule over numpy: see `paged.kernels.control.order` and `.schedule`.

The formulas are the kernels', over the active rows only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from paged.kernels.control.columns import COLUMN_NAMES
from paged.kernels.control.swap import resumes_ref
from paged.simulator.stages.views import (
    AT_CACHED,
    AT_HEAD,
    AT_SHORTFALL,
    AT_TAIL,
    AT_TICKET,
    AT_TOKENS,
    IS_PREEMPTED,
    IS_RUNNING,
    IS_WAITING,
)
from paged.state import Sizes

NEEDED = (
    "status", "num_computed_tokens", "total_len", "num_pages", "cached_len", "idle_hits",
    "prompt_len", "max_len", "num_forks", "parent", "num_swapped", "num_unsaved", "admitted",
)  # fmt: skip
AT = np.array([COLUMN_NAMES.index(name) for name in NEEDED])


class OrderOfRows:
    """Service order, which is sorted again only when something that it depends on has changed."""

    def __init__(self, requests: Any, plan: Any) -> None:
        self.requests, self.plan = requests, plan
        self._sorted: tuple[bytes, ...] = ()  # what the order was made of
        self._order, self._num_active = plan.order, 0

    def write(self, keys: np.ndarray | None, preemptive: bool) -> None:
        """Write `plan.order` and `plan.num_active` by `keys` [R] int32, None: those in
        `plan.key`."""
        requests, plan = self.requests, self.plan
        waiting = requests.status == IS_WAITING
        active = waiting | (requests.status == IS_RUNNING)
        if keys is not None:
            np.multiply(keys, active, out=plan.key)
        behind = waiting & (not preemptive)  # the others
        made_of = (active, behind, plan.key, requests.arrival)
        contents = tuple(array.tobytes() for array in made_of)
        if contents != self._sorted:
            self._sorted = contents
            self._order, self._num_active = _sorted_rows(*made_of)
        plan.order[:] = self._order
        plan.num_active[0] = self._num_active


def _sorted_rows(
    active: np.ndarray, behind: np.ndarray, keys: np.ndarray, arrival: np.ndarray
) -> tuple[np.ndarray, int]:
    """All rows [R], the active ones first and in order, and how many those are."""
    rows = active.nonzero()[0]
    key = keys[rows].astype(np.int64)
    key += behind[rows].astype(np.int64) << 32
    first = rows[np.lexsort((arrival[rows], key))]
    return np.concatenate((first, (~active).nonzero()[0])), len(first)


def schedule_rows(
    requests: Any,
    pool: Any,
    plan: Any,
    sizes: Sizes,
    *,
    budget: int,
    chunk: int,
    watermark: int = 0,
    reserve: Callable | None,
    static_batch: bool = False,
) -> None:
    """What `paged.kernels.control.schedule.schedule` does; `reserve` works on arrays.

    Sums over lanes are skipped where their total says that nothing can run short.
    """
    page_size, counters = sizes.page_size, pool.counters
    budget = min(budget, int(counters[AT_TOKENS]))
    slot = plan.order[: int(plan.num_active[0])].astype(np.int64)
    row = dict(zip(NEEDED, requests.columns[AT].take(slot, axis=1)))
    running = row["status"] == IS_RUNNING
    num_running = int(np.count_nonzero(running))
    waiting = None if num_running == len(slot) else ~running
    total, held = row["total_len"], row["num_pages"]
    head = int(counters[AT_HEAD])
    free = int(counters[AT_TAIL]) - head

    start, length = row["num_computed_tokens"], total
    if waiting is not None:
        start = np.where(running, start, row["cached_len"])
        if row["num_swapped"].any():
            swapped, cached = row["num_swapped"], row["cached_len"]
            resumed = waiting & resumes_ref(swapped, row["num_unsaved"], cached, page_size)
            start = np.where(resumed, swapped, start)
    want = total - start
    if row["num_forks"].any():
        want -= (row["num_forks"] > 0) & (total == row["prompt_len"]) & (want > 1)
    np.minimum(want, chunk, out=want)
    length = start + want
    hold = held  # pages it has, or the hits it will take
    if waiting is not None:
        length = np.where(running, length, total)
        held = np.where(running, held, 0)
        hold = np.where(running, held, row["cached_len"] // page_size)
    room = None
    if reserve is not None:
        room = reserve(row["prompt_len"], total, row["max_len"])
        room = np.minimum(room, sizes.max_model_len)
        length = np.maximum(length, room)
    demand = np.maximum((length + (page_size - 1)) // page_size - hold, 0)
    if waiting is not None:
        demand += np.where(waiting, row["idle_hits"], 0)

    avail = free + int(counters[AT_CACHED])
    victim = None
    if waiting is not None or len(slot) > sizes.max_num_seqs or int(demand.sum()) > avail:
        fits = _fits(row, demand, held, running, avail, watermark, static_batch, sizes)
        num_kept = len(slot) if fits.all() else int(fits.argmin())
        if static_batch and num_running == 0:
            requests.admitted[slot[:num_kept]] = 1  # the batch, however many steps it takes to join
        if num_kept < len(slot):
            victim = _victims(num_kept, demand, held, running, avail, sizes.max_num_seqs)
            want[num_kept:] *= running[num_kept:] & ~victim[num_kept:]
    ahead = want.cumsum()
    grant = want
    if len(slot) and ahead[-1] > budget:
        grant = np.minimum(np.maximum(budget - (ahead - want), 0), want)
    computed = start + grant
    booked = computed if room is None else np.maximum(computed, room)
    pages = np.maximum((booked + (page_size - 1)) // page_size - hold, 0)
    pages *= grant > 0
    wanted = int(pages.sum())
    run = grant > 0
    if wanted > free:
        run &= (pages == 0) | (pages.cumsum() <= free)
    counters[AT_SHORTFALL] = max(wanted - free, 0)

    victims = slot[victim] if victim is not None else slot[:0]
    joins = waiting if waiting is not None else np.zeros(len(slot), bool)
    lanes = np.array((slot, start, grant, pages, hold, total, joins))
    if not run.all():
        lanes = lanes[:, run]
    plan.ring_base[0] = head
    counters[AT_HEAD] = head + int(lanes[3].sum())
    plan.counts[4] = len(victims)
    _write_plan(requests, counters, plan, lanes, page_size)
    requests.status[victims] = IS_PREEMPTED


def _fits(
    row: dict[str, np.ndarray],
    demand: np.ndarray,
    held: np.ndarray,
    running: np.ndarray,
    avail: int,
    watermark: int,
    static_batch: bool,
    sizes: Sizes,
) -> np.ndarray:
    """Lanes for which, with all in front of them, there are pages and seats."""
    held_behind = held.sum() - held.cumsum()
    fits = demand.cumsum() + np.where(running, 0, watermark) <= avail + held_behind
    fits[sizes.max_num_seqs :] = False
    any_running = bool(running.any())
    if static_batch and any_running:
        fits &= running | (row["parent"] > 0) | (row["admitted"] > 0)
    if len(fits) and (running[0] or not any_running):
        fits[0] = True
    return fits


def _victims(
    num_kept: int,
    demand: np.ndarray,
    held: np.ndarray,
    running: np.ndarray,
    avail: int,
    seats: int,
) -> np.ndarray:
    """The smallest suffix of running lanes, not kept, that the kept ones need gone."""
    victim = running.copy()
    victim[:num_kept] = False
    if victim.any():
        needed = int(demand[:num_kept].sum())
        num_running = int(np.count_nonzero(running))
        crowd = num_running + int(np.count_nonzero(~running[:num_kept])) - seats
        held_behind = held.sum() - held.cumsum()
        running_behind = num_running - running.cumsum()
        victim &= (avail + held_behind < needed) | (running_behind < crowd)
    return victim


def _write_plan(
    requests: Any, counters: np.ndarray, plan: Any, lanes: np.ndarray, page_size: int
) -> None:
    """`lanes` [7, sequences] run: slot, tokens computed, grant, pages, pages held, length, and
    whether it joins."""
    slot, start, grant, pages, hold, total, joins = lanes
    num_seqs = len(slot)
    ends = grant.cumsum()
    num_tokens = int(ends[-1]) if num_seqs else 0
    computed = start + grant
    samples = (computed == total).nonzero()[0]
    num_samples = len(samples)
    sampled = slot[samples]
    plan.grant.fill(0)
    plan.grant[slot] = grant
    plan.slot_sample.fill(-1)
    plan.slot_sample[sampled] = np.arange(num_samples)
    plan.admitted.fill(0)
    plan.seq_slots[:num_seqs] = slot
    plan.seq_start[:num_seqs] = start
    plan.seq_held[:num_seqs] = hold
    plan.seq_hits[:num_seqs] = 0
    plan.seq_pages[:num_seqs] = pages
    plan.seq_ring[:num_seqs] = pages.cumsum() - pages
    plan.seq_copy[:num_seqs] = -1
    plan.cu_seqlens_q[:num_seqs] = ends - grant
    plan.cu_seqlens_q[num_seqs:] = num_tokens
    plan.seq_lens[:num_seqs] = computed
    plan.seq_lens[num_seqs:] = 0
    plan.sample_slots[:num_samples] = sampled
    plan.logits_indices[:num_samples] = ends[samples] - 1
    requests.num_pages[slot] = hold + pages

    seqs = joins.nonzero()[0]
    num_admitted = num_copies = 0
    if len(seqs):
        joined, num_admitted = slot[seqs], len(seqs)
        plan.admitted[joined] = 1
        plan.seq_hits[seqs] = hold[seqs]
        copies = seqs[requests.cached_len[joined] % page_size > 0]
        num_copies = len(copies)
        plan.seq_copy[copies] = np.arange(num_copies)
        requests.status[joined] = IS_RUNNING
        requests.admitted[joined] = int(counters[AT_TICKET]) + 1 + np.arange(num_admitted)
        requests.num_computed_tokens[joined] = start[seqs]
        counters[AT_TICKET] += num_admitted
    plan.counts[:3] = num_tokens, num_seqs, num_samples
    plan.counts[5], plan.counts[8] = num_admitted, num_copies
