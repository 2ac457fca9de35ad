"""Beam search as the host sees it: what is asked for, the beams by their events, the result."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from paged.kernels.control.columns import MAX_BEAM_WIDTH
from paged.request import SamplingParams
from paged.state import Sizes


@dataclass
class BeamSearchParams:
    """How to search; names and defaults are vLLM's where it has them.

    Args:
        beam_width: sequences that are followed at once, and that come back.
        max_tokens: output tokens at most.
        ignore_eos: end-of-sequence tokens are tokens like any other.
        temperature: the model's logits are divided by it; 0 and 1 leave them.
        length_penalty: a sequence's log-probability is divided by its length in output tokens to
            this power; more than 0 favours long ones.
        early_stopping: end with the first `beam_width` sequences that have ended. False goes on
            until no beam can become better than the worst of these at its length.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        most = MAX_BEAM_WIDTH.value
        if not isinstance(self.beam_width, int) or not 1 <= self.beam_width <= most:
            raise ValueError(
                f"BeamSearchParams.beam_width must be from 1 to {most}, got {self.beam_width!r}"
            )
        if not isinstance(self.early_stopping, bool):
            raise ValueError(
                "BeamSearchParams.early_stopping must be True or False, "
                f"got {self.early_stopping!r}"
            )
        if not -100 <= self.length_penalty <= 100:
            raise ValueError(
                "BeamSearchParams.length_penalty must be from -100 to 100, "
                f"got {self.length_penalty!r}"
            )

    def sampling(self) -> SamplingParams:
        """What a row of each beam is submitted with. Raises ValueError for a wrong value."""
        return SamplingParams(
            n=self.beam_width,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature or 1.0,
        )


def check_room(
    params: BeamSearchParams, num_prompt_tokens: int, sizes: Sizes, *, shares: bool
) -> None:
    """Raise ValueError unless all beams can run at once; `shares`: the allocator shares pages."""
    width = params.beam_width
    if not shares:
        raise ValueError(
            "beam search shares pages; use kv=paged, which reserves none, with kv/compression=none"
        )
    for name in ("num_slots", "max_num_seqs", "max_num_batched_tokens"):
        room = getattr(sizes, name)
        if width > room:
            raise ValueError(f"beam_width must be at most {name} ({room}), got {width}")
    longest = min(num_prompt_tokens + params.max_tokens, sizes.max_model_len)
    pages = width * -(-longest // sizes.page_size)
    if pages > sizes.num_pages:
        raise ValueError(
            f"beam_width: {width} beams need up to {pages} pages for {longest} tokens each, but "
            f"the pool has kv.num_pages={sizes.num_pages}; raise it, or lower max_tokens or the "
            "width"
        )


class Tip(NamedTuple):
    """The last token of a sequence, and the rest of it."""

    before: "Tip | None"
    token: int
    length: int

    def token_ids(self) -> list[int]:
        tokens: list[int] = []
        tip: Tip | None = self
        while tip is not None:
            tokens.append(tip.token)
            tip = tip.before
        return tokens[::-1]


class EndedSequence(NamedTuple):
    """`value`: what sequences are compared by."""

    value: float
    cum_logprob: float
    tip: Tip


class BeamGroup:
    """The beams of one request, followed by events: each appends a token to some beam's sequence.

    Nothing is copied when a beam splits: sequences share what they have in common.
    """

    def __init__(self, params: BeamSearchParams) -> None:
        self.params = params
        self.ended: list[EndedSequence] = []
        self._tips: list[Tip | None] = [None] * params.beam_width
        self._next: dict[int, Tip] = {}

    def _longer(self, beam: int, token: int) -> Tip:
        before = self._tips[beam]
        return Tip(before, token, 1 if before is None else before.length + 1)

    def end(self, beam: int, token: int, cum_logprob: float) -> None:
        """A sequence has ended: beam's and `token`. To be told before the step's `append`s."""
        tip = self._longer(beam, token)
        norm = np.float32(tip.length**self.params.length_penalty)
        value = float(np.float32(cum_logprob) / norm)
        self.ended.append(EndedSequence(value, cum_logprob, tip))

    def append(self, beam: int, source: int, token: int) -> None:
        """`beam` goes on with the sequence that `source` had before this step, and `token`."""
        self._next[beam] = self._longer(source, token)

    def settle(self) -> None:
        """The step's events have all been told."""
        for beam, tip in self._next.items():
            self._tips[beam] = tip
        self._next.clear()

    def best(self) -> list[EndedSequence]:
        """The `beam_width` best sequences, best first; of equals the one that ended first."""
        ranked = sorted(self.ended, key=lambda ended: -ended.value)
        return ranked[: self.params.beam_width]


@dataclass
class BeamSearchSequence:
    """A sequence that has ended.

    `tokens` and `text` begin with the prompt, as vLLM's do; sequences are ranked by `score`.
    """

    tokens: list[int]
    cum_logprob: float
    score: float
    finish_reason: str  # stop or length
    text: str = ""


@dataclass
class BeamSearchOutput:
    """The best sequences of one prompt, best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)
    error: str | None = None
