"""Paged KV memory (Kwon et al., SOSP 2023) with a prefix cache of full pages."""

from collections.abc import Callable

import numpy as np
import torch

from paged.interfaces import Attention, Compression, KVManager, Model
from paged.kernels.control.columns import (
    HEAD,
    MAX_LEN,
    NUM_CACHED,
    NUM_COMPUTED,
    NUM_DROPPED,
    NUM_PAGES,
    STATUS,
    TAIL,
)
from paged.kernels.control.compress import Drops, compress_rows, drop_pages
from paged.kernels.control.lookup import lookup
from paged.kernels.control.prepare import prepare
from paged.kernels.control.publish import publish
from paged.kernels.control.release import release
from paged.kernels.control.update import Events
from paged.state import RUNNING, WAITING, PagePool, RequestTable, StepPlan, check_page_size
from paged.testing.invariants import check_state

HEAD_TAIL_CACHED = [HEAD.value, TAIL.value, NUM_CACHED.value]
ROWS_OF_MEMORY = [NUM_COMPUTED.value, NUM_PAGES.value, MAX_LEN.value, NUM_DROPPED.value]


class PagedKV(KVManager):
    """Pages taken as tokens need them, shared by equal prefixes.

    Args:
        page_size: tokens of a page, a power of two from 16 up.
        num_pages: pages of the pool; None takes `memory_fraction` of the GPU's free memory, or
            enough for a few full-length sequences on a CPU.
        memory_fraction: share of the free GPU memory given to the pool.
        prefix_caching: publish full pages and reuse them.
        reserve_len: Triton function `(prompt_len, total_len, max_len) -> tokens` that a row holds
            pages for; None holds them for computed tokens only.
        low_water: share of the pages kept free by evicting cached ones ahead of need.
        num_host_pages: pages of pinned host memory that preempted requests are swapped out to, with
            `scheduler.preemption=swap`.
        compression: drops pages of running requests; None keeps them all.
    """

    pool: PagePool

    def __init__(
        self,
        *,
        page_size: int = 16,
        num_pages: int | None = None,
        memory_fraction: float = 0.9,
        prefix_caching: bool = True,
        reserve_len: Callable | None = None,
        low_water: float = 0.05,
        num_host_pages: int | None = None,
        compression: Compression | None = None,
    ) -> None:
        for name, value in (("memory_fraction", memory_fraction), ("low_water", low_water)):
            if not 0 <= value <= 1:
                raise ValueError(f"kv.{name} must be in [0, 1], got {value}")
        check_page_size(page_size)
        for name, count in (("num_pages", num_pages), ("num_host_pages", num_host_pages)):
            if count is not None and count < 1:
                raise ValueError(f"kv.{name} must be positive, got {count}")
        if compression is not None:
            compression.budget(page_size)  # raises
            if reserve_len is not None:
                raise ValueError(
                    "kv.compression gives pages back, so it needs an allocator that holds pages "
                    "for computed tokens only; use kv=paged"
                )
            self.capturable = compression.capturable
        self.page_size = page_size
        self.num_pages = num_pages
        self.memory_fraction = memory_fraction
        self.prefix_caching = prefix_caching
        self.reserve_len = reserve_len
        self.low_water = low_water
        self.num_host_pages = num_host_pages
        self.compression = compression

    def allocate(self, requests: RequestTable, device: torch.device) -> PagePool:
        self.pool = PagePool(requests.sizes, device)
        if self.compression is not None:
            requests.page_budget = self.compression.budget(self.page_size)
            self.drops = Drops(requests.sizes, device)
        return self.pool

    def lookup(self, requests: RequestTable) -> None:
        lookup(requests, self.pool)  # without a prefix cache it finds parents' pages only

    def reserve(self, requests: RequestTable, plan: StepPlan) -> None:
        prepare(requests, self.pool, plan)

    def commit(self, requests: RequestTable, plan: StepPlan) -> None:
        if self.prefix_caching:
            publish(requests, self.pool, plan)

    def observe(self, attention: Attention, requests: RequestTable, plan: StepPlan) -> Attention:
        if self.compression is None:
            return attention
        return self.compression.observe(attention, requests, plan, self.drops)

    def compress(self, requests: RequestTable, model: Model) -> None:
        if self.compression is not None:
            compress_rows(requests, self.drops)
            self.compression.scores(requests, self.drops, model)
            drop_pages(requests, self.pool, self.drops)

    def release(self, requests: RequestTable, plan: StepPlan, events: Events) -> None:
        release(requests, self.pool, plan, events)

    def memory_split(
        self,
        requests: RequestTable,
        counters: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
    ) -> dict[str, int]:
        """Slots of KV memory by use, as in Fig. 2 of Kwon et al., SOSP 2023; reads the device.

        Of what running requests hold beyond their computed tokens, those up to their end are
        reserved, and the rest is internal waste. An allocator that reserves ahead wastes what is
        free while a request with an open seat waits for its stretch: external waste. Shared pages
        count once.
        """
        size, sizes = self.pool.sizes.page_size, requests.sizes
        columns = requests.columns.cpu().numpy()  # of the simulator's table no copy
        status = columns[STATUS.value]
        running = (status == RUNNING).nonzero()[0]
        computed, held, longest, dropped = columns[ROWS_OF_MEMORY].take(running, axis=1)
        if ends is not None:
            longest = ends.numpy()[running]
        unused = (held + dropped) * size - computed
        reserved = int(np.minimum(unused, np.maximum(longest - computed, 0)).sum())
        beyond = int(unused.sum())
        counters = self.pool.counters if counters is None else counters
        head, tail, cached = counters.cpu().numpy()[HEAD_TAIL_CACHED].tolist()
        free, external = (tail - head) * size, 0
        taken = (sizes.num_pages - cached) * size - free
        has_seat = len(running) < sizes.max_num_seqs
        if self.reserve_len is not None and has_seat and (status == WAITING).any():
            free, external = 0, free
        return {
            "token_states": taken - beyond,
            "reserved": reserved,
            "internal_waste": beyond - reserved,
            "external_waste": external,
            "cached": cached * size,
            "free": free,
        }

    def check(self, requests: RequestTable) -> None:
        check_state(requests, self.pool)
