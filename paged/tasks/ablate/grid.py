"""What an ablation runs: the arms, and its jobs in their order."""

import hashlib
import itertools
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Choices = Callable[[str], list[str]]  # one override of a sweep -> its choices, as overrides


@dataclass(frozen=True)
class Job:
    """One run: an arm with a seed.

    Args:
        arm: its own overrides.
        overrides: the whole command line but for the folder.
        folder: the run folder.
    """

    arm: tuple[str, ...]
    seed: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return f"{' '.join(self.arm)}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What it wrote to stdout and stderr."""
        return self.folder / "log.txt"


def words(name: str, text: str) -> list[str]:
    """Overrides in a text, as a shell would split it. Raises ValueError for what is none."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{name}: {text!r} does not read as overrides ({error})") from error
    for word in found:
        if "=" not in word:
            raise ValueError(f"{name}: expected overrides like scheduler=fcfs, got {word!r}")
    return found


def arms_over(over: str, choices: Choices) -> list[tuple[str, ...]]:
    """Every combination of the choices; the last axis changes fastest."""
    axes = [choices(word) for word in words("over", over)]
    arms = list(itertools.product(*axes))
    if len(set(arms)) < len(arms):
        raise ValueError(f"over: a choice appears twice in {over!r}")
    if len(arms) < 2:
        raise ValueError(
            f"over: expected choices to compare, like scheduler=fcfs,sjf, got {over!r}"
        )
    return arms


def plan(
    base: Sequence[str], arms: Sequence[tuple[str, ...]], seeds: Sequence[int], folder: Path
) -> list[Job]:
    """Seed by seed, all arms of a seed beside each other, so that whatever drifts with time meets
    all of them alike; each seed begins with another arm."""
    jobs = []
    for turn, seed in enumerate(seeds):
        first = turn % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            overrides = (*base, *arm, f"seed={seed}")
            jobs.append(Job(arm, seed, overrides, folder / folder_name(arm) / str(seed)))
    return jobs


def folder_name(arm: Sequence[str]) -> str:
    """An arm as the name of a folder; a digest stands for what a name cannot hold."""
    text = ",".join(arm)
    name = re.sub(r"[^\w.=,+-]", "_", text)[:100]
    return name if name == text else f"{name}-{hashlib.sha1(text.encode()).hexdigest()[:8]}"
