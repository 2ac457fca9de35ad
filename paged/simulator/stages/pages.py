"""prepare, release and evict over numpy: see the kernels of these names in
`paged.kernels.control`."""

from typing import Any

import numpy as np

from paged.simulator.stages.views import (
    AT_CACHED,
    AT_EVICTIONS,
    AT_HEAD,
    AT_SHORTFALL,
    AT_STEP,
    AT_TAIL,
    IS_FREE,
    IS_PREEMPTED,
    IS_WAITING,
    ranges,
)

ORPHAN_SCORE = -(1 << 31)  # the least
DEEPEST = 65535


def book_pages(requests: Any, pool: Any, plan: Any, num_seqs: int) -> np.ndarray:
    """Write the booked pages into block tables and take the prefix hits; returns the pages that
    somebody holds now and nobody held before."""
    counts = plan.seq_pages[:num_seqs]
    seqs = counts.nonzero()[0]
    if len(seqs):
        owner, index = ranges(counts[seqs])
        base = int(plan.ring_base[0])
        page = pool.free_ring[(base + np.arange(len(owner))) % len(pool.free_ring)]
        seqs = seqs[owner]
        requests.block_table[plan.seq_slots[seqs], plan.seq_held[seqs] + index] = page
        pool.ref_count[page] = 1
    for seq in (plan.seq_copy[:num_seqs] >= 0).nonzero()[0].tolist():
        slot, at = plan.seq_slots[seq], plan.seq_copy[seq]
        num_hits = plan.seq_hits[seq]
        plan.copy_source[at] = requests.block_table[requests.parent[slot] - 1, num_hits]
        plan.copy_target[at] = requests.block_table[slot, num_hits]
    woken = [
        _take_hits(requests, pool, int(plan.seq_slots[seq]), int(plan.seq_hits[seq]))
        for seq in (plan.seq_hits[:num_seqs]).nonzero()[0].tolist()
    ]
    return np.concatenate(woken) if woken else np.empty(0, np.int32)


def _take_hits(requests: Any, pool: Any, slot: int, count: int) -> np.ndarray:
    """An admitted row holds the `count` pages of its prefix; returns those nobody held."""
    page = requests.block_table[slot, :count]
    idle = page[pool.ref_count[page] == 0]
    pool.ref_count[page] += 1
    pool.hits[page] += 1
    pool.last_used[page] = pool.counters[AT_STEP]
    pool.counters[AT_CACHED] -= len(idle)
    requests.canonical[slot, :count] = page
    serial = pool.serial[page]
    above = np.concatenate(([0], serial[:-1]))
    broken = ((serial == 0) | (pool.parent_serial[page] != above)).nonzero()[0]
    published = int(broken[0]) if len(broken) else count
    requests.num_published[slot] = published
    if published:
        requests.chain_serial[slot] = serial[published - 1]
    return idle


def lay_out_inputs(requests: Any, plan: Any, num_seqs: int, page_size: int) -> None:
    """The batch's block table and the model's inputs, which a simulation does without."""
    slots = plan.seq_slots[:num_seqs]
    seq, index = ranges(plan.seq_held[:num_seqs] + plan.seq_pages[:num_seqs])
    plan.block_table[seq, index] = requests.block_table[slots[seq], index]
    seq, index = ranges(np.diff(plan.cu_seqlens_q[: num_seqs + 1]))
    slot, position = slots[seq], plan.seq_start[seq] + index
    page = requests.block_table[slot, position // page_size].astype(np.int64)
    tokens = len(seq)
    plan.input_ids[:tokens] = requests.token_ids[slot, position]
    plan.positions[:tokens] = position
    plan.slot_mapping[:tokens] = page * page_size + position % page_size


def release_rows(requests: Any, pool: Any, plan: Any, leaving: np.ndarray) -> np.ndarray:
    """Take back the pages of the rows `leaving`, by slot; returns those that became cached."""
    counters, ring = pool.counters, len(pool.free_ring)
    step, tail = counters[AT_STEP], int(counters[AT_TAIL])
    plan.release_slots[: len(leaving)] = leaving
    rested = [np.empty(0, np.int32)]
    for slot in leaving.tolist():
        page = requests.block_table[slot, : requests.num_pages[slot]]
        holders = pool.ref_count[page] - 1
        pool.ref_count[page] = holders
        left = page[holders == 0]
        published = pool.serial[left] > 0
        cached, freed = left[published], left[~published]
        pool.last_used[cached] = step
        pool.free_ring[(tail + np.arange(len(freed))) % ring] = freed
        tail += len(freed)
        rested.append(cached)
    cached = np.concatenate(rested)
    counters[AT_TAIL] = tail
    counters[AT_CACHED] += len(cached)
    preempted = leaving[requests.status[leaving] == IS_PREEMPTED]
    requests.num_pages[leaving] = 0
    requests.status[leaving] = IS_FREE
    if len(preempted):
        requests.status[preempted] = IS_WAITING
        requests.num_preemptions[preempted] += 1
        requests.num_computed_tokens[preempted] = 0
        requests.num_published[preempted] = 0
    return cached


def num_to_evict(pool: Any, low_water: int) -> int:
    """Cached pages that an eviction returns to the free ring."""
    counters = pool.counters
    free = counters[AT_TAIL] - counters[AT_HEAD]
    wanted = max(low_water - free, counters[AT_SHORTFALL], 0)
    return int(min(wanted, counters[AT_CACHED], counters[AT_EVICTIONS]))


def evict_pages(pool: Any, low_water: int) -> np.ndarray:
    """Return the pages with the smallest scores to the free ring; returns them, ascending."""
    counters, total = pool.counters, num_to_evict(pool, low_water)
    counters[AT_SHORTFALL] = 0
    if total == 0:
        return np.empty(0, np.int64)
    cached = ((pool.ref_count == 0) & (pool.serial > 0)).nonzero()[0]
    parent = pool.parent[cached]
    above = pool.serial[parent]
    above[parent < 0] = 0
    score = pool.score[cached]
    score[above != pool.parent_serial[cached]] = ORPHAN_SCORE
    # Those that the score alone lets go, with all its ties; few, so that their depths are.
    worst = score <= np.partition(score, total - 1)[total - 1]
    cached, score = cached[worst], score[worst].astype(np.int64)
    key = (score << 16) | (DEEPEST - np.minimum(pool.depth[cached], DEEPEST))
    page = np.sort(cached[np.argsort(key, kind="stable")[:total]])
    tail = int(counters[AT_TAIL])
    pool.free_ring[(tail + np.arange(total)) % len(pool.free_ring)] = page
    entry = pool.entry[page]
    pool.table_page[entry] = -1
    pool.table_hash[entry] = 0
    pool.entry[page] = -1
    pool.serial[page] = 0
    counters[AT_TAIL] += total
    counters[AT_CACHED] -= total
    return page
