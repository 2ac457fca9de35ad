"""Engine and simulator, given the same trace and the same step times, decide the same."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from paged.attention.triton import TritonAttention
from paged.eviction.base import ScoreEviction
from paged.eviction.lfu import score as lfu
from paged.kv.paged import PagedKV
from paged.models.loading import load_model
from paged.request import SamplingParams
from paged.samplers.stochastic import StochasticSampler
from paged.schedulers.base import RankScheduler
from paged.schedulers.priority import rank as by_priority
from paged.schedulers.sjf import rank as sjf
from paged.simulator.engine import SimulatedEngine, TimedEngine
from paged.simulator.simulation import arrivals, feed
from paged.state import Sizes
from paged.workloads.request import Request

SIZES = Sizes(
    num_slots=6, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=128, page_size=16,
    num_pages=10,
)  # fmt: skip
DECIDED = (
    "status", "arrival", "admitted", "total_len", "num_computed_tokens", "num_pages", "cached_len",
    "num_preemptions", "num_published", "num_swapped", "num_unsaved",
)  # fmt: skip


def seconds(num_tokens: int, num_seqs: int, num_keys: int, capacity: int) -> float:
    return 0.004 + 0.0001 * capacity + 0.0007 * num_tokens + 0.0001 * num_seqs + 0.00001 * num_keys


def trace() -> list[Request]:
    """Nine requests that share two beginnings, in bursts, in more memory than there is."""
    return [
        Request(
            arrival=0.05 * (number // 3),
            spans=((number % 2, 20 + 16 * (number % 3)), (100 + number, 5 + number)),
            output_len=4 + 6 * (number % 3),
            output=200 + number,
            priority=-number,
            predicted_len=number % 5,
            vocab_size=400,
        )
        for number in range(9)
    ]


def parts(rank, preemptive: bool, num_host_pages: int) -> dict:
    return {
        "sizes": replace(SIZES, num_host_pages=num_host_pages),
        "scheduler": RankScheduler(
            rank, max_num_seqs=4, max_num_batched_tokens=64, chunk=24, preemptive=preemptive
        ),
        "kv": PagedKV(page_size=16, num_pages=SIZES.num_pages, low_water=0.2),
        "eviction": ScoreEviction(lfu),
        "step_seconds": seconds,
        "swap_page_seconds": 0.002,
    }


def with_the_model(**arguments) -> TimedEngine:
    loaded = load_model("stories", dtype=torch.float32, device=torch.device("cpu"))
    loaded.decoder.allocate(64, 4, 16, SIZES.num_pages)
    return TimedEngine(
        model=loaded.decoder, attention=TritonAttention(), sampler=StochasticSampler(),
        device=torch.device("cpu"), vocab_size=loaded.spec.vocab_size, **arguments,
    )  # fmt: skip


def decisions(engine: TimedEngine) -> tuple[list[dict], list]:
    """What every step decided, and when each request got its tokens."""
    made: list[dict] = []
    requests, pool, plan = engine.requests, engine.pool, engine.device_step.plan
    run = engine.steps.run

    def watched(*arguments):
        run(*arguments)
        held = torch.arange(requests.block_table.shape[1]) < requests.num_pages[:, None]
        decided = {name: getattr(requests, name).tolist() for name in DECIDED}
        made.append(
            decided
            | {
                "time": engine.virtual.now,
                "order": plan.order.tolist(),
                "grant": plan.grant.tolist(),
                "counts": plan.counts.tolist(),
                "pages": torch.where(held, requests.block_table, -1).tolist(),
                "counters": pool.counters.tolist(),
                "free_ring": pool.free_ring.tolist(),
                "holders": pool.ref_count.tolist(),
                "published": pool.serial.tolist(),
            }
        )

    engine.steps.run = watched
    refused: list = []
    ends = [
        (live.ticket, live.token_ids, vars(live.output.metrics))
        for live in feed(
            engine, arrivals(trace(), SamplingParams()), lambda *why: refused.append(why)
        )
    ]
    assert not refused
    return made, ends


@pytest.mark.parametrize(
    ("rank", "preemptive", "in_flight", "num_host_pages"),
    [
        pytest.param(sjf, False, 1, 0, marks=pytest.mark.slow),
        pytest.param(by_priority, True, 2, 0, marks=pytest.mark.slow),
        (by_priority, True, 2, 6),
    ],
)
def test_every_step_is_the_same(rank, preemptive, in_flight, num_host_pages):
    given = rank, preemptive, num_host_pages
    engine = with_the_model(**parts(*given), in_flight=in_flight)
    simulator = SimulatedEngine(**parts(*given), vocab_size=512, in_flight=in_flight)
    theirs, their_ends = decisions(engine)
    ours, our_ends = decisions(simulator)
    for number, (mine, want) in enumerate(zip(ours, theirs)):
        different = [name for name in want if mine[name] != want[name]]
        assert not different, f"step {number} differs in {different}"
    assert len(ours) == len(theirs) > 20
    assert our_ends == their_ends
    assert len(our_ends) == 9
    assert any(sum(step["cached_len"]) for step in ours), "the trace has no prefix hit"
    assert any(sum(step["num_preemptions"]) for step in ours) or not preemptive
    assert any(sum(step["num_swapped"]) for step in ours) or not num_host_pages
    lost = [
        page
        for before, after in pairwise(ours)
        for page, (old, new) in enumerate(zip(before["published"], after["published"]))
        if old and old != new
    ]
    assert lost, "no page was evicted"
