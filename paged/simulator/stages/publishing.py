"""publish over numpy, and the search it shares with lookup: see `paged.kernels.control.publish`
and `.prefix`."""

from typing import Any

import numpy as np

from paged.kernels.control.columns import BUCKET_WAYS
from paged.simulator.stages.views import AT_STEP, any_of_ways, bucket_of, leading, mix, ranges
from paged.state import Sizes

WAYS = BUCKET_WAYS.value
EVERY_WAY = np.arange(WAYS)
TICKETS = 0xFFFFFFFF


def find_pages(
    requests: Any, pool: Any, slot: np.ndarray, page: np.ndarray, key: np.ndarray, page_size: int
) -> np.ndarray:
    """[P] the newest page published under `key` whose tokens are those of page `page` of row
    `slot`, or -1."""
    entry = _entries(pool, bucket_of(key, len(pool.claims)))
    there = pool.table_page[entry]
    return _newest(requests, pool, slot, page, key, entry, there, page_size)


def _entries(pool: Any, bucket: np.ndarray) -> np.ndarray:
    """[P, WAYS] the entries of each bucket of the prefix table."""
    return bucket[:, None] * WAYS + EVERY_WAY


def _newest(
    requests: Any, pool: Any, slot: np.ndarray, page: np.ndarray, key: np.ndarray,
    entry: np.ndarray, there: np.ndarray, page_size: int,
) -> np.ndarray:  # fmt: skip
    """`find_pages`, given the entries [P, WAYS] of the keys' buckets and the pages there."""
    found = np.full(len(key), -1, np.int64)
    match = (pool.table_hash[entry] == key[:, None]) & (there >= 0)
    at = any_of_ways(match).nonzero()[0]
    if len(at) == 0:
        return found
    match = match[at]
    if np.count_nonzero(match) == len(at):
        newest = there[at, match.argmax(axis=1)]
    else:
        candidate = np.where(match, there[at], -1)
        serial = np.where(candidate >= 0, pool.serial[candidate], 0)
        newest = candidate[np.arange(len(at)), serial.argmax(axis=1)]
    same = (pool.page_tokens[newest] == _tokens(requests, slot[at], page[at], page_size)).all(1)
    found[at] = np.where(same, newest, -1)
    return found


def _tokens(requests: Any, slot: np.ndarray, page: np.ndarray, page_size: int) -> np.ndarray:
    """[P, page_size] the tokens of page `page` of row `slot`."""
    return requests.token_ids[slot[:, None], page[:, None] * page_size + np.arange(page_size)]


def extend_hashes(
    requests: Any, slot: np.ndarray, begin: np.ndarray, end: np.ndarray, page_size: int
) -> None:
    """Write the prefix hashes of pages [begin, end) of each row, and `num_hashed`."""
    new = begin < end
    if not new.any():
        return
    slot, begin, end = slot[new], begin[new], end[new]
    requests.num_hashed[slot] = end
    owner, index = ranges(end - begin)
    rows, page = slot[owner], begin[owner] + index
    position = page[:, None] * page_size + np.arange(page_size)
    hashes = mix(requests.token_ids[rows[:, None], position], position).sum(axis=1)
    if len(owner) > len(slot):
        sums = hashes.cumsum()
        starts = np.arange(len(owner)) - index
        hashes = sums - np.where(starts > 0, sums[starts - 1], 0)
    before = requests.page_hash[slot, begin - 1]
    before[begin == 0] = 0
    requests.page_hash[rows, page] = hashes + before[owner]


def publish_pages(requests: Any, pool: Any, plan: Any, sizes: Sizes) -> np.ndarray:
    """Enter the new full pages of the rows that `update` listed; returns the pages entered."""
    page_size, step = sizes.page_size, int(pool.counters[AT_STEP])
    slots = plan.published_slots[: int(plan.counts[3])]
    begin = requests.num_published[slots]
    end = requests.num_computed_tokens[slots] // page_size
    last = requests.canonical[slots, begin - 1]
    lost = (begin > 0) & (pool.serial[last] != requests.chain_serial[slots])
    if lost.any():
        end = np.where(lost, begin, end)
    extend_hashes(requests, slots, requests.num_hashed[slots], end, page_size)
    owner, index = ranges(end - begin)
    if len(owner) == 0:
        return np.empty(0, np.int32)

    row, page = slots[owner], begin[owner] + index
    key = requests.page_hash[row, page]
    bucket = bucket_of(key, len(pool.claims))
    ticket = owner * sizes.max_pages_per_seq + page
    claim = (step << 32) | (TICKETS - ticket)
    pool.claims[bucket[::-1]] = claim[::-1]  # of equal buckets the last to be written: the first

    entries = _entries(pool, bucket)
    there = pool.table_page[entries]
    found = _newest(requests, pool, row, page, key, entries, there, page_size)
    known = found >= 0
    if known.any():
        known = _chained(requests, pool, row, page, index, found)

    own = requests.block_table[row, page]
    ways = there < 0
    enters = (pool.claims[bucket] == claim) & (pool.serial[own] == 0) & any_of_ways(ways)
    done = known | enters
    if not done.all():
        done = leading(done, index)
    enters = done & ~known
    settled_page = np.where(known, found, own) if known.any() else own
    requests.canonical[row[done], page[done]] = settled_page[done]

    base = step * sizes.num_slots * sizes.max_pages_per_seq + 1
    follows = np.zeros(len(index), bool)  # the page in front entered just now
    follows[1:] = (index[1:] > 0) & enters[:-1]
    if not enters.all():
        row, page, key, ticket, own, follows, entries, ways = (
            x[enters] for x in (row, page, key, ticket, own, follows, entries, ways)
        )
    above = requests.canonical[row, page - 1]
    above[page == 0] = -1
    above_serial = np.where(above >= 0, pool.serial[above], 0)
    pool.parent[own] = above
    pool.parent_serial[own] = np.where(follows, base + ticket - 1, above_serial)
    pool.content_hash[own] = key
    pool.born[own] = step
    pool.depth[own] = page
    pool.hits[own] = 0
    pool.page_tokens[own] = _tokens(requests, row, page, page_size)
    entry = entries[np.arange(len(own)), ways.argmax(axis=1)]
    pool.entry[own] = entry
    pool.table_hash[entry] = key
    pool.table_page[entry] = own
    pool.serial[own] = base + ticket

    settled = begin + np.bincount(owner[done], minlength=len(slots))
    moved = settled > begin
    ends = requests.canonical[slots[moved], settled[moved] - 1]
    requests.chain_serial[slots[moved]] = pool.serial[ends]
    requests.num_published[slots] = settled
    return own


def _chained(
    requests: Any, pool: Any, row: np.ndarray, page: np.ndarray, index: np.ndarray,
    found: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Of the found pages, those that go on the chain of pages that the row has published."""
    above = np.empty_like(found)
    above[1:] = found[:-1]
    first = index == 0
    head = requests.canonical[row[first], page[first] - 1]
    above[first] = np.where(page[first] > 0, head, -1)
    serial = np.where(above >= 0, pool.serial[above], 0)
    return leading((found >= 0) & (pool.parent_serial[found] == serial), index)
