"""Prefix hits under each eviction policy on windows of Mooncake's trace; see README.md.

Appends a line a run to results.csv, skips the runs that are there, and writes table.md and plot.png
beside it.
"""

import argparse
import csv
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from omegaconf import OmegaConf
from summary import write_plot, write_table

import paged  # noqa: F401 - decides where kernels run
from paged.build import component
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.simulation import arrivals, feed
from paged.simulator.step_time import StepTime, load_step_time
from paged.state import Sizes
from paged.workloads.mooncake import BLOCK, Mooncake
from paged.workloads.request import Request

HERE = Path(__file__).parent
CHOICES = Path(__file__).parents[2] / "conf" / "eviction"
POLICIES = (
    "belady", "lru", "fifo", "lfu", "slru", "mru", "clock", "s3fifo", "cost", "depth",
)  # fmt: skip
# Keys in pages, for pages of 512 tokens in place of 16.
KNOBS = {"cost": {"pages": 24, "even": 8}}
# A page is a block of the trace. What the simulator handles by the token is the same for all
# tokens of a block, so one stands for 16, in lengths, in the budget and for the clock.
TOKENS = 16
PAGE_SIZE, BUDGET = BLOCK // TOKENS, 8192 // TOKENS
COLUMNS = ("window", "num_pages", "policy", "hit_rate", "ttft_mean", "ttft_p99", "steps")


@dataclass(frozen=True)
class Case:
    """A run: which window of the trace, in how many pages, by which policy."""

    window: int
    num_pages: int
    policy: str


@cache
def trace(rate_scale: float) -> list[Request]:
    return Mooncake(rate_scale=rate_scale).requests


def window_of_trace(number: int, size: int, rate_scale: float) -> list[Request]:
    """Consecutive requests of the trace from time 0; answers are cut to their first token."""
    requests = trace(rate_scale)[number * size : (number + 1) * size]
    begin = requests[0].arrival
    return [
        replace(
            one,
            arrival=one.arrival - begin,
            spans=tuple((name, -(-length // TOKENS)) for name, length in one.spans),
            output_len=1,
        )
        for one in requests
    ]


def clock() -> StepTime:
    measured = load_step_time("llama-3.1-8b-h200")
    return replace(
        measured,
        token=TOKENS * measured.token,
        key=TOKENS * measured.key,
        free_tokens=measured.free_tokens // TOKENS,
    )


def simulate(case: Case, size: int, rate_scale: float) -> dict[str, float | int | str]:
    """The line of results.csv."""
    requests = window_of_trace(case.window, size, rate_scale)
    node = OmegaConf.load(CHOICES / f"{case.policy}.yaml")
    eviction = component("eviction", OmegaConf.merge(node, KNOBS.get(case.policy, {})))
    sizes = Sizes(
        num_slots=256, max_num_seqs=64, max_num_batched_tokens=BUDGET, page_size=PAGE_SIZE,
        max_model_len=max(one.prompt_len for one in requests) + 1, num_pages=case.num_pages,
    )  # fmt: skip
    engine = SimulatedEngine(
        sizes=sizes, kv=PagedKV(page_size=PAGE_SIZE, num_pages=case.num_pages), eviction=eviction,
        scheduler=RankScheduler(max_num_seqs=64, max_num_batched_tokens=BUDGET), vocab_size=2000,
        step_seconds=clock().seconds,
    )  # fmt: skip
    eviction.foresee((one.prompt_token_ids() for one in requests), engine.requests)
    results = Results(engine, lambda record: None)
    refused: list[str] = []
    coming = arrivals(requests, SamplingParams())
    for live in feed(engine, coming, lambda _, reason: refused.append(reason)):
        results.request(live)
    if refused:
        raise ValueError(f"{len(refused)} requests do not fit {case.num_pages} pages: {refused[0]}")
    found = results.summary()
    return {
        **vars(case),
        "hit_rate": round(found["prefix_hit_rate"], 6),
        "ttft_mean": round(found["ttft_mean"], 4),
        "ttft_p99": round(found["ttft_p99"], 4),
        "steps": found["steps"],
    }


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def missing(cases: list[Case], path: Path) -> Iterator[Case]:
    there = {(line["window"], line["num_pages"], line["policy"]) for line in read(path)}
    return (case for case in cases if tuple(map(str, vars(case).values())) not in there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--requests", type=int, default=2000, help="of a window")
    parser.add_argument("--pages", type=int, nargs="+", default=[4000])
    parser.add_argument("--rate-scale", type=float, default=0.5)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--folder", type=Path, default=HERE)
    args = parser.parse_args()
    path = args.folder / "results.csv"
    cases = [
        Case(window, num_pages, policy)
        for window in range(args.windows)
        for num_pages in args.pages
        for policy in args.policies
    ]
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool, path.open("a") as file:
        runs = [
            pool.submit(simulate, case, args.requests, args.rate_scale)
            for case in missing(cases, path)
        ]
        for number, run in enumerate(as_completed(runs), start=1):
            csv.DictWriter(file, COLUMNS).writerow(run.result())
            file.flush()
            print(f"\r{number} of {len(runs)} runs", end="", flush=True)
    lines = read(path)
    print("\n" + write_table(lines, args.folder / "table.md"))
    write_plot(lines, args.folder / "plot.png")


if __name__ == "__main__":
    main()
