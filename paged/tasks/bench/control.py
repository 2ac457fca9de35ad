"""mode=control: what a step costs beside the model, and how long the GPU idles in steady decode."""

import copy
import gc
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from paged.engine import Engine
from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.kernels.launch import interpreted
from paged.kv.paged import PagedKV
from paged.live_request import LiveRequest
from paged.llm import LLM
from paged.request import SamplingParams
from paged.samplers.greedy import GreedySampler
from paged.schedulers.base import RankScheduler
from paged.sizing import resolve_device
from paged.state import Sizes
from paged.tasks.bench.driving import fixed_requests, synchronize
from paged.tasks.bench.hardware import step_bytes, token_bytes
from paged.tasks.bench.report import Report, Row
from paged.tasks.bench.serving import begin, measure_device
from paged.tasks.recipe import Recipe
from paged.testing.oracle import NoAttention, OracleModel

VOCAB_SIZE = 64  # of the oracle, whose right answers are known without it
PROMPT_LEN = 20
SAMPLED = 16  # requests whose every token is compared
FIRST_KERNEL = "_ingest_kernel"  # of a step
CONTROL_KERNELS = (
    "ingest", "lookup", "order", "schedule", "prepare", "update", "publish", "release",
)  # fmt: skip


def control(
    recipe: Recipe, *, slots: Sequence[int], batches: Sequence[int], context: int, steps: int
) -> Report:
    """Rows by number of slots, all of them running: each control kernel, and the host. Rows by
    batch, decoding with the real model: a step, its kernels, and the GPU's idle share.
    """
    if steps < 2:
        raise ValueError(f"task.steps must be at least 2, got {steps}")
    hardware = measure_device(recipe)
    rows = [row for count in slots for row in control_rows(recipe, count, steps)]
    gc.collect()  # the engines of those rows
    llm = recipe.build()
    report = begin("control", llm, recipe, hardware)
    report.check += f"; all answers right at {', '.join(map(str, slots))} slots"
    report.rows = rows
    for batch in batches:
        if batch > llm.engine.sizes.max_num_seqs:
            report.notes.append(f"batch {batch} was left out: it is over scheduler.max_num_seqs")
            continue
        found = decode_rows(llm, batch, context, steps)
        if hardware is not None:
            keys = batch * context * token_bytes(llm.spec, llm.dtype)
            found[0].floor = 1e6 * hardware.floor(step_bytes(llm.spec, llm.dtype) + keys)
        report.rows += found
    if interpreted():
        report.notes.append("the interpreter runs kernels on the host: nothing to tell apart")
    return report


def control_rows(recipe: Recipe, slots: int, steps: int) -> list[Row]:
    """Steps of a stub model with all slots running. Raises ValueError if an answer is wrong."""
    engine = oracle_engine(recipe, slots, steps)
    model: Any = engine.model
    rng = random.Random(slots)
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    prompts = [rng.choices(range(VOCAB_SIZE), k=PROMPT_LEN) for _ in range(slots)]
    live = [engine.submit(prompt, params) for prompt in prompts]
    run_until_decoding(engine, live)
    host: list[float] = []
    engine.on_step = lambda stats: host.append(stats.host_seconds)
    for _ in range(steps):
        engine.step()
    engine.on_step = None
    kernels = traced(engine.step, steps, engine.device)[0]
    end(engine, live)
    for prompt, one in zip(prompts[:SAMPLED], live):
        drawn = one.output.outputs[0].token_ids
        if drawn != model.continuation(prompt, len(drawn)):
            raise ValueError(f"bench: wrong answers with {slots} slots; nothing was timed")
    engine.kv.check(engine.requests)
    name = f"{slots} slots"
    if interpreted():
        return [Row(f"{name}: control kernels", "us/step", None),
                Row(f"{name}: host work", "us/step", None)]  # fmt: skip
    times = {
        short: sum(us for kernel, us in kernels.items() if kernel == f"_{short}_kernel")
        for short in CONTROL_KERNELS
    }
    rows = [Row(f"{name}: {short}", "us/step", us) for short, us in times.items() if us > 0]
    rows.append(Row(f"{name}: control kernels", "us/step", sum(times.values())))
    rows.append(Row(f"{name}: host work", "us/step", 1e6 * sum(host) / len(host)))
    return rows


def oracle_engine(recipe: Recipe, slots: int, steps: int) -> Engine:
    """The recipe's policies around the oracle model, with seats for `slots` sequences."""
    parts = recipe.arguments
    device = resolve_device(parts.get("device"))
    scheduler = copy.copy(parts.get("scheduler")) or RankScheduler()
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens = slots, max(64, PROMPT_LEN * slots)
    kv = copy.copy(parts.get("kv")) or PagedKV()
    length = PROMPT_LEN + tokens_until_measured(slots, PROMPT_LEN, slots * PROMPT_LEN, steps)
    eviction = parts.get("eviction") or ScoreEviction(lru)
    sizes = Sizes(
        num_slots=slots,
        max_num_seqs=slots,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=length,
        page_size=kv.page_size,
        num_pages=2 * slots * -(-length // kv.page_size),
    )
    policies = (scheduler, kv, eviction)
    graphs = device.type == "cuda" and all(part.capturable for part in policies)
    return Engine(
        model=OracleModel(sizes, device, VOCAB_SIZE),
        sizes=sizes,
        scheduler=scheduler,
        kv=kv,
        eviction=eviction,
        attention=NoAttention(),
        sampler=GreedySampler(),
        device=device,
        vocab_size=VOCAB_SIZE,
        graphs=graphs and parts.get("engine") != "eager",
        in_flight=2 if graphs else 1,
    )


def decode_rows(llm: LLM, batch: int, context: int, steps: int) -> list[Row]:
    """Steady decode of a batch: the wall clock of a step first, then where it goes."""
    engine = llm.engine
    budget = engine.sizes.max_num_batched_tokens
    num_tokens = tokens_until_measured(batch, context, budget, steps)
    if context + num_tokens > engine.sizes.max_model_len:
        raise ValueError(
            f"task.contexts: {context} tokens and the {num_tokens} that batch {batch} draws do not "
            f"fit max_model_len={engine.sizes.max_model_len}; lower contexts or output_len"
        )
    vocab = llm.spec.vocab_size
    requests = fixed_requests(batch, context, num_tokens, vocab, random.Random(batch))
    live = [engine.submit(request.prompt, request.params) for request in requests]
    run_until_decoding(engine, live)
    synchronize(llm)
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    synchronize(llm)
    step_us = 1e6 * (time.perf_counter() - began) / steps
    kernels, idle, between = traced(engine.step, steps, llm.device)
    end(engine, live)
    name = f"batch {batch}"
    rows = [Row(f"{name}: decode step", "us", step_us)]
    if interpreted():
        return [*rows, Row(f"{name}: GPU idle", "%", None)]
    rows.append(Row(f"{name}: GPU idle between steps", "%", 100 * between))
    rows.append(Row(f"{name}: GPU idle, gaps of a step too", "%", 100 * idle))
    largest = sorted(kernels.items(), key=lambda item: -item[1])[:12]
    rows += [Row(f"{name}: {kernel[:40]}", "us/step", us) for kernel, us in largest]
    return rows


def run_until_decoding(engine: Engine, live: Sequence[LiveRequest]) -> None:
    """Step until every request has drawn a token, and twice more: no prompt is on its way then."""
    while any(not one.output.outputs[0].token_ids for one in live):
        engine.step()
    for _ in range(2):
        engine.step()


def tokens_until_measured(batch: int, prompt_len: int, budget: int, steps: int) -> int:
    """Tokens that the first of a batch has drawn at most when two times `steps` are measured: it
    decodes while the prompts of the others come in, in commands of 64 and within the budget.
    """
    return 2 * steps + batch // 16 + 2 * -(-batch * prompt_len // budget) + 16


def end(engine: Engine, live: Sequence[LiveRequest]) -> None:
    """Abort what was measured. Raises ValueError if a request had ended before, which would have
    made the last steps lighter.
    """
    ended = sum(one.output.finished for one in live)
    for one in live:
        engine.abort(one.output.request_id)
    while engine.has_unfinished:
        engine.step()
    if ended:
        raise ValueError(f"bench: {ended} requests ended while their batch was measured")


def traced(
    step: Callable[[], object], steps: int, device: torch.device
) -> tuple[dict[str, float], float, float]:
    """Run steps under the profiler; see `summed_up`. The profiler slows the host: in a short step,
    part of the idle time is its own. Nothing is traced on a CPU.
    """
    if device.type != "cuda":
        for _ in range(steps):
            step()
        return summed_up([])
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        for _ in range(steps):
            step()
        torch.cuda.synchronize(device)
    return summed_up(
        (event.time_range.start, event.time_range.end, event.name)
        for event in prof.events() or ()
        if event.device_type == DeviceType.CUDA
    )


def summed_up(spans: Iterable[tuple[float, float, str]]) -> tuple[dict[str, float], float, float]:
    """What (start us, end us, name) of everything on the GPU amount to.

    Returns microseconds a step by name, a step beginning with `ingest`; the share of the time from
    the first start to the last end in which nothing ran; and the part of that share which lies
    right in front of a step. Spans may overlap, since a kernel may start before the last one has
    ended and wait for it: that time is the last one's.
    """
    ordered = sorted(spans)
    if not ordered:
        return {}, 0.0, 0.0
    times: dict[str, float] = defaultdict(float)
    num_steps = max(1, sum(name == FIRST_KERNEL for _, _, name in ordered))
    gaps = between = 0.0
    began = until = ordered[0][0]
    for start, end, name in ordered:
        times[name] += max(0.0, end - max(start, until)) / num_steps
        gap = max(0.0, start - until)
        gaps += gap
        between += gap if name == FIRST_KERNEL else 0.0
        until = max(until, end)
    span = max(until - began, 1e-9)
    return dict(times), gaps / span, between / span
