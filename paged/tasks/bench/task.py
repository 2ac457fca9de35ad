"""The task: one mode, one table, `bench.json`, and plots."""

from collections.abc import Iterable, Sequence

from rich.console import Console

from paged.loggers.base import Logger
from paged.request import SamplingParams
from paged.tasks.bench.control import control
from paged.tasks.bench.kernels import kernels
from paged.tasks.bench.peers import Peer
from paged.tasks.bench.plots import draw
from paged.tasks.bench.report import Report
from paged.tasks.bench.serving import latency, startup, throughput
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder
from paged.workloads.prompts import WorkItem

MODES = ("throughput", "latency", "kernels", "control", "startup")
WIDTH = 120  # of the table where there is no terminal


def bench(
    recipe: Recipe,
    workload: Iterable[WorkItem],
    sampling: SamplingParams,
    folder: RunFolder,
    logger: Logger,
    *,
    mode: str = "throughput",
    peer: str | None = None,
    peer_python: str | None = None,
    peer_pythonpath: str | None = None,
    peer_memory_fraction: float = 0.85,
    runs: int = 3,
    greedy: bool = True,
    batches: Sequence[int] = (1, 16, 64, 256),
    contexts: Sequence[int] = (512,),
    output_len: int = 65,
    rows: Sequence[int] = (1, 16, 64, 256, 1024),
    decodes: Sequence[Sequence[int]] = ((1, 512), (1, 4096), (64, 570), (256, 640)),
    prefills: Sequence[int] = (2048,),
    only: str = "",
    slots: Sequence[int] = (64, 256, 1024),
    plots: bool = True,
) -> Report:
    """Measure, print one table, and write `bench.json` into the run folder.

    Correctness comes first: a run whose check fails raises ValueError and reports no time.

    Args:
        mode: throughput (the workload, all at once), latency (decode step and time to first token
            over batches x contexts), kernels (each operation against its floor and a library),
            control (kernels of the control plane, host work, idle time), startup (its phases).
        peer: vllm or transformers, on the same device, workload, weights and settings, in a process
            of its own after ours; for throughput, latency and startup.
        peer_python, peer_pythonpath: an interpreter that has the peer, and folders for its path.
        peer_memory_fraction: of the device's memory, for the peer's weights and cache.
        runs: timed repetitions, of which the median counts, after one that warms up.
        greedy: temperature 0 whatever the sampling says. No request stops early in any case.
        batches, contexts: the grid of `latency`; sequences, and prompt tokens of each.
        output_len: tokens drawn by each request of the grid.
        rows, decodes, prefills: shapes of `kernels`: tokens of a step, [batch, context] of decode
            attention and sampling, prompt lengths of prefill attention.
        only: `kernels` whose name contains this.
        slots: of `control`, whose steady decode uses `batches`, the first of `contexts`, and
            `output_len` steps.
        plots: draw latency over batch, and the roofline, where matplotlib is installed.
    """
    if mode not in MODES:
        raise ValueError(f"task.mode must be one of {', '.join(MODES)}, got {mode!r}")
    if runs < 1:
        raise ValueError(f"task.runs must be at least 1, got {runs}")
    other = None
    if peer is not None:
        if mode in ("kernels", "control"):
            raise ValueError(f"task.peer is for throughput, latency and startup, not for {mode}")
        other = Peer(peer, peer_python, peer_pythonpath, peer_memory_fraction)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    with folder:
        logger.start(folder.config, folder.manifest, folder.path)
        if mode == "throughput":
            report = throughput(
                recipe, workload, sampling, other, folder.path, runs=runs, greedy=greedy
            )
        elif mode == "latency":
            report = latency(
                recipe, other, folder.path, batches=batches, contexts=contexts,
                output_len=output_len, runs=runs,
            )  # fmt: skip
        elif mode == "kernels":
            report = kernels(recipe, rows=rows, decodes=decodes, prefills=prefills, only=only)
        elif mode == "control":
            report = control(
                recipe, slots=slots, batches=batches, context=contexts[0], steps=output_len
            )
        else:
            report = startup(recipe, other, folder.path)
        if plots:
            draw(report, folder.path)
        report.write(folder.path)
        logger.finish({f"{row.name} ({row.unit})": row.ours for row in report.rows})
    show(report, console)
    console.print(f"run folder: {folder.path}")
    return report


def show(report: Report, console: Console) -> None:
    """The settings in a line, the check, the table and the notes."""
    settings = report.settings
    console.print(", ".join(f"{name} {value}" for name, value in settings.items()), style="dim")
    console.print(f"checked: {report.check}\n")
    console.print(report.table())
    for note in report.notes:
        console.print(f"- {note}", markup=False)
