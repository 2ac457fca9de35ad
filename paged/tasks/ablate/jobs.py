"""Runs in fresh processes: so many at once, each on a GPU of its own if there are any."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from paged.arguments import quoted
from paged.tasks.ablate.grid import Job
from paged.tasks.report.runs import Run, read_run

REFUSED = 2  # exit code of a run whose configuration is wrong
GRACE = 5.0  # seconds to end after being asked to


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        run: what it found; None if it failed.
        error: the reason, where it failed.
        seconds: it took; 0 if its result was there already.
    """

    job: Job
    run: Run | None
    error: str | None = None
    seconds: float = 0.0
    exit_code: int = 0


class Runner:
    """Runs jobs, in order, on slots.

    Args:
        gpus: names as in CUDA_VISIBLE_DEVICES, one a slot; empty leaves the environment alone.
        jobs: slots.
        timeout: seconds that a job may take; None does not end any.
        command: what the overrides are arguments of.
    """

    def __init__(
        self,
        gpus: Sequence[str] = (),
        jobs: int = 1,
        timeout: float | None = None,
        command: Sequence[str] = (sys.executable, "-m", "paged"),
    ) -> None:
        if jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {jobs}")
        if gpus and jobs > len(gpus):
            raise ValueError(
                f"jobs={jobs} runs would share {len(gpus)} GPU{'s' * (len(gpus) > 1)}; lower jobs, "
                "or say gpus=[] if the runs use none"
            )
        self.jobs, self.timeout, self.command = jobs, timeout, command
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(_environment(gpus[slot] if gpus else None, jobs))
        self._running: set[subprocess.Popen] = set()
        self._refused: dict[tuple[str, ...], str] = {}
        self._stopped = threading.Event()

    def run(
        self,
        jobs: Sequence[Job],
        began: Callable[[Job], None] = lambda job: None,
        ended: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        """Run those that have no result yet; outcomes in the order of the jobs.

        A job that fails is an outcome like any other. Where a run of an arm was refused for its
        configuration, later ones of the arm are not tried. An interrupt ends what runs, and is
        raised again.
        """

        def one(job: Job) -> Outcome:
            outcome = finished(job) or self._run(job, began)
            ended(outcome)
            return outcome

        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                return list(pool.map(one, jobs))
            except BaseException:
                self._stop()
                raise

    def _run(self, job: Job, began: Callable[[Job], None]) -> Outcome:
        if self._stopped.is_set():
            return Outcome(job, None, "not run: interrupted")
        if job.arm in self._refused:
            return Outcome(job, None, f"not run: {self._refused[job.arm]}", exit_code=REFUSED)
        environment = self._slots.get()
        started = time.perf_counter()
        try:
            began(job)
            exit_code, error = self._wait(job, environment)
        finally:
            self._slots.put(environment)
        seconds = time.perf_counter() - started
        # A run that fails early leaves the result of an older configuration where it is.
        run = read_run(job.folder) if exit_code == 0 and error is None else None
        if run is None and self._stopped.is_set():
            error = "interrupted"
        if run is None and error is None:
            error = _complaint(job) or f"ended with code {exit_code} and left no result"
        if exit_code == REFUSED and error is not None:
            self._refused[job.arm] = error
        return Outcome(job, run, error, seconds, exit_code)

    def _wait(self, job: Job, environment: dict[str, str]) -> tuple[int, str | None]:
        """Run the job to its end: its exit code, and why it was ended if it was."""
        job.folder.mkdir(parents=True, exist_ok=True)
        folder = f"hydra.run.dir={quoted(str(job.folder))}"
        command = [*self.command, *job.overrides, folder]
        with job.log.open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._running.add(process)
        try:
            if self._stopped.is_set():  # it started beside the interrupt
                _end(process)
            return process.wait(self.timeout), None
        except subprocess.TimeoutExpired:
            _end(process)
            return process.wait(), f"took more than timeout={self.timeout} seconds"
        finally:
            self._running.discard(process)

    def _stop(self) -> None:
        self._stopped.set()
        for process in tuple(self._running):
            _end(process)


def finished(job: Job) -> Outcome | None:
    """The outcome of a job whose folder holds its result; None if it has to run."""
    run = read_run(job.folder)
    if run is None or run.manifest["overrides"] != _recorded(job.overrides):
        return None
    return Outcome(job, run)


def _recorded(overrides: Sequence[str]) -> list[str]:
    """Those that Hydra counts as the task's."""
    return [one for one in overrides if not one.lstrip("+~").startswith("hydra.")]


def _environment(gpu: str | None, jobs: int) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("HYDRA_FULL_ERROR", None)  # set while our own job runs; it would blur theirs
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return environment


def _complaint(job: Job) -> str | None:
    """Of what it wrote, the line that says what was wrong."""
    lines = job.log.read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or lines
    return errors[-1].removeprefix("error: ") if errors else None


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def record(outcome: Outcome) -> dict:
    """The outcome for `ablation.json`."""
    return {
        "arm": list(outcome.job.arm),
        "seed": outcome.job.seed,
        "overrides": list(outcome.job.overrides),
        "folder": str(outcome.job.folder),
        "status": "done" if outcome.run is not None else "failed",
        "error": outcome.error,
        "seconds": outcome.seconds,
    }
