"""Waiting prompts before decodes, as vLLM 0.2 did: answers begin early and then stall.

Prompts that fit the available pages and the open seats go first, the rest wait behind everybody, so
that no request is preempted to admit one. It counts the pages of prompts: with an allocator that
reserves more, requests can be.
"""

import torch

from paged.kernels.control.columns import HEAD, NUM_CACHED, TAIL
from paged.schedulers.base import RankScheduler
from paged.state import RUNNING, WAITING, PagePool, RequestTable


class PrefillFirst(RankScheduler):
    """Takes the knobs of `RankScheduler` by name."""

    def __init__(self, **knobs) -> None:
        super().__init__(self.keys, **knobs | {"preemptive": True})

    def keys(self, requests: RequestTable, pool: PagePool) -> torch.Tensor:
        size, counters = requests.sizes.page_size, pool.counters
        waiting, running = requests.status == WAITING, requests.status == RUNNING
        pages = (requests.total_len - 1) // size + 1 - requests.cached_len // size
        pages = torch.where(waiting, pages + requests.idle_hits, 0)
        by_arrival = torch.argsort(requests.arrival, stable=True)
        turn = torch.argsort(by_arrival)
        wanted, seat = (torch.cumsum(x[by_arrival], 0)[turn] for x in (pages, waiting.int()))
        available = counters[TAIL.value] - counters[HEAD.value] + counters[NUM_CACHED.value]
        available = available - int(self.watermark * pool.sizes.num_pages)
        fits = (wanted <= available) & (seat <= requests.sizes.max_num_seqs - running.sum())
        computing = running & (requests.num_computed_tokens < requests.prompt_len)
        group = torch.where(computing | (waiting & fits), 0, torch.where(running, 1, 2))
        return (group * requests.sizes.num_slots + turn).to(torch.int32)
