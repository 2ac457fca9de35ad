"""The engine as a whole: throughput over a workload, latency over a grid, phases of a start."""

import gc
import math
import random
import statistics
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paged.kernels.launch import interpreted
from paged.llm import LLM
from paged.request import SamplingParams
from paged.tasks.bench.driving import (
    Request,
    check_engine,
    fixed_requests,
    host_us,
    requests_of,
    run_pass,
)
from paged.tasks.bench.hardware import Hardware, measure, step_bytes, token_bytes
from paged.tasks.bench.peers import Peer, common_job
from paged.tasks.bench.report import Report, Row
from paged.tasks.recipe import Recipe
from paged.workloads.prompts import WorkItem

PEER_LOG = "peer.log"


def throughput(
    recipe: Recipe,
    workload: Iterable[WorkItem],
    sampling: SamplingParams,
    peer: Peer | None,
    folder: Path,
    *,
    runs: int,
    greedy: bool,
) -> Report:
    """The workload, all at once, `runs` times after a warm-up: the median run."""
    report, job = _throughput(recipe, workload, sampling, runs, greedy)
    answer = ask_peer(peer, job, recipe, folder, report)
    if answer is not None:
        seconds = statistics.median(answer["passes"][1:])
        for row in report.rows:
            if "count" in row.details:
                row.peer = row.details["count"] / seconds
        report.rows[0].peer = seconds
    return report


def _throughput(
    recipe: Recipe, workload: Iterable[WorkItem], sampling: SamplingParams, runs: int, greedy: bool
) -> tuple[Report, dict[str, Any]]:
    """Ours, and the peer's job."""
    hardware = measure_device(recipe)
    llm = recipe.build()
    report = begin("throughput", llm, recipe, hardware)
    warm_up = 0 if interpreted() else 1  # the interpreter compiles nothing
    passes = [requests_of(workload, sampling, llm, greedy=greedy) for _ in range(runs + 1)]
    results = [run_pass(llm, requests) for requests in passes[1 - warm_up :]][warm_up:]
    result = sorted(results, key=lambda one: one.seconds)[len(results) // 2]
    tokens, prompts = result.output_tokens, result.prompt_tokens
    floor = None
    if hardware is not None:
        floor = hardware.floor(_read_bytes(passes[-1], llm))
    report.rows = [
        Row("run", "s", result.seconds, floor=floor),
        _rate("output tokens", "tokens/s", tokens, result.seconds, floor),
        _rate("all tokens", "tokens/s", tokens + prompts, result.seconds, floor),
        _rate("requests", "1/s", len(passes[-1]), result.seconds, floor),
        *_percentiles("ttft", result.ttft),
        *_percentiles("tpot", result.tpot),
        Row("host work a step", "us", host_us(result)),
    ]
    report.details |= {
        "prompt_tokens": prompts,
        "output_tokens": tokens,
        "all_seconds": [one.seconds for one in results],
        "steps": result.steps,
        "steps_by_capacity": dict(sorted(result.steps_by_capacity.items())),
    }
    report.notes.append(
        f"{len(passes[-1])} requests, {prompts} prompt and {tokens} output tokens, "
        f"{result.steps} steps; the floor reads weights and keys, and computes nothing"
    )
    params = passes[-1][0].params
    names = ("temperature", "top_p", "top_k", "min_p")
    job = common_job(llm, recipe) | {
        "passes": [[[r.prompt, r.params.max_tokens] for r in one] for one in passes],
        "sampling": {name: getattr(params, name) for name in names},
    }
    return report, job


def latency(
    recipe: Recipe,
    peer: Peer | None,
    folder: Path,
    *,
    batches: Sequence[int],
    contexts: Sequence[int],
    output_len: int,
    runs: int,
) -> Report:
    """Time to first token, and of a decode step, for every batch and context of the grid.

    A decode step is the difference of two runs, of `output_len` tokens and of one, shared by the
    tokens between: so prefill is in neither, and a peer is measured in the same way.
    """
    if output_len < 2:
        raise ValueError(f"task.output_len must be at least 2, got {output_len}")
    report, job = _latency(recipe, [*product(batches, contexts)], output_len, runs)
    answer = ask_peer(peer, job, recipe, folder, report)
    if answer is not None:
        for number, point in enumerate(answer["grid"]):
            report.rows[2 * number].peer = point["decode_ms"]
            report.rows[2 * number + 1].peer = 1e3 * point["ttft"]
    return report


def _latency(
    recipe: Recipe, points: Sequence[tuple[int, int]], output_len: int, runs: int
) -> tuple[Report, dict[str, Any]]:
    """Ours, and the peer's job."""
    hardware = measure_device(recipe)
    llm = recipe.build()
    report = begin("latency", llm, recipe, hardware)
    rng, sizes = random.Random(llm.engine.seed), llm.engine.sizes
    grid = []
    for batch, context in points:
        pages = batch * -(-(context + output_len) // sizes.page_size)
        fits = batch <= sizes.max_num_seqs and context + output_len <= sizes.max_model_len
        if not fits or pages > sizes.num_pages:
            report.notes.append(
                f"batch {batch} with {context} tokens was left out: it does not fit max_num_seqs, "
                "max_model_len or the pages"
            )
            continue

        first, full = (
            _median_seconds(llm, batch, context, num_tokens, runs, rng)
            for num_tokens in (1, output_len)
        )
        step = (full - first) / (output_len - 1)
        floor = None
        if hardware is not None:
            keys = batch * (context + output_len / 2) * token_bytes(llm.spec, llm.dtype)
            floor = 1e3 * hardware.floor(step_bytes(llm.spec, llm.dtype) + keys)
        name = f"batch {batch}, {context} in"
        at = {"batch": batch, "context": context}
        report.rows.append(Row(f"{name}: decode", "ms/step", 1e3 * step, floor=floor, details=at))
        report.rows.append(Row(f"{name}: ttft", "ms", 1e3 * first, details=at))
        grid.append([batch, context, output_len])
    return report, common_job(llm, recipe) | {"grid": grid, "runs": runs}


def _median_seconds(
    llm: LLM, batch: int, context: int, num_tokens: int, runs: int, rng: random.Random
) -> float:
    times = []
    warm_up = 0 if interpreted() else 1
    for _ in range(runs + warm_up):
        requests = fixed_requests(batch, context, num_tokens, llm.spec.vocab_size, rng)
        times.append(run_pass(llm, requests).seconds)
    return statistics.median(times[warm_up:])


def startup(recipe: Recipe, peer: Peer | None, folder: Path) -> Report:
    """Seconds of each phase of a start, from the first import to the first token."""
    report, job = _startup(recipe)
    answer = ask_peer(peer, job, recipe, folder, report)
    if answer is not None:
        report.rows[-2].peer = answer["init_seconds"]
        report.notes.append("the peer's figure is its constructor alone, without its imports")
    return report


def _startup(recipe: Recipe) -> tuple[Report, dict[str, Any]]:
    """Ours, and the peer's job."""
    llm = recipe.build()
    phases = dict(llm.startup)
    rng = random.Random(0)
    one = fixed_requests(1, 1, 1, llm.spec.vocab_size, rng)
    phases["first token"] = run_pass(llm, one).seconds
    report = begin("startup", llm, recipe, None)
    total = sum(phases.values())
    report.rows = [Row(name, "s", seconds) for name, seconds in phases.items()]
    report.rows.append(Row("all", "s", total))
    report.rows.append(Row("all but weights", "s", total - phases["weights"]))
    return report, common_job(llm, recipe)


def measure_device(recipe: Recipe) -> Hardware | None:
    """The device's rates, before an engine takes its memory; None in the interpreter."""
    if interpreted():
        return None
    device = torch.device(recipe.arguments.get("device") or "cuda")
    return measure(device, recipe.dtype(device))


def ask_peer(
    peer: Peer | None, job: dict[str, Any], recipe: Recipe, folder: Path, report: Report
) -> dict[str, Any] | None:
    """The peer's answer, or None and a note. Nobody holds our engine any more."""
    if peer is None:
        return None
    gc.collect()  # an engine and its parts refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    answer = peer.run(job, recipe, folder / PEER_LOG)
    if "missing" in answer:
        report.notes.append(f"no peer: {answer['missing']}")
        return None
    report.peer = f"{answer['name']} {answer['version']}"
    report.details["peer"] = answer
    return answer


def begin(mode: str, llm: LLM, recipe: Recipe, hardware: Hardware | None) -> Report:
    """Check the engine, then a report without rows."""
    check = check_engine(llm, random.Random(llm.engine.seed + 1))
    settings = {
        "model": recipe.name(),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "graphs": llm.engine.steps.capture_seconds > 0,
        **vars(llm.engine.sizes),
    }
    if hardware is not None:
        settings |= {"bandwidth_bytes_per_s": hardware.bandwidth, "flops": hardware.flops}
    return Report(mode, check, settings, details={"startup": llm.startup})


def _read_bytes(requests: Sequence[Request], llm: LLM) -> float:
    """Bytes that any engine reads for these requests, with this many sequences a step: weights in
    as few steps as possible, and the keys and values before each drawn token.
    """
    lengths = [(len(r.prompt), r.params.max_tokens or 0) for r in requests]
    outputs = [output_len for _, output_len in lengths]
    steps = max(max(outputs), math.ceil(sum(outputs) / llm.engine.sizes.max_num_seqs))
    keys = sum(n * p + n * (n + 1) / 2 for p, n in lengths)
    return steps * step_bytes(llm.spec, llm.dtype) + keys * token_bytes(llm.spec, llm.dtype)


def _rate(name: str, unit: str, count: int, seconds: float, floor: float | None) -> Row:
    best, details = None if floor is None else count / floor, {"count": count}
    return Row(name, unit, count / seconds, floor=best, more_is_better=True, details=details)


def _percentiles(name: str, seconds: list[float]) -> list[Row]:
    return [
        Row(f"{name} p{q}", "ms", 1e3 * float(np.percentile(seconds, q)) if seconds else None)
        for q in (50, 99)
    ]
