"""One process of clients: sends its requests when they are due, and times what comes back.

Server-sent events are read as bytes from the socket and timed before they are parsed. The process
also times itself: how late it sends, how late its event loop wakes up, how busy it is. Times are
those of time.monotonic, one clock for all processes of a machine.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

PULSE_SECONDS = 0.01  # how often the event loop's own delay is measured
MESSAGE_CHARACTERS = 300  # of a server's error that are kept


@dataclass(frozen=True)
class Planned:
    """A request to send: `due` is in seconds from the start, `body` the JSON of the POST."""

    number: int
    due: float
    body: bytes


@dataclass(frozen=True)
class Job:
    """What one process does.

    Args:
        url: of the endpoint.
        headers: of every request.
        requests: in the order in which they are due.
        concurrency: at most so many at once, later ones wait; None is no limit.
        timeout: seconds that a request may take in all.
    """

    url: str
    headers: dict[str, str]
    requests: Sequence[Planned]
    concurrency: int | None
    timeout: float


@dataclass
class Outcome:
    """One request as its client saw it. Times in seconds from the moment it was sent.

    `lag` is how late that was, behind its due time or, if `concurrency` held it back, behind the
    moment in which there was room. `error` is None if the answer came to its end.
    """

    number: int
    due: float
    sent: float = 0.0  # from the start
    lag: float = 0.0
    ttft: float | None = None
    e2e: float | None = None
    gaps: list[float] = field(default_factory=list)  # between events with tokens
    prompt_tokens: int | None = None
    output_tokens: int = 0
    cached_tokens: int | None = None
    error: str | None = None  # its kind
    message: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first."""
        if self.ttft is None or self.e2e is None or self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Batch:
    """A process's outcomes, and what it cost: `busy` is its share of one core."""

    outcomes: list[Outcome]
    delays: list[float]  # of the event loop
    busy: float


def run_client(pipe: Connection) -> None:
    """Serve jobs from the pipe: Job -> "ready", start time -> Batch; None ends the process."""
    import aiohttp  # noqa: F401 - the first import takes a second, which no request may wait for

    while (job := pipe.recv()) is not None:
        pipe.send("ready")
        start = pipe.recv()
        pipe.send(asyncio.run(drive(job, start)))


async def drive(job: Job, start: float) -> Batch:
    """Send every request when it is due, `start` being the zero of their clock."""
    import aiohttp  # here, so that the task can say how to install it

    gate = asyncio.Semaphore(job.concurrency or max(1, len(job.requests)))
    delays: list[float] = []
    pulse = asyncio.create_task(_feel_pulse(delays))
    began, worked = time.monotonic(), time.process_time()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=job.timeout),
        headers=job.headers,
    ) as session:
        tasks, free_since = [], start
        for planned in job.requests:
            await asyncio.sleep(start + planned.due - time.monotonic())
            full = gate.locked()
            await gate.acquire()
            if full:
                free_since = time.monotonic()
            ready = max(start + planned.due, free_since)
            tasks.append(asyncio.create_task(_one(session, job.url, planned, start, ready, gate)))
        outcomes = await asyncio.gather(*tasks)
    pulse.cancel()
    wall = max(time.monotonic() - began, 1e-9)
    return Batch(list(outcomes), delays, (time.process_time() - worked) / wall)


async def _feel_pulse(delays: list[float]) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(PULSE_SECONDS)
        delays.append(time.monotonic() - before - PULSE_SECONDS)


async def _one(
    session: "aiohttp.ClientSession",
    url: str,
    planned: Planned,
    start: float,
    ready: float,
    gate: asyncio.Semaphore,
) -> Outcome:
    from aiohttp import ClientError

    sent = time.monotonic()
    outcome = Outcome(planned.number, planned.due, sent - start, sent - ready)
    stream = Stream()
    try:
        async with session.post(url, data=planned.body) as response:
            if response.status == 200:
                async for data in response.content.iter_any():
                    stream.feed(data, time.monotonic())
            else:
                text = await response.text()
                outcome.error, outcome.message = f"HTTP {response.status}", text
    except TimeoutError:
        outcome.error = "timeout"
    except (ClientError, OSError, ValueError) as error:
        outcome.error, outcome.message = type(error).__name__, str(error)
    finally:
        gate.release()
    stream.settle(outcome, sent)
    outcome.message = outcome.message[:MESSAGE_CHARACTERS]
    return outcome


class Stream:
    """A stream of completions or chat completions as it arrives."""

    def __init__(self) -> None:
        self._rest = b""
        self._times: list[float] = []  # of events with tokens
        self._last: float | None = None  # event of the answer
        self._usage: dict[str, Any] = {}
        self._error: str | None = None
        self._ended = False

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes in that came at `now`. Raises ValueError if an event is not JSON."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self._ended = True
            return
        event = json.loads(payload)
        if "error" in event:
            self._error = json.dumps(event["error"])
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices", ()):
            self._last = now
            if has_tokens(choice):
                self._times.append(now)

    def settle(self, outcome: Outcome, sent: float) -> None:
        """Write what has come into the outcome."""
        if outcome.error is None and self._error is not None:
            outcome.error, outcome.message = "error in the stream", self._error
        if outcome.error is None and not self._ended:
            outcome.error = "stream without an end"
        if outcome.error is None and not self._times:
            outcome.error = "no token"
        if self._times and self._last is not None:
            outcome.ttft, outcome.e2e = self._times[0] - sent, self._last - sent
            outcome.gaps = [after - before for before, after in zip(self._times, self._times[1:])]
        outcome.output_tokens = self._usage.get("completion_tokens", len(self._times))
        outcome.prompt_tokens = self._usage.get("prompt_tokens")
        details = self._usage.get("prompt_tokens_details") or {}
        outcome.cached_tokens = details.get("cached_tokens")


def has_tokens(choice: dict[str, Any]) -> bool:
    """Whether a choice of an event brings tokens, be it without text (half a character).

    The announcement of the role and a bare finish_reason do not.
    """
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text")) or choice.get("finish_reason") is None
    if any(value for key, value in delta.items() if key != "role"):
        return True
    return "role" not in delta and choice.get("finish_reason") is None
