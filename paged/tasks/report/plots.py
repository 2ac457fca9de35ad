"""Pictures of a report: effects, latencies, latency over rate, memory over time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paged.tasks.report.runs import Arm
from paged.tasks.report.tables import RATES, SIGNIFICANT, Cell, bases_of

MISSING = "no plots: matplotlib is not installed (pip install 'paged[analysis]')"
LATENCIES = ("ttft", "tpot", "e2e")
POINTS = 500  # of a curve at most
LOGARITHMIC = 20  # an axis is, if its ends are further apart than this factor
COLORS = {
    "in_use": "C0", "token_states": "C0", "reserved": "C1", "internal_waste": "C3",
    "external_waste": "C5", "cached": "C9", "free": "0.93",
}  # fmt: skip


def draw(arms: Sequence[Arm], cells: Sequence[Cell], folder: Path) -> list[Path]:
    """The plots that there is data for, as .png and .pdf. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    drawings: dict[str, Callable[[], Any]] = {
        "effects": lambda: forest(cells),
        "latency": lambda: latency_cdfs(arms),
        "rate": lambda: rate_latency(arms),
        "memory": lambda: memory_over_time(arms),
    }
    written = []
    for name, drawing in drawings.items():
        figure = drawing()
        if figure is None:
            continue
        for ending in ("png", "pdf"):
            written.append(folder / f"{name}.{ending}")
            figure.savefig(written[-1], dpi=150)
        _pyplot().close(figure)
    return written


def forest(cells: Sequence[Cell]) -> Any:
    """Relative differences to the first arm with their intervals, metric by metric; filled marks
    are significant after correction."""
    rows = [(cell, cell.relative) for cell in cells if cell.relative is not None]
    if not rows:
        return None
    arms = list(dict.fromkeys(cell.arm for cell, _ in rows))
    metrics = list(dict.fromkeys(cell.metric for cell, _ in rows))
    figure, axes = _pyplot().subplots(
        figsize=(7, 1.2 + 0.22 * len(metrics) * (len(arms) + 1)), layout="constrained"
    )
    for cell, (middle, low, high) in rows:
        color = f"C{arms.index(cell.arm) + 1}"
        y = metrics.index(cell.metric) * (len(arms) + 1) + arms.index(cell.arm)
        if low is not None and high is not None:
            axes.plot([100 * low, 100 * high], [y, y], "-", color=color)
        inside = color if cell.significant else "w"
        axes.plot(100 * middle, y, "o", color=color, markerfacecolor=inside)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set(xlabel=f"difference to {bases_of(cells)}, %; filled: p < {SIGNIFICANT}")
    if len(metrics) == 1:
        axes.set_yticks(range(len(arms)), arms)
        axes.set(title=metrics[0])
    else:
        for arm in arms:
            axes.plot([], [], "o-", color=f"C{arms.index(arm) + 1}", label=arm)
        middles = [(len(arms) + 1) * place + (len(arms) - 1) / 2 for place in range(len(metrics))]
        axes.set_yticks(middles, metrics)
        _legend(figure, axes)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    return figure


def latency_cdfs(arms: Sequence[Arm]) -> Any:
    """The share of requests, of all runs of an arm, that a latency of at most so much covers."""
    values = {
        (arm.name, name): np.sort([
            request[name]
            for run in arm.runs.values()
            for request in run.requests()
            if request.get(name) is not None
        ])
        for arm in arms
        for name in LATENCIES
    }  # fmt: skip
    latencies = [one for one in LATENCIES if any(len(values[arm.name, one]) for arm in arms)]
    if not latencies:
        return None
    from matplotlib import ticker

    figure, axes = _pyplot().subplots(
        1, len(latencies), figsize=(11, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, name in zip(axes[0], latencies):
        for color, arm in enumerate(arms):
            shares = np.linspace(0, 1, POINTS)
            if len(values[arm.name, name]):
                latency = np.quantile(values[arm.name, name], shares)
                panel.plot(latency, shares, color=f"C{color}", label=arm.name)
        every = np.concatenate([values[arm.name, name] for arm in arms])
        panel.set(xlabel=f"{name}, s")
        if 0 < every.min() < every.max() / LOGARITHMIC:
            panel.set(xscale="log")
            panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.grid(alpha=0.3)
    axes[0, 0].set(ylabel="share of requests")
    _legend(figure, axes[0, 0])
    return figure


def rate_latency(arms: Sequence[Arm]) -> Any:
    """Median latencies over the request rate, if arms differ by it; bands hold all runs."""
    points: dict[str, list[tuple[float, Arm]]] = {}
    for arm in arms:
        given = arm.condition(RATES)
        rest = [one for one in arm.overrides if one not in given]
        rate = given[0].partition("=")[2] if len(given) == 1 else "null"
        if rate != "null":
            points.setdefault(" ".join(rest) or "all", []).append((float(rate), arm))
    if max(map(len, points.values()), default=0) < 2:
        return None
    axis = next(one for arm in arms for one in arm.condition(RATES)).partition("=")[0]
    latencies = [one for one in LATENCIES if all(arm.values(f"{one}_p50") for arm in arms)]
    if not latencies:
        return None
    figure, axes = _pyplot().subplots(
        1, len(latencies), figsize=(11, 3.6), squeeze=False, layout="constrained"
    )
    for panel, name in zip(axes[0], latencies):
        for color, (label, own) in enumerate(points.items()):
            found = sorted((rate, list(arm.values(f"{name}_p50").values())) for rate, arm in own)
            rates = [rate for rate, _ in found]
            mean, low, high = ([of(runs) for _, runs in found] for of in (np.mean, min, max))
            panel.plot(rates, mean, "o-", color=f"C{color}", label=label)
            panel.fill_between(rates, low, high, color=f"C{color}", alpha=0.2, linewidth=0)
        unit = ", 1/s" if axis == "workload.rate" else ""
        panel.set(xlabel=axis + unit, ylabel=f"{name}_p50, s", yscale="log")
        panel.grid(alpha=0.3)
    _legend(figure, axes[0, 0])
    return figure


def memory_over_time(arms: Sequence[Arm]) -> Any:
    """What the pool of pages was used for during the first run of each arm."""
    shown = []
    for arm in arms:
        run = next(iter(arm.runs.values()))
        steps = run.steps()
        if steps and "num_pages" in run.metrics:
            shown.append((arm.name, steps, run.metrics["num_pages"], run.metrics["page_size"]))
    if not shown:
        return None
    figure, axes = _pyplot().subplots(
        len(shown), 1, figsize=(8, 0.8 + 1.7 * len(shown)), sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, (name, steps, num_pages, page_size) in zip(axes[:, 0], shown):
        kept = [steps[at] for at in np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int))]
        times = np.array([step["time"] for step in kept]) - kept[0]["time"]
        split = memory_shares(kept, num_pages, page_size)
        colors = [COLORS[use] for use in split]
        labels = [use.replace("_", " ") for use in split]
        panel.stackplot(times, *split.values(), labels=labels, colors=colors)
        panel.set(ylim=(0, 1), ylabel="share of the pool", title=name)
        panel.margins(x=0)
    axes[-1, 0].set(xlabel="time, s")
    _legend(figure, axes[0, 0])
    return figure


def memory_shares(
    steps: Sequence[dict[str, Any]], num_pages: float, page_size: float
) -> dict[str, np.ndarray]:
    """Shares of the pool after each step: by use where steps tell it, as the simulator's do, else
    of pages in use, cached and free."""
    if "memory_split" in steps[0]:
        slots = [step["memory_split"] for step in steps]
        total = num_pages * page_size
        return {use: np.array([split[use] for split in slots]) / total for use in slots[0]}
    free = np.array([step["free_pages"] for step in steps]) / num_pages
    cached = np.array([step["cached_pages"] for step in steps]) / num_pages
    return {"in_use": 1 - free - cached, "cached": cached, "free": free}


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize="small")


def _pyplot() -> Any:
    from matplotlib import pyplot

    return pyplot
