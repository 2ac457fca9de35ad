"""What crosses between the HTTP process and the engine's: lists of the messages below, pickled.

Both sides put messages into an `Outbox`; its thread sends whatever has gathered since its last
write as one list. So neither event loop nor engine loop ever waits for the other process, and the
more there is to send, the fewer writes a message costs.
"""

import queue
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from paged.beams import BeamSearchParams
from paged.intake import Limits
from paged.request import Logprob, SamplingParams
from paged.state import Sizes
from paged.structured.base import GrammarCompiler
from paged.tokenizer import Tokenizer

Top = list[tuple[int, float]]  # (token, its logprob): the most probable first
PromptLogprobs = list[dict[int, Logprob] | None]  # of each token of a prompt but the first


class Submit(NamedTuple):
    """To the engine: a request. Its `params.n` outputs are named `key`, `key + 1`, ...

    With `search` they are the sequences of a beam search, best first; `params` are those of a beam.
    """

    key: int
    token_ids: bytes  # int32, native order: a long prompt pickles as one string
    params: SamplingParams
    search: BeamSearchParams | None = None


class Abort(NamedTuple):
    """To the engine: end these outputs; ended and unknown ones are no-ops."""

    keys: list[int]


class Call(NamedTuple):
    """To the engine: what /debug asks of it, answered by a `Reply` of the same number."""

    number: int
    name: str
    arguments: dict[str, Any]


class Stop(NamedTuple):
    """To the engine: leave. What is unfinished is dropped."""


class Progress(NamedTuple):
    """From the engine: new tokens of an output, or its end, or both."""

    key: int
    token_ids: list[int]
    logprobs: list[float]
    num_cached_tokens: int | None = None  # of the prompt, found in the cache; None: as before
    top_logprobs: list[Top] | None = None  # of each token, where the request asked for them
    finish_reason: str | None = None
    error: str | None = None
    times: tuple[float, float, float] | None = None  # seconds queued, in prefill, in decode
    prompt_logprobs: PromptLogprobs | None = None  # once, with the first token of a first output


class Tokens(NamedTuple):
    """From the engine: one token for each of many outputs, which is what most steps bring."""

    keys: bytes  # int64
    token_ids: bytes  # int32
    logprobs: bytes  # float32


class Reply(NamedTuple):
    """From the engine: a call's value, or the error it raised."""

    number: int
    value: Any
    error: str | None = None


class Steps(NamedTuple):
    """From the engine: what its steps since the last message did."""

    num_running: int
    num_waiting: int
    free_pages: int
    cached_pages: int
    num_preempted: int
    cached_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_tokens: list[int]  # of each step
    seconds: float  # that they took


@dataclass(frozen=True)
class Ready:
    """From the engine, once: it serves."""

    sizes: Sizes
    limits: Limits
    tokenizer: Tokenizer | None
    grammars: GrammarCompiler | None


class Failed(NamedTuple):
    """From the engine: it could not start (`by_user`: settings are at fault) or has died."""

    message: str
    by_user: bool


def unpacked(tokens: Tokens) -> Iterator[tuple[int, int, float]]:
    """(key, token, logprob) of each."""
    return zip(array("q", tokens.keys), array("i", tokens.token_ids), array("f", tokens.logprobs))


class Outbox:
    """Sends what is put into it, in order, from a thread of its own."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, *messages: object) -> None:
        self._waiting.put(messages)

    def close(self) -> None:
        """Send what is left, then end."""
        self._waiting.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        last = False
        while not last:
            batch: list[object] = []
            while not last and (not batch or not self._waiting.empty()):
                messages = self._waiting.get()
                last = messages is None
                batch.extend(messages or ())
            try:
                if batch:
                    self._connection.send(batch)
            except OSError:  # the other process is gone; its reader notices
                return
