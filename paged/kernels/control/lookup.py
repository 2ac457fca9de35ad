"""lookup: the longest prefix of every waiting request that is in memory already.

Runs each step, before the order is found, so that a policy may rank by it and an admission in the
same step can take the pages: nothing evicts in between. Writes `cached_len`, `idle_hits` (pages of
the prefix nobody holds, which the admission would take out of the evictable ones) and the pages
themselves into the row's block table, where they are not live until the row is admitted.

The last token of a request is never taken from the cache: its logits are the next token.

A row with a parent, a sample of the same request, shares that row's prompt instead of computing it
again: it waits as FORKING, which no policy sees, until the parent has computed all of the prompt
but its last token. Then it finds the parent's full pages, and an admission copies the page after
them, which is partly filled (see prepare.py). A parent that has gone, was preempted after its
first token or has dropped pages leaves an ordinary row that looks into the prefix table.

With compression only pages of the prompt are taken, and never its last tokens: what follows is
computed as it was the first time, with the same pages dropped at the same lengths (compress.py). A
policy that asks for the queries of more tokens than one keeps rows from sharing their parent's.

Programs stride over the rows; pages of a row are looked up a tile at a time.
"""

import triton
import triton.language as tl

from paged.kernels.control.columns import (
    ARRIVAL,
    CACHED_LEN,
    FORKING,
    IDLE_HITS,
    NUM_COMPUTED,
    NUM_DROPPED,
    NUM_FORKS,
    NUM_HASHED,
    PARENT,
    PARENT_ARRIVAL,
    PROMPT_LEN,
    RUNNING,
    STATUS,
    TOTAL_LEN,
    WAITING,
)  # fmt: skip
from paged.kernels.control.prefix import find_chain_ref, find_pages
from paged.kernels.control.stage import stage
from paged.kernels.launch import interpreted, pdl

ANY_SERIAL = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def _parent_of(columns, slot, total, R: tl.constexpr):
    """(parent's slot, whether the row has to wait for it, whether it shares its prompt now)."""
    parent = tl.load(columns + PARENT * R + slot)
    prompt_len = tl.load(columns + PROMPT_LEN * R + slot)
    fresh = (parent > 0) & (total == prompt_len) & (prompt_len > 1)
    source = tl.maximum(parent - 1, 0)
    same = fresh & (
        tl.load(columns + ARRIVAL * R + source) == tl.load(columns + PARENT_ARRIVAL * R + slot)
    )
    status = tl.load(columns + STATUS * R + source)
    behind = tl.load(columns + NUM_COMPUTED * R + source) < prompt_len - 1
    undrawn = tl.load(columns + TOTAL_LEN * R + source) == prompt_len
    whole = tl.load(columns + NUM_DROPPED * R + source) == 0
    runs = same & (status == RUNNING) & whole
    holds = (runs & behind) | (same & (status == WAITING) & undrawn)
    return source, holds, runs & ~behind


@triton.jit
def _lookup_kernel(
    columns, token_ids, block_table, page_hash, table_hash, table_page, serial, parent_serial,
    page_tokens, ref_count,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr, NUM_BUCKETS: tl.constexpr, UNCACHED: tl.constexpr,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for slot in range(tl.program_id(0), R, tl.num_programs(0)):
        status = tl.load(columns + STATUS * R + slot)
        if (status == WAITING) | (status == FORKING):
            total = tl.load(columns + TOTAL_LEN * R + slot)
            joined = tl.load(columns + NUM_FORKS * R + slot) > 0
            hashed = tl.load(columns + NUM_HASHED * R + slot)
            source, holds, shares = _parent_of(columns, slot, total, R)
            if UNCACHED > 1:
                holds = holds & False
                shares = shares & False
            # A parent starts short of the prompt's last token, where its forks join it.
            last = tl.maximum(total - 1 - joined.to(tl.int32), 0)
            if UNCACHED > 0:
                prompt_len = tl.load(columns + PROMPT_LEN * R + slot)
                last = tl.minimum(last, tl.maximum(prompt_len - UNCACHED, 0))
            limit = tl.minimum(last // PAGE_SIZE, hashed)
            limit = tl.where(holds | shares, 0, limit)
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
            shared = tl.where(shares, total - 1, 0)
            theirs = block_table + source.to(tl.int64) * MAX_PAGES
            for first in range(0, shared // PAGE_SIZE, TILE):
                page = first + tl.arange(0, TILE)
                full = page < shared // PAGE_SIZE
                tl.store(table + page, tl.load(theirs + page, mask=full), mask=full)
            tl.store(columns + STATUS * R + slot, tl.where(holds, FORKING, WAITING))
            tl.store(columns + CACHED_LEN * R + slot, tl.where(shares, shared, hits * PAGE_SIZE))
            tl.store(columns + IDLE_HITS * R + slot, idle)


@stage
def lookup(requests, pool) -> None:
    """Find the prefix in memory of every waiting row."""
    sizes = requests.sizes
    _lookup_kernel[(1 if interpreted() else sizes.num_slots,)](
        requests.columns, requests.token_ids, requests.block_table, requests.page_hash,
        pool.table_hash, pool.table_page, pool.serial, pool.parent_serial, pool.page_tokens,
        pool.ref_count,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, MAX_PAGES=sizes.max_pages_per_seq,
        PAGE_SIZE=sizes.page_size, NUM_BUCKETS=pool.num_buckets,
        UNCACHED=_uncached(requests), TILE=tile_pages(sizes.page_size), **pdl(),
    )  # fmt: skip


def _uncached(requests) -> int:
    """Tokens at the end of a prompt that compression wants computed; 0 without it."""
    return 0 if requests.page_budget is None else requests.page_budget.uncached


def tile_pages(page_size: int) -> int:
    """Pages handled at once: 1,024 tokens keep the verification in registers."""
    return max(1, (4096 if interpreted() else 1024) // page_size)


def lookup_ref(requests, pool) -> None:
    """The same, page by page. Block table entries past the hits are unspecified."""
    page_size = requests.sizes.page_size
    status = requests.status
    waiting = (status == WAITING.value) | (status == FORKING.value)
    for slot in waiting.nonzero().flatten().tolist():
        full = (int(requests.total_len[slot]) - 1) // page_size
        last = max(0, int(requests.total_len[slot]) - 1 - (int(requests.num_forks[slot]) > 0))
        uncached = _uncached(requests)
        if uncached:
            last = min(last, max(0, int(requests.prompt_len[slot]) - uncached))
        limit = min(last // page_size, int(requests.num_hashed[slot]))
        source, holds, shares = _parent_of_ref(requests, slot)
        if uncached > 1:
            holds = shares = False
        status[slot] = FORKING.value if holds else WAITING.value
        if holds or shares:
            requests.cached_len[slot] = int(requests.total_len[slot]) - 1 if shares else 0
            requests.idle_hits[slot] = 0
            requests.block_table[slot, :full] = requests.block_table[source, :full]
            continue
        chain = find_chain_ref(requests, pool, slot, 0, limit, parent_serial=0)
        for page, found in enumerate(chain):
            requests.block_table[slot, page] = found
        requests.cached_len[slot] = len(chain) * page_size
        requests.idle_hits[slot] = sum(int(pool.ref_count[page]) == 0 for page in chain)


def _parent_of_ref(requests, slot: int) -> tuple[int, bool, bool]:
    """(parent's slot, whether the row has to wait for it, whether it shares its prompt now)."""
    prompt_len = int(requests.prompt_len[slot])
    source = int(requests.parent[slot]) - 1
    fresh = source >= 0 and int(requests.total_len[slot]) == prompt_len > 1
    if not fresh or requests.arrival[source] != requests.parent_arrival[slot]:
        return source, False, False
    behind = int(requests.num_computed_tokens[source]) < prompt_len - 1
    if int(requests.status[source]) == RUNNING.value:
        whole = int(requests.num_dropped[source]) == 0
        return source, behind and whole, whole and not behind
    undrawn = int(requests.total_len[source]) == prompt_len
    return source, int(requests.status[source]) == WAITING.value and undrawn, False
