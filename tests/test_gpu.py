"""What only a GPU can show: a step that never waits, allocates nothing, and survives a soak."""

import random

import pytest
import torch

from paged.kernels.launch import pdl
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.state import FREE

pytestmark = pytest.mark.gpu


def busy_llm(num_pages: int = 40, engine: str = "eager") -> LLM:
    return LLM(
        engine=engine,
        kv=PagedKV(num_pages=num_pages),
        scheduler=RankScheduler(max_num_seqs=8, max_num_batched_tokens=256, watermark=0.0),
        max_model_len=256,
        num_slots=16,
    )


def submit_some(llm: LLM, count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    shared = [rng.randrange(2000) for _ in range(rng.choice([0, 20, 40]))]
    names = []
    for _ in range(count):
        prompt = shared + [rng.randrange(2000) for _ in range(rng.randrange(1, 80))]
        params = SamplingParams(
            max_tokens=rng.randrange(1, 60),
            temperature=rng.choice([0.0, 0.8]),
            top_p=0.9,
            ignore_eos=True,
        )
        names.append(llm.submit(prompt, params).output.request_id)
    return names


ENGINES = pytest.mark.parametrize("engine", ["eager", "graph"])


@ENGINES
def test_a_step_never_synchronises(engine):
    """Admission, chunks, famine, preemption, eviction, draws and ends, all in "error" mode."""
    llm = busy_llm(num_pages=20, engine=engine)
    submit_some(llm, 16, seed=0)
    while llm.engine.has_unfinished:  # compiles and allocates whatever a first time needs
        llm.engine.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    preempted = []
    llm.engine.on_step = lambda stats: preempted.append(stats.num_preempted)
    try:
        submit_some(llm, 16, seed=0)
        while llm.engine.has_unfinished:
            llm.engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum(preempted) > 0


@ENGINES
def test_a_steady_step_allocates_nothing(engine):
    llm = busy_llm(num_pages=128, engine=engine)
    for _ in range(2):
        submit_some(llm, 8, seed=1)
        while llm.engine.has_unfinished:
            llm.engine.step()
    submit_some(llm, 8, seed=1)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    while llm.engine.has_unfinished:
        llm.engine.step()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@ENGINES
def test_random_submits_and_aborts_leak_nothing(engine):
    llm = busy_llm(engine=engine)
    rng = random.Random(7)
    live: list[str] = []
    for step in range(600):
        if step % 5 == 0 and len(live) < 40:
            live += submit_some(llm, rng.randrange(4), seed=step)
        if live and rng.random() < 0.1:
            llm.abort(live.pop(rng.randrange(len(live))))
        if llm.engine.has_unfinished:
            ended = [request.output for request in llm.engine.step() if request.output.finished]
            assert all(output.error is None for output in ended)
            gone = {output.request_id for output in ended}
            live = [name for name in live if name not in gone]
        if step % 20 == 0:
            torch.cuda.synchronize()  # steps in flight change what the check reads
            llm.engine.kv.check(llm.engine.requests)
    while llm.engine.has_unfinished:
        llm.engine.step()
    llm.engine.kv.check(llm.engine.requests)
    assert int((llm.engine.pool.ref_count > 0).sum()) == 0
    assert bool((llm.engine.requests.status == FREE).all())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_give_the_bits_of_the_eager_engine(precision):
    prompts = [[seed + 1] * (3 + 11 * seed) for seed in range(12)]
    params = [
        SamplingParams(temperature=0.7 * (seed % 2), max_tokens=40, seed=seed, ignore_eos=True)
        for seed in range(12)
    ]
    runs = []
    for engine in ("eager", "graph"):
        llm = LLM(
            dtype=precision,
            engine=engine,
            kv=PagedKV(num_pages=48),
            scheduler=RankScheduler(max_num_seqs=8, max_num_batched_tokens=256),
            max_model_len=256,
        )
        outputs = [request.outputs[0] for request in llm.generate(prompts, params)]
        runs.append([(output.token_ids, output.logprobs) for output in outputs])
    assert runs[0] == runs[1]


@pytest.fixture
def launches(monkeypatch):
    """A function that turns programmatic dependent launch on or off for what follows."""

    def choose(switch: str) -> None:
        monkeypatch.setenv("PAGED_PDL", switch)
        pdl.cache_clear()

    yield choose
    pdl.cache_clear()


@ENGINES
def test_dependent_launches_change_no_bit(engine, launches):
    """Long contexts too, whose splits go to programs that share a workspace over all layers."""
    prompts = [[seed + 1] * (3 + 67 * seed) for seed in range(12)]
    params = [
        SamplingParams(
            temperature=0.7 * (seed % 2), top_p=0.9, max_tokens=60, seed=seed, ignore_eos=True
        )
        for seed in range(12)
    ]
    runs = []
    for switch in ("0", "1", "1"):
        launches(switch)
        assert pdl()["PDL"] is (switch == "1" and torch.cuda.get_device_capability()[0] >= 9)
        llm = LLM(
            dtype="bfloat16",
            engine=engine,
            kv=PagedKV(num_pages=512),
            scheduler=RankScheduler(max_num_seqs=12, max_num_batched_tokens=512),
            max_model_len=1024,
        )
        outputs = [request.outputs[0] for request in llm.generate(prompts, params)]
        runs.append([(output.token_ids, output.logprobs) for output in outputs])
    assert runs[1] == runs[0]
    assert runs[2] == runs[0]
