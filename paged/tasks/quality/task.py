"""task=quality: `paged quality kv/compression=knorm`; what a configuration does to the outputs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.loggers.base import Logger
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.tasks.generate import progress_line
from paged.tasks.metrics import table
from paged.tasks.quality.measure import FIGURES, measure, num_requests
from paged.tasks.quality.texts import Needle, cases_of_text, cases_of_workload, hide_needles
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder

REFERENCE_MEMORY = 0.3  # share of the free GPU memory for the reference's keys and values


def quality(
    recipe: Recipe,
    workload: Iterable[Any],
    sampling: SamplingParams,
    folder: RunFolder,
    logger: Logger,
    *,
    text: str | None = None,
    num_prompts: int = 16,
    prompt_len: int = 256,
    needles: int = 0,
    seed: int = 0,
) -> None:
    """Continue prompts as configured, and hold the outputs against the same weights in fp32.

    The reference is a second engine beside the configured one, with all pages, Triton attention and
    plain sampling. Both give every token of the same texts a log-probability, teacher-forced, so
    that one early difference does not spoil all that follows. `metrics.json` gets what
    task=generate measures of the configuration as it continues the prompts, and

    - `perplexity`, and `perplexity_difference` to the reference's: of how the file goes on; without
      a file, of texts that the reference draws.
    - `kl`: KL(reference || configuration), nats a token, estimated on texts that the reference
      draws at temperature 1.
    - `greedy_match_len`: greedy tokens before the first that is not the reference's, which has
      `greedy_len` of them; means over prompts.
    - `written_perplexity`: the reference's, of what the configuration wrote with `sampling`.
    - `needles_found`: share of the hidden numbers that a greedy answer begins with.
    - `mean_pages_in_use`: over the steps in which the configuration wrote.

    Args:
        text: a text file; stretches of it are the prompts and how they go on. None takes the
            workload's prompts.
        num_prompts: stretches, drawn by the seed.
        prompt_len: tokens of each.
        needles: prompts with a number hidden in the file's text.
        seed: of stretches, needles and the reference's draws.
    """
    if needles and text is None:
        raise ValueError(f"task.needles={needles} are hidden in a text; give task.text=FILE")
    console = Console(soft_wrap=True, highlight=False)
    reference, configured = build_reference(recipe), recipe.build()
    tokenizer = configured.tokenizer
    hidden: list[Needle] = []
    if text is None:
        cases = cases_of_workload(tokenizer, workload, sampling)
    else:
        if tokenizer is None:
            raise ValueError("task.text needs a tokenizer, and this model has none")
        cases = cases_of_text(
            tokenizer, text, sampling, num_prompts=num_prompts, prompt_len=prompt_len, seed=seed
        )
        hidden = hide_needles(tokenizer, cases, needles, seed)
    with folder, progress_line(console) as progress:
        logger.start(folder.config, folder.manifest, folder.path)
        shown = progress.add_task("", total=num_requests(cases, hidden), state="")
        summary = measure(
            reference, configured, cases, hidden, folder, seed, lambda: progress.advance(shown)
        )
        folder.metrics(summary)
        logger.finish(summary)
    found = table(summary)
    for name in FIGURES:
        if name in summary:
            found.add_row(name.replace("_", " "), f"{summary[name]:.4g}")
    console.print(found)
    here = Path.cwd()
    path = folder.path.relative_to(here) if folder.path.is_relative_to(here) else folder.path
    console.print(f"run folder: {path}")


def build_reference(recipe: Recipe) -> LLM:
    """The engine of the recipe's model with nothing that approximates it."""
    given = recipe.arguments
    scheduler = given.get("scheduler") or RankScheduler()
    kv = given.get("kv") or PagedKV()
    return recipe.build(
        dtype="float32",
        attention=None,
        sampler=None,
        proposer=None,
        eviction=None,
        logits_processors=(),
        kv=PagedKV(page_size=kv.page_size, memory_fraction=REFERENCE_MEMORY),
        scheduler=RankScheduler(
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
        ),
    )
