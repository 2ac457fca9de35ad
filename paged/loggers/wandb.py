"""Weights & Biases; offline by default, so that nothing leaves the machine unasked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from paged.loggers.base import Logger


class WandbLogger(Logger):
    """Logs every step and the final metrics.

    Args:
        project: the project's name.
        mode: offline keeps the run in the run folder (`wandb sync` sends it later).
    """

    def __init__(
        self, *, project: str = "paged", mode: Literal["offline", "online"] = "offline"
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "logger=wandb needs the wandb package; pip install 'paged[wandb]'"
            ) from error
        self.wandb = wandb
        self.project, self.mode = project, mode

    def start(self, config: str, manifest: Mapping[str, Any], folder: Path) -> None:
        settings = {**yaml.safe_load(config), "manifest": dict(manifest)}
        self.run = self.wandb.init(
            project=self.project, mode=self.mode, dir=str(folder), config=settings
        )

    def step(self, stats: Mapping[str, float]) -> None:
        self.run.log({f"step/{name}": value for name, value in stats.items()})

    def finish(self, metrics: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(metrics))
        self.run.finish()
