"""publish: enter the full pages of rows that drew a finite token into the prefix table.

A row publishes once its last token's logits were finite, which vouches for every page behind them;
so a request that produced NaN never shares anything.

Two phases, and between them a barrier of the programs that have rows. The first extends the row's
prefix hashes and claims a bucket for each new page by an atomic maximum over (step, -ticket): the
earliest page of the batch wins, whatever the order of the programs, and claims of older steps need
no reset. The second walks each row's new pages: those already in the table (verified, see
prefix.py) become the row's canonical pages, the first that is not and all after it are inserted
while they hold their claim and their bucket has an open way. What loses waits: the row tries again
with its next token.

A page that several rows hold (see prepare.py) has one key, so one of them enters it and the others
find it there. One that another of them entered behind a page that has been evicted since cannot
enter again: the row publishes nothing more.

A row that compression has taken pages from publishes nothing more: its keys and values depend on
what was dropped.

A canonical page that is not the row's own may be evicted under it. Its id can then name anything,
so a row whose last canonical page no longer has its serial publishes nothing more.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    BEAM_WIDTH,
    BUCKET_WAYS,
    NUM_COMPUTED,
    NUM_DROPPED,
    NUM_HASHED,
    NUM_PUBLISHED,
    PROMPT_LEN,
    STEP,
)  # fmt: skip
from paged.kernels.control.hashing import mix, mix_ref
from paged.kernels.control.lookup import tile_pages
from paged.kernels.control.prefix import bucket_of, find_chain_ref, find_pages
from paged.kernels.control.stage import stage
from paged.kernels.grid_barrier import meet
from paged.kernels.launch import interpreted, pdl
from paged.kernels.linear_persistent import multiprocessors


@triton.jit
def _new_pages(
    columns, canonical, chain_serial, serial, slot,
    R: tl.constexpr, MAX_PAGES: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """The row's pages to publish, [begin, end)."""
    begin = tl.load(columns + NUM_PUBLISHED * R + slot)
    # A beam's output may be dropped any moment, so of a beam only the prompt is worth an entry.
    beam = tl.load(columns + BEAM_WIDTH * R + slot) > 0
    computed = tl.load(columns + NUM_COMPUTED * R + slot)
    prompt_len = tl.load(columns + PROMPT_LEN * R + slot)
    end = tl.where(beam, tl.minimum(computed, prompt_len), computed) // PAGE_SIZE
    behind = begin > 0
    last = tl.load(canonical + slot.to(tl.int64) * MAX_PAGES + begin - 1, mask=behind, other=0)
    lost = behind & (tl.load(serial + last) != tl.load(chain_serial + slot))
    lost = lost | (tl.load(columns + NUM_DROPPED * R + slot) > 0)
    return begin, tl.where(lost, begin, end)


@triton.jit
def _claim_of(step, index, page, MAX_PAGES: tl.constexpr):
    return (step << 32) | (0xFFFFFFFF - (index * MAX_PAGES + page).to(tl.int64))


@triton.jit
def _claim_buckets(
    step, num_rows, columns, token_ids, page_hash, canonical, chain_serial, serial,
    published_slots, claims,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr, NUM_BUCKETS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Extend the prefix hashes of the program's rows, and claim a bucket for each new page.

    Returns the slot of the last of them, and its pages to publish, [begin, end).
    """
    slot = tl.zeros((), tl.int32)
    begin = tl.zeros((), tl.int32)
    end = tl.zeros((), tl.int32)
    for index in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        slot = tl.load(published_slots + index)
        begin, end = _new_pages(
            columns, canonical, chain_serial, serial, slot, R, MAX_PAGES, PAGE_SIZE
        )
        hashed = tl.load(columns + NUM_HASHED * R + slot)
        tokens = token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS
        keys = page_hash + slot.to(tl.int64) * MAX_PAGES
        prefix = tl.load(keys + hashed - 1, mask=hashed > 0, other=0)
        for first in range(begin, tl.minimum(hashed, end), TILE):
            page = first + tl.arange(0, TILE)
            live = page < tl.minimum(hashed, end)
            key = tl.load(keys + page, mask=live, other=0)
            claim = _claim_of(step, index, page, MAX_PAGES)
            tl.atomic_max(claims + bucket_of(key, NUM_BUCKETS), claim, mask=live)
        for first in range(hashed, end, TILE):
            page = first + tl.arange(0, TILE)
            live = page < end
            position = page[:, None] * PAGE_SIZE + tl.arange(0, PAGE_SIZE)[None, :]
            token = tl.load(tokens + position, mask=live[:, None], other=0)
            word = tl.where(live[:, None], mix(token, position), 0)
            key = prefix + tl.cumsum(tl.sum(word, axis=1), axis=0)
            tl.store(keys + page, key, mask=live)
            prefix = tl.sum(tl.where(tl.arange(0, TILE) == TILE - 1, key, 0), axis=0)
            claim = _claim_of(step, index, page, MAX_PAGES)
            new = live & (page >= begin)
            tl.atomic_max(claims + bucket_of(key, NUM_BUCKETS), claim, mask=new)
    return slot, begin, end


@triton.jit
def _publish_kernel(
    columns, counters, token_ids, block_table, page_hash, canonical, chain_serial, serial, counts,
    published_slots, claims, arrivals, table_hash, table_page, parent, parent_serial, content_hash,
    page_tokens, entry_of, born, depth, hits,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr, NUM_BUCKETS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    step, num_rows = tl.load(counters + STEP), tl.load(counts + 3)
    programs = tl.minimum(num_rows, tl.num_programs(0))
    if tl.program_id(0) >= programs:
        return
    slot, begin, end = _claim_buckets(
        step, num_rows, columns, token_ids, page_hash, canonical, chain_serial, serial,
        published_slots, claims, R, MAX_LEN_TOKENS, MAX_PAGES, PAGE_SIZE, NUM_BUCKETS, TILE,
    )  # fmt: skip
    meet(arrivals, programs)
    serial_base = step * R * MAX_PAGES + 1  # serials are unique: a ticket within a step
    lane = tl.arange(0, TILE)
    way = tl.arange(0, BUCKET_WAYS)
    for index in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        if num_rows > tl.num_programs(0):  # else the program has but this row
            slot = tl.load(published_slots + index)
            begin, end = _new_pages(
                columns, canonical, chain_serial, serial, slot, R, MAX_PAGES, PAGE_SIZE
            )
        tokens = token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS
        table = block_table + slot.to(tl.int64) * MAX_PAGES
        chain = canonical + slot.to(tl.int64) * MAX_PAGES
        hashed = tl.load(columns + NUM_HASHED * R + slot)
        settled = begin
        first_new = begin  # pages before it continue the chain that the table already holds
        for first in range(begin, end, TILE):
            if settled == first:
                page = first + lane
                live = page < end
                own = tl.load(table + page, mask=live, other=0)
                own_above = tl.load(table + page - 1, mask=live & (page > 0), other=-1)
                key = tl.load(page_hash + slot.to(tl.int64) * MAX_PAGES + page, mask=live, other=0)
                bucket = bucket_of(key, NUM_BUCKETS)
                ticket = (index * MAX_PAGES + page).to(tl.int64)
                claim = _claim_of(step, index, page, MAX_PAGES)
                won = tl.load(claims + bucket, mask=live, other=0, cache_modifier=".cg") == claim
                ways = tl.load(
                    table_page + bucket[:, None] * BUCKET_WAYS + way[None, :],
                    mask=live[:, None], other=0,
                )  # fmt: skip
                free_way = tl.min(tl.where(ways < 0, way[None, :], BUCKET_WAYS), axis=1)
                is_new = tl.load(serial + own, mask=live, other=0) == 0
                found = find_pages(
                    table_hash, table_page, serial, page_tokens, tokens, key, page,
                    live & (first_new == first), serial_base, PAGE_SIZE, NUM_BUCKETS,
                )  # fmt: skip
                tl.store(chain + page, found, mask=live)
                tl.debug_barrier()  # a page's neighbour is held by another thread
                before = tl.load(chain + page - 1, mask=live & (page > 0), other=-1)
                above = tl.load(serial + before, mask=live & (before >= 0), other=0)
                linked = tl.load(parent_serial + found, mask=found >= 0, other=-1) == above
                known = live & (found >= 0) & linked
                known = known & (tl.cumsum((~known).to(tl.int32), axis=0) == 0)
                first_new += tl.sum(known.to(tl.int32), axis=0)

                done = known | (live & won & is_new & (free_way < BUCKET_WAYS))
                done = done & (tl.cumsum((~done).to(tl.int32), axis=0) == 0)
                enters = done & ~known

                tl.debug_barrier()  # every thread has read the chain it is about to replace
                tl.store(chain + page, tl.where(known, found, own), mask=done)
                # The page in front entered just now, and its serial follows from its ticket; or it
                # was in the table before, and is what the chain said.
                entered_above = page > first_new
                above = tl.where(entered_above, serial_base + ticket - 1, above)
                tl.store(parent + own, tl.where(entered_above, own_above, before), mask=enters)
                tl.store(parent_serial + own, above, mask=enters)
                tl.store(content_hash + own, key, mask=enters)
                tl.store(born + own, step.to(tl.int32), mask=enters)
                tl.store(depth + own, page, mask=enters)
                tl.store(hits + own, 0, mask=enters)
                position = page[:, None] * PAGE_SIZE + tl.arange(0, PAGE_SIZE)[None, :]
                token = tl.load(tokens + position, mask=enters[:, None], other=0)
                at = own[:, None] * PAGE_SIZE + tl.arange(0, PAGE_SIZE)[None, :]
                tl.store(page_tokens + at, token, mask=enters[:, None])
                entry = bucket * BUCKET_WAYS + free_way
                tl.store(entry_of + own, entry, mask=enters)
                tl.store(table_hash + entry, key, mask=enters)
                tl.store(table_page + entry, own, mask=enters)
                tl.debug_barrier()  # serials are read above, also through the chain
                tl.store(serial + own, serial_base + ticket, mask=enters)
                settled += tl.sum(done.to(tl.int32), axis=0)
        newest = serial_base + index * MAX_PAGES + settled - 1
        if settled == first_new:  # none entered
            tl.debug_barrier()  # other threads have stored the chain
            newest = tl.load(serial + tl.load(chain + settled - 1, mask=settled > 0, other=0))
        tl.store(chain_serial + slot, newest, mask=settled > begin)
        tl.store(columns + NUM_PUBLISHED * R + slot, settled)
        tl.store(columns + NUM_HASHED * R + slot, tl.maximum(end, hashed))


@stage
def publish(requests, pool, plan) -> None:
    """Publish the new full pages of the rows that `update` listed."""
    sizes = requests.sizes
    # All at once on the device, so that they can wait for each other.
    most = 1 if interpreted() else min(128, multiprocessors(pool.counters.device))
    _publish_kernel[(min(sizes.num_slots, most),)](
        requests.columns, pool.counters, requests.token_ids, requests.block_table,
        requests.page_hash, requests.canonical, requests.chain_serial, pool.serial, plan.counts,
        plan.published_slots, pool.claims, pool.publish_arrivals, pool.table_hash, pool.table_page,
        pool.parent, pool.parent_serial, pool.content_hash, pool.page_tokens, pool.entry,
        pool.born, pool.depth, pool.hits,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, MAX_PAGES=sizes.max_pages_per_seq,
        PAGE_SIZE=sizes.page_size, NUM_BUCKETS=pool.num_buckets, TILE=tile_pages(sizes.page_size),
        **pdl(),
    )  # fmt: skip


def publish_ref(requests, pool, plan) -> None:
    """The same, page by page; `canonical` past the settled pages is unspecified."""
    sizes, ways = requests.sizes, BUCKET_WAYS.value
    size, step = sizes.page_size, int(pool.counters[STEP.value])
    rows = plan.published_slots[: int(plan.num_published_rows)].tolist()
    pages = []  # of each row
    for slot in rows:
        begin, end = int(requests.num_published[slot]), int(requests.num_computed_tokens[slot])
        end = (
            min(end, int(requests.prompt_len[slot])) if requests.beam_width[slot] else end
        ) // size
        last = int(requests.canonical[slot, begin - 1])
        lost = begin > 0 and int(pool.serial[last]) != int(requests.chain_serial[slot])
        lost = lost or int(requests.num_dropped[slot]) > 0
        pages.append(range(begin, begin if lost else end))

    def bucket(slot: int, page: int) -> int:
        key = int(requests.page_hash[slot, page])
        return (key ^ (key >> 32)) & (pool.num_buckets - 1)

    winner: dict[int, tuple[int, int]] = {}
    for index, slot in enumerate(rows):
        end = pages[index].stop
        position = torch.arange(end * size, device=requests.token_ids.device)
        keys = mix_ref(requests.token_ids[slot, : end * size], position).cumsum(0)
        requests.page_hash[slot, :end] = keys[size - 1 :: size]
        requests.num_hashed[slot] = max(end, int(requests.num_hashed[slot]))
        for page in pages[index]:
            winner.setdefault(bucket(slot, page), (index, page))
    # Claims outlive the step but are never read again, so the reference keeps only the winners.
    for home, (index, page) in winner.items():
        pool.claims[home] = (step << 32) | (0xFFFFFFFF - (index * sizes.max_pages_per_seq + page))

    known = {}
    for slot, todo in zip(rows, pages):  # found before anything of this step enters
        above = int(requests.canonical[slot, todo.start - 1]) if todo.start else -1
        above_serial = int(pool.serial[above]) if todo.start else 0
        known[slot] = find_chain_ref(requests, pool, slot, todo.start, todo.stop, above_serial)
    for index, (slot, todo) in enumerate(zip(rows, pages)):
        settled = todo.start
        for page in todo:
            if page - todo.start < len(known[slot]):
                requests.canonical[slot, page] = known[slot][page - todo.start]
                settled += 1
                continue
            home = bucket(slot, page)
            open_ways = (pool.table_page[home * ways : (home + 1) * ways] < 0).nonzero()
            if winner[home] != (index, page) or len(open_ways) == 0:
                break
            own, entry = int(requests.block_table[slot, page]), home * ways + int(open_ways[0])
            if int(pool.serial[own]) > 0:
                break
            above = int(requests.canonical[slot, page - 1]) if page else -1
            serial = (step * sizes.num_slots + index) * sizes.max_pages_per_seq + page + 1
            requests.canonical[slot, page] = own
            pool.parent[own], pool.serial[own] = above, serial
            pool.parent_serial[own] = pool.serial[above] if page else 0
            pool.content_hash[own] = pool.table_hash[entry] = requests.page_hash[slot, page]
            pool.born[own], pool.depth[own], pool.hits[own] = step, page, 0
            pool.page_tokens[own] = requests.token_ids[slot, page * size : (page + 1) * size]
            pool.entry[own], pool.table_page[entry] = entry, own
            settled += 1
        if settled > todo.start:
            requests.chain_serial[slot] = pool.serial[int(requests.canonical[slot, settled - 1])]
        requests.num_published[slot] = settled
