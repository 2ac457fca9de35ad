"""From outcomes of requests to the numbers of one load, and the rows and table of a report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from paged.tasks.bench.report import Row, number
from paged.tasks.bench_serve.client import Batch, Outcome
from paged.tasks.goodput import within

TIMES = ("ttft", "tpot", "itl", "e2e")
PERCENTILES = (50, 90, 99)
RATES = ("requests_per_s", "goodput", "output_tokens_per_s", "total_tokens_per_s")
CLIENT = ("send_lag_p99", "send_lag_max", "loop_delay_p99", "loop_delay_max")
COUNT = "requests"  # the unit of what is counted
BUSY = 0.8  # of a core: from here on a client process cannot be trusted
SLOW_SECONDS = 0.01


def meets(outcome: Outcome, limits: Mapping[str, float]) -> bool:
    """Whether a request was served within all limits."""
    times = {name: getattr(outcome, name) for name in limits}
    return outcome.error is None and within(times, limits)


def summary(batches: Sequence[Batch], limits: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of one load: seconds, tokens, counts.

    Percentiles and rates are of completed requests, counts of all. The duration is from the first
    request's due time to the last answer.
    """
    outcomes = [outcome for batch in batches for outcome in batch.outcomes]
    done = [outcome for outcome in outcomes if outcome.error is None]
    seconds = max((one.sent + (one.e2e or 0.0) for one in outcomes), default=0.0)
    output = sum(one.output_tokens for one in done)
    prompt = sum(one.prompt_tokens or 0 for one in done)
    good = sum(meets(one, limits) for one in outcomes)
    failures = Counter(one.error for one in outcomes if one.error is not None)
    found: dict[str, Any] = {
        "requests": len(outcomes),
        "completed": len(done),
        "failed": len(outcomes) - len(done),
        "failures": dict(failures),
        "seconds": seconds,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "cached_tokens": sum(one.cached_tokens or 0 for one in done),
    }
    for name, count in zip(RATES, (len(done), good, output, prompt + output)):
        found[name] = count / seconds if done else None
    if not limits:
        found["goodput"] = None
    found["attainment"] = good / len(outcomes) if limits and outcomes else None
    for name in TIMES:
        values = times_of(done, name)
        found[f"{name}_mean"] = float(np.mean(values)) if values else None
        found |= percentiles(name, values, PERCENTILES)
    delays = [delay for batch in batches for delay in batch.delays]
    found |= percentiles("send_lag", [one.lag for one in outcomes], (50, 99, 100))
    found |= percentiles("loop_delay", delays, (50, 99, 100))
    for name in ("send_lag", "loop_delay"):
        found[f"{name}_max"] = found.pop(f"{name}_p100")
    found["client_busy"] = max((batch.busy for batch in batches), default=0.0)
    return found


def times_of(outcomes: Sequence[Outcome], name: str) -> list[float]:
    """Every request's time; of itl, every gap of every request."""
    if name == "itl":
        return [gap for one in outcomes for gap in one.gaps]
    values = (getattr(one, name) for one in outcomes)
    return [value for value in values if value is not None]


def percentiles(name: str, values: Sequence[float], levels: Sequence[int]) -> dict[str, Any]:
    found = np.percentile(values, levels).tolist() if len(values) else [None] * len(levels)
    return {f"{name}_p{level}": value for level, value in zip(levels, found)}


def rows(point: str, ours: Mapping[str, Any], peer: Mapping[str, Any] | None) -> list[Row]:
    """A row a quantity, in the units of the table."""
    made = []
    for key, name, unit, factor in columns():
        values = [None if one is None else one[key] for one in (ours, peer)]
        scaled = [None if value is None else value * factor for value in values]
        made.append(Row(
            f"{point}: {name}", unit, scaled[0], peer=scaled[1], more_is_better=key in RATES,
            details={"point": point, "quantity": name},
        ))  # fmt: skip
    return made


def columns() -> list[tuple[str, str, str, float]]:
    """(key of a summary, name, unit, factor) of what the table shows, in its order."""
    shown = [
        ("completed", "completed", COUNT, 1.0),
        ("failed", "failed", COUNT, 1.0),
        ("requests_per_s", "requests", "1/s", 1.0),
        ("goodput", "goodput", "1/s", 1.0),
        ("attainment", "within objective", "%", 100.0),
        ("output_tokens_per_s", "output tokens", "1/s", 1.0),
        ("total_tokens_per_s", "all tokens", "1/s", 1.0),
    ]
    for name in TIMES:
        shown.append((f"{name}_mean", f"{name} mean", "ms", 1e3))
        shown += [(f"{name}_p{level}", f"{name} p{level}", "ms", 1e3) for level in PERCENTILES]
    shown += [(name, f"client: {name.replace('_', ' ')}", "ms", 1e3) for name in CLIENT]
    return [*shown, ("client_busy", "client: busiest process", "% of a core", 100.0)]


def table(found: Sequence[Row], names: Sequence[str]) -> Table:
    """Quantities down, loads across; `names` are the servers, ours first. Rows without any number
    are left out."""
    points = list(dict.fromkeys(row.details["point"] for row in found))
    shown = Table(box=None, pad_edge=False)
    shown.add_column("", no_wrap=True)
    shown.add_column("unit")
    for point in points:
        for name in names:
            title = point if len(names) == 1 else f"{point}\n{name}"
            shown.add_column(title, justify="right")
    for first in found[: len(found) // len(points)]:
        same = [row for row in found if row.details["quantity"] == first.details["quantity"]]
        pairs = [(row.ours, row.peer)[: len(names)] for row in same]
        cells = [value for pair in pairs for value in pair]
        if any(value is not None for value in cells):
            count = first.unit == COUNT
            texts = (f"{value:.0f}" if count and value is not None else number(value)
                     for value in cells)  # fmt: skip
            shown.add_row(first.details["quantity"], first.unit, *texts)
    return shown


def remarks(
    point: str, found: Mapping[str, Any], messages: Mapping[str, str], *, at_once: bool
) -> list[str]:
    """What a reader of the numbers has to know: failures, and a client that was too slow.

    Of requests that are all due `at_once`, only the first can be in time.
    """
    said = []
    if found["failed"]:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in found["failures"].items())
        said.append(
            f"{point}: {found['failed']} of {found['requests']} requests failed ({kinds}); times "
            "and rates are those of the others"
        )
        said += [f"{kind}: {text}" for kind, text in messages.items() if text]
    late = found["send_lag_p99"] or 0.0, found["loop_delay_p99"] or 0.0
    busy = found["client_busy"] > BUSY
    if max(late[at_once:]) > SLOW_SECONDS or busy:
        way_out = "more processes with task.clients" if busy else "a machine with idle cores"
        said.append(
            f"{point}: the client was slow (sent {1e3 * late[0]:.1f} ms late, event loop "
            f"{1e3 * late[1]:.1f} ms late at p99, busy {found['client_busy']:.0%}); give it "
            f"{way_out}"
        )
    return said
