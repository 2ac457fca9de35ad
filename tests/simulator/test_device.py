"""The simulation that the device drives by itself decides what the one on the host decides."""

import pytest
import torch

from paged.eviction.base import ScoreEviction
from paged.eviction.clock import Clock
from paged.eviction.lfu import score as lfu
from paged.eviction.lru import score as lru
from paged.intake import Limits
from paged.kernels.launch import interpreted
from paged.kv.contiguous_max import reserve_len as whole_length
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.schedulers.fcfs import rank as fcfs
from paged.schedulers.priority import rank as by_priority
from paged.schedulers.sjf import rank as sjf
from paged.schedulers.vtc import VTC
from paged.simulator.device import DeviceSimulation
from paged.simulator.device_results import DeviceResults
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.script import write_script
from paged.simulator.simulation import arrivals, feed
from paged.simulator.stages.host import HostStages
from paged.simulator.step_time import Regime, StepTime
from paged.state import Sizes
from paged.workloads.request import Request
from paged.workloads.synthetic import Synthetic

CLOCK = StepTime(
    0.004,
    token=7e-4,
    sequence=1e-4,
    key=1e-5,
    free_tokens=8,
    regimes=(Regime(16, 0.001, 9e-4, 2e-4),),
)
SMALL = Sizes(
    num_slots=9, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=128, page_size=16,
    num_pages=10,
)  # fmt: skip
KNOBS = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "chunk": 24}


def chats(count: int, **fields) -> list[Request]:
    """Turns that repeat the ones before them, faster than they can be served."""
    shape = {"rate": 20.0, "input_mean": 40.0, "output_mean": 12.0, "turns": 2.0, "max_len": 120}
    return list(Synthetic(num_requests=count, num_priorities=3, num_clients=3, **(shape | fields)))


def parts(scheduler, sizes: Sizes = SMALL, score=lfu, reserve_len=None) -> dict:
    return {
        "sizes": sizes,
        "scheduler": scheduler(),
        "kv": PagedKV(
            page_size=sizes.page_size, num_pages=sizes.num_pages, low_water=0.2,
            reserve_len=reserve_len,
        ),
        "eviction": ScoreEviction(score),
    }  # fmt: skip


def on_the_host(items, parts: dict, in_flight: int):
    steps: list[dict] = []
    engine = SimulatedEngine(
        **parts, step_seconds=CLOCK.seconds, vocab_size=2000, in_flight=in_flight
    )
    results, refused = Results(engine, steps.append), []
    for live in feed(
        engine,
        arrivals(items, SamplingParams()),
        lambda one, why: refused.append((one.number, why)),
    ):
        results.request(live)
    return engine.pool, results, steps, refused


def on_the_device(items, parts: dict, in_flight: int, device, stages_on_host: bool):
    steps: list[dict] = []
    refused: list = []
    script = write_script(
        arrivals(items, SamplingParams()),
        Limits(parts["sizes"], 2000, (), parts["kv"].peak_pages),
        lambda one, why: refused.append((one.number, why)),
        shares=parts["kv"].reserve_len is None,
    )
    simulation = DeviceSimulation(
        script, **parts, step_time=CLOCK, device=torch.device(device), in_flight=in_flight
    )
    if stages_on_host:
        HostStages(simulation.requests, simulation.pool, simulation.plan)
    results = DeviceResults(simulation, steps.append)
    results.run()
    return simulation.pool, results, steps, refused


def assert_same(items, make, in_flight: int, device="cpu", stages_on_host=False) -> dict:
    """The summary of both."""
    pool, want, their_steps, refused = on_the_host(items, make(), in_flight)
    mine, got, our_steps, ours_refused = on_the_device(
        items, make(), in_flight, device, stages_on_host
    )
    for ours, theirs in zip(our_steps, their_steps):
        assert ours == theirs
    assert len(our_steps) == len(their_steps)
    by_number = [
        sorted(results.records, key=lambda record: int(record["request_id"]))
        for results in (want, got)
    ]
    assert by_number[0] == by_number[1]
    assert ours_refused == refused
    for name in ("free_ring", "serial", "parent", "page_tokens", "hits"):
        assert torch.equal(getattr(mine, name).cpu(), getattr(pool, name)), name
    summary, ours = want.summary(), got.summary()
    assert ours.pop("memory_split") == pytest.approx(summary.pop("memory_split"))
    for here in ("wall_seconds", "steps_per_s"):
        ours[here] = summary[here]
    assert ours == pytest.approx(summary)
    return summary


CASES = {
    "shortest first": ({"scheduler": lambda: RankScheduler(sjf, **KNOBS)}, 2),
    "preemptive": ({"scheduler": lambda: RankScheduler(by_priority, preemptive=True, **KNOBS)}, 3),
    "fair": ({"scheduler": lambda: VTC(num_clients=4, **KNOBS)}, 1),
    "whole length": (
        {"scheduler": lambda: RankScheduler(fcfs, **KNOBS), "reserve_len": whole_length}, 2,
    ),
}  # fmt: skip


@pytest.mark.skipif(not interpreted(), reason="the stages run on the host here")
@pytest.mark.parametrize(
    "name",
    ["preemptive", *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n != "preemptive")],
)
def test_the_driver_does_what_the_host_does(name):
    given, in_flight = CASES[name]
    never = Request(0.3, ((7, 300),), 4, 8)
    urgent = [Request(0.25, ((9 + n, 40),), 9, 20 + n, priority=-1) for n in range(3)]
    alone = Request(60.0, ((30, 30),), 3, 31)  # comes when all others have ended
    items = [*chats(16), never, *urgent, alone]
    summary = assert_same(items, lambda: parts(**given), in_flight, stages_on_host=True)
    assert summary["requests"] == len(items) - 1
    assert summary["prefix_hit_tokens"] > 0 or name == "whole length"
    assert summary["preemptions"] > 0 or name != "preemptive"


def test_every_kernel_of_a_step_on_the_device(device):
    items = chats(5, rate=60.0)

    def make() -> dict:
        return parts(lambda: RankScheduler(by_priority, preemptive=True, **KNOBS))

    assert assert_same(items, make, 2, device)["requests"] == len(items)


@pytest.mark.gpu
@pytest.mark.parametrize("preemptive", [False, True])
def test_long_runs_in_graphs(preemptive):
    sizes = Sizes(
        num_slots=512, max_num_seqs=256, max_num_batched_tokens=4096, max_model_len=2048,
        page_size=16, num_pages=4096,
    )  # fmt: skip
    knobs = {"max_num_seqs": 256, "max_num_batched_tokens": 4096, "chunk": 1000}
    rank = by_priority if preemptive else sjf
    items = chats(600, rate=2.0, input_mean=300.0, output_mean=150.0, max_len=2000)
    summary = assert_same(
        items,
        lambda: parts(lambda: RankScheduler(rank, preemptive=preemptive, **knobs), sizes, lru),
        2, "cuda",
    )  # fmt: skip
    assert summary["requests"] == len(items) > 500
    assert summary["prefix_hit_tokens"] > 0


def test_what_cannot_run_there_is_refused(device):
    script = write_script(
        arrivals(chats(1), SamplingParams()), Limits(SMALL, 2000, (), PagedKV().peak_pages),
        lambda *why: None, shares=True,
    )  # fmt: skip
    made = parts(lambda: RankScheduler(fcfs, **KNOBS)) | {"eviction": Clock()}
    with pytest.raises(ValueError, match="Clock keeps a state"):
        DeviceSimulation(script, **made, step_time=CLOCK, device=torch.device(device))
