"""The engine as the HTTP process sees it: requests go out, deltas come back."""

import asyncio
import multiprocessing
import threading
import time
from array import array
from collections.abc import Callable
from itertools import count
from typing import Any

from paged.llm import LLM
from paged.server.engine_process import run_engine
from paged.server.errors import ApiError
from paged.server.generation import Delta, Generation, Sample
from paged.server.metrics import Metrics
from paged.server.wire import (
    Abort,
    Call,
    Failed,
    Outbox,
    Progress,
    Ready,
    Reply,
    Steps,
    Stop,
    Submit,
    Tokens,
    unpacked,
)  # fmt: skip

STOP_SECONDS = 10.0  # the engine gets to leave by itself


class EngineClient:
    """Starts the engine's process and talks to it.

    Args:
        build: makes the engine, over there; must pickle.
        max_queued: requests that may wait beyond those that can run at once; None is no limit.
        profile_dir: where profiles go; None refuses them.
        metrics: counts what happens.

    `start` blocks until the engine serves. `attach` then connects it to an event loop, from which
    everything else is called.
    """

    def __init__(
        self,
        build: Callable[[], LLM],
        *,
        max_queued: int | None,
        profile_dir: str | None,
        metrics: Metrics,
    ) -> None:
        self.max_queued, self.metrics = max_queued, metrics
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.info: Ready
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=run_engine, args=(build, theirs, profile_dir), name="paged-engine"
        )
        self._theirs = theirs
        self._keys, self._calls = count(), count()
        self._samples: dict[int, tuple[Sample, Generation]] = {}
        self._replies: dict[int, asyncio.Future] = {}

    @property
    def num_live(self) -> int:
        """Samples that have not ended."""
        return len(self._samples)

    def start(self) -> Ready:
        """Raises ValueError if the settings are at fault, RuntimeError if the engine is."""
        self._process.start()
        self._theirs.close()  # so that the engine's end is seen as the end of the connection
        try:
            first = self._connection.recv()[0]
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(
                f"the engine's process ended with code {self._process.exitcode} while it started"
            ) from None
        except KeyboardInterrupt:
            self._process.kill()
            raise
        if isinstance(first, Failed):
            self._process.join()
            raise (ValueError if first.by_user else RuntimeError)(first.message)
        self.info = first
        self.metrics.configure(self.info.sizes)
        self._outbox = Outbox(self._connection, "commands")
        return self.info

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        threading.Thread(target=self._receive, name="events", daemon=True).start()

    def stop(self) -> None:
        """End the engine's process; what is unfinished is dropped."""
        self._outbox.put(Stop())
        self._outbox.close()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def check_room(self, num_samples: int) -> None:
        """Raises ApiError if the engine is gone or its queue has no room for so many samples."""
        if self.failure is not None:
            raise ApiError(f"the engine has stopped: {self.failure}", status=503)
        if self.max_queued is None:
            return
        most = self.info.sizes.max_num_seqs + self.max_queued
        if num_samples > most:
            raise ApiError(
                f"the request asks for {num_samples} samples, and this server takes {most} at "
                "most, running and waiting; split it",
                param="n",
            )
        if num_samples > most - self.num_live:
            raise ApiError(
                f"the queue is full: {self.num_live} requests are running or waiting; "
                "try again later",
                status=429,
                code="queue_full",
                headers={"Retry-After": str(self.metrics.retry_after())},
            )

    def submit(self, requests: list[list[Sample]], *, whole: bool = False) -> Generation:
        """Send engine requests, each as the samples it is to make; `whole` as in `Generation`."""
        samples = [sample for request in requests for sample in request]
        self.check_room(len(samples))
        generation = Generation(samples, self.abort, whole)
        commands = []
        for request in requests:
            first = request[0]
            for sample in request:
                sample.key = next(self._keys)
                self._samples[sample.key] = (sample, generation)
            ids = array("i", first.token_ids).tobytes()
            commands.append(Submit(first.key, ids, first.params, first.search))
        self._outbox.put(*commands)
        return generation

    def abort(self, keys: list[int]) -> None:
        for key in keys:
            self._samples.pop(key, None)
        self.metrics.aborted(len(keys))
        self._outbox.put(Abort(keys))

    async def call(self, name: str, **arguments: object) -> Any:
        """Have the engine do one of its calls. Raises ApiError with what it objects to."""
        self.check_room(0)
        number, reply = next(self._calls), self._loop.create_future()
        self._replies[number] = reply
        self._outbox.put(Call(number, name, arguments))
        try:
            return await reply
        finally:
            self._replies.pop(number, None)

    def _receive(self) -> None:
        """Read what the engine sends until it is gone; in a thread of its own."""
        try:
            while True:
                messages = self._connection.recv()
                now = time.perf_counter()
                deltas: list[tuple[Generation, Delta]] = []
                others: list[Reply | Failed] = []
                for message in messages:
                    if isinstance(message, Tokens):
                        for key, token, logprob in unpacked(message):
                            self._progress(Progress(key, [token], [logprob]), now, deltas)
                    elif isinstance(message, Progress):
                        self._progress(message, now, deltas)
                    elif isinstance(message, Steps):
                        self.metrics.steps(message)
                    else:
                        others.append(message)
                self._loop.call_soon_threadsafe(self._deliver, deltas, others)
        except (EOFError, OSError):
            self._in_loop(self._lost)
        except RuntimeError:  # the event loop has closed: the server is going
            return

    def _in_loop(self, callback: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _progress(
        self, progress: Progress, now: float, deltas: list[tuple[Generation, Delta]]
    ) -> None:
        found = self._samples.get(progress.key)
        if found is None:  # aborted: the engine had not heard of it yet
            return
        sample, generation = found
        delta = sample.advance(progress)
        if delta.token_ids:
            since = sample.last_token_time
            first = since is None
            seconds = now - (generation.arrival if since is None else since)
            self.metrics.tokens(len(delta.token_ids), seconds, first=first)
            sample.last_token_time = now
        if delta.finish_reason is not None:
            self._samples.pop(progress.key, None)
            if progress.finish_reason is None:  # a stop string, which the engine knows nothing of
                self._outbox.put(Abort([progress.key]))
            self.metrics.finished(sample, delta.finish_reason, now - generation.arrival, progress)
        deltas.append((generation, delta))

    def _deliver(
        self, deltas: list[tuple[Generation, Delta]], others: list[Reply | Failed]
    ) -> None:
        for generation, delta in deltas:
            generation.push(delta)
        for message in others:
            if isinstance(message, Failed):
                self.failure = message.message.strip().rpartition("\n")[2]
                continue
            reply = self._replies.get(message.number)
            if reply is None or reply.done():
                continue
            if message.error is None:
                reply.set_result(message.value)
            else:
                reply.set_exception(ApiError(message.error))

    def _lost(self) -> None:
        """The engine's process has ended."""
        self.failure = self.failure or "its process ended"
        error = ApiError(f"the engine has stopped: {self.failure}", status=503)
        for generation in {generation for _, generation in list(self._samples.values())}:
            generation.fail(error)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)
        self.on_failure()
