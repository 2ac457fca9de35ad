"""One request of a workload: when it comes, how long it is, and what its tokens are made of.

A trace gives lengths, not texts. What matters to a cache is which tokens are equal, so the tokens
of a request are spans of named contents: token j of content c is the same wherever it appears.
Requests that begin with the same spans share a prefix, and all other tokens differ by chance.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Span = tuple[int, int]  # (content, tokens of it from its beginning)


@dataclass(frozen=True)
class Request:
    """A request whose answer's length is known, as `Engine` and simulator run it.

    Args:
        arrival: seconds from the beginning of the workload.
        spans: (content, tokens) of the prompt, in order; every length is at least 1.
        output_len: tokens of the answer, at least 1.
        output: content of the answer; the prompt of a later turn begins with it.
        client: who sent it, for fair policies.
        priority: smaller is served first.
        predicted_len: output tokens a predictor would say; None if nobody predicts.
        deadline: seconds from arrival to the objective; None if there is none.
        vocab_size: token ids are below it.
        text: the prompt in words, where the file has it; an engine with a tokenizer gets this.
    """

    arrival: float
    spans: tuple[Span, ...]
    output_len: int
    output: int
    client: int = 0
    priority: int = 0
    predicted_len: int | None = None
    deadline: float | None = None
    vocab_size: int = 2000
    text: str | None = None

    @cached_property
    def prompt_len(self) -> int:
        return sum(length for _, length in self.spans)

    def prompt_token_ids(self) -> np.ndarray:
        """The prompt [prompt_len] int32."""
        return content_tokens(self.spans, self.vocab_size)

    def output_token_ids(self) -> np.ndarray:
        """The answer [output_len] int32, as a later turn will repeat it."""
        return content_tokens(((self.output, self.output_len),), self.vocab_size)

    @property
    def prompt(self) -> str | list[int]:
        """With `sampling`, what the engine's tasks ask of any workload's items."""
        return self.prompt_token_ids().tolist() if self.text is None else self.text

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`: an answer of the trace's length."""
        fields: dict[str, Any] = {"max_tokens": self.output_len, "ignore_eos": True}
        fields |= {"client": self.client, "priority": self.priority}
        optional = {"predicted_tokens": self.predicted_len, "deadline": self.deadline}
        return fields | {name: value for name, value in optional.items() if value is not None}


def content_tokens(spans: tuple[Span, ...], vocab_size: int) -> np.ndarray:
    """Token ids [sum of lengths] int32: a hash (splitmix64) of each content and the place in it."""
    lengths = np.array([length for _, length in spans], dtype=np.int64)
    contents = np.array([content for content, _ in spans], dtype=np.int64).astype(np.uint64)
    begins = np.cumsum(lengths) - lengths
    place = (np.arange(lengths.sum()) - np.repeat(begins, lengths)).astype(np.uint64)
    word = np.repeat(contents, lengths) * np.uint64(0x9E3779B97F4A7C15) + (place << np.uint64(32))
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((word ^ (word >> np.uint64(31))) % np.uint64(vocab_size)).astype(np.int32)
