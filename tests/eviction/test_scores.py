"""What each eviction policy exists for: hits that others lose."""

import pytest
import torch

from paged.eviction import cost, depth, fifo, lfu, lru, mru, slru, ttl
from paged.eviction.base import ScoreEviction
from paged.eviction.belady import Belady
from paged.eviction.clock import Clock
from paged.eviction.s3fifo import S3FIFO
from paged.state import PagePool, Sizes

POLICIES = {
    "lru": lambda: ScoreEviction(lru.score),
    "fifo": lambda: ScoreEviction(fifo.score),
    "lfu": lambda: ScoreEviction(lfu.score),
    "slru": lambda: ScoreEviction(slru.score),
    "mru": lambda: ScoreEviction(mru.score),
    "depth": lambda: ScoreEviction(depth.score),
    "ttl": lambda: ScoreEviction(ttl.score, args=(40,)),
    "cost": lambda: ScoreEviction(cost.score, args=(64, 256)),
    "clock": Clock,
    "s3fifo": S3FIFO,
}


@pytest.mark.parametrize(("max_num_seqs", "seed"), [(1, 0), (4, 1)])
def test_belady_is_never_worse_than_any_other(hits, random_trace, max_num_seqs, seed):
    prompts = random_trace(seed)
    bound = sum(hits(Belady(), prompts, max_num_seqs=max_num_seqs))
    found = {
        name: sum(hits(policy(), prompts, max_num_seqs=max_num_seqs))
        for name, policy in POLICIES.items()
    }
    assert max(found.values()) <= bound, (found, bound)
    assert min(found.values()) < bound
    assert min(found.values()) > 0
    assert found["clock"] > found["fifo"]  # what was hit stays
    assert found["s3fifo"] > max(found["fifo"], found["lru"])  # what comes once does not push out
    assert found["lfu"] > found["lru"]


def test_belady_needs_the_future(hits):
    class Blind(Belady):
        def foresee(self, prompts, requests):
            pass

    with pytest.raises(ValueError, match="belady reads the future"):
        hits(Blind(), [[(content, 60)] for content in range(12)])


def test_mru_keeps_part_of_a_scan_that_comes_round_again(hits):
    scan = [[(content, 33)] for content in range(14)] * 3  # 28 pages in a pool of 24
    assert sum(hits(ScoreEviction(lru.score), scan)) == 0
    assert sum(hits(ScoreEviction(mru.score), scan)) > 200


def test_depth_keeps_beginnings(hits):
    asked = [[(0, 32), (10 + number, 100)] for number in range(8)]
    other = [[(100 + number, 150)] for number in range(8)]
    prompts = [prompt for pair in zip(asked, other) for prompt in pair]
    assert hits(ScoreEviction(depth.score), prompts)[2::2] == [32] * 7
    assert sum(hits(ScoreEviction(fifo.score), prompts)) < 7 * 32


@pytest.fixture
def cached_pages(device):
    """`cached_pages(hits=[...], ...) -> pool`: published pages that nobody holds, none free."""

    def make(step=100, **columns) -> PagePool:
        count = len(next(iter(columns.values())))
        sizes = Sizes(
            num_slots=1, max_num_seqs=1, max_num_batched_tokens=16, max_model_len=64,
            page_size=16, num_pages=count,
        )  # fmt: skip
        pool = PagePool(sizes, device)
        pool.counters[:4] = torch.tensor([count, count, count, step])  # head, tail, cached, step
        pool.serial.copy_(torch.arange(1, count + 1))
        pool.entry.copy_(torch.arange(count))
        for name, values in columns.items():
            getattr(pool, name).copy_(torch.tensor(values))
        return pool

    return make


def evicted(eviction, pool, count: int) -> list[int]:
    before = pool.serial.clone()
    eviction.evict(pool, pool.num_free() + count)
    return ((before > 0) & (pool.serial == 0)).nonzero().flatten().tolist()


def test_ttl_drops_what_is_too_old_even_if_it_is_used(cached_pages):
    ages = {"born": [10, 95, 90], "last_used": [99, 96, 97]}
    assert evicted(ScoreEviction(ttl.score, args=(50,)), cached_pages(**ages), 1) == [0]
    assert evicted(ScoreEviction(ttl.score, args=(95,)), cached_pages(**ages), 1) == [1]


def test_cost_weighs_hits_by_what_a_miss_costs(cached_pages):
    pages = {"hits": [3, 3, 3, 40], "depth": [0, 30, 60, 60]}
    policy = ScoreEviction(cost.score, args=(64, 256))
    assert evicted(policy, cached_pages(**pages), 1) == [2]
    assert evicted(policy, cached_pages(**pages), 2) == [1, 2]
    assert evicted(policy, cached_pages(hits=[2**30, 5], depth=[0, 0]), 1) == [1]  # no overflow


def test_clock_gives_a_second_chance_and_only_one(cached_pages):
    pool, clock = cached_pages(hits=[1, 0, 0, 0]), Clock()
    assert evicted(clock, pool, 1) == [1]  # the hand passed page 0
    pool.hits[2] += 1
    assert evicted(clock, pool, 1) == [3]  # and now page 2, which was hit meanwhile
    assert evicted(clock, pool, 1) == [0]  # in front of page 2, passed earlier
    assert evicted(clock, pool, 1) == [2]


def test_s3fifo_promotes_remembers_and_forgives(cached_pages):
    count = 20
    pool = cached_pages(hits=[2, 0, 1, *[0] * 17], content_hash=list(range(1, count + 1)))
    policy = S3FIFO(small=0.1)
    gone = evicted(policy, pool, 3)
    assert 0 not in gone  # hit twice: it moved to the main queue
    assert policy.main.tolist() == [page == 0 for page in range(count)]
    pool.serial[gone[0]] = 100  # the same content again, soon after: it was a ghost
    pool.serial[gone[1]] = 101
    pool.content_hash[gone[1]] = 999  # and something new
    pool.counters[2] += 2
    evicted(policy, pool, 1)
    assert policy.main[gone[0]]
    assert not policy.main[gone[1]]


def test_s3fifo_refuses_a_queue_of_no_pages():
    with pytest.raises(ValueError, match=r"eviction\.small must be in \(0, 1\), got 1"):
        S3FIFO(small=1.0)
