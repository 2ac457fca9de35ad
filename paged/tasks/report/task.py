"""task=report: what finished runs found, compared: tables, plots, and a trace of the first."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from paged.tasks.report import plots as pictures
from paged.tasks.report.runs import Arm, Run, arms_of, find_runs
from paged.tasks.report.tables import (
    RATES,
    compare,
    latex,
    markdown,
    shown,
    usual_metrics,
    write_csv,
)
from paged.tasks.report.trace import write_trace
from paged.tasks.run_folder import RunFolder


def report(
    folder: RunFolder,
    *,
    runs: Sequence[str],
    metrics: Sequence[str] | None = None,
    within: Sequence[str] = RATES,
    baseline: str | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    traces: int = 1,
    plots: bool = True,
) -> None:
    """Read the runs and write `table.md`, `.csv`, `.tex`, plots and `trace.json` into the folder.

    Args:
        runs: run folders, or folders that hold some: of a sweep, or of `paged ablate`.
        metrics: those to compare, by their names in `metrics.json`; None takes the usual ones.
        within: keys that make a condition: an arm is compared with the first of equal ones.
        baseline: the arm, by its overrides, that the others are compared with; None is the first.
        confidence: of the intervals.
        resamples: of the bootstrap.
        traces: the first so many runs are also written as a trace for Perfetto.
        plots: draw them, where matplotlib is installed.
    """
    console = Console(soft_wrap=True, highlight=False)
    found = find_runs(runs)
    folder.path.mkdir(parents=True, exist_ok=True)
    arms = first_is(arms_of(found), baseline)
    write_report(
        arms, folder.path, console, metrics=metrics, within=within, confidence=confidence,
        resamples=resamples, plots=plots,
    )  # fmt: skip
    for number, run in enumerate(found[:traces]):
        path = folder.path / (f"trace_{number}.json" if traces > 1 else "trace.json")
        num_events = write_trace(run, path)
        console.print(f"{path}: {num_events} events of {run.path}; open it in ui.perfetto.dev")


def first_is(arms: Sequence[Arm], baseline: str | None) -> list[Arm]:
    """The arms with the baseline in front. Raises ValueError if there is no such arm."""
    names = [arm.name for arm in arms]
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline: no arm {baseline!r}; there are {', '.join(map(repr, names))}")
    return sorted(arms, key=lambda arm: baseline is not None and arm.name != baseline)


def write_report(
    arms: Sequence[Arm],
    path: Path,
    console: Console,
    *,
    metrics: Sequence[str] | None = None,
    within: Sequence[str] = RATES,
    confidence: float = 0.95,
    resamples: int = 10_000,
    plots: bool = True,
    notes: Sequence[str] = (),
) -> None:
    """Tables and plots of arms into a folder, and the means on the console."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    cells = compare(
        arms,
        metrics or usual_metrics(arms),
        within=within,
        confidence=confidence,
        resamples=resamples,
    )
    about = [
        *notes,
        *_left_out(arms),
        *_provenance([run for arm in arms for run in arm.runs.values()]),
    ]
    if any(cell.effect is not None for cell in cells):
        about.append(
            f"{confidence:.0%} intervals: paired bootstrap-t, {resamples:,} resamples, over runs "
            "with equal seeds; p: the same, Holm-corrected for all differences of this table. "
            "* marks p < 0.05. No interval: fewer than 4 pairs, or all differ by the same."
        )
    if plots:
        try:
            pictures.draw(arms, cells, path)
        except ImportError:
            about.append(pictures.MISSING)
    text = "\n\n".join(about)
    (path / "table.md").write_text(f"{markdown(cells, confidence)}\n{text}\n")
    (path / "table.tex").write_text(latex(cells, confidence))
    write_csv(cells, path / "table.csv")
    console.print(shown(cells))
    for note in about:
        console.print(note, style="dim")
    written = sorted(
        one.name for one in path.iterdir() if one.suffix in (".md", ".csv", ".tex", ".png")
    )
    console.print(f"{path}: {', '.join(written)}")


def _left_out(arms: Sequence[Arm]) -> list[str]:
    """Arms whose numbers are not those of all requests: to refuse the long ones looks fast."""
    notes = []
    for arm in arms:
        counts = {name: sum(arm.values(name).values()) for name in ("refused", "errors")}
        if any(counts.values()):
            served = sum(arm.values("requests").values()) - counts["errors"]
            notes.append(
                f"Note: {arm.name} served {served:,.0f} requests, refused {counts['refused']:,.0f} "
                f"and failed {counts['errors']:,.0f}; what it is compared with may have served "
                "others."
            )
    return notes


def _provenance(runs: Sequence[Run]) -> list[str]:
    """Where the numbers come from, and what should not have differed."""
    devices = Counter(run.manifest["device"] for run in runs)
    commits = Counter((run.manifest["git_commit"] or "unknown")[:10] for run in runs)
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    lines = [
        f"{len(runs)} run{'s' * (len(runs) != 1)}, seed {seeds}, on {', '.join(devices)}, "
        f"commit {', '.join(commits)}."
    ]
    if len(devices) > 1 or len(commits) > 1:
        lines.append("Note: the runs are of several devices or commits; they may not compare.")
    return lines
