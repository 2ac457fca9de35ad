"""Two thousand requests of a real trace under eight policies: what a researcher runs first."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from paged.build import locate
from paged.eviction.base import ScoreEviction
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.simulation import arrivals, feed
from paged.simulator.step_time import load_step_time
from paged.state import Sizes
from paged.workloads.azure import Azure
from paged.workloads.synthetic import Synthetic

POLICIES = {
    "fcfs": ("fcfs", "lru", {}),
    "fcfs, lfu": ("fcfs", "lfu", {}),
    "fcfs, fifo": ("fcfs", "fifo", {}),
    "fcfs, slru": ("fcfs", "slru", {}),
    "sjf": ("sjf", "lru", {}),
    "lpm": ("lpm", "lru", {}),
    "priority": ("priority", "lru", {"preemptive": True}),
    "static batch": ("fcfs", "lru", {"static_batch": True}),
}


def requests(count: int) -> list:
    """The first requests of the Azure trace, six times as fast; without it, synthetic ones."""
    shaping = {"limit": count, "num_priorities": 4, "prediction_error": 0.3, "max_len": 8000}
    try:
        return list(Azure(rate_scale=6.0, **shaping))
    except ValueError:  # the file is not there
        return list(Synthetic(num_requests=count, rate=60.0, **shaping))


def simulated(name: str, count: int) -> dict:
    order, eviction, knobs = POLICIES[name]
    items = requests(count)
    rank = locate("scheduler", f"paged.schedulers.{order}.rank")
    score = locate("eviction", f"paged.eviction.{eviction}.score")
    longest = max(item.prompt_len + item.output_len for item in items)
    sizes = Sizes(
        num_slots=256, max_num_seqs=128, max_num_batched_tokens=4096, max_model_len=longest,
        page_size=16, num_pages=8192,
    )  # fmt: skip
    engine = SimulatedEngine(
        sizes=sizes,
        scheduler=RankScheduler(rank, max_num_seqs=128, max_num_batched_tokens=4096, **knobs),
        kv=PagedKV(page_size=16, num_pages=sizes.num_pages),
        eviction=ScoreEviction(score),
        step_seconds=load_step_time("llama-3.1-8b-h200").seconds,
        vocab_size=2000,
    )
    results = Results(engine, lambda record: None)
    for live in feed(engine, arrivals(items, SamplingParams()), lambda *why: None):
        assert len(live.token_ids) == items[int(live.output.request_id)].output_len
        results.request(live)
    engine.kv.check(engine.requests)
    return results.summary() | {"process": os.getpid(), "process_seconds": time.process_time()}


def test_two_hundred_requests_in_order_and_shortest_first():
    fcfs, sjf = simulated("fcfs", 200), simulated("sjf", 200)
    assert fcfs["requests"] == sjf["requests"] == 200
    assert fcfs["output_tokens"] == sjf["output_tokens"]


@pytest.mark.timeout(900)
def test_two_thousand_requests_under_eight_policies():
    """Within 3 minutes on two cores: of either process's own time from its start to its last
    policy's end, which is the wall clock's on a machine that does nothing else."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        runs = dict(zip(POLICIES, pool.map(simulated, POLICIES, [2000] * len(POLICIES))))
    for name, summary in runs.items():
        assert summary["requests"] == 2000, name
        print(
            f"{name}: {summary['steps']} steps, process {summary['process']} took "
            f"{summary['process_seconds']:.0f} s until its end"
        )
    assert max(summary["process_seconds"] for summary in runs.values()) < 180
    assert len({summary["output_tokens"] for summary in runs.values()}) == 1
    assert runs["sjf"]["e2e_mean"] < runs["fcfs"]["e2e_mean"]
    assert runs["static batch"]["mean_batch_size"] < runs["fcfs"]["mean_batch_size"]
