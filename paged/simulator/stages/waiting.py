"""lookup over numpy: see `paged.kernels.control.lookup`.

The kernel looks every waiting row up in every step. Here a row's prefix is remembered, and looked
up again only when it may have changed: a page of it was evicted, or a page was published under the
key where it ended.
"""

from typing import Any

import numpy as np

from paged.simulator.stages.publishing import find_pages
from paged.simulator.stages.views import IS_FORKING, IS_RUNNING, IS_WAITING, leading
from paged.state import Sizes

FIRST_TILE, LAST_TILE = 128, 4096  # pages looked up at once; each time eight times as many
NOBODY = -1


class WaitingRows:
    """The prefixes of the waiting rows.

    Whoever changes the prefix table or who holds its pages says so: `published`, `evicted`,
    `holders_changed`.
    """

    def __init__(self, requests: Any, pool: Any, sizes: Sizes) -> None:
        self.requests, self.pool, self.sizes = requests, pool, sizes
        self._arrival = np.full(sizes.num_slots, NOBODY, np.int64)  # of the row remembered
        self._chains: dict[int, np.ndarray] = {}  # of rows with a prefix in memory, by slot
        self._ends: dict[int, set[int]] = {}  # key where a prefix ends: the slots
        self._end_of: dict[int, int] = {}
        self._stale: set[int] = set()
        self._holders_changed = False
        self._any_known = False  # whether there is a row to forget

    def published(self, pages: np.ndarray) -> None:
        """These pages have been entered into the prefix table."""
        if not self._end_of and not self._chains:
            return
        keys = self.pool.content_hash[pages].tolist()
        for key in self._ends.keys() & keys:
            self._stale.update(self._ends[key])
        again = self._known_before(pages, keys) if self._chains else None
        if again is not None and len(again):
            hashes = self.pool.content_hash
            found = (s for s, chain in self._chains.items() if np.isin(hashes[chain], again).any())
            self._stale.update(found)

    def _known_before(self, pages: np.ndarray, keys: list[int]) -> np.ndarray:
        """Of the keys, those that name other pages too, so that their newest page is another."""
        entry, names = self.pool.entry[pages], np.array(keys)
        ways = entry[:, None] // 16 * 16 + np.arange(16)
        same = self.pool.table_hash[ways] == names[:, None]
        same &= self.pool.table_page[ways] >= 0
        return names[same.sum(axis=1) > 1]

    def evicted(self, pages: np.ndarray) -> None:
        """These pages have left the prefix table."""
        for key in self._ends.keys() & self.pool.content_hash[pages].tolist():
            self._stale.update(self._ends[key])
        if self._chains:
            gone = np.zeros(self.sizes.num_pages, bool)
            gone[pages] = True
            self._stale.update(s for s, chain in self._chains.items() if gone[chain].any())

    def holders_changed(self) -> None:
        """Cached pages have got holders, or lost their last."""
        self._holders_changed = True

    def lookup(self) -> None:
        """Write `cached_len`, `idle_hits`, the status and the pages of every waiting row."""
        requests = self.requests
        waiting = (requests.status == IS_WAITING) | (requests.status == IS_FORKING)
        if not waiting.any():
            if self._any_known:
                self._forget_all()
            return
        self._any_known = True
        arrival = np.where(waiting, requests.arrival, NOBODY)
        changed = (arrival != self._arrival).nonzero()[0].tolist()
        if changed:
            self._arrival = arrival
            for slot in changed:
                self._forget(slot)
        self._stale.update(slot for slot in changed if waiting[slot])
        slots = sorted(slot for slot in self._stale if waiting[slot])
        self._stale.clear()
        families = (waiting & (requests.parent > 0)).nonzero()[0]
        if slots:
            self._look_up(np.array(slots))
        for slot in families.tolist():
            self._follow_parent(slot)
        if self._holders_changed:
            self._holders_changed = False
            self._count_idle()

    def _forget_all(self) -> None:
        self._arrival.fill(NOBODY)
        for known in (self._chains, self._ends, self._end_of, self._stale):
            known.clear()
        self._holders_changed = self._any_known = False

    def _forget(self, slot: int) -> None:
        self._chains.pop(slot, None)
        key = self._end_of.pop(slot, None)
        if key is not None:
            slots = self._ends[key]
            slots.discard(slot)
            if not slots:
                del self._ends[key]

    def _limits(self, slots: np.ndarray) -> np.ndarray:
        """Pages of each row that may be taken from the cache."""
        joined = self.requests.num_forks[slots] > 0  # its forks join it short of the last token
        full = np.maximum(self.requests.total_len[slots] - 1 - joined, 0) // self.sizes.page_size
        return np.minimum(full, self.requests.num_hashed[slots])

    def _look_up(self, slots: np.ndarray) -> None:
        requests, page_size = self.requests, self.sizes.page_size
        limits = self._limits(slots)
        requests.cached_len[slots] = 0
        requests.idle_hits[slots] = 0
        some = limits > 0
        first = np.full(len(slots), -1, np.int64)
        if some.any():
            zeros = np.zeros(int(some.sum()), np.int64)
            keys = requests.page_hash[slots[some], 0]
            found = find_pages(requests, self.pool, slots[some], zeros, keys, page_size)
            orphan = self.pool.parent_serial[found] != 0
            first[some] = np.where((found >= 0) & ~orphan, found, -1)
        for slot, limit, page in zip(slots.tolist(), limits.tolist(), first.tolist()):
            self._forget(slot)
            hits = 0
            if page >= 0:
                chain = self._chain(slot, limit, page)
                hits = len(chain)
                self._chains[slot] = chain
                requests.block_table[slot, :hits] = chain
                requests.cached_len[slot] = hits * page_size
                requests.idle_hits[slot] = np.count_nonzero(self.pool.ref_count[chain] == 0)
            if hits < limit:
                key = int(requests.page_hash[slot, hits])
                self._end_of[slot] = key
                self._ends.setdefault(key, set()).add(slot)

    def _chain(self, slot: int, limit: int, first: int) -> np.ndarray:
        """Pages of the row's longest prefix, which begins with page `first`."""
        requests, pool = self.requests, self.pool
        chain, last, begin, tile = [np.array([first])], first, 1, FIRST_TILE
        while begin < limit:
            page = np.arange(begin, min(begin + tile, limit))
            rows = np.full(len(page), slot)
            found = find_pages(
                requests, pool, rows, page, requests.page_hash[slot, page], self.sizes.page_size
            )
            above = pool.serial[np.concatenate(([last], found[:-1]))]
            good = (found >= 0) & (pool.parent_serial[found] == above)
            good = leading(good, page - begin)
            found = found[good]
            chain.append(found)
            if len(found) < len(page):
                break
            last, begin, tile = int(found[-1]), begin + len(page), min(tile * 8, LAST_TILE)
        return np.concatenate(chain)

    def _count_idle(self) -> None:
        if not self._chains:
            return
        slots = list(self._chains)
        chains = list(self._chains.values())
        idle = self.pool.ref_count[np.concatenate(chains)] == 0
        ends = np.cumsum([len(chain) for chain in chains])
        self.requests.idle_hits[slots] = np.add.reduceat(idle, ends - [len(c) for c in chains])

    def _follow_parent(self, slot: int) -> None:
        """A sample that shares its parent's prompt waits for it, and then takes its pages."""
        requests = self.requests
        length = int(requests.prompt_len[slot])
        source = int(requests.parent[slot]) - 1
        holds = shares = False
        fresh = int(requests.total_len[slot]) == length > 1
        if fresh and requests.arrival[source] == requests.parent_arrival[slot]:
            behind = requests.num_computed_tokens[source] < length - 1
            runs = requests.status[source] == IS_RUNNING
            undrawn = requests.total_len[source] == length
            waits = requests.status[source] == IS_WAITING and undrawn
            holds, shares = bool((runs and behind) or waits), bool(runs and not behind)
        requests.status[slot] = IS_FORKING if holds else IS_WAITING
        if holds or shares:
            self._forget(slot)
            self._stale.add(slot)  # looked up in the prefix table as soon as neither holds
            full = (length - 1) // self.sizes.page_size
            requests.cached_len[slot] = length - 1 if shares else 0
            requests.idle_hits[slot] = 0
            if shares:
                requests.block_table[slot, :full] = requests.block_table[source, :full]
