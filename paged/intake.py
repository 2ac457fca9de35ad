"""Taking requests in: what can be served at all, and a request's life on the host."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from paged.beams import BeamGroup, BeamSearchOutput, BeamSearchSequence
from paged.edits import NO_EDITS, Edits, edits_of
from paged.kernels.logit_edits import EDIT_FORCED
from paged.request import (
    MAX_STOP_IDS,
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
)  # fmt: skip
from paged.state import Sizes
from paged.submission import Submission, sample_seed
from paged.top_reports import Top

NEVER_MS = 2**31 - 1


@dataclass(eq=False, slots=True)
class LiveRequest:
    """One output of a request between submission and its end; each takes a row of its own.

    `group` lists all outputs of the request, this one among them at `index`. The first is the
    parent, whose prompt the others share.
    """

    output: RequestOutput
    params: SamplingParams
    max_len: int
    stop_ids: list[int]
    ticket: int  # order of submission
    group: list["LiveRequest"] = field(default_factory=list)
    index: int = 0
    slot: int = -1  # -1: not on the device
    running: bool = False  # admitted, as far as the host has heard
    prefilling: bool = True  # has drawn no token since it was last admitted
    to_prefill: int = 0  # tokens to compute before it draws one
    aborted: bool = False  # by the caller; ends when the device says so
    prompt_ids: np.ndarray = field(init=False)  # [prompt_len] int32
    completion: CompletionOutput = field(init=False)
    token_ids: list[int] = field(init=False)  # the completion's own list
    logprobs: list[float] = field(init=False)
    num_taken: int = 0  # output tokens already turned into text
    stop_met: str | None = None  # the stop string that has ended the output
    edits: Edits = NO_EDITS
    echo_left: int = 0  # tokens of the prompt whose log-probabilities are still to come
    beams: BeamGroup | None = None  # of a beam: the search
    is_bound: bool = False  # by a grammar: its mask is good for one length only
    sent_ids: np.ndarray = field(init=False)  # the prompt, and behind it the forced tokens

    def __post_init__(self) -> None:
        self.group.append(self)
        self.completion = self.output.outputs[self.index]
        self.token_ids, self.logprobs = self.completion.token_ids, self.completion.logprobs
        if self.index == 0:
            self.prompt_ids = np.array(self.output.prompt_token_ids, dtype=np.int32)
            forced = self.params.forced_token_ids[: self.max_len - len(self.prompt_ids)]
            self.sent_ids = np.append(self.prompt_ids, np.array(forced, np.int32))
            if self.params.prompt_logprobs is not None:
                self.output.prompt_logprobs = [None]
                self.echo_left = len(self.prompt_ids) - 1
            if self.echo_left > 0:
                self.token_ids, self.logprobs = [], []
        else:
            self.prompt_ids = self.group[0].prompt_ids
            self.sent_ids = self.group[0].sent_ids  # one object: it travels once

    @property
    def has_ended(self) -> bool:
        """Whether the engine has reported the end of this output."""
        return self.completion.finish_reason is not None

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.prompt_ids) + len(self.token_ids)

    def take_new(self) -> list[int]:
        """Output tokens since the last call."""
        tokens = self.completion.token_ids[self.num_taken :]
        self.num_taken += len(tokens)
        return tokens

    def take_top(self, top: Top) -> None:
        """What has been reported of the last token beside itself."""
        if self.stop_met is not None:
            return
        token, logprob = self.token_ids[-1], self.logprobs[-1]
        if self.echo_left > 0:
            known = self.output.prompt_logprobs
            assert known is not None
            known.append(top.beside(token, logprob, self.params.prompt_logprobs or 0))
            self.echo_left -= 1
            if self.echo_left == 0:
                self._begin_output()
        elif self.params.logprobs is not None:
            shown = self.params.logprobs
            self.completion.top_logprobs.append(top.beside(token, logprob, shown))

    def _begin_output(self) -> None:
        """The prompt is over: what comes now is drawn."""
        self.token_ids, self.logprobs = self.completion.token_ids, self.completion.logprobs
        metrics = self.output.metrics
        metrics.num_output_tokens -= len(self.prompt_ids) - 1
        metrics.first_token_time = metrics.last_token_time

    def cut(self, num_tokens: int, stop: str) -> None:
        """The output ends with its first `num_tokens` tokens: they complete a stop string.

        What steps in flight still draw goes nowhere.
        """
        del self.token_ids[num_tokens:], self.logprobs[num_tokens:]
        del self.completion.top_logprobs[num_tokens:]
        self.token_ids, self.logprobs = [], []
        self.stop_met = stop

    def settle(self) -> None:
        """What the device cannot know of an output that has ended."""
        completion, output = self.completion, self.output
        if self.stop_met is not None:
            completion.finish_reason, completion.stop_reason = "stop", self.stop_met
            output.metrics.num_output_tokens = sum(len(one.token_ids) for one in output.outputs)
        elif completion.finish_reason == "stop" and completion.token_ids:
            last = completion.token_ids[-1]
            completion.stop_reason = last if last in self.params.stop_token_ids else None

    def submission(self, started: float, engine_seed: int, *, shares: bool) -> Submission:
        """The output as the device takes it; `started` is the zero of the engine's clock.

        `shares`: let the outputs of the request share the memory of its prompt.
        """
        parent = self.group[0]
        params, prompt = self.params, self.prompt_ids
        edits, shares = self.edits, shares and params.prompt_logprobs is None
        if self.echo_left > 0:
            edits = replace(edits, asked=edits.asked | EDIT_FORCED.value)
        asked = [top for top in (params.logprobs, params.prompt_logprobs) if top is not None]
        arrival_ms = max(0, int((self.output.metrics.arrival_time - started) * 1000))
        expected = params.predicted_tokens
        deadline_ms = NEVER_MS
        if params.deadline is not None:
            deadline_ms = min(NEVER_MS, arrival_ms + int(params.deadline * 1000))
        beams: dict[str, Any] = {}
        if self.beams is not None:
            search = self.beams.params
            beams = {
                "beam_width": search.beam_width,
                "beam_index": self.index,
                "early_stopping": search.early_stopping,
                "length_penalty": search.length_penalty,
            }
        seed = params.seed
        if seed is None:
            seed = engine_seed * 1_000_003 + parent.ticket
        return Submission(
            slot=self.slot,
            prompt=self.sent_ids,
            arrival=self.ticket,
            arrival_ms=arrival_ms,
            max_len=self.max_len,
            min_len=len(prompt) + params.min_tokens,
            predicted_len=self.max_len if expected is None else len(prompt) + expected,
            deadline_ms=deadline_ms,
            priority=params.priority,
            client=params.client,
            top_k=max(params.top_k, 0),
            top_p=params.top_p,
            min_p=params.min_p,
            temperature=params.temperature,
            seed=sample_seed(seed, self.index),
            stop_ids=self.stop_ids,
            parent=parent.slot if shares and self.index else -1,
            parent_arrival=parent.ticket,
            num_forced=len(self.sent_ids) - len(prompt),
            penalties=(
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            ),
            edits=edits,
            total_len=1 if self.echo_left > 0 else 0,
            mask_len=len(prompt) if self.is_bound else 0,
            num_logprobs=max(1, *asked) if asked else 0,
            num_forks=len(self.group) - 1 if shares and self.index == 0 else 0,
            **beams,
        )


@dataclass(frozen=True)
class Limits:
    """What the engine can serve.

    `peak_pages`: the allocator's, see `KVManager`.
    """

    sizes: Sizes
    vocab_size: int
    eos_ids: tuple[int, ...]
    peak_pages: Callable[[int, int, Sizes], int]

    def accept(
        self,
        prompt_token_ids: Sequence[int] | np.ndarray,
        params: SamplingParams,
        request_id: str,
        prompt: str | None,
        ticket: int,
    ) -> LiveRequest:
        """The request's first output, ready to queue with its group. Raises ValueError if it could
        never be served. An array of ids stays one in the output: for whoever has very many."""
        ids: Any = prompt_token_ids
        if not isinstance(ids, np.ndarray):
            ids = list(map(int, ids))
        longest = self.sizes.max_model_len
        ids = ids[len(ids) - params.keep_of_prompt(len(ids), longest) :]
        if not len(ids):
            raise ValueError("prompt must hold at least one token, got none")
        if len(ids) >= longest:
            raise ValueError(
                f"prompt must be shorter than max_model_len ({longest}) to leave room for output, "
                f"got {len(ids)} tokens"
            )
        least, most = np.min, np.max
        if not isinstance(ids, np.ndarray):
            least, most = min, max
        if least(ids) < 0 or most(ids) >= self.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise ValueError(
                f"prompt token ids must be in [0, {self.vocab_size}), the vocabulary, got {wrong}"
            )
        if params.n > self.sizes.num_slots:
            raise ValueError(
                f"n must be at most num_slots ({self.sizes.num_slots}), the rows of the request "
                f"table, got {params.n}"
            )
        max_len = longest
        if params.max_tokens is not None:
            max_len = min(longest, len(ids) + params.max_tokens)
        pages = self.peak_pages(len(ids), max_len, self.sizes)
        if pages > self.sizes.num_pages:
            raise ValueError(
                f"the request needs up to {pages} pages for {max_len} tokens, but the pool has "
                f"kv.num_pages={self.sizes.num_pages}; raise it or lower max_tokens"
            )
        own = () if params.ignore_eos else self.eos_ids
        stop_ids = list(dict.fromkeys([*own, *params.stop_token_ids]))
        if len(stop_ids) > MAX_STOP_IDS:
            raise ValueError(
                f"at most {MAX_STOP_IDS} stop tokens fit, the model's own included, got {stop_ids}"
            )
        edits = edits_of(params, self.vocab_size)
        output = RequestOutput(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=ids,
            outputs=[CompletionOutput(index) for index in range(params.n)],
            metrics=RequestMetrics(arrival_time=time.perf_counter(), num_outputs=params.n),
        )
        group: list[LiveRequest] = []
        for index in range(params.n):
            LiveRequest(
                output, params, max_len, stop_ids, ticket + index, group, index, edits=edits
            )
        return group[0]


def beam_search_output(
    live: LiveRequest, decode: Callable[[Sequence[int]], str] | None
) -> BeamSearchOutput:
    """The result of a beam search that has ended; `live` is one of its beams."""
    search, output = live.beams, live.output
    if search is None or not output.finished:
        raise ValueError(f"request {output.request_id} must be a beam search that has ended")
    result = BeamSearchOutput(error=output.error)
    reasons = {one.finish_reason for one in output.outputs}
    for ended in search.best() if reasons <= {"stop", "length"} else ():
        tokens = ended.tip.token_ids()
        stopped = tokens[-1] in live.stop_ids
        text = "" if decode is None else decode([*output.prompt_token_ids, *tokens])
        result.sequences.append(
            BeamSearchSequence(
                tokens=[*output.prompt_token_ids, *tokens],
                cum_logprob=ended.cum_logprob,
                score=ended.value,
                finish_reason="stop" if stopped else "length",
                text=text,
            )
        )
    return result
