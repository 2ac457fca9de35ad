"""Arms beside each other: means, differences to the first arm, and the files that hold them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from paged.tasks.report.runs import Arm
from paged.tasks.report.statistics import Effect, holm, paired_bootstrap

USUAL = (
    "requests_per_s", "output_tokens_per_s", "ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99",
    "e2e_mean", "e2e_p99", "queue_time_mean", "prefix_hit_rate", "preemptions", "recompute_tax",
    "mean_batch_size", "memory_split.token_states", "perplexity", "perplexity_difference", "kl",
    "greedy_match_len", "written_perplexity", "needles_found", "mean_pages_in_use",
)  # fmt: skip
COLUMNS = (
    "arm", "metric", "runs", "mean", "deviation", "pairs", "difference", "low", "high",
    "relative", "p_holm",
)  # fmt: skip
SIGNIFICANT = 0.05
MOST_RELATIVE = 100.0  # a baseline of rounding errors has no meaningful share
RATES = ("workload.rate", "workload.rate_scale")
TIMES = ("ttft", "tpot", "itl", "e2e", "queue_time", "normalized_latency", "seconds")


@dataclass(frozen=True)
class Cell:
    """One metric of one arm.

    Args:
        mean, deviation: over its runs; the deviation of one run is None.
        base: the arm that it is compared with; None for that arm itself, or without a pair.
        baseline: mean of that arm, over the runs of the same seeds.
        effect: difference to that arm.
        p: that of the effect, corrected for all effects of the report.
    """

    arm: str
    metric: str
    num_runs: int
    mean: float
    deviation: float | None
    base: str | None = None
    baseline: float | None = None
    effect: Effect | None = None
    p: float | None = None

    @property
    def relative(self) -> tuple[float, float | None, float | None] | None:
        """Difference and interval in shares of the baseline; None where that is next to 0."""
        if self.effect is None or not self.baseline:
            return None
        if abs(self.effect.difference) > MOST_RELATIVE * abs(self.baseline):
            return None
        low, high = self.effect.low, self.effect.high
        scale = abs(self.baseline)
        ends = (None, None) if low is None or high is None else (low / scale, high / scale)
        return self.effect.difference / scale, *ends

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def usual_metrics(arms: Sequence[Arm]) -> list[str]:
    """The metrics to show where none are named: the usual ones, else all that the runs share."""
    runs = [run for arm in arms for run in arm.runs.values()]
    usual = [name for name in USUAL if any(name in run.metrics for run in runs)]
    return usual or [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]


def compare(
    arms: Sequence[Arm],
    metrics: Sequence[str],
    *,
    within: Sequence[str] = RATES,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Cell]:
    """A cell for each metric of each arm that has it, arm by arm. Runs of equal seed are pairs.

    An arm is compared with the first that has the same overrides of the keys in `within`. Raises
    ValueError for a metric that no run has.
    """
    cells: list[Cell] = []
    bases: dict[tuple[str, ...], Arm] = {}
    for arm in arms:
        first = bases.setdefault(arm.condition(within), arm)
        for metric in metrics:
            values = arm.values(metric)
            if not values:
                continue
            base = first.values(metric)
            pairs = [key for key in values if key in base]
            mine, theirs = [values[key] for key in pairs], [base[key] for key in pairs]
            effect = None
            if arm is not first and pairs:
                effect = paired_bootstrap(
                    theirs, mine, confidence=confidence, resamples=resamples, seed=seed
                )
            all_values = list(values.values())
            cells.append(
                Cell(
                    arm=arm.name,
                    metric=metric,
                    num_runs=len(values),
                    mean=float(np.mean(all_values)),
                    deviation=float(np.std(all_values, ddof=1)) if len(values) > 1 else None,
                    base=None if effect is None else first.name,
                    baseline=float(np.mean(theirs)) if pairs else None,
                    effect=effect,
                )
            )
    unknown = set(metrics) - {cell.metric for cell in cells}
    if unknown:
        known = sorted({name for arm in arms for run in arm.runs.values() for name in run.metrics})
        raise ValueError(
            f"metrics: no run has {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    corrected = holm([None if cell.effect is None else cell.effect.p for cell in cells])
    return [Cell(**{**vars(cell), "p": p}) for cell, p in zip(cells, corrected)]


def bases_of(cells: Sequence[Cell]) -> str:
    """The arms that the others are compared with: `scheduler=fcfs of equal workload.rate`."""
    bases = list(dict.fromkeys(cell.base for cell in cells if cell.base is not None))
    if len(bases) == 1:
        return bases[0]
    words = [base.split() for base in bases]
    shared = [word for word in words[0] if all(word in other for other in words)]
    keys = dict.fromkeys(word.partition("=")[0] for word in words[0] if word not in shared)
    return f"{' '.join(shared) or 'the first'} of equal {' and '.join(keys)}"


def figure(value: float | None) -> str:
    """Four significant digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}%"


def with_unit(metric: str) -> str:
    """`ttft_p50, s`: the name of a metric as tables and plots show it. Shares and counts have no
    unit, a benchmark's names hold theirs."""
    if metric.endswith("_per_s"):
        return f"{metric.removesuffix('_per_s')}, 1/s"
    return f"{metric}, s" if metric.startswith(TIMES) else metric


def markdown(cells: Sequence[Cell], confidence: float) -> str:
    """Means, then every difference with its interval."""
    arms, metrics = _axes(cells)
    found = {(cell.arm, cell.metric): cell for cell in cells}
    lines = ["| | " + " | ".join(map(with_unit, metrics)) + " |", "|---|" + "---|" * len(metrics)]
    for arm in arms:
        row = (_short(found.get((arm, metric))) for metric in metrics)
        lines.append(f"| {arm} | " + " | ".join(row) + " |")
    effects = [cell for cell in cells if cell.effect is not None]
    if effects:
        interval = f"{confidence:.0%} interval"
        lines += [
            "",
            f"Differences to {bases_of(cells)}, over pairs of runs with equal seeds:",
            "",
            f"| | metric | pairs | difference | {interval} | relative | {interval} | p (Holm) |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for cell in effects:
        named = [cell.arm, with_unit(cell.metric), *_effect_cells(cell)]
        lines.append("| " + " | ".join(named) + " |")
    return "\n".join(lines) + "\n"


def latex(cells: Sequence[Cell], confidence: float) -> str:
    """Two booktabs tables: means with relative differences, the shorter axis across, and every
    difference with its interval. * marks corrected p < 0.05."""
    arms, metrics = _axes(cells)
    found = {(cell.arm, cell.metric): _short(cell) for cell in cells}
    if len(arms) > len(metrics):
        head = ["", *map(with_unit, metrics)]
        rows = [[arm, *(found.get((arm, metric), "-") for metric in metrics)] for arm in arms]
    else:
        head = ["", *arms]
        rows = [
            [with_unit(metric), *(found.get((arm, metric), "-") for arm in arms)]
            for metric in metrics
        ]
    tables = [_tabular("l" + "r" * (len(head) - 1), head, rows)]
    effects = [
        [cell.arm, with_unit(cell.metric), *_effect_cells(cell)] for cell in cells if cell.effect
    ]
    if effects:
        interval = f"{confidence:.0%} interval"
        head = ["", "metric", "pairs", "difference", interval, "relative", interval, "p (Holm)"]
        note = f"% differences to {bases_of(cells)}, over pairs of runs with equal seeds\n"
        tables.append(note + _tabular("llrrrrrr", head, effects))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(tables)


def _tabular(columns: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(_escape, row)) + " \\\\" for row in (head, *rows)]
    parts = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", lines[0], "\\midrule", *lines[1:]]
    return "\n".join([*parts, "\\bottomrule", "\\end{tabular}"]) + "\n"


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """A line a cell, with all digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for cell in cells:
            own = (cell.arm, cell.metric, cell.num_runs, cell.mean, cell.deviation)
            if cell.effect is None:
                writer.writerow([*own, *[None] * 6])
                continue
            relative = None if cell.relative is None else cell.relative[0]
            writer.writerow([*own, *cell.effect[:4], relative, cell.p])


def shown(cells: Sequence[Cell]) -> Table:
    """Means for the eye: a row a metric, a column an arm; the other way round if arms are more."""
    arms, metrics = _axes(cells)
    found = {(cell.arm, cell.metric): _short(cell) for cell in cells}
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="cyan")
    rows, columns = (arms, metrics) if len(arms) > len(metrics) else (metrics, arms)
    for column in columns:
        table.add_column(with_unit(column).replace(" ", "\n"), justify="right")
    for row in rows:
        keys = ((row, column) if rows is arms else (column, row) for column in columns)
        table.add_row(with_unit(row), *(found.get(key, "-") for key in keys))
    return table


def _axes(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(c.arm for c in cells)), list(dict.fromkeys(c.metric for c in cells))


def _short(cell: Cell | None) -> str:
    """`10.1 (-18.0%*)`: the mean, and its relative difference."""
    if cell is None:
        return "-"
    mark = "*" if cell.significant else ""
    return figure(cell.mean) + (f" ({percent(cell.relative[0])}{mark})" if cell.relative else mark)


def _effect_cells(cell: Cell) -> list[str]:
    effect, relative = cell.effect, cell.relative or (None, None, None)
    assert effect is not None
    ends = [figure(effect.low), figure(effect.high)]
    shares = [percent(relative[1]), percent(relative[2])]
    return [
        str(effect.num_pairs),
        figure(effect.difference),
        "-" if effect.low is None else f"[{', '.join(ends)}]",
        percent(relative[0]),
        "-" if relative[1] is None else f"[{', '.join(shares)}]",
        "-" if cell.p is None else f"{cell.p:.2g}",
    ]


def _escape(text: str) -> str:
    for mark in "\\&%$#_{}":
        text = text.replace(mark, "\\textbackslash{}" if mark == "\\" else f"\\{mark}")
    return text
