"""lookup: the longest cached prefix of every waiting request.

Runs each step, before the order is found, so that a policy may rank by it and an admission in the
same step can take the pages: nothing evicts in between. Writes `cached_len`, `idle_hits` (pages of
the prefix nobody holds, which the admission would take out of the evictable ones) and the pages
themselves into the row's block table, where they are not live until the row is admitted.

The last token of a request is never taken from the cache: its logits are the next token.
Programs stride over the rows; pages of a row are looked up a tile at a time.
"""

import triton
import triton.language as tl

from paged.kernels.control.columns import (
    CACHED_LEN,
    IDLE_HITS,
    NUM_HASHED,
    STATUS,
    TOTAL_LEN,
    WAITING,
)  # fmt: skip
from paged.kernels.control.prefix import find_chain_ref, find_pages
from paged.kernels.launch import interpreted

ANY_SERIAL = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def _lookup_kernel(
    columns, token_ids, block_table, page_hash, table_hash, table_page, serial, parent_serial,
    page_tokens, ref_count,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr, NUM_BUCKETS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    for slot in range(tl.program_id(0), R, tl.num_programs(0)):
        if tl.load(columns + STATUS * R + slot) == WAITING:
            total = tl.load(columns + TOTAL_LEN * R + slot)
            limit = tl.minimum((total - 1) // PAGE_SIZE, tl.load(columns + NUM_HASHED * R + slot))
            tokens = token_ids + tl.cast(slot, tl.int64) * MAX_LEN_TOKENS
            table = block_table + tl.cast(slot, tl.int64) * MAX_PAGES
            hits = tl.zeros((), dtype=tl.int32)
            idle = tl.zeros((), dtype=tl.int32)
            for first in range(0, limit, TILE):
                if hits == first:
                    page = first + tl.arange(0, TILE)
                    live = page < limit
                    key = tl.load(page_hash + tl.cast(slot, tl.int64) * MAX_PAGES + page, mask=live)
                    found = find_pages(
                        table_hash, table_page, serial, page_tokens, tokens, key, page, live,
                        ANY_SERIAL, PAGE_SIZE, NUM_BUCKETS,
                    )  # fmt: skip
                    hit = found >= 0
                    tl.store(table + page, found, mask=live)
                    tl.debug_barrier()  # the page before may have been stored by another thread
                    before = tl.load(table + page - 1, mask=hit & (page > 0), other=-1)
                    parent = tl.load(serial + before, mask=hit & (before >= 0), other=0)
                    linked = tl.load(parent_serial + found, mask=hit, other=-1) == parent
                    broken = tl.cumsum((~(hit & linked)).to(tl.int32), axis=0)
                    chain = live & (broken == 0)
                    hits += tl.sum(chain.to(tl.int32), axis=0)
                    held = tl.load(ref_count + found, mask=chain, other=1)
                    idle += tl.sum((chain & (held == 0)).to(tl.int32), axis=0)
            tl.store(columns + CACHED_LEN * R + slot, hits * PAGE_SIZE)
            tl.store(columns + IDLE_HITS * R + slot, idle)


def lookup(requests, pool) -> None:
    """Find the cached prefix of every waiting row."""
    sizes = requests.sizes
    _lookup_kernel[(1 if interpreted() else sizes.num_slots,)](
        requests.columns, requests.token_ids, requests.block_table, requests.page_hash,
        pool.table_hash, pool.table_page, pool.serial, pool.parent_serial, pool.page_tokens,
        pool.ref_count,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, MAX_PAGES=sizes.max_pages_per_seq,
        PAGE_SIZE=sizes.page_size, NUM_BUCKETS=pool.num_buckets,
        TILE=tile_pages(sizes.page_size),
    )  # fmt: skip


def tile_pages(page_size: int) -> int:
    """Pages handled at once: 1,024 tokens keep the verification in registers."""
    return max(1, (4096 if interpreted() else 1024) // page_size)


def lookup_ref(requests, pool) -> None:
    """The same, page by page. Block table entries past the hits are unspecified."""
    page_size = requests.sizes.page_size
    for slot in (requests.status == WAITING.value).nonzero().flatten().tolist():
        full = (int(requests.total_len[slot]) - 1) // page_size
        limit = min(full, int(requests.num_hashed[slot]))
        chain = find_chain_ref(requests, pool, slot, 0, limit, parent_serial=0)
        for page, found in enumerate(chain):
            requests.block_table[slot, page] = found
        requests.cached_len[slot] = len(chain) * page_size
        requests.idle_hits[slot] = sum(int(pool.ref_count[page]) == 0 for page in chain)
