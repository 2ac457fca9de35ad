"""What the schedulers of an ablation did to requests with short and with long answers.

    python experiments/scheduling/measure.py capacity RUN...
    python experiments/scheduling/measure.py deciles RUNS --out FOLDER

See README.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from paged.tasks.report.runs import Arm, Run, arms_of, find_runs
from paged.tasks.report.task import first_is, write_report

GROUPS = {"all": slice(0, 10), "shortest decile": slice(0, 1), "longest decile": slice(9, 10)}


def served(run: Run) -> list[dict]:
    """The run's requests that ended with an answer, by its length."""
    requests = [request for request in run.requests() if request.get("e2e") is not None]
    return sorted(requests, key=lambda request: request["output_len"])


def capacity(run: Run) -> float:
    """Requests a second while the queue was never empty: between a tenth and nine tenths of the
    departures of a run whose requests came all at once."""
    ends = np.sort([request["arrival_time"] + request["e2e"] for request in served(run)])
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (last - first) / (ends[last] - ends[first])


def measured(run: Run) -> Run:
    """The run with the metrics of this question: mean latencies in seconds, by answer length."""
    deciles = np.array_split(np.array(served(run)), 10)
    metrics: dict[str, float] = {}
    for name, which in GROUPS.items():
        requests = np.concatenate(deciles[which])
        metrics[f"e2e, {name}"] = float(np.mean([one["e2e"] for one in requests]))
        metrics[f"queue time, {name}"] = float(np.mean([one["queue_time"] for one in requests]))
    tails = {"e2e p99, all": served(run), "e2e p99, longest decile": list(deciles[-1])}
    for name, requests in tails.items():
        metrics[name] = float(np.percentile([one["e2e"] for one in requests], 99))
    normalised = [one["e2e"] / one["output_len"] for one in served(run)]
    metrics["e2e / output token, all"] = float(np.mean(normalised))
    metrics["sequences a step"] = run.metrics["mean_batch_size"]
    return replace(run, metrics=metrics)


def by_decile(arms: Sequence[Arm], path: Path) -> None:
    """Plot the mean e2e of each decile of answer length over that of the first arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def means(run: Run) -> np.ndarray:
        deciles = np.array_split(np.array(served(run)), 10)
        return np.array([np.mean([one["e2e"] for one in requests]) for requests in deciles])

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    base = {key: means(run) for key, run in arms[0].runs.items()}
    for color, arm in enumerate(arms):
        ratios = np.array([means(run) / base[key] for key, run in arm.runs.items() if key in base])
        places = np.arange(1, 11)
        axes.plot(places, ratios.mean(axis=0), "o-", color=f"C{color}", label=arm.name)
        axes.fill_between(
            places, ratios.min(axis=0), ratios.max(axis=0), color=f"C{color}", alpha=0.2
        )
    axes.set(xlabel="decile of answer length", ylabel=f"mean e2e / that of {arms[0].name}")
    axes.set_xticks(np.arange(1, 11))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("capacity", "deciles"))
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("outputs/scheduling"))
    parser.add_argument("--baseline", default="scheduler=fcfs")
    given = parser.parse_args()
    runs = find_runs(given.runs)
    if given.what == "capacity":
        for run in runs:
            print(f"{run.path}: {capacity(run):.2f} requests/s")
        return
    given.out.mkdir(parents=True, exist_ok=True)
    arms = first_is(arms_of(runs), given.baseline)
    by_decile(arms, given.out / "deciles.png")
    for arm in arms:
        arm.runs = {key: measured(run) for key, run in arm.runs.items()}
    metrics = list(next(iter(arms[0].runs.values())).metrics)
    write_report(arms, given.out, Console(soft_wrap=True), metrics=metrics)


if __name__ == "__main__":
    main()
