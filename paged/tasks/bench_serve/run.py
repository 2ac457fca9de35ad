"""Measurements of one server: warm-up, then a load at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paged.request import SamplingParams
from paged.tasks.bench.report import Report
from paged.tasks.bench_serve.client import Batch, Job, Outcome
from paged.tasks.bench_serve.fleet import Fleet
from paged.tasks.bench_serve.numbers import remarks, summary
from paged.tasks.bench_serve.plan import Bodies, Point, planned
from paged.tasks.bench_serve.target import Target
from paged.tasks.run_folder import RunFolder


@dataclass
class Run:
    """Measurements of one server."""

    name: str
    target: Target
    path: str
    bodies: Bodies
    sampling: SamplingParams
    timeout: float
    fleet: Fleet
    folder: RunFolder

    def warm_up(self, items: Sequence[Any]) -> str:
        """Send a few requests one by one, and say so. Raises ValueError if one of them fails."""
        if not items:
            return "nothing: no request was sent before the measurement"
        outcomes = _all(self._send(items, [0.0] * len(items), concurrency=1))
        for one in outcomes:
            if one.error is not None:
                raise ValueError(
                    f"{self.name}: a warm-up request failed ({one.error}: {one.message}); nothing "
                    "was measured"
                )
        drawn = sum(one.output_tokens for one in outcomes)
        return f"{len(outcomes)} requests sent one by one drew {drawn} tokens"

    def measure(
        self,
        point: Point,
        items: Sequence[Any],
        due: Sequence[float],
        limits: Mapping[str, float],
        report: Report,
    ) -> dict[str, Any]:
        """One load: its summary; requests go to the run folder, remarks to the report."""
        if not self.target.reset_prefix_cache():
            note = (
                f"{self.name} has no way to empty its prefix cache: prompts that it has seen, at "
                "another load or before, may be cached"
            )
            report.notes += [] if note in report.notes else [note]
        batches = self._send(items, due, point.concurrency)
        found = summary(batches, limits)
        outcomes = _all(batches)
        messages = {one.error: one.message for one in outcomes if one.error is not None}
        report.notes += remarks(
            f"{self.name}, {point.name}", found, messages, at_once=max(due) == 0.0
        )
        for one in outcomes:
            self.folder.request({"server": self.name, "load": point.name, **asdict(one)})
        return found

    def _send(
        self, items: Sequence[Any], due: Sequence[float], concurrency: int | None
    ) -> list[Batch]:
        requests = planned(items, self.sampling, self.bodies, due)
        url = self.target.url + self.path
        job = Job(url, self.target.headers, requests, concurrency, self.timeout)
        return self.fleet.run(job)


def _all(batches: Sequence[Batch]) -> list[Outcome]:
    return sorted((one for batch in batches for one in batch.outcomes), key=lambda one: one.number)
