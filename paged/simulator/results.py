"""What a simulation measured, gathered step by step: the records of its run folder."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paged.intake import LiveRequest
from paged.mailbox import Report
from paged.simulator.engine import SimulatedEngine, Work

PERCENTILES = (50, 90, 99)
TIMES = ("ttft", "tpot", "e2e", "queue_time")
SPLIT = ("token_states", "reserved", "internal_waste", "external_waste", "cached", "free")


class Results:
    """Follows an engine; one a run.

    Shares of memory and batch sizes are averages over the simulated time in which steps ran.

    Args:
        on_step: gets the record of each step.
    """

    def __init__(self, engine: SimulatedEngine, on_step: Callable[[dict[str, Any]], None]) -> None:
        self.sizes, self.virtual = engine.sizes, engine.virtual
        self.kv, self.table = engine.kv, engine.requests
        self.requests = engine.stages.requests
        self.on_step = on_step
        self.records: list[dict[str, Any]] = []
        self.num_steps = self.preemptions = self.computed_tokens = 0
        self.swapped_out_tokens = self.swapped_in_tokens = 0
        self.dropped_tokens = self.recomputed_tokens = self.cached_tokens = 0
        self.busy_seconds = self.seq_seconds = 0.0
        self.peak_pages = 0
        self.split = dict.fromkeys(SPLIT, 0.0)  # slots of KV x seconds
        self.last: dict[str, Any] = {}
        self._queued: dict[int, float] = {}  # start of the first step, by ticket
        self._dropped: dict[int, int] = {}  # tokens that a preemption took, by ticket
        self._began = time.perf_counter()
        self._launched: deque[dict[str, int]] = deque()  # memory after each step not yet read
        engine.on_launch = self._look_at_memory
        engine.on_report = self._report

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self._began

    def _report(self, report: Report, work: Work) -> None:
        header, number = report.header, self.num_steps
        tickets = self.requests.arrival
        for slot, dropped in zip(report.preempted_slots, report.dropped_tokens):
            self._dropped[int(tickets[slot])] = dropped
        for slot, cached in zip(report.admitted_slots, report.cached_tokens):
            ticket = int(tickets[slot])
            self._queued.setdefault(ticket, work.begin)
            dropped = self._dropped.pop(ticket, 0)
            self.recomputed_tokens += max(0, dropped - cached)
        cached = sum(report.cached_tokens) - header.num_swapped_in
        dropped = sum(report.dropped_tokens)
        used = self.sizes.num_pages - header.free_pages - header.cached_pages
        self.num_steps += 1
        self.computed_tokens += header.num_tokens
        self.preemptions += header.num_preempted
        self.cached_tokens += cached
        self.dropped_tokens += dropped
        self.swapped_out_tokens += header.num_swapped_out
        self.swapped_in_tokens += header.num_swapped_in
        self.busy_seconds += work.seconds
        self.seq_seconds += header.num_seqs * work.seconds
        self.peak_pages = max(self.peak_pages, used)
        split = self._launched.popleft()
        for name in SPLIT:
            self.split[name] += split[name] * work.seconds
        self.last = {
            "step": number,
            "time": work.begin,
            "seconds": work.seconds,
            "num_keys": work.num_keys,
            "cached_tokens": cached,
            "recomputed_tokens": dropped,
            **header._asdict(),
            "memory_split": split,
        }
        self.on_step(self.last)

    def _look_at_memory(self) -> None:
        self._launched.append(self.kv.memory_split(self.table))

    def request(self, live: LiveRequest) -> dict[str, Any]:
        """The line of `requests.jsonl` for a request that has ended; times in seconds."""
        output, metrics = live.output, live.output.metrics
        start = self._queued.pop(live.ticket, None)
        record = {
            "request_id": output.request_id,
            "prompt_len": len(live.prompt_ids),
            "output_len": len(live.completion.token_ids),
            "client": live.params.client,
            "priority": live.params.priority,
            "finish_reason": live.completion.finish_reason,
            "error": output.error,
            "arrival_time": metrics.arrival_time,
            "queue_time": None if start is None else max(0.0, start - metrics.arrival_time),
            "ttft": metrics.ttft,
            "tpot": metrics.tpot,
            "e2e": metrics.e2e,
            "num_cached_tokens": metrics.num_cached_tokens,
            "num_preemptions": metrics.num_preemptions,
        }
        self.records.append(record)
        return record

    def line(self) -> str:
        """What the progress line says beside the finished requests."""
        rate = self.num_steps / max(self.wall_seconds, 1e-9)
        return (
            f"{self.virtual.now:.1f} s simulated, {self.last.get('num_running', 0)} running, "
            f"{self.last.get('num_waiting', 0)} waiting, {rate:.0f} steps/s"
        )

    def summary(self, num_refused: int = 0) -> dict[str, Any]:
        """The contents of `metrics.json`: seconds, tokens, pages, shares of 1.

        Names are those of an engine's run; `seconds` are simulated, `wall_seconds` are ours.
        """
        prompt_tokens = sum(record["prompt_len"] for record in self.records)
        output_tokens = sum(record["output_len"] for record in self.records)
        seconds, busy = self.virtual.now, max(self.busy_seconds, 1e-12)
        total_slots = self.sizes.num_pages * self.sizes.page_size
        summary: dict[str, Any] = {
            "requests": len(self.records),
            "refused": num_refused,
            "errors": sum(record["error"] is not None for record in self.records),
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "seconds": seconds,
            "output_tokens_per_s": output_tokens / max(seconds, 1e-12),
            "requests_per_s": len(self.records) / max(seconds, 1e-12),
            "steps": self.num_steps,
            "mean_batch_size": self.seq_seconds / busy,
            "busy_share": self.busy_seconds / max(seconds, 1e-12),
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
