"""Taking requests in: what can be served at all; and the result of a beam search."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paged.beams import BeamSearchOutput, BeamSearchSequence
from paged.edits import edits_of
from paged.live_request import LiveRequest
from paged.request import (
    MAX_STOP_IDS,
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
)  # fmt: skip
from paged.state import Sizes


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
        is_array = isinstance(prompt_token_ids, np.ndarray)
        ids: Any = prompt_token_ids if is_array else list(map(int, prompt_token_ids))
        longest = self.sizes.max_model_len
        ids = ids[len(ids) - params.keep_of_prompt(len(ids), longest) :]
        if not len(ids):
            raise ValueError("prompt must hold at least one token, got none")
        if len(ids) >= longest:
            raise ValueError(
                f"prompt must be shorter than max_model_len ({longest}) to leave room for output, "
                f"got {len(ids)} tokens"
            )
        least, most = (np.min(ids), np.max(ids)) if is_array else (min(ids), max(ids))
        if least < 0 or most >= self.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise ValueError(
                f"prompt token ids must be in [0, {self.vocab_size}), the vocabulary, got {wrong}"
            )
        if params.num_outputs > self.sizes.num_slots:
            name = "n" if params.best_of is None else "best_of"
            raise ValueError(
                f"{name} must be at most num_slots ({self.sizes.num_slots}), the rows of the "
                f"request table, got {params.num_outputs}"
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
            outputs=[CompletionOutput(index) for index in range(params.num_outputs)],
            metrics=RequestMetrics(
                arrival_time=time.perf_counter(), num_outputs=params.num_outputs
            ),
        )
        group: list[LiveRequest] = []
        for index in range(params.num_outputs):
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
