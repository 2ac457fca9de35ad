"""Two engines on the same prompts and texts, and what differs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paged.engine import StepStats
from paged.live_request import LiveRequest
from paged.llm import LLM
from paged.request import RequestOutput, SamplingParams
from paged.tasks.generate import request_record
from paged.tasks.metrics import RunMetrics
from paged.tasks.quality.scores import kl_divergence, match_len, perplexity
from paged.tasks.quality.texts import ANSWER_TOKENS, Case, Needle
from paged.tasks.run_folder import RunFolder

Tokens = Sequence[Sequence[int]]  # token ids of each text
FIGURES = (
    "perplexity", "perplexity_difference", "kl", "greedy_match_len", "greedy_len",
    "written_perplexity", "needles_found", "mean_pages_in_use",
)  # fmt: skip


def num_requests(cases: Sequence[Case], hidden: Sequence[Needle]) -> int:
    """How many requests `measure` makes."""
    return 6 * len(cases) + 2 * sum(bool(case.following) for case in cases) + len(hidden)


def measure(
    reference: LLM,
    configured: LLM,
    cases: Sequence[Case],
    hidden: Sequence[Needle],
    folder: RunFolder,
    seed: int,
    ended: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The contents of `metrics.json`; also writes the lines of requests and steps.

    Args:
        seed: of the texts that the reference draws.
        ended: called for every request that has ended.
    """
    prompts = [case.prompt_ids for case in cases]
    lengths = [case.params.max_tokens for case in cases]
    greedy = [SamplingParams(max_tokens=length, temperature=0.0) for length in lengths]
    drawing = [
        SamplingParams(max_tokens=length, seed=(seed << 32) + place)
        for place, length in enumerate(lengths)
    ]
    # Before anything else of this engine: its prompts are not in the prefix cache yet.
    written, summary = write(configured, cases, folder, ended)
    drawn = run(reference, prompts, drawing, ended)
    texts = [ids(output) for output in drawn]
    theirs = [output.outputs[0].logprobs for output in drawn]
    ours = score(configured, prompts, texts, ended)
    summary["kl"] = kl_divergence(theirs, ours)
    following = [case.following for case in cases if case.following]
    if following:
        ours = score(configured, prompts, following, ended)
        theirs = score(reference, prompts, following, ended)
    summary["perplexity"] = perplexity(ours)
    summary["perplexity_difference"] = perplexity(ours) - perplexity(theirs)
    summary["written_perplexity"] = perplexity(
        score(reference, prompts, [ids(output) for output in written], ended)
    )
    first = [ids(output) for output in run(reference, prompts, greedy, ended)]
    second = [ids(output) for output in run(configured, prompts, greedy, ended)]
    matches = [match_len(one, two) for one, two in zip(first, second)]
    summary["greedy_match_len"] = float(np.mean(matches))
    summary["greedy_len"] = float(np.mean([len(one) for one in first]))
    for output, match in zip(written, matches):
        folder.request({**request_record(output), "greedy_match_len": match})
    if hidden:
        asked = [SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0)] * len(hidden)
        answers = run(configured, [one.prompt_ids for one in hidden], asked, ended)
        found = [
            output.outputs[0].text.strip().startswith(one.number)
            for output, one in zip(answers, hidden)
        ]
        summary["needles_found"] = float(np.mean(found))
    return summary


def write(
    llm: LLM, cases: Sequence[Case], folder: RunFolder, ended: Callable[[], None]
) -> tuple[list[RequestOutput], dict[str, Any]]:
    """What the configuration makes of the prompts, and what task=generate measures meanwhile."""
    metrics = RunMetrics(llm.engine)
    in_use: list[int] = []

    def on_step(stats: StepStats) -> None:
        began = llm.engine.clock() - stats.seconds
        folder.step({**dataclasses.asdict(stats), "time": began})
        metrics.step(stats)
        in_use.append(llm.engine.sizes.num_pages - stats.free_pages - stats.cached_pages)

    metrics.begin()
    requests = [llm.submit(case.prompt_ids, case.params) for case in cases]
    llm.engine.on_step = on_step
    try:
        finish(llm, requests, ended)
    finally:
        llm.engine.on_step = None
    summary = metrics.summary(requests)
    summary["mean_pages_in_use"] = float(np.mean(in_use))
    return [live.output for live in requests], summary


def score(llm: LLM, prompts: Tokens, texts: Tokens, ended: Callable[[], None]) -> list[list[float]]:
    """Log-probabilities of texts behind prompts, each token after the true ones before it."""
    params = [
        SamplingParams(max_tokens=len(text), forced_token_ids=text, ignore_eos=True)
        for text in texts
    ]
    return [output.outputs[0].logprobs for output in run(llm, prompts, params, ended)]


def run(
    llm: LLM,
    prompts: Tokens,
    params: Sequence[SamplingParams],
    ended: Callable[[], None],
) -> list[RequestOutput]:
    """All requests to their end, in order."""
    requests = [llm.submit(prompt, own) for prompt, own in zip(prompts, params)]
    finish(llm, requests, ended)
    return [live.output for live in requests]


def finish(llm: LLM, requests: Sequence[LiveRequest], ended: Callable[[], None]) -> None:
    """Raises ValueError if one of them ends with an error."""
    for output in llm.stream([]):
        if output.finished:
            ended()
    failed = next((one.output for one in requests if one.output.error is not None), None)
    if failed is not None:
        raise ValueError(f"request {failed.request_id} ended with an error: {failed.error}")


def ids(output: RequestOutput) -> list[int]:
    return list(output.outputs[0].token_ids)
