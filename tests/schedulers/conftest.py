"""Requests of known lengths through the engine on a virtual clock."""

import pytest

from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.simulator.engine import SimulatedEngine
from paged.simulator.simulation import arrivals, feed
from paged.state import Sizes
from paged.workloads.request import Request


@pytest.fixture
def serve():
    """`serve(scheduler, requests, ...) -> [live request]` in order of submission, all ended."""

    def run(scheduler, requests, *, num_pages=256, kv=None, step_ms=10.0, on_step=None):
        sizes = Sizes(
            num_slots=64, max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens, max_model_len=512,
            page_size=16, num_pages=num_pages,
        )  # fmt: skip
        engine = SimulatedEngine(
            sizes=sizes, scheduler=scheduler, kv=kv or PagedKV(prefix_caching=False),
            eviction=ScoreEviction(lru), vocab_size=2000, in_flight=1,
            step_seconds=lambda *work: step_ms / 1000,
        )  # fmt: skip
        if on_step is not None:
            engine.on_step = lambda stats: on_step(engine, stats)
        refused = []
        items = list(arrivals(requests, SamplingParams()))
        ended = list(feed(engine, items, lambda arrival, why: refused.append(why)))
        assert not refused, refused
        return sorted(ended, key=lambda live: int(live.output.request_id))

    return run


@pytest.fixture
def request_of():
    """`request_of(prompt_len, output_len, arrival, **fields) -> Request`, all contents new."""
    contents = iter(range(0, 1 << 20, 2))

    def make(prompt_len, output_len, arrival=0.0, **fields) -> Request:
        content = next(contents)
        return Request(arrival, ((content, prompt_len),), output_len, content + 1, **fields)

    return make
