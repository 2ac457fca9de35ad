"""The prefix table: finding the verified chain of published pages that a row's tokens follow.

A page is published under the key of the whole prefix it ends (see hashing.py), in a bucket of 16
ways. A candidate counts only if its own tokens equal the row's and its parent is the page found
for the prefix before it, named by the parent's serial, which is unique by publication. So hits are
exact, and a page whose parent was evicted can no longer be reached.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import BUCKET_WAYS


@triton.jit
def bucket_of(key, NUM_BUCKETS: tl.constexpr):
    return ((key ^ (key >> 32)) & (NUM_BUCKETS - 1)).to(tl.int32)


@triton.jit
def find_pages(
    table_hash, table_page, serial, page_tokens, tokens, key, page, live, serial_limit,
    PAGE_SIZE: tl.constexpr, NUM_BUCKETS: tl.constexpr,
):  # fmt: skip
    """The newest page published under `key` [P] whose tokens are the row's page `page` [P], or -1.

    `tokens` points to the row's token ids. Of several pages under one key the newest is taken: an
    older one may have lost its parent to eviction. Pages with a serial from `serial_limit` on are
    passed over: another program may be entering them right now.
    """
    way = tl.arange(0, BUCKET_WAYS)
    entry = bucket_of(key, NUM_BUCKETS)[:, None] * BUCKET_WAYS + way[None, :]  # [P, WAYS]
    candidate = tl.load(table_page + entry, mask=live[:, None], other=-1)
    match = (tl.load(table_hash + entry, mask=live[:, None], other=0) == key[:, None]) & (
        candidate >= 0
    )
    born = tl.load(serial + candidate, mask=match, other=0)
    match = match & (born > 0) & (born < serial_limit)
    born = tl.where(match, born, 0)
    newest = tl.max(born, axis=1)
    chosen = match & (born == newest[:, None])
    found = tl.max(tl.where(chosen, candidate, -1), axis=1)  # [P]
    offset = tl.arange(0, PAGE_SIZE)
    hit = found >= 0
    theirs = tl.load(
        page_tokens + found[:, None] * PAGE_SIZE + offset[None, :], mask=hit[:, None], other=-1
    )
    mine = tl.load(
        tokens + page[:, None] * PAGE_SIZE + offset[None, :], mask=hit[:, None], other=-1
    )
    same = tl.min((theirs == mine).to(tl.int32), axis=1) != 0
    return tl.where(hit & same, found, -1)


def find_chain_ref(requests, pool, slot: int, first: int, last: int, parent_serial: int):
    """Pages of the longest verified chain over the row's pages [first, last), as a list."""
    sizes, ways = requests.sizes, BUCKET_WAYS.value
    chain: list[int] = []
    for page in range(first, last):
        key = int(requests.page_hash[slot, page])
        bucket = ((key ^ (key >> 32)) & (pool.num_buckets - 1)) * ways
        newest, found = 0, -1
        for entry in range(bucket, bucket + ways):
            candidate = int(pool.table_page[entry])
            if candidate < 0 or int(pool.table_hash[entry]) != key:
                continue
            if int(pool.serial[candidate]) > newest:
                newest, found = int(pool.serial[candidate]), candidate
        tokens = requests.token_ids[slot, page * sizes.page_size : (page + 1) * sizes.page_size]
        if (
            found < 0
            or not torch.equal(pool.page_tokens[found], tokens)
            or int(pool.parent_serial[found]) != parent_serial
        ):
            break
        chain.append(found)
        parent_serial = int(pool.serial[found])
    return chain
