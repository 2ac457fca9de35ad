"""Taking requests in: what can be served at all, and a request's life on the host."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from paged.mailbox import Submission
from paged.request import (
    MAX_STOP_IDS,
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
)  # fmt: skip
from paged.state import Sizes

NEVER_MS = 2**31 - 1


@dataclass
class LiveRequest:
    """A request between submission and its end."""

    output: RequestOutput
    params: SamplingParams
    max_len: int
    stop_ids: list[int]
    ticket: int  # order of submission
    slot: int = -1  # -1: not on the device
    prefilling: bool = True  # has drawn no token since it was last admitted
    running: bool = False  # admitted, as far as the host has heard
    new_tokens: list[int] = field(default_factory=list)  # not turned into text yet

    def submission(self, started: float, engine_seed: int) -> Submission:
        """The request as the device takes it; `started` is the zero of the engine's clock."""
        params, prompt = self.params, self.output.prompt_token_ids
        arrival_ms = max(0, int((self.output.metrics.arrival_time - started) * 1000))
        expected = params.predicted_tokens
        deadline_ms = NEVER_MS
        if params.deadline is not None:
            deadline_ms = min(NEVER_MS, arrival_ms + int(params.deadline * 1000))
        seed = params.seed
        if seed is None:
            seed = engine_seed * 1_000_003 + self.ticket
        return Submission(
            slot=self.slot,
            prompt=prompt,
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
            seed=seed,
            stop_ids=self.stop_ids,
        )


@dataclass(frozen=True)
class Limits:
    """What the engine can serve.

    `reserves`: the allocator holds memory for more than the computed tokens, up to the model's
    length.
    """

    sizes: Sizes
    vocab_size: int
    eos_ids: tuple[int, ...]
    reserves: bool

    def accept(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        prompt: str | None,
        ticket: int,
    ) -> LiveRequest:
        """The request, ready to queue. Raises ValueError if it could never be served."""
        ids = [int(token) for token in prompt_token_ids]
        longest = self.sizes.max_model_len
        if not ids:
            raise ValueError("prompt must hold at least one token, got none")
        if len(ids) >= longest:
            raise ValueError(
                f"prompt must be shorter than max_model_len ({longest}) to leave room for output, "
                f"got {len(ids)} tokens"
            )
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise ValueError(
                f"prompt token ids must be in [0, {self.vocab_size}), the vocabulary, got {wrong}"
            )
        max_len = longest
        if params.max_tokens is not None:
            max_len = min(longest, len(ids) + params.max_tokens)
        held = longest if self.reserves else max_len
        pages = -(-held // self.sizes.page_size)
        if pages > self.sizes.num_pages:
            raise ValueError(
                f"the request needs up to {pages} pages for {held} tokens, but the pool has "
                f"kv.num_pages={self.sizes.num_pages}; raise it or lower max_tokens"
            )
        own = () if params.ignore_eos else self.eos_ids
        stop_ids = list(dict.fromkeys([*own, *params.stop_token_ids]))
        if len(stop_ids) > MAX_STOP_IDS:
            raise ValueError(
                f"at most {MAX_STOP_IDS} stop tokens fit, the model's own included, got {stop_ids}"
            )
        output = RequestOutput(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=ids,
            outputs=[CompletionOutput()],
            metrics=RequestMetrics(arrival_time=time.perf_counter()),
        )
        return LiveRequest(output, params, max_len, stop_ids, ticket)
