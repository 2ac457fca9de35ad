"""task=generate: the workload's prompts through the engine, all at once; texts and a table."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from paged.engine import StepStats
from paged.live_request import LiveRequest
from paged.llm import LLM
from paged.loggers.base import Logger
from paged.request import CompletionOutput, RequestOutput, SamplingParams
from paged.tasks.metrics import RunMetrics, table
from paged.tasks.run_folder import RunFolder
from paged.workloads.prompts import WorkItem

PROMPT_WIDTH = 72  # characters of a prompt shown before its text


def generate(
    llm: LLM,
    workload: Iterable[WorkItem],
    sampling: SamplingParams,
    folder: RunFolder,
    logger: Logger,
    *,
    show: int = 12,
) -> None:
    """Run the workload to its end.

    A prompt that cannot be served is reported with its reason, and the others go on. Raises
    ValueError if none can be.

    Args:
        show: texts printed at most; all of them are in `requests.jsonl`.
    """
    console = Console(soft_wrap=True, highlight=False)
    metrics = RunMetrics(llm.engine)
    with folder, progress_line(console) as progress:
        logger.start(folder.config, folder.manifest, folder.path)
        metrics.begin()
        requests, refused = submit(llm, workload, sampling)
        for record in refused:
            folder.request(record)
        if not requests:
            raise ValueError(refused[0]["error"] if refused else "workload: there is no prompt")
        task = progress.add_task("", total=len(requests), state="")

        def on_step(stats: StepStats) -> None:
            began = llm.engine.clock() - stats.seconds
            record = {**dataclasses.asdict(stats), "time": began}  # as requests' arrival_time
            folder.step(record)
            logger.step(record)
            metrics.step(stats)
            progress.update(task, state=metrics.line(stats))

        llm.engine.on_step = on_step
        try:
            for output in llm.stream([]):
                if output.finished:
                    folder.request(request_record(output))
                    progress.advance(task)
        finally:
            llm.engine.on_step = None
        summary = metrics.summary(requests, num_refused=len(refused))
        folder.metrics(summary)
        logger.finish(summary)
    outputs = [live.output for live in requests]
    for output in outputs[:show]:
        for completion in output.outputs:
            console.print(shown(output, completion), end="\n\n")
    if len(outputs) > show:
        console.print(f"... and {len(outputs) - show} more\n")
    for record in refused:
        console.print(Text(f"request {record['request_id']} was refused: {record['error']}", "red"))
    console.print(table(summary))
    here = Path.cwd()
    path = folder.path.relative_to(here) if folder.path.is_relative_to(here) else folder.path
    console.print(f"run folder: {path}")


def submit(
    llm: LLM, workload: Iterable[WorkItem], sampling: SamplingParams
) -> tuple[list[LiveRequest], list[dict[str, Any]]]:
    """Queue every item; returns the requests and the records of those refused."""
    requests, refused = [], []
    for number, item in enumerate(workload):
        prompt = item.prompt
        if llm.tokenizer is None and isinstance(prompt, str):
            prompt = list(prompt.encode())  # a model without a tokenizer gets bytes as token ids
        try:
            params = dataclasses.replace(sampling, **item.sampling)
            requests.append(llm.submit(prompt, params, request_id=str(number)))
        except (ValueError, TypeError) as error:
            refused.append({"request_id": str(number), "prompt": item.prompt, "error": str(error)})
    return requests, refused


def request_record(output: RequestOutput) -> dict[str, Any]:
    """The line of `requests.jsonl`; times in seconds. It has its first output, and all if there
    are several."""
    metrics = output.metrics
    drawn = [
        {
            "text": one.text,
            "token_ids": one.token_ids,
            "logprobs": one.logprobs,
            "finish_reason": one.finish_reason,
        }
        for one in output.outputs
    ]
    return {
        "request_id": output.request_id,
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        **drawn[0],
        **({"outputs": drawn} if len(drawn) > 1 else {}),
        "error": output.error,
        "arrival_time": metrics.arrival_time,
        "ttft": metrics.ttft,
        "tpot": metrics.tpot,
        "e2e": metrics.e2e,
        "num_cached_tokens": metrics.num_cached_tokens,
        "num_preemptions": metrics.num_preemptions,
    }


def shown(output: RequestOutput, completion: CompletionOutput) -> Text:
    """An output for the eye: the end of its prompt, dimmed, and what the model wrote."""
    if output.prompt is None:
        prompt, text = f"{len(output.prompt_token_ids)} tokens ->", f" {completion.token_ids}"
    else:
        prompt, text = output.prompt, completion.text or f" {completion.token_ids}"
    if len(prompt) > PROMPT_WIDTH:
        prompt = "..." + prompt[-PROMPT_WIDTH:]
    error = "" if output.error is None else f" ({output.error})"
    several = f".{completion.index}" if output.metrics.num_outputs > 1 else ""
    name = f"[{output.request_id}{several}] "
    return Text.assemble((name, "cyan"), (prompt, "dim"), text, (error, "red"))


def progress_line(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
