"""The wandb logger reports what the run folder gets, and says how to install it."""

import sys
from types import SimpleNamespace

import pytest

from paged.loggers.wandb import WandbLogger


class FakeRun:
    def __init__(self, **settings) -> None:
        self.settings, self.logged, self.summary, self.ended = settings, [], {}, False

    def log(self, record) -> None:
        self.logged.append(record)

    def finish(self) -> None:
        self.ended = True


def test_steps_and_metrics_reach_wandb(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=FakeRun))
    logger = WandbLogger(project="mine")
    logger.start("scheduler:\n  chunk: 4\n", {"seed": 0}, tmp_path)
    logger.step({"num_tokens": 3})
    logger.finish({"output_tokens": 5})
    run = logger.run
    assert run.settings["mode"] == "offline"
    assert run.settings["config"] == {"scheduler": {"chunk": 4}, "manifest": {"seed": 0}}
    assert run.logged == [{"step/num_tokens": 3}]
    assert run.summary == {"output_tokens": 5}
    assert run.ended


def test_without_wandb_the_error_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'paged\[wandb\]'"):
        WandbLogger()
