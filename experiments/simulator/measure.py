"""How many steps a second does the simulator take, on the host and on a GPU, and are they the same?

    python experiments/simulator/measure.py --requests 4000 --slots 256
    python experiments/simulator/measure.py --requests 500 --policies fcfs vtc --no-device
    python experiments/simulator/measure.py --requests 2000 --profile

Requests of the lengths of the Azure conversation trace, faster than they can be served, so that all
slots are taken. Seconds of the host are of its process, so that other work on the machine does not
count. Where there is a GPU, the same run there, in CUDA graphs: its seconds are of the wall clock,
without the preparation, and every record of both runs is compared. With --profile the run on the
GPU is timed launch by launch, which slows it.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from paged.build import locate
from paged.eviction.base import ScoreEviction
from paged.intake import Limits
from paged.kernels.launch import interpreted
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.schedulers.vtc import VTC
from paged.simulator.device import DeviceSimulation
from paged.simulator.device_results import DeviceResults
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.script import write_script
from paged.simulator.simulation import Arrival, arrivals, feed
from paged.simulator.step_time import load_step_time
from paged.state import Sizes
from paged.workloads.synthetic import Synthetic

CLOCK = load_step_time("llama-3.1-8b-h200")
BUDGET = 8192


def trace(count: int) -> list[Arrival]:
    workload = Synthetic(
        num_requests=count, rate=100.0, input_mean=1155.0, input_cv=1.0, output_mean=211.0,
        output_cv=0.8, turns=1.5, think=1.0, num_clients=16, max_len=8000,
    )  # fmt: skip
    return list(arrivals(workload, SamplingParams()))


def parts(policy: str, requests: list[Arrival], slots: int, pages: int) -> dict[str, Any]:
    knobs = {"max_num_seqs": slots, "max_num_batched_tokens": BUDGET}
    made: Callable[[], RankScheduler] = {"vtc": lambda: VTC(**knobs)}.get(
        policy,
        lambda: RankScheduler(locate("scheduler", f"paged.schedulers.{policy}.rank"), **knobs),
    )
    sizes = Sizes(
        num_slots=slots,
        max_num_seqs=slots,
        max_num_batched_tokens=BUDGET,
        max_model_len=max(one.prompt_len + one.output_len for one in requests),
        page_size=16,
        num_pages=pages,
    )
    return {
        "sizes": sizes,
        "scheduler": made(),
        "kv": PagedKV(page_size=16, num_pages=pages),
        "eviction": ScoreEviction(locate("eviction", "paged.eviction.lru.score")),
    }


def on_the_host(requests: list[Arrival], parts: dict[str, Any]) -> tuple[list, list, float]:
    """(records of the steps, of the requests by number, seconds of this process)"""
    steps: list[dict] = []
    engine = SimulatedEngine(**parts, step_seconds=CLOCK.seconds, vocab_size=2000)
    results = Results(engine, steps.append)
    began = time.process_time()
    for live in feed(engine, requests, lambda arrival, reason: print(arrival.number, reason)):
        results.request(live)
    return steps, by_number(results.records), time.process_time() - began


def on_the_device(requests: list[Arrival], parts: dict[str, Any]) -> tuple[list, list, float]:
    """The same, with seconds of the wall clock."""
    steps: list[dict] = []
    began = time.perf_counter()
    limits = Limits(parts["sizes"], 2000, (), parts["kv"].peak_pages)
    script = write_script(
        requests, limits, lambda arrival, reason: print(arrival.number, reason), shares=True
    )
    prepared = time.perf_counter()
    simulation = DeviceSimulation(script, **parts, step_time=CLOCK, device=torch.device("cuda", 0))
    simulation.prepare()
    torch.cuda.synchronize()
    captured = time.perf_counter()
    results = DeviceResults(simulation, steps.append)
    results.run()
    seconds = time.perf_counter() - captured
    print(f"  script {prepared - began:.1f} s, capture {captured - prepared:.1f} s")
    return steps, by_number(results.records), seconds


def print_launches(timing: profile, num_steps: int) -> None:
    """What each kernel takes of a step, the slowest first."""
    launches = sorted(timing.key_averages(), key=lambda one: -one.self_device_time_total)
    for launch in (one for one in launches if one.self_device_time_total > 0):
        times, total = launch.count / num_steps, launch.self_device_time_total / num_steps
        print(f"    {total:7.2f} us a step in {times:5.2f} launches: {launch.key[:60]}")


def by_number(records: list[dict]) -> list[dict]:
    return sorted(records, key=lambda record: int(record["request_id"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--pages", type=int, default=20480)
    parser.add_argument("--policies", nargs="+", default=["fcfs"])
    parser.add_argument("--no-device", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    requests = trace(args.requests)
    for policy in args.policies:
        steps, records, seconds = on_the_host(
            requests, parts(policy, requests, args.slots, args.pages)
        )
        batch = sum(step["num_seqs"] for step in steps) / len(steps)
        print(f"{policy}: {len(records)} requests, {len(steps)} steps of {batch:.0f} sequences")
        print(f"  host: {len(steps) / seconds:.0f} steps a second of its process")
        if args.no_device or interpreted() or not torch.cuda.is_available():
            continue
        again_parts = parts(policy, requests, args.slots, args.pages)
        timing = profile(activities=[ProfilerActivity.CUDA])
        with timing if args.profile else contextlib.nullcontext():
            again, theirs, seconds = on_the_device(requests, again_parts)
        print(f"  {torch.cuda.get_device_name()}: {len(again) / seconds:.0f} steps a second")
        if args.profile:
            print_launches(timing, len(again))
        same = next((n for n, pair in enumerate(zip(steps, again)) if pair[0] != pair[1]), None)
        if same is not None:
            raise SystemExit(f"  step {same} differs: {steps[same]} {again[same]}")
        if len(steps) != len(again) or records != theirs:
            raise SystemExit("  the runs differ in length, or in what came of the requests")
        print("  every step and every request is the same")


if __name__ == "__main__":
    main()
