"""The paper's four systems in the simulator: OPT-13B on an A100 with 40 GB, its memory and clock.

Kwon et al., SOSP 2023, sections 6.1 and 6.2. What they serve are requests of synthetic lengths with
the published means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paged  # noqa: F401 - decides where kernels run
from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.interfaces import KVManager
from paged.kv.contiguous_max import reserve_len as whole_length
from paged.kv.contiguous_oracle import ContiguousOracle
from paged.kv.contiguous_pow2 import ContiguousPow2
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.simulation import arrivals, feed
from paged.simulator.step_time import StepTime
from paged.state import Sizes
from paged.workloads.synthetic import Synthetic

PAGE_SIZE = 16
MAX_MODEL_LEN = 2048
KV_BYTES_PER_TOKEN = 2 * 40 * 5120 * 2  # keys and values, layers, hidden size, 16 bits
SLOTS = 12 * 2**30 // KV_BYTES_PER_TOKEN  # Table 1: 12 GB, 15.7K tokens
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 256, 2560  # defaults of vLLM at the time

# Not measured: there is no A100 and no software of 2023 here. See README.md, "The clock".
CLOCK = StepTime(0.0254, token=0.167e-3, sequence=0.105e-3, key=0.68e-6)

SYSTEMS: dict[str, Callable[[], KVManager]] = {
    "Orca (Max)": lambda: PagedKV(reserve_len=whole_length, prefix_caching=False),
    "Orca (Pow2)": ContiguousPow2,
    "Orca (Oracle)": ContiguousOracle,
    "paged": lambda: PagedKV(prefix_caching=False),
}

# Those of workload=synthetic_sharegpt and _alpaca; the spread of ShareGPT's answers: README.md.
LENGTHS: dict[str, dict[str, float]] = {
    "ShareGPT": {"output_cv": 1.0},
    "Alpaca": {"input_mean": 19.31, "input_cv": 0.6, "output_mean": 58.45, "output_cv": 1.0},
    "WMT16": {"input_mean": 30.0, "input_cv": 0.6, "output_mean": 40.0, "output_cv": 0.6},
}


def workload(
    dataset: str, count: int, rate: float | None, seed: int, prefix_len: int = 0
) -> Synthetic:
    """Requests of a dataset's lengths; the model ends those that reach its length.

    All begin with the same `prefix_len` tokens.
    """
    return Synthetic(
        num_requests=count, rate=rate, seed=seed, longest=MAX_MODEL_LEN - 1,
        system_prompts=int(prefix_len > 0), system_len=max(1, prefix_len), **LENGTHS[dataset],  # type: ignore[arg-type]
    )  # fmt: skip


def engine(kv: KVManager) -> SimulatedEngine:
    return SimulatedEngine(
        sizes=Sizes(
            num_slots=2 * MAX_NUM_SEQS, max_num_seqs=MAX_NUM_SEQS, max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS, page_size=kv.page_size,
            num_pages=SLOTS // kv.page_size,
        ),
        scheduler=RankScheduler(
            max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS
        ),
        kv=kv, eviction=ScoreEviction(lru), vocab_size=2000, in_flight=1,
        step_seconds=CLOCK.seconds,
    )  # fmt: skip


@dataclass(frozen=True)
class Load:
    """A system under load, averaged over time."""

    split: dict[str, float]  # shares of the memory
    batch: float  # requests that run
    rate: float  # requests a second that end
    num_steps: int


def serve(kv: KVManager, requests: Synthetic, *, warmup: int) -> Load:
    """An allocator from the end of the first `warmup` requests to the last arrival; or, if all come
    at once, until none waits."""
    steps: list[dict[str, Any]] = []
    results = Results(simulated := engine(kv), steps.append)
    last = requests.requests[-1].arrival
    backlog = last == 0
    for number, live in enumerate(feed(simulated, arrivals(requests, SamplingParams()), _refuse)):
        results.request(live)
        if number < warmup:
            steps.clear()
        elif not results.last["num_waiting"] if backlog else simulated.virtual.now >= last:
            return _average(steps, number - warmup)
    raise ValueError(f"{type(kv).__name__} was never under load: more requests are needed")


def latency(kv: KVManager, requests: Synthetic) -> float:
    """Mean seconds of a request for each of its output tokens."""
    results = Results(simulated := engine(kv), lambda record: None)
    found = [
        results.request(live)
        for live in feed(simulated, arrivals(requests, SamplingParams()), _refuse)
    ]
    return sum(one["e2e"] / one["output_len"] for one in found) / len(found)


def _refuse(arrival: Any, reason: str) -> None:
    raise ValueError(reason)


def _average(steps: list[dict[str, Any]], num_ended: int) -> Load:
    seconds = sum(step["seconds"] for step in steps)
    slots = SLOTS // PAGE_SIZE * PAGE_SIZE * seconds
    names = steps[0]["memory_split"]
    return Load(
        split={n: sum(s["memory_split"][n] * s["seconds"] for s in steps) / slots for n in names},
        batch=sum(step["num_running"] * step["seconds"] for step in steps) / seconds,
        rate=num_ended / (steps[-1]["time"] + steps[-1]["seconds"] - steps[0]["time"]),
        num_steps=len(steps),
    )
