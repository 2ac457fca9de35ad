"""Several client processes as one, so that the client is not what is measured."""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from paged.tasks.bench_serve.client import Batch, Job, run_client

HEAD_START = 0.1  # seconds between the signal to start and the first request


class Fleet:
    """A context manager of `size` processes, which live from one measurement to the next."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._members: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> "Fleet":
        context = multiprocessing.get_context("spawn")
        for _ in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_client, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies is an EOFError here
            self._members.append((process, ours))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for process, pipe in self._members:
            if kind is None:
                pipe.send(None)
            else:
                process.terminate()
            pipe.close()
        for process, _ in self._members:
            process.join()
        self._members.clear()

    def run(self, job: Job) -> list[Batch]:
        """The requests, dealt out in turns; none starts before every process is ready.

        Raises RuntimeError if a process ends before its time.
        """
        pipes = [pipe for _, pipe in self._members[: job.concurrency]]
        try:
            for place, pipe in enumerate(pipes):
                pipe.send(share(job, place, len(pipes)))
            for pipe in pipes:
                pipe.recv()
            start = time.monotonic() + HEAD_START
            for pipe in pipes:
                pipe.send(start)
            return [pipe.recv() for pipe in pipes]
        except (EOFError, OSError) as error:
            raise RuntimeError("a client process has ended unexpectedly") from error


def share(job: Job, place: int, count: int) -> Job:
    """The part of the job for process `place` of `count`."""
    requests: Sequence = job.requests[place::count]
    if job.concurrency is None:
        return replace(job, requests=requests)
    each, more = divmod(job.concurrency, count)
    return replace(job, requests=requests, concurrency=each + (place < more))
