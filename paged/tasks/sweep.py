"""The runs of a sweep side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

GENERATE_COLUMNS = [
    "tokens/s", "ttft p50/p99 ms", "tpot p50/p99 ms", "prefix hits", "preempted", "peak pages",
]  # fmt: skip
MAX_COLUMNS = 6


def sweep_table(folders: Sequence[Path]) -> Table:
    """A row a run: the overrides it does not share with all others, and its main numbers.

    Runs that ended without a `metrics.json` or `bench.json` have a row of dashes.
    """
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    shared = set.intersection(*(set(manifest["overrides"]) for manifest in manifests))
    benches = [folder / "bench.json" for folder in folders]
    if any(path.is_file() for path in benches):
        names, cells = _bench_cells(benches)
    else:
        names, cells = GENERATE_COLUMNS, [_generate_cells(folder) for folder in folders]
    shown = Table(box=None, pad_edge=False)
    shown.add_column("run", no_wrap=True)
    for name in names:
        shown.add_column(name)
    for folder, manifest, numbers in zip(folders, manifests, cells):
        own = [override for override in manifest["overrides"] if override not in shared]
        shown.add_row("\n".join(own) or folder.name, *numbers)
    return shown


def _bench_cells(paths: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """The first rows of the benchmarks as columns, and what each run measured of them."""
    rows = [json.loads(path.read_text())["rows"] if path.is_file() else [] for path in paths]
    runs = [{f"{row['name']} ({row['unit']})": row["ours"] for row in own} for own in rows]
    names = list(dict.fromkeys(name for run in runs for name in run))[:MAX_COLUMNS]
    values = [[run.get(name) for name in names] for run in runs]
    return names, [["-" if v is None else f"{v:.4g}" for v in row] for row in values]


def _generate_cells(folder: Path) -> list[str]:
    path = folder / "metrics.json"
    if not path.is_file():
        return ["-"] * len(GENERATE_COLUMNS)
    return _numbers(json.loads(path.read_text()))


def _numbers(metrics: dict) -> list[str]:
    def ms(name: str) -> str:
        times = (metrics[f"{name}_p50"], metrics[f"{name}_p99"])
        return "/".join("-" if time is None else f"{time * 1000:.0f}" for time in times)

    return [
        f"{metrics['output_tokens_per_s']:.1f}",
        ms("ttft"),
        ms("tpot"),
        f"{metrics['prefix_hit_rate']:.1%}",
        f"{metrics['preemptions']}",
        f"{metrics['peak_pages']}/{metrics['num_pages']}",
    ]
