"""Contiguous chunks by the buddy system (Knowlton, 1965): what servers did before PagedAttention.

Orca's baselines in Kwon et al., SOSP 2023: a request gets one chunk for its prompt and its answer
when it is admitted, and holds it to its end. Chunks are blocks of 2^k pages at multiples of 2^k, so
a request waits although enough pages are free, if no block of its size is: external waste.

The engine reads memory through block tables, so which pages a request gets does not matter to it;
the buddy system decides only who can be admitted.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
import triton

from paged.kv.paged import PagedKV
from paged.state import RUNNING, WAITING, PagePool, RequestTable, StepPlan, next_power_of_2


@triton.jit
def round_up(length):
    """The next power of two; int32 lanes from 1 up."""
    bits = length - 1
    bits = bits | (bits >> 1)
    bits = bits | (bits >> 2)
    bits = bits | (bits >> 4)
    bits = bits | (bits >> 8)
    return (bits | (bits >> 16)) + 1


class Blocks:
    """Free blocks of `num_pages` pages, by size; the lowest that fits is taken first."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        size = next_power_of_2(num_pages)  # what lies behind num_pages is never given away
        self.free: dict[int, set[int]] = {1 << order: set() for order in range(size.bit_length())}
        self.free[size].add(0)

    def take(self, pages: int) -> tuple[int, int] | None:
        """(begin, size) of the smallest block for so many pages; None if there is none."""
        wanted = size = next_power_of_2(pages)
        while size in self.free:
            fitting = [begin for begin in self.free[size] if begin + pages <= self.num_pages]
            if fitting:
                begin = min(fitting)
                self.free[size].remove(begin)
                while size > wanted:
                    size //= 2
                    self.free[size].add(begin + size)
                return begin, size
            size *= 2
        return None

    def give(self, begin: int, size: int) -> None:
        """Take a block back and join it with its buddy, if that is free, and so on."""
        while begin ^ size in self.free[size] and 2 * size in self.free:
            self.free[size].remove(begin ^ size)
            begin, size = begin & ~size, 2 * size
        self.free[size].add(begin)


class ContiguousKV(PagedKV):
    """A chunk for each request. Shares no prefixes; decides on the host.

    Blocks are given to waiting requests in order of arrival, and those behind the first that finds
    none wait with it, whatever the scheduler's order.

    Args:
        reserve_len: `asked_len` rounded up to a block, as a Triton function.
        knobs: `PagedKV`'s, by name.
    """

    capturable = False

    def __init__(self, reserve_len: Callable, /, **knobs) -> None:
        super().__init__(reserve_len=reserve_len, **knobs | {"prefix_caching": False})
        self.held: dict[int, tuple[int, int, int]] = {}  # slot: (arrival, begin, size of its block)

    @abstractmethod
    def asked_len(self, prompt_len: int, max_len: int) -> int:
        """Tokens a request asks room for, at least `max_len`; the model's length at most counts.
        The rest of its block is the buddy system's rounding."""

    def allocate(self, requests: RequestTable, device: torch.device) -> PagePool:
        self.blocks = Blocks(requests.sizes.num_pages)
        return super().allocate(requests, device)

    def lookup(self, requests: RequestTable) -> None:
        super().lookup(requests)
        status, arrival = requests.status.tolist(), requests.arrival.tolist()
        for slot, (ticket, begin, size) in list(self.held.items()):
            if status[slot] != RUNNING or arrival[slot] != ticket:
                self.blocks.give(begin, size)
                del self.held[slot]
        waiting = [slot for slot, state in enumerate(status) if state == WAITING]
        refused = 0
        for slot in sorted(waiting, key=arrival.__getitem__):
            if not refused and not self._hold(requests, slot, arrival[slot]):
                # It seems to want all pages beside its own, so it does not fit, nor does any
                # behind it.
                refused = requests.sizes.num_pages
            requests.idle_hits[slot] = refused

    def reserve(self, requests: RequestTable, plan: StepPlan) -> None:
        super().reserve(requests, plan)
        status, arrival = requests.status.tolist(), requests.arrival.tolist()
        for slot in [slot for slot in self.held if status[slot] != RUNNING]:
            _, begin, size = self.held.pop(slot)
            self.blocks.give(begin, size)
        for slot, state in enumerate(status):
            if state == RUNNING and slot not in self.held:  # admitted because nothing else runs
                assert self._hold(requests, slot, arrival[slot]), "an empty pool has no block"

    def memory_split(
        self,
        requests: RequestTable,
        counters: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
    ) -> dict[str, int]:
        """As `PagedKV`'s; external waste is the rounding to blocks too."""
        split, rounding = super().memory_split(requests, counters, ends), 0
        size, longest = requests.sizes.page_size, requests.sizes.max_model_len
        running = (requests.status == RUNNING).nonzero().flatten()
        columns = (requests.prompt_len, requests.max_len, requests.num_pages)
        for prompt_len, max_len, pages in zip(*(column[running].tolist() for column in columns)):
            asked = min(self.asked_len(prompt_len, max_len), longest)
            rounding += max(0, pages - -(-asked // size)) * size
        split["internal_waste"] -= rounding
        split["external_waste"] += rounding
        return split

    def _hold(self, requests: RequestTable, slot: int, ticket: int) -> bool:
        sizes = requests.sizes
        asked = self.asked_len(int(requests.prompt_len[slot]), int(requests.max_len[slot]))
        tokens = min(next_power_of_2(asked), sizes.max_model_len)
        block = self.blocks.take(-(-tokens // sizes.page_size))
        if block is not None:
            self.held[slot] = (ticket, *block)
        return block is not None
