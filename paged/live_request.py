"""A request's life on the host, from its submission to its end."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from paged.beams import BeamGroup
from paged.edits import NO_EDITS, Edits
from paged.kernels.logit_edits import EDIT_FORCED
from paged.request import (
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    mean_logprob,
)  # fmt: skip
from paged.submission import Submission, sample_seed
from paged.top_reports import Top
from paged.transcript import Passage, Transcript

NEVER_MS = 2**31 - 1


@dataclass(eq=False, slots=True)
class LiveRequest:
    """One output of a request between submission and its end; each takes a row of its own.

    `group` lists all outputs of the request, this one among them at `index`. The first is the
    parent, whose prompt the others share.

    What is drawn waits in the engine's transcript until somebody looks: at `output`, which brings
    the whole group up to date, or at `completion`, `token_ids` or `logprobs` of this one.
    """

    _output: RequestOutput
    params: SamplingParams
    max_len: int
    stop_ids: list[int]
    ticket: int  # order of submission
    group: list["LiveRequest"] = field(default_factory=list)
    index: int = 0
    slot: int = -1  # -1: not on the device
    running: bool = False  # admitted, as far as the host has heard
    to_prefill: int = 0  # tokens to compute before it draws one
    aborted: bool = False  # by the caller; ends when the device says so
    transcript: Transcript | None = None  # where the slot's draws are written
    _heard: list[Passage] = field(default_factory=list)
    prompt_ids: np.ndarray = field(init=False)  # [prompt_len] int32
    _completion: CompletionOutput = field(init=False)
    _token_ids: list[int] = field(init=False)  # the completion's own list
    _logprobs: list[float] = field(init=False)
    num_taken: int = 0  # output tokens already turned into text
    stop_met: str | None = None  # the stop string that has ended the output
    edits: Edits = NO_EDITS
    echo_left: int = 0  # tokens of the prompt whose log-probabilities are still to come
    beams: BeamGroup | None = None  # of a beam: the search
    is_bound: bool = False  # by a grammar: its mask is good for one length only
    sent_ids: np.ndarray = field(init=False)  # the prompt, and behind it the forced tokens

    def __post_init__(self) -> None:
        self.group.append(self)
        self._completion = self._output.outputs[self.index]
        self._write_to_output()
        if self.index == 0:
            self.prompt_ids = np.array(self._output.prompt_token_ids, dtype=np.int32)
            forced = self.params.forced_token_ids[: self.max_len - len(self.prompt_ids)]
            self.sent_ids = np.append(self.prompt_ids, np.array(forced, np.int32))
            if self.params.prompt_logprobs is not None:
                self._output.prompt_logprobs = [None]
                self.echo_left = len(self.prompt_ids) - 1
            if self.echo_left > 0:
                self._write_elsewhere()
        else:
            self.prompt_ids = self.group[0].prompt_ids
            self.sent_ids = self.group[0].sent_ids  # one object: it travels once

    @property
    def output(self) -> RequestOutput:
        """The request as it is now, with all its outputs."""
        for one in self.group:
            one.catch_up()
        return self._output

    @property
    def completion(self) -> CompletionOutput:
        """This output as it is now."""
        self.catch_up()
        return self._completion

    @property
    def token_ids(self) -> list[int]:
        """What it has drawn; the completion's own list, but for beams and prompts that are told."""
        self.catch_up()
        return self._token_ids

    @property
    def logprobs(self) -> list[float]:
        """Of `token_ids`."""
        self.catch_up()
        return self._logprobs

    @property
    def metrics(self) -> RequestMetrics:
        """Of the request; of its tokens only those that somebody has looked at."""
        return self._output.metrics

    @property
    def request_id(self) -> str:
        return self._output.request_id

    @property
    def finished(self) -> bool:
        """Whether all outputs of the request have ended."""
        return self._output.finished

    @property
    def has_ended(self) -> bool:
        """Whether the engine has reported the end of this output."""
        return self._completion.finish_reason is not None

    def enter(self, slot: int, transcript: Transcript) -> None:
        """It holds a slot from now on, whose draws are written there."""
        self.slot, self.transcript = slot, transcript
        transcript.skip(slot)

    def leave(self, finish_reason: str) -> None:
        """It has ended, and holds no slot any more."""
        self.catch_up()
        self.slot, self.transcript = -1, None
        self._completion.finish_reason = finish_reason

    def hear(self) -> None:
        """Take what the slot has drawn since the last time, but leave it in arrays."""
        passage = None if self.transcript is None else self.transcript.read(self.slot)
        if passage is None:
            return
        self._heard.append(passage)
        metrics = self.metrics
        metrics.num_output_tokens += len(passage.token_ids)
        metrics.last_token_time = max(metrics.last_token_time or 0.0, passage.last_time)

    def catch_up(self) -> None:
        """Bring the lists of tokens up to date."""
        self.hear()
        for passage in self._heard:
            self._token_ids += passage.token_ids.tolist()
            self._logprobs += passage.logprobs.tolist()
        self._heard.clear()

    def _write_to_output(self) -> None:
        self._token_ids = self._completion.token_ids
        self._logprobs = self._completion.logprobs

    def _write_elsewhere(self) -> None:
        """What comes from now on is no output."""
        self._token_ids, self._logprobs = [], []

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
            known = self._output.prompt_logprobs
            assert known is not None
            known.append(top.beside(token, logprob, self.params.prompt_logprobs or 0))
            self.echo_left -= 1
            if self.echo_left == 0:
                self._begin_output()
        elif self.params.logprobs is not None:
            shown = self.params.logprobs
            self._completion.top_logprobs.append(top.beside(token, logprob, shown))

    def _begin_output(self) -> None:
        """The prompt is over: what comes now is drawn."""
        self._write_to_output()
        metrics = self.metrics
        metrics.num_output_tokens -= len(self.prompt_ids) - 1
        metrics.first_token_time = metrics.last_token_time

    def cut(self, num_tokens: int, stop: str) -> None:
        """The output ends with its first `num_tokens` tokens: they complete a stop string.

        What steps in flight still draw goes nowhere.
        """
        del self.token_ids[num_tokens:], self.logprobs[num_tokens:]
        del self._completion.top_logprobs[num_tokens:]
        self._write_elsewhere()
        self.stop_met = stop

    def follow(self, search: BeamGroup) -> None:
        """It is a beam: what it draws is of whatever sequence it goes on with."""
        self.beams = search
        self._write_elsewhere()

    def settle(self) -> None:
        """What the device cannot know of an output that has ended."""
        completion, output = self._completion, self._output
        if self.stop_met is not None:
            completion.finish_reason, completion.stop_reason = "stop", self.stop_met
            drawn = [one.completion for one in self.group]
            output.metrics.num_output_tokens = sum(len(one.token_ids) for one in drawn)
        elif completion.finish_reason == "stop" and completion.token_ids:
            last = completion.token_ids[-1]
            completion.stop_reason = last if last in self.params.stop_token_ids else None
        if self.params.best_of is not None and all(one.has_ended for one in self.group):
            drawn = [one.completion for one in self.group]
            drawn.sort(key=lambda one: mean_logprob(one.logprobs), reverse=True)
            output.outputs = drawn[: self.params.n]

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
        arrival_ms = max(0, int((self.metrics.arrival_time - started) * 1000))
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
