"""What a simulation on the host measured, gathered step by step."""

from collections import deque
from collections.abc import Callable
from typing import Any

from paged.live_request import LiveRequest
from paged.mailbox import Report
from paged.simulator.engine import SimulatedEngine, Span
from paged.simulator.totals import SPLIT, Totals


class Results(Totals):
    """Follows an engine; one a run.

    Args:
        on_step: gets the record of each step.
    """

    def __init__(self, engine: SimulatedEngine, on_step: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(engine.sizes)
        self.virtual, self.kv, self.table = engine.virtual, engine.kv, engine.requests
        self.requests = engine.stages.requests
        self.on_step = on_step
        self._queued: dict[int, float] = {}  # start of the first step, by ticket
        self._dropped: dict[int, int] = {}  # tokens that a preemption took, by ticket
        self._launched: deque[dict[str, int]] = deque()  # memory after each step not yet read
        engine.on_launch = self._look_at_memory
        engine.on_report = self._report

    def _report(self, report: Report, span: Span) -> None:
        header, number = report.header, self.num_steps
        tickets = self.requests.arrival
        for slot, dropped in zip(report.preempted_slots, report.dropped_tokens):
            self._dropped[int(tickets[slot])] = dropped
        for slot, cached in zip(report.admitted_slots, report.cached_tokens):
            ticket = int(tickets[slot])
            self._queued.setdefault(ticket, span.begin)
            dropped = self._dropped.pop(ticket, 0)
            self.recomputed_tokens += max(0, dropped - cached)
        cached = sum(report.cached_tokens) - header.num_swapped_in
        dropped = sum(report.dropped_tokens)
        used = self.sizes.num_pages - header.free_pages - header.cached_pages
        self.num_steps += 1
        self.seconds = self.virtual.now
        self.computed_tokens += header.num_tokens
        self.preemptions += header.num_preempted
        self.cached_tokens += cached
        self.dropped_tokens += dropped
        self.swapped_out_tokens += header.num_swapped_out
        self.swapped_in_tokens += header.num_swapped_in
        self.busy_seconds += span.seconds
        self.seq_seconds += header.num_seqs * span.seconds
        self.peak_pages = max(self.peak_pages, used)
        split = self._launched.popleft()
        for name in SPLIT:
            self.split[name] += split[name] * span.seconds
        self.last = {
            "step": number,
            "time": span.begin,
            "seconds": span.seconds,
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
        output = live.output
        return self.record(
            output.request_id,
            len(live.prompt_ids),
            len(live.completion.token_ids),
            live.params,
            output.metrics,
            self._queued.pop(live.ticket, None),
            live.completion.finish_reason,
            output.error,
        )
