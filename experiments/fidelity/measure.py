"""The same requests through the engine and through the simulator: how far apart are they?

    python experiments/fidelity/measure.py --model qwen3-0.6b --load dummy --save qwen3-0.6b.json

Four runs of one engine: waves of requests that reach every graph of a step (many decodes, long
prompts), once to compile and once to measure; chats of another seed; and the chats that are
compared. The clock is fitted to the second and the third, and never sees the last.

Prints a JSON object: each metric in both, the relative error, and how far the clock is off by the
capacity of the steps, fitted ones and those of the compared run. `--save` keeps the clock, with its
residuals: `task=simulate task.step_time=qwen3-0.6b.json` runs by it. `--steps FILE` keeps what was
measured, and `--from-steps FILE` fits and simulates again from it, without a model or a GPU.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from record import TIMES, Progress, Record, in_the_engine

from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.models.spec import kv_bytes_per_page
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.server.inspection import reset_prefix_cache
from paged.simulator.engine import SimulatedEngine
from paged.simulator.fitting import MeasuredStep, fit
from paged.simulator.results import Results
from paged.simulator.simulation import Arrival, arrivals, feed
from paged.simulator.step_time import StepTime
from paged.state import Sizes
from paged.tasks.run_folder import provenance
from paged.workloads.synthetic import Synthetic

COMPARED = ("seconds", "output_tokens_per_s", "prefix_hit_rate", "preemptions")
FITTED_SECONDS = 10.0  # of the other chats, in arrivals
WAVES: tuple[dict[str, Any], ...] = (  # each to its end before the next; no rate = all at once
    {"num_requests": 4, "input_mean": 300.0, "output_mean": 200.0},
    {"num_requests": 40, "input_mean": 300.0, "output_mean": 150.0},
    {"num_requests": 200, "input_mean": 300.0, "output_mean": 150.0},
    {"num_requests": 64, "input_mean": 1000.0, "output_mean": 16.0},
    {"num_requests": 24, "input_mean": 2000.0, "output_mean": 100.0},
    {"num_requests": 300, "input_mean": 500.0, "output_mean": 8.0, "rate": 200.0},
    {"num_requests": 150, "input_mean": 1500.0, "output_mean": 8.0, "rate": 100.0},
)


def requests_of(options: dict[str, Any], **fields: Any) -> list[Arrival]:
    """A synthetic workload, without what is longer than the model may become."""
    longest = options["max_model_len"]
    workload = Synthetic(vocab_size=options["vocab_size"], max_len=longest, **fields)
    return list(arrivals(workload, SamplingParams()))


def waves(options: dict[str, Any], seed: int) -> Iterable[list[Arrival]]:
    """Requests of few turns, as many as `wave_share` says."""
    longest = options["max_model_len"]
    for wave in WAVES:
        count = max(1, round(wave["num_requests"] * options["wave_share"]))
        shape = {"rate": None, **wave, "num_requests": count}
        for name, share in (("input_mean", 0.5), ("output_mean", 0.25)):
            shape[name] = min(shape[name], share * longest)
        yield requests_of(options, **shape, input_cv=1.0, longest=longest, seed=seed)


def chats(options: dict[str, Any], count: int, seed: int) -> list[Arrival]:
    return requests_of(
        options, num_requests=count, rate=options["rate"], input_mean=options["input_mean"],
        output_mean=options["output_mean"], turns=3.0, think=1.0, tpot=0.005, seed=seed,
    )  # fmt: skip


def components(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "scheduler": RankScheduler(
            max_num_seqs=options["max_num_seqs"],
            max_num_batched_tokens=options["max_num_batched_tokens"],
        ),
        "kv": PagedKV(page_size=16, num_pages=options["num_pages"]),
        "eviction": ScoreEviction(lru),
    }


def measure(options: dict[str, Any], record: Record, progress: Progress) -> None:
    """The four runs."""
    llm = LLM(
        options["model"], load=options["load"], max_model_len=options["max_model_len"],
        **components(options),
    )  # fmt: skip
    progress.say(f"{options['model']} is ready, in {llm.dtype}")
    record.begin(
        {
            "options": options,
            "sizes": asdict(llm.engine.sizes),
            "in_flight": llm.engine.in_flight,
            "vocab_size": llm.spec.vocab_size,
            "dtype": str(llm.dtype),
            "device": provenance()["device"],
            "kv_bytes_per_token": kv_bytes_per_page(llm.spec, 1, llm.dtype),
        }
    )
    count = options["requests"]
    runs = [
        *(("warm-up", wave) for wave in waves(options, seed=2)),
        *(("waves", wave) for wave in waves(options, seed=1)),
        ("chats", [one for one in chats(options, count, seed=1) if one.time < FITTED_SECONDS]),
        ("measured", chats(options, count, seed=0)),
    ]
    for name, requests in runs:
        metrics, steps = in_the_engine(llm.engine, requests, name, progress)
        record.end_run(name, metrics, steps)
        reset_prefix_cache(llm.engine)  # contents are numbered alike in all of them


def in_the_simulator(setup: dict[str, Any], clock: StepTime, requests: Sequence[Arrival]) -> dict:
    engine = SimulatedEngine(
        sizes=Sizes(**setup["sizes"]), step_seconds=clock.seconds, vocab_size=setup["vocab_size"],
        in_flight=setup["in_flight"], **components(setup["options"]),
    )  # fmt: skip
    results = Results(engine, lambda record: None)
    for live in feed(engine, requests, lambda arrival, reason: print(arrival.number, reason)):
        results.request(live)
    return results.summary()


def by_capacity(clock: StepTime, steps: Sequence[MeasuredStep]) -> dict[int, dict[str, float]]:
    """What the clock says of the steps of each graph."""
    found = {}
    for capacity in sorted({step.capacity for step in steps}):
        those = [step for step in steps if step.capacity == capacity and step.num_tokens > 0]
        if not those:
            continue
        seconds = np.array([step.seconds for step in those])
        said = np.array([clock.seconds(*step[:3], capacity) for step in those])
        found[capacity] = {
            "steps": len(those),
            "mean_tokens": float(np.mean([step.num_tokens for step in those])),
            "mean_ms": float(seconds.mean() * 1e3),
            "mean_ms_of_clock": float(said.mean() * 1e3),
            "mean_error": float(np.abs(said / seconds - 1).mean()),
            "median_error": float(np.median(np.abs(said / seconds - 1))),
        }
    return found


def compare(engine: dict[str, Any], simulator: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows = {}
    for name in (*COMPARED, *(f"{name}_p{q}" for name in TIMES for q in (50, 90, 99))):
        measured, simulated = engine[name], simulator[name]
        error = None if not measured else simulated / measured - 1
        rows[name] = {"engine": measured, "simulator": simulated, "error": error}
    return rows


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
    parser.add_argument("--wave-share", type=float, default=1.0, help="of the waves' requests")
    parser.add_argument("--save", type=Path, help="file for the clock that was fitted")
    parser.add_argument("--steps", type=Path, help="file for what the engine did")
    parser.add_argument("--from-steps", type=Path, help="such a file, instead of the engine")
    arguments = parser.parse_args()
    progress = Progress()
    if arguments.from_steps is not None:
        record = Record.load(arguments.from_steps)
    else:
        record = Record(arguments.steps)
        files = ("save", "steps", "from_steps")
        options = {name: value for name, value in vars(arguments).items() if name not in files}
        measure(options, record, progress)
    setup = record.setup
    options = setup["options"]
    steps = [*record.steps.get("waves", ()), *record.steps.get("chats", ())]
    clock = fit(
        steps,
        model=options["model"],
        device=setup["device"],
        source=f"experiments/fidelity/measure.py, seed 1: {len(steps)} steps of {setup['dtype']}",
        kv_bytes_per_token=setup["kv_bytes_per_token"],
    )
    progress.say(f"fitted {clock.num_steps} steps, mean error {clock.mean_error:.1%}")
    if arguments.save is not None:
        clock.save(arguments.save)
    requests = chats(options, options["requests"], seed=0)
    report = {
        "clock_mean_error": clock.mean_error,
        "clock_steps": clock.num_steps,
        "fitted": by_capacity(clock, steps),
        "held_out": by_capacity(clock, record.steps.get("measured", ())),
    }
    if "measured" in record.metrics:
        simulated = in_the_simulator(setup, clock, requests)
        report["metrics"] = compare(record.metrics["measured"], simulated)
    else:
        progress.say("the compared run was cut off: there is nothing to compare")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
