"""Prompts through the prefix cache, one at a time or a few, and how many tokens were found."""

import numpy as np
import pytest

from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.simulator.engine import SimulatedEngine
from paged.simulator.simulation import arrivals, feed
from paged.state import Sizes
from paged.workloads.request import Request


@pytest.fixture
def hits():
    """`hits(eviction, prompts, ...) -> [tokens found]`; a prompt is a list of (content, tokens)."""

    def run(eviction, prompts, *, num_pages=24, max_num_seqs=1, output_len=1, low_water=0.0):
        sizes = Sizes(
            num_slots=16, max_num_seqs=max_num_seqs, max_num_batched_tokens=512,
            max_model_len=512, page_size=16, num_pages=num_pages,
        )  # fmt: skip
        engine = SimulatedEngine(
            sizes=sizes, eviction=eviction, kv=PagedKV(low_water=low_water), vocab_size=2000,
            scheduler=RankScheduler(max_num_batched_tokens=512, watermark=0.0), in_flight=1,
            step_seconds=lambda *work: 0.01,
        )  # fmt: skip
        requests = [
            Request(0.001 * number, tuple(spans), output_len, output=(1 << 30) + number)
            for number, spans in enumerate(prompts)
        ]
        eviction.foresee((request.prompt_token_ids() for request in requests), engine.requests)
        refused = []
        ended = feed(
            engine, arrivals(requests, SamplingParams()), lambda _, why: refused.append(why)
        )
        done = sorted(ended, key=lambda live: int(live.output.request_id))
        assert not refused, refused
        engine.kv.check(engine.requests)
        return [live.output.metrics.num_cached_tokens for live in done]

    return run


@pytest.fixture
def random_trace():
    """`random_trace(seed) -> prompts`: a tree of prefixes, some of them popular."""

    def make(seed, count=90):
        rng = np.random.default_rng(seed)
        weight = 1 / np.arange(1, 13) ** 1.1
        prompts = []
        for number in range(count):
            root = rng.choice(12, p=weight / weight.sum())
            spans = [(int(root), int(16 * (1 + root % 4)))]
            if rng.random() < 0.6:
                spans.append(
                    (100 + 10 * int(root) + int(rng.integers(3)), int(16 * rng.integers(1, 5)))
                )
            if rng.random() < 0.5:
                spans.append((1000 + number, int(rng.integers(1, 60))))
            prompts.append([*spans, (5000, 1)])  # the last token of a prompt is always computed
        return prompts

    return make
