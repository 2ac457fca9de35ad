"""task=simulate: the workload through the engine's control plane on a virtual clock, no model."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.intake import Limits
from paged.kernels.launch import interpreted
from paged.kv.paged import PagedKV
from paged.loggers.base import Logger
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.simulator.device import DeviceSimulation, why_not
from paged.simulator.device_results import DeviceResults
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.script import write_script
from paged.simulator.simulation import Arrival, arrivals, feed
from paged.simulator.step_time import StepTime, load_step_time
from paged.simulator.totals import PERCENTILES, TIMES, Totals
from paged.sizing import choose_num_host_pages, resolve_device
from paged.state import Sizes
from paged.tasks.generate import progress_line
from paged.tasks.goodput import goodput as attained
from paged.tasks.goodput import objective
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder

WAITING_ROWS = 1024  # rows of the request table, where nothing says how many: as on a GPU


def simulate(
    recipe: Recipe,
    workload: Iterable[Any],
    sampling: SamplingParams,
    folder: RunFolder,
    logger: Logger,
    *,
    step_time: str = "llama-3.1-8b-h200",
    kv_memory_gib: float = 40.0,
    swap_gb_per_s: float = 25.0,
    in_flight: int = 2,
    seconds: float | None = None,
    goodput: Mapping[str, float | None] | None = None,
    steps: bool = True,
) -> None:
    """Simulate the workload to its end: on the GPU where there is one and every part can run there,
    else on the host. Both decide the same.

    The step-time model stands for model and GPU: `model=` is not read, except for max_model_len.

    Args:
        step_time: name of a shipped fit (`paged/simulator/times`), or the path of one.
        kv_memory_gib: memory for keys and values, where kv.num_pages is null.
        swap_gb_per_s: 10^9 bytes a second that pages are copied at, with
            scheduler.preemption=swap; the step waits for the copies, as it does on a GPU.
        in_flight: steps launched before the first is read.
        seconds: only requests that arrive within so many.
        goodput: {ttft_ms, tpot_ms, e2e_ms}: requests a second that keep within all that are given.
        steps: write `steps.jsonl`, a line a step.
    """
    console = Console(soft_wrap=True, highlight=False)
    clock, limits = load_step_time(step_time), objective(goodput or {})
    requests = [
        one for one in arrivals(workload, sampling) if seconds is None or one.time < seconds
    ]
    if not requests:
        raise ValueError(f"workload: no request arrives within seconds={seconds}")
    parts = parts_of(recipe, requests, clock, kv_memory_gib)
    parts["in_flight"] = in_flight
    page_seconds = swap_page_seconds(parts, clock, swap_gb_per_s)
    device = device_of(recipe, parts, console)
    refused: list[str] = []
    with folder, progress_line(console) as progress:
        logger.start(folder.config, folder.manifest, folder.path)
        shown = progress.add_task("", total=len(requests), state="")

        def on_step(record: dict[str, Any]) -> None:
            if steps:
                folder.step(record)
            logger.step(record)

        def refuse(arrival: Arrival, reason: str) -> None:
            refused.append(reason)
            folder.request({"request_id": str(arrival.number), "error": reason})
            progress.advance(shown)

        results: Totals
        if device is None:
            engine = host_engine(parts, requests, clock, page_seconds)
            results = watched = Results(engine, on_step)
            for live in feed(engine, requests, refuse):
                folder.request(watched.request(live))
                progress.update(shown, advance=1, state=results.line())
        else:
            script = write_script(
                requests, limits_of(parts, requests), refuse, shares=parts["kv"].reserve_len is None
            )
            simulation = DeviceSimulation(script, step_time=clock, device=device, **parts)
            listens = steps or type(logger) is not Logger
            results = driven = DeviceResults(simulation, on_step if listens else None)
            driven.run(lambda: progress.update(shown, state=driven.line()))
            for record in results.records:
                folder.request(record)
        kept = attained(results.records, limits, results.seconds, len(refused))
        summary = (
            results.summary(len(refused))
            | kept
            | {
                "step_time": step_time,
                "step_time_mean_error": clock.mean_error,
                "simulated_on": "cpu" if device is None else torch.cuda.get_device_name(device),
            }
        )
        folder.metrics(summary)
        logger.finish(summary)
    if refused:
        console.print(f"refused requests: {len(refused)}, the first because {refused[0]}")
    console.print(table(summary, clock, limits))
    here = Path.cwd()
    path = folder.path.relative_to(here) if folder.path.is_relative_to(here) else folder.path
    console.print(f"run folder: {path}")


def parts_of(
    recipe: Recipe, requests: Sequence[Arrival], clock: StepTime, kv_memory_gib: float
) -> dict[str, Any]:
    """The engine's parts but for its model, with room for the longest of the requests."""
    given = recipe.arguments
    scheduler = given.get("scheduler") or RankScheduler()
    kv = given.get("kv") or PagedKV()
    longest = max(one.prompt_len + one.output_len for one in requests)
    num_pages, page_bytes = kv.num_pages, clock.kv_bytes_per_token * kv.page_size
    if num_pages is None:
        if page_bytes == 0:
            raise ValueError(
                "kv.num_pages must be given: the step_time does not say kv_bytes_per_token"
            )
        num_pages = max(1, int(kv_memory_gib * 2**30) // page_bytes)
    sizes = Sizes(
        num_slots=given.get("num_slots") or max(scheduler.max_num_seqs, WAITING_ROWS),
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=given.get("max_model_len") or longest,
        page_size=kv.page_size,
        num_pages=num_pages,
        num_host_pages=choose_num_host_pages(scheduler, kv),
    )
    eviction = given.get("eviction") or ScoreEviction(lru)
    return {"sizes": sizes, "scheduler": scheduler, "kv": kv, "eviction": eviction}


def swap_page_seconds(parts: Mapping[str, Any], clock: StepTime, gb_per_s: float) -> float:
    """Seconds that the copy of a page to host memory or from there takes."""
    if not gb_per_s > 0:
        raise ValueError(f"task.swap_gb_per_s must be positive, got {gb_per_s}")
    if parts["sizes"].num_host_pages and clock.kv_bytes_per_token == 0:
        raise ValueError(
            "scheduler.preemption=swap takes time by the bytes, and the step_time does not say "
            "kv_bytes_per_token; give it, or use scheduler.preemption=recompute"
        )
    return clock.kv_bytes_per_token * parts["sizes"].page_size / (gb_per_s * 1e9)


def device_of(recipe: Recipe, parts: Mapping[str, Any], console: Console) -> torch.device | None:
    """The GPU that the simulation runs on, or None for the host; says why it is not the GPU.

    Raises ValueError if engine=graph asks for a GPU that cannot be used.
    """
    wanted = recipe.arguments.get("device")
    reason = why_not(parts["scheduler"], parts["kv"], parts["eviction"])
    if interpreted() or wanted == "cpu":
        reason = reason or "no GPU is in use"
    elif reason is None:
        return resolve_device(wanted)
    else:
        console.print(f"simulated on the CPU: {reason}")
    if recipe.arguments.get("engine") == "graph":
        raise ValueError(f"engine=graph cannot be simulated: {reason}; use engine=auto")
    return None


def host_engine(
    parts: Mapping[str, Any], requests: Sequence[Arrival], clock: StepTime, page_seconds: float
) -> SimulatedEngine:
    """The engine on the host, with an eviction that knows what is to come."""
    engine = SimulatedEngine(
        step_seconds=clock.seconds, swap_page_seconds=page_seconds, vocab_size=vocab_of(requests),
        **parts,
    )  # fmt: skip
    # What is refused gets no ticket, so policies that read the future must not see it.
    limit = engine.sizes.max_model_len
    served = [one for one in requests if one.prompt_len + one.output_len <= limit]
    prompts = (one.tokens()[0] for one in sorted(served, key=lambda one: one.time))
    engine.device_step.eviction.foresee(prompts, engine.requests)
    return engine


def limits_of(parts: Mapping[str, Any], requests: Sequence[Arrival]) -> Limits:
    """What an engine of these parts would take."""
    return Limits(parts["sizes"], vocab_of(requests), (), parts["kv"].peak_pages)


def vocab_of(requests: Sequence[Arrival]) -> int:
    return max(one.vocab_size for one in requests)


def table(summary: dict[str, Any], clock: StepTime, limits: Mapping[str, float]) -> Table:
    """The summary for the eye."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="cyan")
    shown.add_column()
    refused = f", {summary['refused']} refused" if summary["refused"] else ""
    shown.add_row(
        "requests",
        f"{summary['requests']}{refused} in {summary['seconds']:.1f} s simulated, "
        f"{summary['requests_per_s']:.2f} requests/s, "
        f"{summary['output_tokens_per_s']:.0f} output tokens/s",
    )
    shown.add_row(
        "steps",
        f"{summary['steps']}, {summary['mean_batch_size']:.1f} sequences on average; "
        f"{summary['wall_seconds']:.1f} s here, {summary['steps_per_s']:.0f} steps/s",
    )
    for name in TIMES:
        times = (summary[f"{name}_p{q}"] for q in PERCENTILES)
        text = " / ".join("-" if value is None else f"{value * 1000:.1f}" for value in times)
        shown.add_row(name.replace("_", " "), f"{text} ms (p50 / p90 / p99)")
    if limits:
        within = ", ".join(f"{name} {limit * 1000:g} ms" for name, limit in limits.items())
        shown.add_row(
            "goodput",
            f"{summary['goodput']:.2f} requests/s, {summary['attainment']:.1%} within {within}",
        )
    shown.add_row(
        "prefix hits",
        f"{summary['prefix_hit_tokens']} tokens, {summary['prefix_hit_rate']:.1%} of the prompts",
    )
    shown.add_row(
        "preemptions",
        f"{summary['preemptions']}, {summary['recomputed_tokens']} tokens recomputed, "
        f"{summary['recompute_tax']:.2%} of all",
    )
    if summary["swapped_out_tokens"]:
        shown.add_row(
            "swapped tokens",
            f"{summary['swapped_out_tokens']} out, {summary['swapped_in_tokens']} in",
        )
    shown.add_row(
        "pages",
        f"{summary['num_pages']} of {summary['page_size']} tokens, at most "
        f"{summary['peak_pages']} in use",
    )
    split = summary["memory_split"]
    shown.add_row(
        "memory", ", ".join(f"{name.replace('_', ' ')} {part:.1%}" for name, part in split.items())
    )
    guessed = ", ".join(str(capacity) for capacity in clock.unmeasured)
    shown.add_row(
        "clock",
        f"{clock.model} on {clock.device}, {clock.mean_error:.1%} mean error over "
        f"{clock.num_steps} measured steps"
        + (f", none of them in the graphs of {guessed} tokens" if guessed else ""),
    )
    return shown
