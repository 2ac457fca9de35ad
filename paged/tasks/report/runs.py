"""Run folders, read back: what ran, with which seed, and what came out.

Runs with equal overrides but for the seed are an arm: one choice that the others are compared with.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = ("metrics.json", "bench.json")


@dataclass(frozen=True)
class Run:
    """A run that has ended and left a result.

    Args:
        overrides: of its command line, without the seed.
        metrics: numbers by name; those of nested objects as `memory_split.free`.
    """

    path: Path
    seed: int
    overrides: tuple[str, ...]
    metrics: dict[str, float]
    manifest: dict[str, Any]

    def requests(self) -> list[dict[str, Any]]:
        """Lines of `requests.jsonl`; none where the task writes none."""
        return list(_lines(self.path / "requests.jsonl"))

    def steps(self) -> list[dict[str, Any]]:
        """Lines of `steps.jsonl`, each with the `time` at which it began.

        Where the lines tell only how long steps took, they are laid end to end.
        """
        steps, time = [], 0.0
        for record in _lines(self.path / "steps.jsonl"):
            steps.append({"time": time, **record})
            time = steps[-1]["time"] + record.get("seconds", 0.0)
        return steps


@dataclass
class Arm:
    """Runs of one choice, by (seed, how many runs of this seed came before)."""

    name: str
    overrides: tuple[str, ...]
    runs: dict[tuple[int, int], Run] = field(default_factory=dict)

    def condition(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Its overrides of these keys."""
        return tuple(one for one in self.overrides if one.lstrip("+").partition("=")[0] in keys)

    def values(self, metric: str) -> dict[tuple[int, int], float]:
        """A metric of the runs that have it."""
        have = ((key, run.metrics.get(metric)) for key, run in self.runs.items())
        return {key: value for key, value in have if value is not None}


def read_run(path: Path) -> Run | None:
    """The run in a folder; None where it has not ended or left no result."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        result = next(name for name in RESULTS if (path / name).is_file())
        record = json.loads((path / result).read_text())
    except (OSError, json.JSONDecodeError, StopIteration):
        return None
    if manifest.get("status") != "done":
        return None
    metrics = _rows(record) if result == "bench.json" else dict(_numbers(record))
    overrides = tuple(one for one in manifest["overrides"] if not one.startswith("seed="))
    return Run(path, manifest["seed"], overrides, metrics, manifest)


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs in folders, and in folders of folders, in the order given.

    Raises ValueError for a folder that holds none.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        manifests = sorted(path.rglob("manifest.json"), key=_natural)
        runs = [run for run in (read_run(one.parent) for one in manifests) if run is not None]
        if not runs:
            raise ValueError(
                f"runs: {path} holds no finished run, which is a folder with manifest.json and "
                f"{' or '.join(RESULTS)}"
            )
        found |= {run.path.resolve(): run for run in runs}
    return list(found.values())


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """The runs by choice, in order of appearance, named by the overrides that not all share."""
    shared = set.intersection(*(set(run.overrides) for run in runs)) if runs else set()
    arms: dict[tuple[str, ...], Arm] = {}
    for run in runs:
        own = tuple(one for one in run.overrides if one not in shared)
        arm = arms.setdefault(run.overrides, Arm(" ".join(own) or "base", own))
        repeat = sum(seed == run.seed for seed, _ in arm.runs)
        arm.runs[run.seed, repeat] = run
    return list(arms.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open() as file:
            yield from map(json.loads, file)


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _rows(record: dict[str, Any]) -> dict[str, float]:
    rows = ((f"{row['name']} ({row['unit']})", row["ours"]) for row in record["rows"])
    return {name: float(value) for name, value in rows if value is not None}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 10 behind 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in path.parts]
