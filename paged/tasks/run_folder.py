"""The folder of one run: what was asked, on what, and what came of it.

    config.yaml      the configuration, every interpolation resolved
    manifest.json    commit, versions, device, seed, command, times
    requests.jsonl   a line a request, as it ended
    steps.jsonl      a line a step of the engine
    metrics.json     the numbers of the final table

Requests and steps are written as they come, so a run that fails leaves what it did.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import paged
from paged.kernels.launch import interpreted

PACKAGES = ("torch", "triton", "transformers", "hydra-core")


class RunFolder:
    """Writes the files of one run; a context manager that opens and closes them.

    Args:
        path: the folder, created if need be.
        config: the resolved configuration as YAML.
        overrides: what the command line changed.
        seed: the engine's.
    """

    def __init__(self, path: Path, *, config: str, overrides: Sequence[str], seed: int) -> None:
        self.path, self.config = path, config
        self.manifest: dict[str, Any] = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "overrides": list(overrides),
            "seed": seed,
            "started": _now(),
            "ended": None,
            "status": "running",
            **provenance(),
        }

    def __enter__(self) -> "RunFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(self.config)
        self._write_json("manifest.json", self.manifest)
        self._requests = (self.path / "requests.jsonl").open("w")
        self._steps = (self.path / "steps.jsonl").open("w")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._requests.close()
        self._steps.close()
        self.manifest["ended"] = _now()
        self.manifest["status"] = "done" if kind is None else f"failed: {kind.__name__}"
        self._write_json("manifest.json", self.manifest)

    def request(self, record: Mapping[str, Any]) -> None:
        self._requests.write(json.dumps(record) + "\n")

    def step(self, record: Mapping[str, Any]) -> None:
        self._steps.write(json.dumps(record) + "\n")

    def metrics(self, record: Mapping[str, Any]) -> None:
        self._write_json("metrics.json", record)

    def _write_json(self, name: str, record: Mapping[str, Any]) -> None:
        (self.path / name).write_text(json.dumps(record, indent=2) + "\n")


def provenance() -> dict[str, Any]:
    """What the numbers of this process come from: code, versions, device."""
    on_gpu = torch.cuda.is_available() and not interpreted()
    changes = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "versions": {
            "paged": paged.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "num_cpus": os.cpu_count(),
        "interpreter": interpreted(),
    }


def _git(*arguments: str) -> str | None:
    """What git says in the package's checkout; None where there is no checkout or no git."""
    root = Path(paged.__file__).parents[1]
    if not (root / ".git").exists():  # an installed copy may lie inside someone else's checkout
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
