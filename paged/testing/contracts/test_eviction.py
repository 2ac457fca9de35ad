"""Any eviction policy: takes as many cached pages as wanted, and no page that is held."""

import inspect

from paged.eviction.base import ScoreEviction
from paged.interfaces import Eviction
from paged.request import SamplingParams
from paged.testing.engines import answer_all, oracle_engine, ragged_prompts

FUNCTIONS = ("lru", "lfu", "fifo", "slru", "mru", "depth", "ttl", "cost")
BUILT_IN = [
    *(f"paged.eviction.{name}.score" for name in FUNCTIONS),
    "paged.eviction.clock.Clock",
    "paged.eviction.s3fifo.S3FIFO",
]


def build(component) -> Eviction:
    return component() if inspect.isclass(component) else ScoreEviction(component)


def test_answers_survive_eviction(device, eviction_component):
    engine = oracle_engine(device, eviction=build(eviction_component), num_pages=16)
    for seed in range(3):
        answer_all(engine, ragged_prompts(4, seed=seed, shared=20), num_tokens=3)


def test_evicts_what_is_asked_and_nothing_held(device, eviction_component):
    eviction = build(eviction_component)
    engine = oracle_engine(device, eviction=eviction, num_pages=32)
    answer_all(engine, ragged_prompts(6), num_tokens=2)
    engine.submit([1] * 70, SamplingParams(max_tokens=40))
    engine.step()
    cached = int(((engine.pool.ref_count == 0) & (engine.pool.serial > 0)).sum())
    held = engine.pool.ref_count.clone()
    free = engine.pool.num_free()
    assert cached >= 4
    eviction.evict(engine.pool, free + 3)
    assert engine.pool.num_free() == free + 3
    engine.kv.check(engine.requests)
    eviction.evict(engine.pool, 32)
    assert engine.pool.num_free() == free + cached
    assert (engine.pool.ref_count == held).all()
    engine.kv.check(engine.requests)
