"""One HTTP request in the making: its samples on one side, what the handler reads on the other.

Samples advance in the thread that receives from the engine, where tokens become text; the handler
takes what has gathered, in the event loop. A slow client therefore gets fewer, larger pieces and
holds up nobody.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from paged.beams import BeamSearchParams
from paged.detokenizer import Detokenizer
from paged.request import SamplingParams
from paged.server.errors import ApiError
from paged.server.wire import Progress, PromptLogprobs, Top


@dataclass(slots=True)
class Delta:
    """What a sample has gained. `finish_reason` is set in its last."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[Top] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None


@dataclass(slots=True)
class Sample:
    """One output to generate, and its state while it grows.

    Args:
        index: of the choice in the response.
        prompt: index of the prompt in the request.
        params: of the engine's request, which may make several samples.
        detokenizer: used by the receiving thread only.
        only_prompt: no output is wanted. The engine draws a token all the same; it is not shown.
        search: it is one of the sequences of a beam search.
    """

    index: int
    prompt: int
    token_ids: list[int]
    params: SamplingParams
    detokenizer: Detokenizer
    only_prompt: bool = False
    search: BeamSearchParams | None = None
    key: int = -1
    last_token_time: float | None = None
    num_tokens: int = 0
    num_cached_tokens: int = 0
    prompt_logprobs: PromptLogprobs | None = None  # of a request's first sample, once they are in

    def advance(self, progress: Progress) -> Delta:
        """Take the engine's news; a stop string may end the sample before the engine does."""
        if progress.num_cached_tokens is not None:
            self.num_cached_tokens = progress.num_cached_tokens
        if progress.prompt_logprobs is not None:
            self.prompt_logprobs = progress.prompt_logprobs
        if self.only_prompt:
            ended = None if progress.finish_reason is None else "length"
            return Delta(self.index, "", [], [], finish_reason=ended, error=progress.error)
        token_ids, finish_reason = progress.token_ids, progress.finish_reason
        shown = token_ids
        if finish_reason == "stop" and not self.params.include_stop_str_in_output:
            shown = token_ids[:-1]  # the stop token is no text
        text, taken = self.detokenizer.add(shown)
        stop_reason: int | str | None = self.detokenizer.stop_met
        if stop_reason is None and finish_reason is not None:
            text += self.detokenizer.finish()
            stop_reason = self.detokenizer.stop_met
            taken = len(token_ids)
        if stop_reason is not None:
            finish_reason = "stop"
        elif finish_reason == "stop" and token_ids[-1:] and (
            token_ids[-1] in self.params.stop_token_ids
        ):  # fmt: skip
            stop_reason = token_ids[-1]
        self.num_tokens += taken
        top = progress.top_logprobs
        return Delta(
            self.index,
            text,
            token_ids[:taken],
            progress.logprobs[:taken],
            None if top is None else top[:taken],
            finish_reason,
            stop_reason,
            progress.error,
        )


@dataclass(eq=False)
class Generation:
    """The samples of one request, and what they have brought that nobody has read.

    Args:
        samples: in the order of their choices.
        abort: called with the keys of unfinished samples when the request is given up.
        whole: the reader wants everything at once, at the end.
    """

    samples: list[Sample]
    abort: Callable[[list[int]], None]
    whole: bool = False
    arrival: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._unfinished = {sample.index for sample in self.samples}
        self._deltas: list[Delta] = []
        self._news = asyncio.Event()
        self._error: ApiError | None = None

    @property
    def closed(self) -> bool:
        return not self._unfinished

    def push(self, delta: Delta) -> None:
        """A sample's news; in the event loop."""
        if delta.index not in self._unfinished:
            return
        self._deltas.append(delta)
        if delta.error is not None:
            refused = delta.finish_reason == "refused"
            self.fail(ApiError(delta.error, status=400 if refused else 500))
        if delta.finish_reason is not None:
            self._unfinished.discard(delta.index)
        if not self.whole or not self._unfinished:
            self._news.set()

    def fail(self, error: ApiError) -> None:
        """Have the reader raise `error`, and give up what is unfinished."""
        self._error = self._error or error
        self.close()

    def close(self) -> None:
        """Give up what is unfinished, as when the client has gone. Ends the reader."""
        if self._unfinished:
            self.abort([self.samples[index].key for index in sorted(self._unfinished)])
            self._unfinished.clear()
        self._news.set()

    async def batches(self) -> AsyncIterator[list[Delta]]:
        """What has gathered since the last batch, a delta a sample; ends with the last sample.

        Raises ApiError if the engine failed.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            deltas, self._deltas = self._deltas, []
            if self._error is not None:
                raise self._error
            if deltas:
                yield merged(deltas) if len(deltas) > 1 else deltas
            if not self._unfinished and not self._deltas:
                return

    def prompt_tokens(self) -> int:
        return sum(len(sample.token_ids) for sample in self._first_samples())

    def cached_tokens(self) -> int:
        return sum(sample.num_cached_tokens for sample in self._first_samples())

    def completion_tokens(self) -> int:
        return sum(sample.num_tokens for sample in self.samples)

    def _first_samples(self) -> list[Sample]:
        """One sample of each prompt."""
        return list({sample.prompt: sample for sample in reversed(self.samples)}.values())


def merged(deltas: list[Delta]) -> list[Delta]:
    """One delta a sample, in the order of their first news."""
    by_index: dict[int, list[Delta]] = {}
    for delta in deltas:
        by_index.setdefault(delta.index, []).append(delta)
    return [
        Delta(
            index,
            "".join(delta.text for delta in parts),
            [token for delta in parts for token in delta.token_ids],
            [logprob for delta in parts for logprob in delta.logprobs],
            None
            if parts[0].top_logprobs is None
            else [top for delta in parts for top in delta.top_logprobs or ()],
            parts[-1].finish_reason,
            parts[-1].stop_reason,
        )
        for index, parts in by_index.items()
    ]
