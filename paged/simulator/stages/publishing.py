"""publish over numpy, and the search it shares with lookup: see `paged.kernels.control.publish`
and `.prefix`."""

from typing import Any

import numpy as np

from paged.kernels.control.columns import BUCKET_WAYS
from paged.simulator.stages.views import AT_STEP, bucket_of, leading, mix, ranges
from paged.state import Sizes

WAYS = BUCKET_WAYS.value
TICKETS = 0xFFFFFFFF


def find_pages(
    requests: Any, pool: Any, slot: np.ndarray, page: np.ndarray, key: np.ndarray, page_size: int
) -> np.ndarray:
    """[P] the newest page published under `key` whose tokens are those of page `page` of row
    `slot`, or -1."""
    num_buckets = len(pool.claims)
    entry = bucket_of(key, num_buckets)[:, None] * WAYS + np.arange(WAYS)
    match = (pool.table_hash[entry] == key[:, None]) & (pool.table_page[entry] >= 0)
    found = np.full(len(key), -1, np.int64)
    at = (match.any(axis=1)).nonzero()[0]
    if len(at) == 0:
        return found
    candidate = np.where(match[at], pool.table_page[entry[at]], -1)
    serial = np.where(candidate >= 0, pool.serial[candidate], 0)
    newest = candidate[np.arange(len(at)), serial.argmax(axis=1)]
    tokens = requests.token_ids[
        slot[at][:, None], page[at][:, None] * page_size + np.arange(page_size)
    ]
    same = (pool.page_tokens[newest] == tokens).all(axis=1)
    found[at] = np.where(same, newest, -1)
    return found


def extend_hashes(
    requests: Any, slot: np.ndarray, begin: np.ndarray, end: np.ndarray, page_size: int
) -> None:
    """Write the prefix hashes of pages [begin, end) of each row."""
    owner, index = ranges(np.maximum(end - begin, 0))
    if len(owner) == 0:
        return
    rows, page = slot[owner], begin[owner] + index
    position = page[:, None] * page_size + np.arange(page_size)
    word = mix(requests.token_ids[rows[:, None], position], position).sum(axis=1)
    sums = word.cumsum()
    starts = np.arange(len(owner)) - index
    before = np.where(starts > 0, sums[starts - 1], 0)
    first = begin[owner]
    prefix = np.where(first > 0, requests.page_hash[rows, first - 1], 0)
    requests.page_hash[rows, page] = prefix + (sums - before)


def publish_pages(requests: Any, pool: Any, plan: Any, sizes: Sizes) -> np.ndarray:
    """Enter the new full pages of the rows that `update` listed; returns the pages entered."""
    page_size, step = sizes.page_size, int(pool.counters[AT_STEP])
    slots = plan.published_slots[: int(plan.counts[3])]
    begin = requests.num_published[slots]
    end = requests.num_computed_tokens[slots] // page_size
    last = np.where(begin > 0, requests.canonical[slots, begin - 1], 0)
    lost = (begin > 0) & (pool.serial[last] != requests.chain_serial[slots])
    end = np.where(lost, begin, end)
    hashed = requests.num_hashed[slots]
    extend_hashes(requests, slots, hashed, end, page_size)
    requests.num_hashed[slots] = np.maximum(end, hashed)
    owner, index = ranges(end - begin)
    if len(owner) == 0:
        return np.empty(0, np.int32)

    row, page = slots[owner], begin[owner] + index
    key = requests.page_hash[row, page]
    bucket = bucket_of(key, len(pool.claims))
    ticket = owner * sizes.max_pages_per_seq + page
    claim = (step << 32) | (TICKETS - ticket)
    pool.claims[bucket[::-1]] = claim[::-1]  # of equal buckets the last to be written: the first

    found = find_pages(requests, pool, row, page, key, page_size)
    known = found >= 0
    if known.any():
        known = _chained(requests, pool, row, page, index, found)

    own = requests.block_table[row, page]
    ways = pool.table_page[bucket[:, None] * WAYS + np.arange(WAYS)] < 0
    enters = (pool.claims[bucket] == claim) & (pool.serial[own] == 0) & ways.any(axis=1)
    done = leading(known | enters, index)
    enters = done & ~known
    requests.canonical[row[done], page[done]] = np.where(known, found, own)[done]

    at = enters.nonzero()[0]
    row, page, key, bucket, ticket, own = (x[at] for x in (row, page, key, bucket, ticket, own))
    base = step * sizes.num_slots * sizes.max_pages_per_seq + 1
    above = np.where(page > 0, requests.canonical[row, page - 1], -1)
    follows = (index[at] > 0) & enters[at - 1]  # the page in front entered just now
    above_serial = np.where(above >= 0, pool.serial[above], 0)
    pool.parent[own] = above
    pool.parent_serial[own] = np.where(follows, base + ticket - 1, above_serial)
    pool.content_hash[own] = key
    pool.born[own] = step
    pool.depth[own] = page
    pool.hits[own] = 0
    pool.page_tokens[own] = requests.token_ids[
        row[:, None], page[:, None] * page_size + np.arange(page_size)
    ]
    entry = bucket * WAYS + ways[at].argmax(axis=1)
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
