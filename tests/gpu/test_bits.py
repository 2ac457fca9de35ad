"""A request's log-probabilities, alone and in a crowd: the same to the bit."""

import random

import pytest

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import RequestOutput, SamplingParams
from paged.schedulers.base import RankScheduler

pytestmark = pytest.mark.gpu

CHUNK = 48


def workload(count: int, seed: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of 1 to 200 tokens, most behind one of four stems; greedy and drawn."""
    rng = random.Random(seed)
    stems = [[rng.randrange(2000) for _ in range(length)] for length in (20, 48, 100, 150)]
    items = []
    for index in range(count):
        stem = rng.choice(stems) if rng.random() < 0.7 else []
        prompt = stem + [rng.randrange(2000) for _ in range(rng.randrange(1, 200 - len(stem)))]
        params = SamplingParams(
            max_tokens=rng.randrange(5, 40),
            temperature=0.9 * (index % 2),
            seed=index,
            ignore_eos=True,
        )
        items.append((prompt, params))
    return items


def make(precision: str, engine: str, num_pages: int, prefix_caching: bool, **knobs) -> LLM:
    return LLM(
        engine=engine,
        dtype=precision,
        kv=PagedKV(num_pages=num_pages, prefix_caching=prefix_caching),
        scheduler=RankScheduler(max_num_batched_tokens=1024, watermark=0.0, **knobs),
        max_model_len=256,
        num_slots=256,
    )


def bits(output: RequestOutput) -> tuple[list[int], list[float]]:
    return output.outputs[0].token_ids, output.outputs[0].logprobs


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_request_in_a_crowd_has_the_bits_it_has_alone(precision):
    items = workload(256, seed=5)
    rng = random.Random(6)
    crowd = make(precision, "graph", 110, prefix_caching=True, max_num_seqs=64, chunk=CHUNK)
    chunked, steps, live = [], [], []
    crowd.engine.on_step = steps.append
    coming = list(items)
    while coming or crowd.engine.has_unfinished:
        for _ in range(min(len(coming), int(rng.expovariate(0.5)))):
            live.append(crowd.submit(*coming.pop(0)))
        crowd.engine.step()
    for request in live:
        computed = len(request.prompt_ids) - request.output.metrics.num_cached_tokens
        chunked.append(computed > CHUNK)
    crowd.engine.kv.check(crowd.engine.requests)
    hits = [request.output.metrics.num_cached_tokens > 0 for request in live]
    preempted = [request.output.metrics.num_preemptions > 0 for request in live]
    assert sum(hits) > 60
    assert sum(chunked) > 20
    assert sum(preempted) > 3
    assert len({stats.capacity for stats in steps}) >= 3, "few regimes took part"
    assert max(stats.num_seqs for stats in steps) > 16

    alone = make(precision, "graph", 64, prefix_caching=False, max_num_seqs=8)
    some = set(rng.sample(range(256), 40))
    some |= {index for index in range(256) if preempted[index]}
    for index in sorted(some):
        expected = bits(alone.generate(*items[index])[0])
        assert bits(live[index].output) == expected, (
            f"request {index}: cached {hits[index]}, chunked {chunked[index]}, "
            f"preempted {preempted[index]}"
        )
