"""The task: one or several loads on a server, one table, `bench.json`, and a plot of the sweep."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import product
from typing import Any

from rich.console import Console

from paged.llm import LLM
from paged.loggers.base import Logger
from paged.request import SamplingParams
from paged.tasks.bench.plots import draw
from paged.tasks.bench.report import Report
from paged.tasks.bench_serve.fleet import Fleet
from paged.tasks.bench_serve.numbers import rows, table
from paged.tasks.bench_serve.plan import Arrivals, Bodies, Endpoint, Point, due_times
from paged.tasks.bench_serve.run import Run
from paged.tasks.bench_serve.target import Target, own_server, reach
from paged.tasks.goodput import objective
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
MAX_CLIENTS = 4  # where nothing says how many


def bench_serve(
    llm_factory: Callable[[], LLM],
    recipe: Recipe,
    workload: Iterable[Any],
    sampling: SamplingParams,
    folder: RunFolder,
    logger: Logger,
    *,
    base_url: str | None = None,
    model_name: str | None = None,
    api_key: str | None = None,
    label: str = "paged",
    peer_url: str | None = None,
    peer_model: str | None = None,
    peer_label: str = "peer",
    endpoint: Endpoint = "completions",
    rates: Sequence[float] | None = (math.inf,),
    concurrency: int | Sequence[int | None] | None = None,
    arrivals: Arrivals = "gamma",
    cv: float = 1.0,
    goodput: Mapping[str, float | None] | None = None,
    clients: int | None = None,
    warmup: int = 2,
    greedy: bool = True,
    ignore_eos: bool = True,
    policy_fields: bool | None = None,
    extra_body: Mapping[str, Any] | None = None,
    timeout: float = 600.0,
    start_timeout: float = 900.0,
    plots: bool = True,
    seed: int = 0,
) -> Report:
    """Send the workload to a server at each load, print one table, and write `bench.json` and a
    line a request (`requests.jsonl`) into the run folder.

    Failed requests are counted by kind and shown; percentiles are of the others. The clients' own
    delays are measured and shown beside them.

    Args:
        base_url: of a server that runs; None starts one of this model and ends it afterwards.
        model_name, api_key: None is the first model it serves, and $PAGED_API_KEY or
            $OPENAI_API_KEY.
        label: what stands above its figures.
        peer_url, peer_model, peer_label: a second server, which gets the same requests after it.
        endpoint: completions or chat (for prompts of text).
        rates: requests a second, one load each; inf is all at once. None, with arrivals=trace, is
            the workload's own times.
        concurrency: at most so many requests at once, one load each; a request held back for this
            is timed from the moment it is sent.
        arrivals: gamma (gaps between arrivals) or trace (the workload's times, stretched evenly).
        cv: deviation / mean of the gaps: 1 is Poisson, 0 a metronome, more comes in clumps. vLLM's
            burstiness is 1 / cv**2.
        goodput: {ttft_ms, tpot_ms, e2e_ms}: requests a second that keep within all that are given.
        clients: processes; None is up to 4, by the machine's cores.
        warmup: requests sent one by one before anything is timed; if one fails, the run does.
        greedy: temperature 0 whatever the sampling says.
        ignore_eos: every request runs to its max_tokens. False for servers that know no such field.
        policy_fields: send priority, client, predicted_tokens and deadline; None: to our own.
        extra_body: further fields of every request's body.
        timeout, start_timeout: seconds for one request, and for the server to answer.
        plots: draw latency over load, where matplotlib is installed and there are several loads.
        seed: of arrivals.

    Raises:
        ValueError: a setting is wrong, the server does not answer, or a warm-up request fails.
    """
    if find_spec("aiohttp") is None:
        raise ValueError("task=bench_serve needs aiohttp; pip install 'paged[serve]'")
    points = loads(rates, concurrency, arrivals)
    limits = objective(goodput or {})
    if clients is None:
        clients = min(MAX_CLIENTS, os.cpu_count() or 1)
    for name, value, least in (("clients", clients, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"task.{name} must be at least {least}, got {value}")
    items = [list(workload) for _ in points]  # drawn once: a peer gets the same
    if not items[0]:
        raise ValueError("workload: there is no request")
    times = [due_times(own, arrivals, point.rate, cv, seed) for own, point in zip(items, points)]
    console = Console(highlight=False, soft_wrap=True)
    report = Report("serve", "", {}, ours=label, peer="" if peer_url is None else peer_label)
    servers = [(label, base_url, model_name)]
    if peer_url is not None:
        if peer_label == label:
            raise ValueError(f"task.peer_label must differ from task.label, got {label!r} twice")
        servers.append((peer_label, peer_url, peer_model))
    found: dict[str, list[dict[str, Any]]] = {}
    targets: dict[str, Target] = {}
    with folder, Fleet(clients) as fleet:
        logger.start(folder.config, folder.manifest, folder.path)
        for name, url, model in servers:
            with ExitStack() as stack:
                reached = url or stack.enter_context(
                    own_server(llm_factory, recipe.name(), start_timeout)
                )
                target = reach(reached, model, api_key, start_timeout if url is None else 5.0)
                targets[name] = target
                own_fields = url is None if policy_fields is None else policy_fields
                bodies = Bodies(
                    target.model, endpoint, greedy, ignore_eos, own_fields, extra_body or {}
                )
                run = Run(name, target, PATHS[endpoint], bodies, sampling, timeout, fleet, folder)
                report.check = run.warm_up(items[0][:warmup])
                found[name] = []
                for point, own, due in zip(points, items, times):
                    result = run.measure(point, own, due, limits, report)
                    found[name].append(result)
                    console.print(progress(name, point, result))
        compare(report, points, limits, targets, found)
        first = targets[label]
        report.settings = {
            "model": first.model, "endpoint": endpoint, "requests": len(items[0]),
            "arrivals": arrivals, "cv": cv, "clients": clients, "greedy": greedy,
            "ignore_eos": ignore_eos, "version": first.version,
        }  # fmt: skip
        if plots:
            draw(report, folder.path)
        report.write(folder.path)
        logger.finish({f"{row.name} ({row.unit})": row.ours for row in report.rows})
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    console.print(settings, style="dim")
    console.print(f"checked: {report.check}\n")
    console.print(table(report.rows, [name for name, *_ in servers]))
    for note in report.notes:
        console.print(f"- {note}", markup=False)
    console.print(f"run folder: {folder.path}")
    return report


def compare(
    report: Report,
    points: Sequence[Point],
    limits: Mapping[str, float],
    targets: Mapping[str, Target],
    found: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Write what was found of each server, ours first, into the report."""
    ours, *others = found.values()
    for place, point in enumerate(points):
        report.rows += rows(point.name, ours[place], others[0][place] if others else None)
    report.details |= {
        "objective": dict(limits),
        # JSON knows no infinity.
        "points": [
            {"name": point.name, "concurrency": point.concurrency,
             "rate": "inf" if point.rate == math.inf else point.rate}
            for point in points
        ],
        "servers": {
            name: {"url": one.url, "model": one.model, "version": one.version}
            for name, one in targets.items()
        },
        "summaries": dict(found),
    }  # fmt: skip


def loads(
    rates: Sequence[float] | None,
    concurrency: int | Sequence[int | None] | None,
    arrivals: Arrivals,
) -> list[Point]:
    """Every rate with every concurrency. Raises ValueError for those that make no sense."""
    if rates is None and arrivals != "trace":
        raise ValueError("task.rates must be given unless task.arrivals=trace has times of its own")
    each: Sequence[float | None] = (None,) if rates is None else rates
    several = (concurrency,) if concurrency is None or isinstance(concurrency, int) else concurrency
    points = [Point(rate, most) for rate, most in product(each, several)]
    if not points:
        raise ValueError(
            "task.rates and task.concurrency must hold a value each, got an empty list"
        )
    for point in points:
        if point.rate is not None and not point.rate > 0:
            raise ValueError(f"task.rates must be positive, got {point.rate}")
        if point.concurrency is not None and point.concurrency < 1:
            raise ValueError(f"task.concurrency must be at least 1, got {point.concurrency}")
    return points


def progress(name: str, point: Point, found: Mapping[str, Any]) -> str:
    """The line that ends a load."""
    return (
        f"{name}, {point.name}: {found['completed']} completed, {found['failed']} failed, "
        f"{found['seconds']:.1f} s"
    )
