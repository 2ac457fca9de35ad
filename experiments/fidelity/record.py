"""What the engine did, in a file of JSON lines: a run that is cut off leaves what it had.

{"setup": {...}}                                       once: all that a simulation must know
{"run": "chats", "num_tokens": ..., "seconds": ...}    a step
{"ended": "chats", "metrics": {...}}                   a run
"""

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paged.engine import Engine
from paged.simulator.fitting import MeasuredStep
from paged.simulator.simulation import Arrival
from paged.simulator.totals import percentiles

TIMES = ("ttft", "tpot", "e2e")
SAID_EVERY = 5.0  # seconds between two lines of progress


class Progress:
    """Says on stderr how far the script has come."""

    def __init__(self) -> None:
        self._began = self._said = time.perf_counter()

    def say(self, text: str) -> None:
        self._said = time.perf_counter()
        print(f"[{self._said - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)

    def is_due(self, now: float) -> bool:
        return now - self._said > SAID_EVERY


class Record:
    """Setup, steps and metrics, kept in a file as they come.

    Args:
        path: of the file; None keeps them here only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.setup: dict[str, Any] = {}
        self.steps: dict[str, list[MeasuredStep]] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        if path is not None:
            path.write_text("")

    @classmethod
    def load(cls, path: Path) -> "Record":
        """What a file holds. Raises ValueError if it has no setup."""
        record = cls(None)
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "setup" in entry:
                record.setup = entry["setup"]
            elif "ended" in entry:
                record.metrics[entry["ended"]] = entry["metrics"]
            else:
                run = entry.pop("run")
                record.steps.setdefault(run, []).append(MeasuredStep(**entry))
        if not record.setup:
            raise ValueError(f"--from-steps must name a file that --steps wrote, got {path}")
        return record

    def begin(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self._write([{"setup": setup}])

    def end_run(self, name: str, metrics: dict[str, Any], steps: Sequence[MeasuredStep]) -> None:
        """Add a run; runs of one name add up, and the last has the metrics."""
        self.steps.setdefault(name, []).extend(steps)
        self.metrics[name] = metrics
        lines = [{"run": name} | step._asdict() for step in steps]
        self._write([*lines, {"ended": name, "metrics": metrics}])

    def _write(self, entries: Sequence[dict[str, Any]]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)


def in_the_engine(
    engine: Engine, requests: Sequence[Arrival], name: str, progress: Progress
) -> tuple[dict[str, Any], list[MeasuredStep]]:
    """Metrics of the run at the requests' arrival times, and its steps.

    A step takes the time from when the one before it was seen to when it is, so only steps that
    followed another without a pause are measured.
    """
    steps, ended = [], []
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
            work = done.num_tokens, done.num_seqs, done.num_keys
            steps.append(MeasuredStep(*work, seen - before, done.capacity))
        totals["cached"] += done.cached_tokens
        totals["preempted"] += done.num_preempted
        totals["dropped"] += done.recomputed_tokens
        ended += [live for live in touched if live.output.finished]
        if progress.is_due(seen):
            progress.say(f"{name}: {len(steps)} steps, {len(ended)} of {len(requests)} requests")
    seconds = time.perf_counter() - began
    engine.on_step = None
    prompts = sum(len(live.prompt_ids) for live in ended)
    metrics: dict[str, Any] = {
        "seconds": seconds,
        "output_tokens_per_s": sum(len(live.completion.token_ids) for live in ended) / seconds,
        "prefix_hit_rate": totals["cached"] / max(1, prompts + totals["dropped"]),
        "preemptions": totals["preempted"],
    }
    for kind in TIMES:
        metrics |= percentiles(kind, [getattr(live.output.metrics, kind) for live in ended])
    progress.say(f"{name}: {len(steps)} steps in {seconds:.1f} s")
    return metrics, steps
