"""results.csv as a table and a plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import t as student

Lines = Sequence[Mapping[str, str]]


def interval(values: np.ndarray) -> tuple[float, float]:
    """(mean, half width of its 95% interval) of independent windows, by Student's t."""
    deviation = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(student.ppf(0.975, len(values) - 1) * deviation)


def rates(lines: Lines, num_pages: str) -> dict[str, np.ndarray]:
    """{policy: hit rate of each window}, the best first; windows that all policies have."""
    mine = [line for line in lines if line["num_pages"] == num_pages]
    found: dict[str, dict[str, float]] = {}
    for line in mine:
        found.setdefault(line["policy"], {})[line["window"]] = float(line["hit_rate"])
    whole = sorted(set.intersection(*map(set, found.values())))
    arrays = {name: np.array([by[w] for w in whole]) for name, by in found.items()}
    return dict(sorted(arrays.items(), key=lambda one: -one[1].mean()))


def sizes(lines: Lines) -> list[str]:
    return sorted({line["num_pages"] for line in lines}, key=int)


def write_table(lines: Lines, path: Path) -> str:
    rows = []
    for num_pages in sizes(lines):
        found = rates(lines, num_pages)
        count = len(found["belady"])
        rows += [
            f"{num_pages} pages, {count} windows\n",
            "| eviction | hit rate | of belady's | points above lru |",
            "|---|---|---|---|",
        ]
        for policy, hits in found.items():
            mean, width = interval(100 * hits)
            share, share_width = interval(100 * hits / found["belady"])
            gain, gain_width = interval(100 * (hits - found["lru"]))
            rows.append(
                f"| {policy} | {mean:.2f} ± {width:.2f}% | {share:.1f} ± {share_width:.1f}% "
                f"| {gain:+.2f} ± {gain_width:.2f} |"
            )
        rows.append("")
    path.write_text("\n".join(rows))
    return "\n".join(rows)


def write_plot(lines: Lines, path: Path) -> None:
    """Hit rates as shares of belady's, with their intervals."""
    panels = sizes(lines)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.5), squeeze=False)
    for axis, num_pages in zip(axes[0], panels):
        found = rates(lines, num_pages)
        for at, hits in enumerate(found.values()):
            mean, width = interval(100 * hits / found["belady"])
            axis.errorbar(mean, -at, xerr=width, fmt="o", capsize=3, color="tab:blue")
        axis.set_yticks([-at for at in range(len(found))], list(found))
        axis.set(title=f"{num_pages} pages of 512 tokens", xlabel="hits, % of belady's")
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
