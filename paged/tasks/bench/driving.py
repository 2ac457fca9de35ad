"""Requests through the engine on a stopwatch, and the check that comes before."""

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from paged.engine import StepStats
from paged.graphs import EagerSteps, GraphSteps
from paged.kernels.launch import interpreted
from paged.llm import LLM
from paged.request import CompletionOutput, SamplingParams
from paged.workloads.prompts import WorkItem

CHECK_TOKENS = 3


@dataclass(frozen=True)
class Request:
    """Prompt tokens and how to continue them; `params.max_tokens` is set."""

    prompt: list[int]
    params: SamplingParams


@dataclass
class Pass:
    """One pass over a workload. Times in seconds; `ttft` and `tpot` by request."""

    seconds: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    steps: int = 0
    host_seconds: float = 0.0  # the host's own work, without waiting for the device
    steps_by_capacity: Counter[int] = field(default_factory=Counter)


def requests_of(
    items: Iterable[WorkItem], sampling: SamplingParams, llm: LLM, *, greedy: bool
) -> list[Request]:
    """The items as token ids. Every request runs to its `max_tokens`: a stop token would make the
    work depend on the weights.
    """
    fixed: dict[str, Any] = {"ignore_eos": True, "stop_token_ids": ()}
    if greedy:
        fixed["temperature"] = 0.0
    longest, requests = llm.engine.sizes.max_model_len, []
    for item in items:
        prompt = item.prompt
        if isinstance(prompt, str):
            prompt = llm.tokenizer.encode(prompt) if llm.tokenizer else list(prompt.encode())
        params = dataclasses.replace(sampling, **item.sampling)
        room = longest - len(prompt)
        most = room if params.max_tokens is None else min(params.max_tokens, room)
        requests.append(Request(prompt, dataclasses.replace(params, max_tokens=most, **fixed)))
    return requests


def fixed_requests(
    batch: int, prompt_len: int, num_tokens: int, vocab_size: int, rng: random.Random
) -> list[Request]:
    """A batch of random prompts of one length, continued greedily."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    ids = range(vocab_size)
    return [Request(rng.choices(ids, k=prompt_len), params) for _ in range(batch)]


def run_pass(llm: LLM, requests: Sequence[Request]) -> Pass:
    """All requests at once, to their end. Raises ValueError if one is refused or ends early."""
    engine, result = llm.engine, Pass()

    def on_step(stats: StepStats) -> None:
        result.steps += 1
        result.host_seconds += stats.host_seconds
        result.steps_by_capacity[stats.capacity] += 1

    before, engine.on_step = engine.on_step, on_step
    try:
        synchronize(llm)
        began = time.perf_counter()
        live = [engine.submit(request.prompt, request.params) for request in requests]
        while engine.has_unfinished:
            engine.step()
        result.seconds = time.perf_counter() - began
    finally:
        engine.on_step = before
    for one, request in zip(live, requests):
        output = one.output
        drawn = len(output.outputs[0].token_ids)
        if drawn != request.params.max_tokens:
            reason = output.error or output.outputs[0].finish_reason
            raise ValueError(
                f"bench: request {output.request_id} ended with {drawn} of "
                f"{request.params.max_tokens} tokens ({reason}); nothing is reported"
            )
        result.output_tokens += drawn
        result.prompt_tokens += len(request.prompt)
        result.ttft += [] if output.metrics.ttft is None else [output.metrics.ttft]
        result.tpot += [] if output.metrics.tpot is None else [output.metrics.tpot]
    return result


def host_us(result: Pass) -> float | None:
    """Microseconds a step that the host worked; None in the interpreter, which is the host."""
    return None if interpreted() else 1e6 * result.host_seconds / max(result.steps, 1)


def synchronize(llm: LLM) -> None:
    """Wait until the device has nothing left of earlier work."""
    if llm.device.type == "cuda":
        torch.cuda.synchronize(llm.device)


def check_engine(llm: LLM, rng: random.Random) -> str:
    """Compare a short greedy run done in two ways, and say which. Raises ValueError if they differ.

    A captured engine must draw the tokens of the same kernels launched one by one; any other, the
    tokens it draws for each request alone. The second time, prompts below a page find no prefix in
    the cache, and a longer one does.
    """
    page, longest = llm.engine.sizes.page_size, llm.engine.sizes.max_model_len
    lengths = [n for n in (1, page - 1, 2 * page + 5) if n + CHECK_TOKENS <= longest]
    vocab = llm.spec.vocab_size
    requests = [fixed_requests(1, n, CHECK_TOKENS, vocab, rng)[0] for n in lengths]
    tokens = [output.token_ids for output in _outputs(llm, requests)]
    steps = llm.engine.steps
    if isinstance(steps, GraphSteps):
        ways = "graphs and eager launches"
        llm.engine.steps = EagerSteps(llm.engine.device_step)
        try:
            others = [output.token_ids for output in _outputs(llm, requests)]
        finally:
            llm.engine.steps = steps
    else:
        ways = "a batch and each request alone"
        others = [_outputs(llm, [request])[0].token_ids for request in requests]
    if tokens != others:
        wrong = [n for n, a, b in zip(lengths, tokens, others) if a != b]
        raise ValueError(
            f"bench: {ways} draw different tokens for prompts of {wrong} tokens; nothing was timed"
        )
    return f"{ways} draw the same {sum(map(len, tokens))} greedy tokens"


def _outputs(llm: LLM, requests: Sequence[Request]) -> list[CompletionOutput]:
    live = [llm.engine.submit(request.prompt, request.params) for request in requests]
    while llm.engine.has_unfinished:
        llm.engine.step()
    return [one.output.outputs[0] for one in live]
