"""task=eval: tasks of lm-evaluation-harness through the engine; a table, and every sample."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from paged.llm import LLM
from paged.loggers.base import Logger
from paged.tasks.run_folder import RunFolder


def evaluate(
    llm: LLM,
    folder: RunFolder,
    logger: Logger,
    *,
    tasks: str | Sequence[str] = (),
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = False,
    system_instruction: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    max_gen_toks: int = 256,
    prefix_token_id: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    bootstrap_iters: int = 100000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate the model and print the harness's table.

    The run folder gets `metrics.json` (the results) and `requests.jsonl` (a line a sample).

    Args:
        tasks: names of tasks or groups, or paths of their YAML files.
        include_path: a folder with tasks of your own.
        num_fewshot: examples in front of each question; None is the task's own number.
        limit: only so many documents of each task, or below 1 that share.
        apply_chat_template, fewshot_as_multiturn, system_instruction: prompts as conversations.
        gen_kwargs: over the tasks' generation_kwargs.
        max_gen_toks: output tokens where a task does not say how many.
        prefix_token_id: stands for an empty context; None is the tokenizer's BOS or EOS.
        metadata: for tasks that make their data, such as ruler's {max_seq_lengths: [4096]}; they
            get this model's tokenizer.
        bootstrap_iters: for standard errors; 0 computes none.
        seed: of few-shot examples and of anything else that the harness draws.

    Raises:
        ValueError: lm_eval is not installed, or there is no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.utils import make_table

        from paged.tasks.eval_model import PagedLM
    except ModuleNotFoundError as error:
        raise ValueError(f"task=eval needs {error.name}; pip install 'paged[eval]'") from error
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise ValueError("task.tasks must name a task of lm_eval, as in tasks=[hellaswag,arc_easy]")
    console = Console(highlight=False, soft_wrap=True)
    model = PagedLM(
        llm,
        max_gen_toks=max_gen_toks,
        prefix_token_id=prefix_token_id,
        progress=console.is_terminal,
    )
    with folder, tempfile.TemporaryDirectory(prefix="paged-eval-") as tokenizer:
        logger.start(folder.config, folder.manifest, folder.path)
        model.tokenizer.save_pretrained(tokenizer)  # for tasks that make prompts of a given length
        known = {"tokenizer": tokenizer, **(metadata or {})}
        results = simple_evaluate(
            model=model,
            tasks=names,
            task_manager=task_manager(names, include_path, known),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            system_instruction=system_instruction,
            gen_kwargs=dict(gen_kwargs) if gen_kwargs else None,
            bootstrap_iters=bootstrap_iters,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
        for task, samples in results.get("samples", {}).items():
            for sample in samples:
                folder.request(plain({"task": task, **sample}))
        kept = ("results", "groups", "n-samples", "n-shot", "versions", "higher_is_better")
        folder.metrics(plain({name: results[name] for name in kept if name in results}))
        logger.finish(scores(results["results"]))
    console.print(make_table(results), markup=False)
    if results.get("groups"):
        console.print(make_table(results, "groups"), markup=False)
    console.print(f"run folder: {folder.path}")
    return dict(results)


def task_manager(names: Sequence[str], include_path: str | None, metadata: dict[str, Any]) -> Any:
    """lm_eval's index of tasks; without its own ones, which take long to read, where the folder
    has all. Raises ValueError if a task is in neither."""
    from lm_eval.tasks import TaskManager

    missing: list[str] = []
    for include_defaults in (False, True) if include_path else (True,):
        manager = TaskManager(
            include_path=include_path, include_defaults=include_defaults, metadata=metadata
        )
        missing = [name for name in names if not name.endswith(".yaml")
                   and not manager.match_tasks([name])]  # fmt: skip
        if not missing:
            return manager
    raise ValueError(f"task.tasks: lm_eval has no task {', '.join(missing)}")


def scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{task/metric: value} of the harness's results."""
    return {
        f"{task}/{name.removesuffix(',none')}": float(value)
        for task, values in results.items()
        for name, value in values.items()
        if "," in name and isinstance(value, int | float)  # metric,filter
    }


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with everything that JSON does not know as text."""
    return json.loads(json.dumps(record, default=str))
