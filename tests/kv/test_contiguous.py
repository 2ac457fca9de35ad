"""The baselines before paging: who gets a chunk, and what of the memory is wasted."""

import itertools
import random

import pytest

from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.kv.buddy import Blocks
from paged.kv.contiguous_max import reserve_len as whole_length
from paged.kv.contiguous_oracle import ContiguousOracle
from paged.kv.contiguous_pow2 import ContiguousPow2
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.simulator.engine import SimulatedEngine
from paged.simulator.simulation import arrivals, feed
from paged.state import Sizes, next_power_of_2
from paged.workloads.synthetic import Synthetic

KINDS = {
    "max": lambda: PagedKV(reserve_len=whole_length, prefix_caching=False),
    "pow2": ContiguousPow2,
    "oracle": ContiguousOracle,
    "paged": lambda: PagedKV(prefix_caching=False),
}


def test_blocks_are_split_and_joined_again():
    blocks = Blocks(16)
    small, big = blocks.take(3), blocks.take(8)
    assert (small, big) == ((0, 4), (8, 8))
    assert blocks.take(8) is None  # twelve pages are taken; four are free, in one block
    assert blocks.take(4) == (4, 4)
    blocks.give(*small)
    blocks.give(8, 8)
    assert blocks.take(16) is None
    blocks.give(4, 4)
    assert blocks.take(16) == (0, 16)


def test_free_pages_that_are_apart_are_external_waste():
    blocks = Blocks(16)
    taken = [blocks.take(4) for _ in range(4)]
    blocks.give(*taken[0])
    blocks.give(*taken[2])
    assert blocks.take(8) is None  # eight pages are free
    assert blocks.take(4) == taken[0]


@pytest.mark.parametrize("num_pages", [1, 11, 16, 100])
def test_blocks_never_overlap_and_all_come_back(num_pages):
    rng, blocks, held = random.Random(num_pages), Blocks(num_pages), []
    for _ in range(500):
        if held and rng.random() < 0.5:
            blocks.give(*held.pop(rng.randrange(len(held)))[:2])
        pages = rng.randrange(1, num_pages + 1)
        block = blocks.take(pages)
        if block is not None:
            held.append((*block, pages))
            assert block[1] == next_power_of_2(pages)
            assert block[0] % block[1] == 0
            assert block[0] + pages <= num_pages
        pieces = sorted(held)
        assert all(a[0] + a[1] <= b[0] for a, b in itertools.pairwise(pieces))
    for begin, size, _ in held:
        blocks.give(begin, size)
    assert blocks.take(num_pages) == (0, next_power_of_2(num_pages))


@pytest.fixture(scope="module")
def splits():
    """Shares of the memory, each averaged over the loaded steps, by kind; and mean batch sizes."""

    def run(kv):
        sizes = Sizes(
            num_slots=64, max_num_seqs=64, max_num_batched_tokens=512, max_model_len=512,
            page_size=16, num_pages=192,
        )  # fmt: skip
        engine = SimulatedEngine(
            sizes=sizes, eviction=ScoreEviction(lru), kv=kv, vocab_size=2000, in_flight=1,
            scheduler=RankScheduler(max_num_seqs=64, max_num_batched_tokens=512, watermark=0.0),
            step_seconds=lambda *work: 0.02,
        )  # fmt: skip
        seen, batches = [], []

        def look(stats):
            split = kv.memory_split(engine.requests)
            assert sum(split.values()) == 192 * 16
            assert min(split.values()) >= 0
            if stats.num_waiting:
                seen.append(split)
                batches.append(stats.num_running)

        engine.on_step = look
        work = Synthetic(num_requests=120, input_mean=40, output_mean=80, rate=None, max_len=500)
        ended = list(
            feed(engine, arrivals(work, SamplingParams()), lambda _, why: pytest.fail(why))
        )
        assert len(ended) == len(work)
        assert engine.pool.num_free() == 192
        parts = {name: sum(s[name] for s in seen) / (len(seen) * 192 * 16) for name in seen[0]}
        return parts, sum(batches) / len(batches)

    return {name: run(kind()) for name, kind in KINDS.items()}


def test_each_step_from_max_to_paged_wastes_less(splits):
    states = [splits[name][0]["token_states"] for name in KINDS]
    assert states == sorted(states)
    assert states[0] < 0.3
    assert states[3] > 0.8
    batch = [splits[name][1] for name in KINDS]
    assert batch == sorted(batch)


def test_waste_is_where_the_baseline_has_it(splits):
    most, pow2, oracle, paged = (splits[name][0] for name in KINDS)
    assert most["internal_waste"] > 0.5
    assert pow2["internal_waste"] > oracle["internal_waste"]
    assert oracle["internal_waste"] < 0.05
    assert min(pow2["external_waste"], oracle["external_waste"]) > 0.1
    assert paged["external_waste"] == 0
    assert paged["reserved"] + paged["internal_waste"] < 0.15
