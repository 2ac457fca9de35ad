"""The same requests through the engine and through the simulator: how far apart are they?

    python experiments/fidelity/measure.py --model qwen3-0.6b --load dummy --save qwen3-0.6b.json

Prints a JSON object: each metric in both, and the relative error. `--save` keeps the clock that
was fitted, with its residuals: `task=simulate task.step_time=qwen3-0.6b.json` runs by it.
"""

import argparse
import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.models.spec import kv_bytes_per_page
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.simulation import Arrival, arrivals, feed
from paged.simulator.step_time import MeasuredStep, StepTime, fit
from paged.simulator.totals import percentiles
from paged.tasks.run_folder import provenance
from paged.workloads.synthetic import Synthetic

COMPARED = ("seconds", "output_tokens_per_s", "prefix_hit_rate", "preemptions")
TIMES = ("ttft", "tpot", "e2e")


def trace(arguments: argparse.Namespace, seed: int) -> list[Arrival]:
    workload = Synthetic(
        num_requests=arguments.requests, rate=arguments.rate, input_mean=arguments.input_mean,
        output_mean=arguments.output_mean, turns=3.0, think=1.0, tpot=0.005, seed=seed,
        vocab_size=arguments.vocab_size,
    )  # fmt: skip
    longest = arguments.max_model_len
    return [one for one in arrivals(workload, SamplingParams()) if fits(one, longest)]


def fits(request: Arrival, longest: int) -> bool:
    return request.prompt_len + request.output_len <= longest


def in_the_engine(llm: LLM, requests: Sequence[Arrival]) -> tuple[dict, list[MeasuredStep]]:
    """Metrics of the run at the trace's arrival times, and its steps."""
    engine, steps, ended = llm.engine, [], []
    prepared = deque(
        (one, prompt.tolist(), one.params(answer))
        for one in requests
        for prompt, answer in [one.tokens()]
    )
    totals = {"cached": 0, "preempted": 0, "dropped": 0}
    stats: list[Any] = []
    engine.on_step = stats.append
    began = time.perf_counter()
    seen = None  # when the step before was seen, if the device has been busy since
    while prepared or engine.has_unfinished:
        now = time.perf_counter() - began
        while prepared and prepared[0][0].time <= now:
            one, prompt, params = prepared.popleft()
            live = engine.submit(prompt, params, request_id=str(one.number))
            live.output.metrics.arrival_time = began + one.time
        if not engine.has_unfinished:
            time.sleep(max(0.0, prepared[0][0].time - (time.perf_counter() - began)))
            seen = None
            continue
        touched = engine.step()
        done = stats.pop()
        before, seen = seen, time.perf_counter()
        if before is not None:
            steps.append(MeasuredStep(done.num_tokens, done.num_seqs, done.num_keys, seen - before))
        totals["cached"] += done.cached_tokens
        totals["preempted"] += done.num_preempted
        totals["dropped"] += done.recomputed_tokens
        ended += [live for live in touched if live.output.finished]
    seconds = time.perf_counter() - began
    engine.on_step = None
    prompts = sum(len(live.prompt_ids) for live in ended)
    metrics: dict[str, Any] = {
        "seconds": seconds,
        "output_tokens_per_s": sum(len(live.completion.token_ids) for live in ended) / seconds,
        "prefix_hit_rate": totals["cached"] / max(1, prompts + totals["dropped"]),
        "preemptions": totals["preempted"],
    }
    for name in TIMES:
        metrics |= percentiles(name, [getattr(live.output.metrics, name) for live in ended])
    return metrics, steps


def in_the_simulator(llm: LLM, parts: dict, clock: StepTime, requests: Sequence[Arrival]) -> dict:
    engine = SimulatedEngine(
        sizes=llm.engine.sizes, step_seconds=clock.seconds, vocab_size=llm.spec.vocab_size,
        in_flight=llm.engine.in_flight, **parts,
    )  # fmt: skip
    results = Results(engine, lambda record: None)
    for live in feed(engine, requests, lambda arrival, reason: print(arrival.number, reason)):
        results.request(live)
    return results.summary()


def components(arguments: argparse.Namespace) -> dict:
    return {
        "scheduler": RankScheduler(
            max_num_seqs=arguments.max_num_seqs,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
        ),
        "kv": PagedKV(page_size=16, num_pages=arguments.num_pages),
        "eviction": ScoreEviction(lru),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stories")
    parser.add_argument("--load", default="auto")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--input-mean", type=float, default=161.31)
    parser.add_argument("--output-mean", type=float, default=337.99)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--num-pages", type=int, default=8192)
    parser.add_argument("--vocab-size", type=int, default=2000, help="not above the model's")
    parser.add_argument("--save", type=Path, help="file for the clock that was fitted")
    arguments = parser.parse_args()
    llm = LLM(
        arguments.model, load=arguments.load, max_model_len=arguments.max_model_len,
        **components(arguments),
    )  # fmt: skip
    in_the_engine(llm, trace(arguments, seed=2)[: arguments.requests // 5])  # compiles the rest
    _, steps = in_the_engine(llm, trace(arguments, seed=1))
    clock = fit(
        steps,
        model=arguments.model,
        device=provenance()["device"],
        source=f"experiments/fidelity/measure.py, seed 1: {len(steps)} steps of {llm.dtype}",
        kv_bytes_per_token=kv_bytes_per_page(llm.spec, 1, llm.dtype),
    )
    if arguments.save is not None:
        clock.save(arguments.save)
    engine, _ = in_the_engine(llm, trace(arguments, seed=0))
    simulator = in_the_simulator(llm, components(arguments), clock, trace(arguments, seed=0))
    names = [*COMPARED, *(f"{name}_p{q}" for name in TIMES for q in (50, 90, 99))]
    rows = {}
    for name in names:
        measured, simulated = engine[name], simulator[name]
        error = None if not measured else simulated / measured - 1
        rows[name] = {"engine": measured, "simulator": simulated, "error": error}
    report = {"clock_mean_error": clock.mean_error, "clock_steps": clock.num_steps, "metrics": rows}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
