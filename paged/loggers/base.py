"""The logger's interface, which by itself logs nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Logger:
    """Gets what the run folder gets. Subclasses override what they report."""

    def start(self, config: str, manifest: Mapping[str, Any], folder: Path) -> None:
        """The run begins: its configuration as YAML, its manifest, and where its files go."""

    def step(self, stats: Mapping[str, float]) -> None:
        """One step of the engine has ended; `stats` holds the fields of `StepStats`."""

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The run has ended, with the contents of `metrics.json`."""
