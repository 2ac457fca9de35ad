"""What is shared and what must never be: hits, claims, collisions, evictions, NaN, aborts."""

import pytest
import triton
import triton.language as tl

from paged.kernels.control import columns as col
from paged.kernels.control import ingest, ingest_ref, publish
from paged.kernels.launch import interpreted
from paged.state import FREE
from paged.testing.invariants import check_state

PROMPT = [(7 * i * i + 3) % 64 for i in range(80)]


@triton.jit
def roots_first(page, now):
    return page.depth


def num_published(steps) -> int:
    return int((steps.state.pool.serial > 0).sum())


def run_steps(steps, count: int) -> None:
    for _ in range(count):
        steps.step()


@pytest.mark.parametrize(("length", "hit"), [(1, 0), (16, 0), (17, 16), (32, 16), (33, 32)])
def test_second_equal_prompt_takes_all_but_the_last_token(build, length, hit):
    steps = build(by="references")
    steps.submit(PROMPT[:length], 3)
    steps.finish()
    second = steps.submit(PROMPT[:length], 3)
    steps.finish()
    assert second.cached == [hit]


def test_equal_prompts_of_one_step_publish_one_copy(build):
    steps = build()
    for _ in range(3):
        steps.submit(PROMPT[:20], 4)
    run_steps(steps, 3)
    assert num_published(steps) == 1
    chains = steps.state.requests.canonical[:3, 0].tolist()
    assert len(set(chains)) == 1, "the others follow the page that won"
    assert len(set(steps.state.requests.block_table[:3, 0].tolist())) == 3
    steps.finish()


def test_row_whose_chain_was_evicted_publishes_nothing_more(build):
    steps = build(sizes={"num_pages": 6}, num_buckets=64)
    first, second = steps.submit(PROMPT[:20], 3), steps.submit(PROMPT[:20], 14)
    while first.reason is None:
        steps.step()
    shared = int(steps.state.requests.canonical[second.slot, 0])
    assert shared != int(steps.state.requests.block_table[second.slot, 0])
    steps.evict(6)
    assert int(steps.state.pool.serial[shared]) == 0
    other = steps.submit(PROMPT[:63][::-1], 2)  # takes the page for other tokens, at depth 3
    while other.reason is None:
        steps.step()
    assert int(steps.state.pool.serial[shared]) > 0, "the page was published again"
    assert int(steps.state.pool.depth[shared]) == 3
    assert second.reason is None
    steps.finish()
    assert int(steps.state.requests.num_published[second.slot]) == 1


def test_equal_keys_cost_time_and_nothing_else(build, drive, monkeypatch):
    if not interpreted():
        pytest.skip("a compiled kernel cannot be given another hash")

    @triton.jit
    def one_key(token, position):
        return (token * 0 + position * 0).to(tl.int64)

    for module in (ingest, publish):
        monkeypatch.setattr(module, "mix", one_key)
    for module in (ingest_ref, publish):
        monkeypatch.setattr(module, "mix_ref", lambda token, position: (token * 0).long())
    steps = build(num_buckets=2)
    drive(steps, seed=28)
    assert steps.totals["cached_pages"] > 0


def test_full_bucket_stops_publishing_until_eviction(build):
    steps = build(by="references", num_buckets=1, sizes={"num_pages": 40, "max_num_seqs": 1})
    for start in range(24):
        steps.submit(PROMPT[start : start + 17], 2)
    steps.finish()
    assert num_published(steps) == col.BUCKET_WAYS.value
    steps.evict(40)
    assert num_published(steps) == 0
    steps.submit(PROMPT[:17], 2)
    steps.finish()
    assert num_published(steps) == 1


def test_deepest_page_of_a_chain_is_evicted_first(build):
    steps = build()
    steps.submit(PROMPT[:70], 2)
    steps.finish()
    pool = steps.state.pool
    for left in range(num_published(steps), 0, -1):
        assert sorted(pool.depth[pool.serial > 0].tolist()) == list(range(left))
        steps.evict(pool.num_free() + 1)
        check_state(steps.state.requests, pool)


def test_page_whose_parent_was_evicted_is_not_found_and_goes_first(build):
    steps = build(score=roots_first)
    steps.submit(PROMPT[:50], 2)
    steps.finish()
    pool = steps.state.pool
    assert sorted(pool.depth[pool.serial > 0].tolist()) == [0, 1, 2]
    steps.evict(pool.num_free() + 1)
    assert sorted(pool.depth[pool.serial > 0].tolist()) == [1, 2]
    again = steps.submit(PROMPT[:50], 2)
    steps.step()
    assert again.cached == [0]
    orphan = int(
        (pool.depth == 1).logical_and(pool.ref_count == 0).logical_and(pool.serial > 0).nonzero()
    )
    steps.finish()
    steps.evict(pool.num_free() + 1)
    assert int(pool.serial[orphan]) == 0, "before the root that a score of 0 would let go"


def test_nan_ends_its_request_only_and_is_never_shared(build):
    steps = build()
    bad = steps.submit(PROMPT[:40], 5, nan_at=30)
    good = steps.submit(PROMPT[40:70], 5)
    steps.finish()
    assert (bad.reason, bad.tokens) == ("error", [])
    assert (good.reason, len(good.tokens)) == ("length", 5)
    assert num_published(steps) == 2, "the good request's two full pages"
    again = steps.submit(PROMPT[:40], 5)
    steps.finish()
    assert (again.cached, again.reason) == ([0], "length")


def test_abort_of_waiting_running_and_ended_requests(build):
    steps = build(sizes={"max_num_seqs": 1})
    running, waiting = steps.submit(PROMPT[:20], 9), steps.submit(PROMPT[:30], 9)
    run_steps(steps, 2)
    slot = running.slot
    steps.abort(running)
    steps.abort(waiting)
    steps.step()
    assert (running.reason, waiting.reason) == ("abort", "abort")
    assert not waiting.tokens
    for side in steps.sides:  # the host may abort before it hears of the end
        side.mailbox.post(steps.num_steps, 0, [], [slot])
    steps.stage("ingest", 1)
    assert int(steps.state.requests.status[slot]) == FREE
    steps.finish()
