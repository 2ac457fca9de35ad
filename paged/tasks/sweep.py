"""The runs of a sweep side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table


def sweep_table(folders: Sequence[Path]) -> Table:
    """A row a run: its overrides and the main numbers of its `metrics.json`.

    Runs that ended without metrics have a row of dashes.
    """
    shown = Table(box=None, pad_edge=False)
    for name in ("run", "tokens/s", "ttft p50/p99 ms", "tpot p50/p99 ms", "prefix hits",
                 "preemptions", "peak pages"):  # fmt: skip
        shown.add_column(name, overflow="fold")
    for folder in folders:
        overrides = json.loads((folder / "manifest.json").read_text())["overrides"]
        path = folder / "metrics.json"
        numbers = _numbers(json.loads(path.read_text())) if path.is_file() else ["-"] * 6
        shown.add_row(" ".join(overrides) or folder.name, *numbers)
    return shown


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
