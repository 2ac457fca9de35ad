"""The runs of a sweep side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table


def sweep_table(folders: Sequence[Path]) -> Table:
    """A row a run: the overrides it does not share with all others, and its main numbers.

    Runs that ended without a `metrics.json` have a row of dashes.
    """
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    shared = set.intersection(*(set(manifest["overrides"]) for manifest in manifests))
    shown = Table(box=None, pad_edge=False)
    shown.add_column("run", no_wrap=True)
    for name in ("tokens/s", "ttft p50/p99 ms", "tpot p50/p99 ms", "prefix hits",
                 "preempted", "peak pages"):  # fmt: skip
        shown.add_column(name)
    for folder, manifest in zip(folders, manifests):
        own = [override for override in manifest["overrides"] if override not in shared]
        path = folder / "metrics.json"
        numbers = _numbers(json.loads(path.read_text())) if path.is_file() else ["-"] * 6
        shown.add_row("\n".join(own) or folder.name, *numbers)
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
