"""Results of a simulation: records of its requests and steps, the sums of `metrics.json`."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from paged.request import RequestMetrics, SamplingParams
from paged.state import Sizes

PERCENTILES = (50, 90, 99)
TIMES = ("ttft", "tpot", "e2e", "queue_time", "normalized_latency")
SPLIT = ("token_states", "reserved", "internal_waste", "external_waste", "cached", "free")


class Totals:
    """Sums over the steps of a run. Times are simulated, but for the wall clock's.

    Shares of memory and batch sizes are averages over the time in which steps ran.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.records: list[dict[str, Any]] = []
        self.num_steps = self.preemptions = self.computed_tokens = 0
        self.dropped_tokens = self.recomputed_tokens = self.cached_tokens = 0
        self.swapped_out_tokens = self.swapped_in_tokens = 0
        self.busy_seconds = self.seq_seconds = self.seconds = 0.0
        self.peak_pages = 0
        self.split = dict.fromkeys(SPLIT, 0.0)  # slots of KV x seconds
        self.last: dict[str, Any] = {}
        self._began = time.perf_counter()

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self._began

    def record(
        self,
        request_id: str,
        prompt_len: int,
        output_len: int,
        params: SamplingParams,
        metrics: RequestMetrics,
        queued: float | None,
        finish_reason: str | None,
        error: str | None,
    ) -> dict[str, Any]:
        """The line of `requests.jsonl` for a request that has ended; times in seconds."""
        arrival = metrics.arrival_time
        record = {
            "request_id": request_id,
            "prompt_len": prompt_len,
            "output_len": output_len,
            "client": params.client,
            "priority": params.priority,
            "finish_reason": finish_reason,
            "error": error,
            "arrival_time": arrival,
            "queue_time": None if queued is None else max(0.0, queued - arrival),
            "ttft": metrics.ttft,
            "tpot": metrics.tpot,
            "e2e": metrics.e2e,
            "normalized_latency": None if metrics.e2e is None else metrics.e2e / max(output_len, 1),
            "num_cached_tokens": metrics.num_cached_tokens,
            "num_preemptions": metrics.num_preemptions,
        }
        self.records.append(record)
        return record

    def line(self) -> str:
        """What the progress line says beside the finished requests."""
        rate = self.num_steps / max(self.wall_seconds, 1e-9)
        return (
            f"{self.seconds:.1f} s simulated, {self.last.get('num_running', 0)} running, "
            f"{self.last.get('num_waiting', 0)} waiting, {rate:.0f} steps/s"
        )

    def summary(self, num_refused: int = 0) -> dict[str, Any]:
        """The contents of `metrics.json`: seconds, tokens, pages, shares of 1.

        Names are those of an engine's run; `seconds` are simulated, `wall_seconds` are ours.
        """
        prompt_tokens = sum(record["prompt_len"] for record in self.records)
        output_tokens = sum(record["output_len"] for record in self.records)
        seconds, busy = max(self.seconds, 1e-12), max(self.busy_seconds, 1e-12)
        total_slots = self.sizes.num_pages * self.sizes.page_size
        summary: dict[str, Any] = {
            "requests": len(self.records),
            "refused": num_refused,
            "errors": sum(record["error"] is not None for record in self.records),
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "seconds": self.seconds,
            "output_tokens_per_s": output_tokens / seconds,
            "requests_per_s": len(self.records) / seconds,
            "steps": self.num_steps,
            "mean_batch_size": self.seq_seconds / busy,
            "busy_share": self.busy_seconds / seconds,
        }
        for name in TIMES:
            summary |= percentiles(name, [record[name] for record in self.records])
        # A preempted request is admitted again, with the tokens it lost to find or to compute.
        admitted_tokens = prompt_tokens + self.dropped_tokens - self.swapped_in_tokens
        return summary | {
            "computed_tokens": self.computed_tokens,
            "prefix_hit_tokens": self.cached_tokens,
            "prefix_hit_rate": self.cached_tokens / max(admitted_tokens, 1),
            "preemptions": self.preemptions,
            "dropped_tokens": self.dropped_tokens,
            "recomputed_tokens": self.recomputed_tokens,
            "swapped_out_tokens": self.swapped_out_tokens,
            "swapped_in_tokens": self.swapped_in_tokens,
            "recompute_tax": self.recomputed_tokens / max(self.computed_tokens, 1),
            "num_pages": self.sizes.num_pages,
            "page_size": self.sizes.page_size,
            "peak_pages": self.peak_pages,
            "memory_split": {n: self.split[n] / (busy * total_slots) for n in SPLIT},
            "wall_seconds": self.wall_seconds,
            "steps_per_s": self.num_steps / max(self.wall_seconds, 1e-9),
        }


def percentiles(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """{name_p50: ...} and the mean, of the values that there are."""
    present = [value for value in values if value is not None]
    found: dict[str, float | None] = {
        f"{name}_p{q}": float(np.percentile(present, q)) if present else None for q in PERCENTILES
    }
    return {f"{name}_mean": float(np.mean(present)) if present else None, **found}
