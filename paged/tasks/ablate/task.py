"""task=ablate: `paged ablate base='task=simulate workload=azure' over='scheduler=fcfs,sjf'`."""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paged.tasks.ablate.grid import Choices, Job, arms_over, plan, words
from paged.tasks.ablate.jobs import Outcome, Runner, record
from paged.tasks.report.runs import Arm
from paged.tasks.report.tables import RATES
from paged.tasks.report.task import write_report
from paged.tasks.run_folder import RunFolder


def ablate(
    folder: RunFolder,
    choices: Choices,
    *,
    over: str,
    base: str = "",
    seeds: int | Sequence[int] = 5,
    jobs: int = 1,
    gpus: Sequence[int | str] | None = None,
    timeout: float | None = None,
    metrics: Sequence[str] | None = None,
    within: Sequence[str] = RATES,
    confidence: float = 0.95,
    resamples: int = 10_000,
    plots: bool = True,
) -> None:
    """Run every combination of choices with every seed, and compare them with the first.

    An arm's runs have the same seeds as every other's, hence the same requests, so differences are
    taken pair by pair. Given the folder of an ablation that was cut short, it runs what is missing.

    Args:
        over: the axes, as in a Hydra sweep: 'scheduler=fcfs,sjf kv.page_size=16,64'.
        base: overrides that all runs share.
        seeds: how many, from `seed` on, or which.
        jobs: runs at once.
        gpus: as in CUDA_VISIBLE_DEVICES, one for each run at once; None takes the visible ones,
            an empty list leaves the choice to the runs.
        timeout: seconds that a run may take.
        metrics, within, confidence, resamples, plots: as in `report`.
    """
    console = Console(soft_wrap=True, highlight=False)
    path = folder.path.resolve()
    arms = arms_over(over, choices)
    chosen = _seeds(seeds, folder.manifest["seed"])
    shared = [*words("base", base), *passed_on(folder.manifest)]
    runner = Runner(visible_gpus() if gpus is None else list(map(str, gpus)), jobs, timeout)
    plan_ = plan(shared, arms, chosen, path / "runs")
    try:
        outcomes = run_all(runner, plan_, console)
    except KeyboardInterrupt:
        console.print(f"To go on where this stopped: the same command with out={path}")
        raise
    failed = [outcome for outcome in outcomes if outcome.run is None]
    path.mkdir(parents=True, exist_ok=True)
    results = {**folder.manifest, "jobs": [record(outcome) for outcome in outcomes]}
    (path / "ablation.json").write_text(json.dumps(results, indent=2) + "\n")
    if len(failed) == len(outcomes):
        raise ValueError(f"every run failed, the first because {failed[0].error}")
    notes = [f"Failed: {outcome.job.name}: {outcome.error}" for outcome in failed]
    write_report(
        in_order(outcomes, arms), path, console, metrics=metrics, within=within,
        confidence=confidence, resamples=resamples, plots=plots, notes=notes,
    )  # fmt: skip


def run_all(runner: Runner, jobs: Sequence[Job], console: Console) -> list[Outcome]:
    """Run the jobs behind a progress bar."""
    with progress_bar(console) as progress:
        shown = progress.add_task("", total=len(jobs), state="")

        def began(job: Job) -> None:
            progress.update(shown, state=job.name)

        def ended(outcome: Outcome) -> None:
            progress.advance(shown)
            if outcome.run is None:
                progress.console.print(f"failed: {outcome.job.name}: {outcome.error}", style="red")

        return runner.run(jobs, began, ended)


def in_order(outcomes: Sequence[Outcome], arms: Sequence[tuple[str, ...]]) -> list[Arm]:
    """The arms that have runs, in the order of the grid."""
    found = {arm: Arm(" ".join(arm), arm) for arm in arms}
    for outcome in outcomes:
        if outcome.run is not None:
            found[outcome.job.arm].runs[outcome.job.seed, 0] = outcome.run
    return [arm for arm in found.values() if arm.runs]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names under which it may."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]


def passed_on(manifest: dict[str, Any]) -> list[str]:
    """Of our own command line, what every run gets too: all but what is ours."""
    paths = [one for one in manifest["command"] if one.startswith("hydra.searchpath=")]
    mine = ("task=", "task.", "seed=")
    return paths + [one for one in manifest["overrides"] if not one.lstrip("+").startswith(mine)]


def progress_bar(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _seeds(seeds: int | Sequence[int], first: int) -> list[int]:
    chosen = list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"seeds must be a number from 1 up or a list of different ones, got {seeds}"
        )
    return chosen
