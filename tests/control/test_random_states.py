"""Single kernels against their references on random states, also ones that few runs reach."""

import random

import pytest
import torch
import triton

from paged.kernels.control import columns as col
from paged.kernels.control.drafts import grant_drafts, grant_drafts_ref
from paged.kernels.control.evict import evict, evict_ref
from paged.kernels.control.order import order, order_ref
from paged.kernels.control.schedule import schedule
from paged.kernels.control.schedule_ref import schedule_ref
from paged.state import RUNNING, WAITING, PagePool, RequestTable, Sizes
from paged.testing.sides import Side, assert_same_state


@triton.jit
def by_priority(row, now):
    return row.priority


@triton.jit
def half_of_the_rest(prompt_len, total_len, max_len):
    return total_len + (max_len - total_len) // 2


def random_rows(requests: RequestTable, pool: PagePool, rng: random.Random, max_running: int):
    """Rows with plausible columns; pages are counted but belong to nobody in particular."""
    sizes = requests.sizes
    tickets = rng.sample(range(1000), sizes.num_slots)
    for slot in range(sizes.num_slots):
        status = rng.choice((col.FREE.value, WAITING, WAITING, RUNNING))
        if status == RUNNING and int((requests.status == RUNNING).sum()) == max_running:
            status = WAITING
        prompt = rng.randrange(1, sizes.max_model_len - 1)
        total = rng.randrange(prompt, sizes.max_model_len - 1)
        computed = rng.randrange(total)
        requests.status[slot] = status
        requests.arrival[slot] = tickets[slot]
        requests.priority[slot] = rng.randrange(-2, 3)
        requests.prompt_len[slot], requests.total_len[slot] = prompt, total
        requests.max_len[slot] = rng.randrange(total + 1, sizes.max_model_len + 1)
        if status == RUNNING:
            requests.num_computed_tokens[slot] = computed
            requests.num_pages[slot] = -(-computed // sizes.page_size)
        else:
            hits = rng.randrange(max(1, (total - 1) // sizes.page_size))
            requests.cached_len[slot] = hits * sizes.page_size
            requests.idle_hits[slot] = rng.randrange(hits + 1)
            if rng.random() < 0.2:  # shares a page that is partly filled
                requests.cached_len[slot] = min(total - 1, hits * sizes.page_size + 5)
                requests.parent[slot] = 1 + rng.randrange(sizes.num_slots)
        requests.num_forks[slot] = rng.randrange(2)
        for column in (requests.logit_edits, requests.num_logprobs, requests.mask_len):
            column[slot] = int(rng.random() < 0.05) and total
    head = rng.randrange(10**6)
    free = rng.choice((0, 1, 5, 30, 100))
    pool.counters[[col.HEAD.value, col.TAIL.value]] = torch.tensor([head, head + free])
    pool.counters[col.NUM_CACHED.value] = rng.choice((0, 2, 50))
    pool.counters[col.TICKET.value] = rng.randrange(100)


@pytest.mark.parametrize("seed", range(24))
def test_order_and_schedule(device, seed):
    rng = random.Random(seed)
    sizes = Sizes(
        num_slots=rng.choice((5, 33)), max_num_seqs=rng.choice((3, 5)),
        max_num_batched_tokens=64, max_model_len=200, page_size=16, num_pages=200,
        num_draft_tokens=rng.choice((1, 3, 16)),
    )  # fmt: skip
    reference = Side(sizes, "cpu", None)
    random_rows(reference.requests, reference.pool, rng, sizes.max_num_seqs)
    side = Side(sizes, device, None)
    side.requests.columns.copy_(reference.requests.columns)
    side.pool.counters.copy_(reference.pool.counters)
    preemptive = rng.random() < 0.5
    reference.plan.key.copy_(reference.requests.priority * (reference.requests.status != 0))
    order(side.requests, side.pool, side.plan, by_priority, preemptive=preemptive)
    order_ref(reference.requests, reference.pool, reference.plan, preemptive=preemptive)
    assert_same_state(side, reference, "order", seed)
    reserve = rng.choice((None, half_of_the_rest))
    knobs = {
        "budget": rng.choice((1, 7, 64)), "chunk": rng.choice((1, 16, 64)),
        "watermark": rng.choice((0, 0, 10)), "static_batch": rng.random() < 0.2,
    }  # fmt: skip
    schedule(side.requests, side.pool, side.plan, reserve=reserve, **knobs)
    schedule_ref(
        reference.requests, reference.pool, reference.plan,
        reserve=reserve and reserve.fn, **knobs,
    )  # fmt: skip
    assert_same_state(side, reference, "schedule", seed)
    for plan in (side.plan, reference.plan):
        proposed = random.Random(seed)  # more than there is room for, too
        plan.num_drafts.copy_(torch.tensor([proposed.randrange(-1, 18) for _ in plan.num_drafts]))
    grant_drafts(side.requests, side.pool, side.plan, budget=knobs["budget"])
    grant_drafts_ref(reference.requests, reference.pool, reference.plan, budget=knobs["budget"])
    assert_same_state(side, reference, "grant_drafts", seed)


def random_pool(pool: PagePool, rng: random.Random, num_cached: int, num_held: int) -> None:
    """Published pages in chains, some orphaned; the rest of the pages free."""
    pages = rng.sample(range(pool.sizes.num_pages), num_cached + num_held)
    for at, page in enumerate(pages):
        pool.serial[page] = at + 1
        pool.score[page] = rng.choice((-(2**31), -5, 0, 3, 3, 3, 2**31 - 1))
        pool.depth[page] = rng.choice((0, 1, 2, 70000))
        pool.ref_count[page] = int(at >= num_cached)
        pool.entry[page], pool.table_page[at] = at, page
        pool.table_hash[at] = rng.randrange(1, 2**62)
        if at and rng.random() < 0.7:
            pool.parent[page] = pages[rng.randrange(at)]
            pool.parent_serial[page] = pool.serial[pool.parent[page]] + (rng.random() < 0.2)
    free = [page for page in range(pool.sizes.num_pages) if page not in set(pages)]
    pool.free_ring[: len(free)] = torch.tensor(free, dtype=torch.int32)
    pool.counters[col.TAIL.value] = len(free)
    pool.counters[col.NUM_CACHED.value] = num_cached


@pytest.mark.parametrize("wanted", ["nothing", "one", "half", "shortfall", "all"])
@pytest.mark.parametrize("num_pages", [12, 2500, pytest.param(9000, marks=pytest.mark.slow)])
def test_evict(device, num_pages, wanted):
    rng = random.Random(num_pages)
    sizes = Sizes(
        num_slots=2, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=64, page_size=16,
        num_pages=num_pages,
    )  # fmt: skip
    reference = Side(sizes, "cpu", None)
    random_pool(reference.pool, rng, num_cached=num_pages // 2, num_held=num_pages // 4)
    side = Side(sizes, device, None)
    for name, tensor in vars(side.pool).items():
        if isinstance(tensor, torch.Tensor):
            tensor.copy_(getattr(reference.pool, name))
    free = reference.pool.num_free()
    low_water = {"nothing": 0, "one": free + 1, "half": free + num_pages // 4}.get(wanted, 0)
    low_water = 2 * num_pages if wanted == "all" else low_water
    for pool in (side.pool, reference.pool):
        pool.counters[col.SHORTFALL.value] = 3 if wanted == "shortfall" else 0
    evict(side.pool, low_water)
    evict_ref(reference.pool, low_water)
    assert not side.pool.evict_histogram.any(), "the next eviction would count on"
    assert_same_state(side, reference, "evict", 0)
    evicted = reference.pool.num_free() - free
    expected = {"nothing": 0, "one": 1, "half": num_pages // 4, "shortfall": 3}
    assert evicted == expected.get(wanted, num_pages // 2)


def test_plan_starts_empty_for_idle_steps(device):
    sizes = Sizes(
        num_slots=4, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=64, page_size=16,
        num_pages=8,
    )  # fmt: skip
    side = Side(sizes, device, None)
    order(side.requests, side.pool, side.plan, by_priority)
    schedule(side.requests, side.pool, side.plan, budget=16, chunk=16)
    plan = side.plan
    assert plan.counts[:3].tolist() == [0, 0, 0]
    assert plan.order.tolist() == [0, 1, 2, 3]
    assert plan.cu_seqlens_q.tolist() == [0, 0, 0]
