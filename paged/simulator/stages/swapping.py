"""swap over numpy: see `paged.kernels.control.swap`."""

from typing import Any

import numpy as np

from paged.kernels.control.swap import resumes_ref
from paged.simulator.stages.views import IS_FINISHED, IS_PREEMPTED


def swap_rows(requests: Any, pool: Any, plan: Any, swaps: Any, page_size: int) -> None:
    """List what this step copies, and keep the books of the host pages."""
    returning = requests.num_swapped > 0
    returning &= (plan.admitted > 0) | (requests.status == IS_FINISHED)
    _swap_out(requests, pool, plan, swaps, page_size)
    _swap_in(requests, plan, swaps, page_size, returning.nonzero()[0])


def _swap_out(requests: Any, pool: Any, plan: Any, swaps: Any, page_size: int) -> None:
    ring, (head, tail) = len(swaps.free_ring), swaps.counters.tolist()
    out = tokens = 0
    leaving = (requests.status == IS_PREEMPTED).nonzero()[0]
    swaps.slots[: len(leaving)] = leaving
    for slot in leaving.tolist():
        computed = int(requests.num_computed_tokens[slot])
        page = requests.block_table[slot, : -(-computed // page_size)]
        private = (pool.ref_count[page] == 1).nonzero()[0]
        unsaved = int(private[0]) if len(private) else len(page)
        count = len(page) - unsaved
        saves = 0 < count <= tail - head
        requests.num_swapped[slot] = computed if saves else 0
        requests.num_unsaved[slot] = unsaved
        if saves:
            host = swaps.free_ring[(head + np.arange(count)) % ring]
            swaps.host_table[slot, unsaved : len(page)] = host
            swaps.out_source[out : out + count] = page[unsaved:]
            swaps.out_target[out : out + count] = host
            head, out = head + count, out + count
            tokens += computed - unsaved * page_size
    swaps.counters[0] = head
    swaps.num_out[0], plan.counts[12] = out, tokens


def _swap_in(requests: Any, plan: Any, swaps: Any, page_size: int, returning: np.ndarray) -> None:
    ring, tail = len(swaps.free_ring), int(swaps.counters[1])
    back = tokens = 0
    swaps.slots[: len(returning)] = returning
    for slot in returning.tolist():
        saved, unsaved = int(requests.num_swapped[slot]), int(requests.num_unsaved[slot])
        cached, end = int(requests.cached_len[slot]), -(-saved // page_size)
        host = swaps.host_table[slot, :end]
        swaps.free_ring[(tail + np.arange(end - unsaved)) % ring] = host[unsaved:]
        tail += end - unsaved
        requests.num_swapped[slot] = 0
        if plan.admitted[slot] and resumes_ref(saved, unsaved, cached, page_size):
            begin = cached // page_size
            swaps.in_source[back : back + end - begin] = host[begin:]
            swaps.in_target[back : back + end - begin] = requests.block_table[slot, begin:end]
            back += end - begin
            tokens += saved - cached
            requests.cached_len[slot] = saved
    swaps.counters[1] = tail
    swaps.num_in[0], plan.counts[13] = back, tokens
