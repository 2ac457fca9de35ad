"""What must hold of the engine's state after every step, checked on the host.

Each check reads the device and raises AssertionError with a sentence that names the page, slot or
count at fault. For tests and for `KVManager.check`; nothing here runs in a step.
"""

from collections import Counter

import torch

from paged.kernels.control import columns as col
from paged.kernels.control.swap import SwapSpace
from paged.state import (
    FINISHED,
    FORKING,
    FREE,
    PREEMPTED,
    RUNNING,
    WAITING,
    PagePool,
    RequestTable,
    StepPlan,
)

HOLDERS = (RUNNING, FINISHED, PREEMPTED)


def check_state(requests: RequestTable, pool: PagePool) -> None:
    """Raise AssertionError unless table and pool are consistent; true between any two stages
    except between `schedule` and `prepare`, where pages are booked but not yet in block tables."""
    holders = _check_rows(requests)
    free = _check_free_ring(pool)
    _check_pages(pool, holders, free)
    _check_prefix_table(pool)
    _check_shared_contents(requests, pool)
    if pool.swaps is not None:
        _check_host_pages(requests, pool.swaps)


def _check_rows(requests: RequestTable) -> Counter[int]:
    """Each row by itself; returns how many live block-table entries name each page."""
    sizes = requests.sizes
    rows = [dict(zip(col.COLUMN_NAMES, row)) for row in requests.columns.t().tolist()]
    tables = requests.block_table.tolist()
    holders: Counter[int] = Counter()
    arrivals: dict[int, int] = {}
    num_seqs = 0
    for slot, row in enumerate(rows):
        who, status, held = f"slot {slot}", row["status"], row["num_pages"]
        known = (FREE, WAITING, FORKING, *HOLDERS)
        assert status in known, f"{who} has unknown status {status}"
        if status in (FREE, WAITING, FORKING):
            assert held == 0, f"{who} holds {held} pages but does not run"
        if status in (WAITING, FORKING, RUNNING):
            twin = arrivals.setdefault(row["arrival"], slot)
            assert twin == slot, f"slots {twin} and {slot} have the same arrival ticket"
            # A prompt whose log-probabilities are wanted is forced, a token a step.
            least = 1 if row["forced_len"] > row["total_len"] else row["prompt_len"]
            assert 0 < least <= row["total_len"] < row["max_len"], (
                f"{who} has {row['total_len']} tokens, outside its prompt's {row['prompt_len']} "
                f"and its end at {row['max_len']}"
            )
        if status not in HOLDERS:
            continue
        num_seqs += status == RUNNING
        computed, published = row["num_computed_tokens"], row["num_published"]
        assert 0 <= computed <= row["total_len"] <= sizes.max_model_len, (
            f"{who} computed {computed} tokens of {row['total_len']}"
        )
        assert held <= sizes.max_pages_per_seq, f"{who} holds {held} pages, over its block table"
        gone = row["num_dropped"]
        assert computed <= (held + gone) * sizes.page_size, (
            f"{who} computed {computed} tokens but holds only {held} pages and dropped {gone}"
        )
        assert published <= held + gone, f"{who} published {published} of {held} pages"
        assert published <= computed // sizes.page_size, (
            f"{who} published {published} pages with {computed} tokens computed"
        )
        pages = tables[slot][:held]
        assert len(set(pages)) == held, f"{who} holds a page twice: {pages}"
        holders.update(pages)
    assert num_seqs <= sizes.max_num_seqs, (
        f"{num_seqs} rows run, more than max_num_seqs={sizes.max_num_seqs}"
    )
    return holders


def _check_free_ring(pool: PagePool) -> set[int]:
    """The free pages."""
    head, tail = pool.counters[: col.TAIL.value + 1].tolist()
    ring = pool.free_ring.tolist()
    assert 0 <= tail - head <= pool.sizes.num_pages, f"the free ring holds {tail - head} pages"
    free = [ring[at % len(ring)] for at in range(head, tail)]
    for page, times in Counter(free).items():
        assert 0 <= page < pool.sizes.num_pages, f"the free ring holds page {page}"
        assert times == 1, f"page {page} is {times} times in the free ring"
    return set(free)


def _check_pages(pool: PagePool, holders: Counter[int], free: set[int]) -> None:
    """Every page is in exactly one state, and counts say what the tables say."""
    serial, ref_count = pool.serial.tolist(), pool.ref_count.tolist()
    num_cached = 0
    for page in holders:
        assert 0 <= page < pool.sizes.num_pages, f"a block table names page {page}"
    for page in range(pool.sizes.num_pages):
        held = holders[page]
        assert ref_count[page] == held, (
            f"page {page} has ref_count {ref_count[page]} and {held} live block-table entries"
        )
        cached = held == 0 and serial[page] > 0
        num_cached += cached
        states = [name for name, is_in in (
            ("free", page in free), ("cached", cached), ("in use", held > 0)
        ) if is_in]  # fmt: skip
        assert len(states) == 1, f"page {page} must be in one state, is in {states or 'none'}"
        assert not (page in free and serial[page]), f"page {page} is free but published"
    counted = int(pool.counters[col.NUM_CACHED.value])
    assert counted == num_cached, f"NUM_CACHED counts {counted} pages, {num_cached} are cached"


def _check_prefix_table(pool: PagePool) -> None:
    """The table and the published pages name each other, with the same keys."""
    used = pool.table_page >= 0
    keyed_but_empty = (~used & (pool.table_hash != 0)).nonzero().flatten().tolist()
    assert not keyed_but_empty, f"entries {keyed_but_empty} are empty but have keys"
    entries = used.nonzero().flatten()
    table_page = dict(zip(entries.tolist(), pool.table_page[entries].tolist()))
    table_hash = dict(zip(entries.tolist(), pool.table_hash[entries].tolist()))
    entry, serial = pool.entry.tolist(), pool.serial.tolist()
    key = pool.content_hash.tolist()
    ways = col.BUCKET_WAYS.value
    for at, page in table_page.items():
        assert entry[page] == at, f"entry {at} names page {page}, which says entry {entry[page]}"
        assert table_hash[at] == key[page], f"entry {at} and page {page} have different keys"
        home = (key[page] ^ (key[page] >> 32)) & (pool.num_buckets - 1)
        assert at // ways == home, f"page {page} is in bucket {at // ways}, not {home}"
    serials = [number for number in serial if number]
    assert len(set(serials)) == len(serials), "two published pages have the same serial"
    depth, parent = pool.depth.tolist(), pool.parent.tolist()
    parent_serial = pool.parent_serial.tolist()
    for page, number in enumerate(serial):
        above = parent[page]
        if number and above >= 0 and parent_serial[page] == serial[above]:
            assert depth[above] == depth[page] - 1, (
                f"page {page} of depth {depth[page]} follows page {above} of depth {depth[above]}"
            )
        named = table_page.get(entry[page]) == page
        assert (number > 0) == named, (
            f"page {page} has serial {number} but "
            f"{'is' if named else 'is not'} named by the prefix table"
        )


def _check_shared_contents(requests: RequestTable, pool: PagePool) -> None:
    """A page of several rows is full and the same part of each; a published page that a row holds
    has the row's tokens, at the row's depth. Where pages were dropped, later ones moved up."""
    size = requests.sizes.page_size
    serial, depth, parent = pool.serial.tolist(), pool.depth.tolist(), pool.parent_serial.tolist()
    ref_count, computed = pool.ref_count.tolist(), requests.num_computed_tokens.tolist()
    dropped = requests.num_dropped.tolist()
    token_ids, page_tokens = requests.token_ids.cpu(), pool.page_tokens.cpu()
    tables, num_pages = requests.block_table.tolist(), requests.num_pages.tolist()
    # A row that shares a prompt may hold what another sample of it has published.
    relatives = ((requests.parent > 0) | (requests.num_forks > 0)).tolist()
    first_holder: dict[int, tuple[int, int]] = {}
    for slot, published in enumerate(requests.num_published.tolist()):
        for index, page in enumerate(tables[slot][: num_pages[slot]]):
            if dropped[slot]:
                if not serial[page]:
                    continue
                assert index <= depth[page] <= index + dropped[slot], (
                    f"slot {slot}, which dropped {dropped[slot]} pages, has page {page} of depth "
                    f"{depth[page]} at {index}"
                )
                index = depth[page]
            elif ref_count[page] > 1:
                other, at = first_holder.setdefault(page, (slot, index))
                who = f"page {page}, which slots {other} and {slot} share,"
                assert at == index, f"{who} is at {at} of one and at {index} of the other"
                ours, theirs = (token_ids[row, : (index + 1) * size] for row in (slot, other))
                assert torch.equal(ours, theirs), f"{who} follows different tokens"
                assert computed[slot] >= (index + 1) * size, f"{who} is not full"
            if not serial[page]:
                continue
            assert relatives[slot] or index < published, (
                f"slot {slot} holds page {page} past its published ones"
            )
            assert depth[page] == index, (
                f"slot {slot} has page {page} of depth {depth[page]} at {index}"
            )
            assert (parent[page] == 0) == (index == 0), f"page {page} at {index} has no parent"
            mine = token_ids[slot, index * size : (index + 1) * size]
            assert torch.equal(page_tokens[page], mine), (
                f"page {page} at index {index} of slot {slot} was published with other tokens"
            )


def _check_host_pages(requests: RequestTable, swaps: SwapSpace) -> None:
    """Every host page is free or holds a page of one row that waits."""
    head, tail = swaps.counters.tolist()
    ring, total = swaps.free_ring.tolist(), requests.sizes.num_host_pages
    found = [ring[at % len(ring)] for at in range(head, tail)]
    tables, status = swaps.host_table.tolist(), requests.status.tolist()
    for slot, swapped in enumerate(requests.num_swapped.tolist()):
        if swapped:
            waits = (WAITING, FORKING, PREEMPTED, FINISHED)
            assert status[slot] in waits, f"slot {slot} holds host pages but does not wait"
            pages = -(-swapped // requests.sizes.page_size)
            found += tables[slot][int(requests.num_unsaved[slot]) : pages]
    assert sorted(found) == list(range(total)), f"host pages are free or held: {sorted(found)}"


def check_plan(
    requests: RequestTable, pool: PagePool, plan: StepPlan, *, budget: int, chunk: int
) -> None:
    """Raise AssertionError unless `plan` is one the model can run; call after `prepare`."""
    sizes = plan.sizes
    num_tokens, num_seqs, num_samples = plan.counts[:3].tolist()
    assert 0 <= num_tokens <= min(budget, sizes.max_num_batched_tokens), (
        f"{num_tokens} tokens granted with a budget of {budget}"
    )
    assert 0 <= num_seqs <= sizes.max_num_seqs, f"{num_seqs} sequences in one step"
    drafts = plan.num_drafts[:num_seqs].tolist()
    most = num_seqs + sum(drafts)
    assert 0 <= num_samples <= most, f"{num_samples} rows drawn of {num_seqs} sequences"
    slots = plan.seq_slots[:num_seqs].tolist()
    assert len(set(slots)) == num_seqs, f"a slot runs twice in one step: {slots}"
    grant, begins = plan.grant.tolist(), plan.cu_seqlens_q.tolist()
    assert sum(grant) == num_tokens, f"grants add up to {sum(grant)}, not {num_tokens}"
    assert begins[num_seqs:] == [num_tokens] * (sizes.max_num_seqs + 1 - num_seqs), (
        f"cu_seqlens_q ends with {begins[num_seqs:]}, the step has {num_tokens} tokens"
    )
    writes = plan.slot_mapping[:num_tokens].tolist()
    assert len(set(writes)) == num_tokens, "two tokens are written to the same place"
    for page in sorted({at // sizes.page_size for at in writes}):
        assert int(pool.ref_count[page]) == 1, f"page {page} is written to but not held by one row"
        assert int(pool.serial[page]) == 0, f"page {page} is written to but published"
    tables = _pages_of(requests, slots)
    samples: list[tuple[int, int]] = []
    for seq, slot in enumerate(slots):
        who, begin, count = f"slot {slot}", begins[seq], grant[slot]
        drafted = plan.draft_tokens[seq, : drafts[seq]].tolist()
        known = count - drafts[seq]
        assert int(requests.status[slot]) == RUNNING, f"{who} is in the batch but does not run"
        assert 0 < known <= chunk, f"{who} is granted {known} tokens with chunk={chunk}"
        assert begins[seq + 1] - begin == count, f"{who} has {count} tokens at {begin}"
        start = int(requests.num_computed_tokens[slot])
        end, total = start + count, int(requests.total_len[slot])
        known_end = end - drafts[seq]
        assert known_end <= total, f"{who} is granted up to token {known_end} of {total}"
        assert not drafted or (known_end == total and end < int(requests.max_len[slot])), (
            f"{who} has {len(drafted)} drafts behind token {known_end} of {total}"
        )
        gone = int(requests.num_dropped[slot])
        keys = end - gone * sizes.page_size
        assert int(plan.seq_lens[seq]) == keys, f"{who} has {keys} keys, seq_lens says otherwise"
        held = tables[slot]
        assert plan.block_table[seq, : len(held)].tolist() == held, f"{who}: another block table"
        positions = list(range(start, end))
        assert plan.positions[begin : begin + count].tolist() == positions, f"{who}: positions"
        tokens = requests.token_ids[slot, start:known_end].tolist() + drafted
        assert plan.input_ids[begin : begin + count].tolist() == tokens, f"{who}: input_ids"
        size = sizes.page_size
        expected = [held[at // size - gone] * size + at % size for at in positions]
        assert writes[begin : begin + count] == expected, f"{who}: slot_mapping"
        if known_end == total:
            samples += [(slot, begin + at) for at in range(known - 1, count)]
    drawn = [*zip(*(t[:num_samples].tolist() for t in (plan.sample_slots, plan.logits_indices)))]
    assert drawn == samples, f"rows that reached their end are {samples}, drawn are {drawn}"


def _pages_of(requests: RequestTable, slots: list[int]) -> dict[int, list[int]]:
    return {
        slot: requests.block_table[slot, : int(requests.num_pages[slot])].tolist() for slot in slots
    }


def no_leak(requests: RequestTable, pool: PagePool) -> None:
    """Raise AssertionError unless every page is free or cached; call when no request is live."""
    check_state(requests, pool)
    live = [slot for slot, status in enumerate(requests.status.tolist()) if status != FREE]
    assert not live, f"slots {live} are still live"
    cached = int(pool.counters[col.NUM_CACHED.value])
    lost = pool.sizes.num_pages - pool.num_free() - cached
    assert lost == 0, f"{lost} pages are neither free nor cached though no request is live"
