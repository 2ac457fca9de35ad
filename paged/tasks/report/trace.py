"""A run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing: steps, requests, pages.

Source: the Trace Event Format of Chrome. Times are microseconds from the first event.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paged.tasks.report.runs import Run

ENGINE, REQUESTS = 1, 2  # the two "processes" of the trace
CONTENTS = ("prompt", "prompt_token_ids", "text", "token_ids", "logprobs")  # not shown
COUNTERS = {"requests": ("num_running", "num_waiting"), "tokens": ("num_tokens",)}
Event = dict[str, Any]


def write_trace(run: Run, path: Path) -> int:
    """Write the run's `trace.json`; returns the number of its events.

    Steps are durations, requests are nested asynchronous spans (queued, prefill, decode), pages and
    queue lengths are counters.
    """
    events = [*_steps(run), *_requests(run)]
    begin = min((event["ts"] for event in events), default=0.0)
    for event in events:
        event["ts"] = round((event["ts"] - begin) * 1e6, 3)
    events.sort(key=lambda event: event["ts"])
    names = [_name(ENGINE, "engine"), _name(REQUESTS, "requests")]
    record = {
        "traceEvents": names + events,
        "displayTimeUnit": "ms",
        "otherData": {"run": str(run.path), "overrides": " ".join(run.overrides)},
    }
    path.write_text(json.dumps(record))
    return len(events)


def _steps(run: Run) -> Iterator[Event]:
    num_pages = run.metrics.get("num_pages")
    for step in run.steps():
        common = {"pid": ENGINE, "tid": 1, "ts": step["time"]}
        own = {key: value for key, value in step.items() if key not in ("time", "seconds")}
        duration = round(step["seconds"] * 1e6, 3)
        yield common | {"name": "step", "ph": "X", "dur": duration, "args": own}
        for name, keys in COUNTERS.items():
            yield common | {"name": name, "ph": "C", "args": {key: step[key] for key in keys}}
        if num_pages is not None:
            free, cached = step["free_pages"], step["cached_pages"]
            split = {"in use": num_pages - free - cached, "cached": cached, "free": free}
            yield common | {"name": "pages", "ph": "C", "args": split}


def _requests(run: Run) -> Iterator[Event]:
    for request in run.requests():
        if request.get("e2e") is None:  # refused, or ended without a token
            continue
        begin, end = request["arrival_time"], request["arrival_time"] + request["e2e"]
        common = {"pid": REQUESTS, "tid": 1, "cat": "request", "id": request["request_id"]}
        name = f"request {request['request_id']}"
        own = {key: value for key, value in request.items() if key not in CONTENTS}
        # A span ends where the last one opened ends first: the order here is that of the file.
        yield common | {"name": name, "ph": "b", "ts": begin, "args": own}
        for phase, start, stop in _phases(request, begin, end):
            yield common | {"name": phase, "ph": "b", "ts": start}
            yield common | {"name": phase, "ph": "e", "ts": stop}
        yield common | {"name": name, "ph": "e", "ts": end}


def _phases(
    request: dict[str, Any], begin: float, end: float
) -> Iterator[tuple[str, float, float]]:
    """(name, begin, end) one after the other; the engine does not tell how long one was queued."""
    if request.get("ttft") is None:
        return
    first = begin + request["ttft"]
    if request.get("queue_time") is None:
        yield "queued and prefill", begin, first
    else:
        start = begin + request["queue_time"]
        yield "queued", begin, start
        yield "prefill", start, first
    yield "decode", first, end


def _name(pid: int, name: str) -> Event:
    return {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}}
