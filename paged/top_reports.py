"""The most probable tokens of each draw, as kernels report them through pinned memory.

A ring like the mailbox's, with an entry a step and a place a slot; the words are valid by
themselves, by the tag of their step, and blanked once read (see mailbox.py).
"""

from typing import NamedTuple

import numpy as np
import torch

from paged.kernels.logit_edits import REPORT_WORDS
from paged.request import Logprob


class Top(NamedTuple):
    """What is reported of one draw beside the token itself."""

    rank: int  # of the token
    token_ids: list[int]  # the most probable first
    logprobs: list[float]

    def beside(self, token: int, logprob: float, count: int) -> dict[int, Logprob]:
        """The token itself, and `count` of the most probable ones."""
        likely = zip(self.token_ids[:count], self.logprobs)
        others = {one: Logprob(value, rank) for rank, (one, value) in enumerate(likely, start=1)}
        own = {token: Logprob(logprob, self.rank)}
        return own | others | own


class TopReports:
    """Reads the reports of the slots that have been promised some."""

    def __init__(self, depth: int, num_slots: int, pinned: bool) -> None:
        self.words = torch.zeros(
            depth, num_slots, REPORT_WORDS, dtype=torch.int64, pin_memory=pinned
        )
        self._words = self.words.numpy()
        self._tags = self._words.view(np.uint16).reshape(depth, num_slots, REPORT_WORDS, 4)[..., 3]
        self._floats = self._words.view(np.float32).reshape(depth, num_slots, REPORT_WORDS, 2)
        self._num_top = np.zeros(num_slots, np.int64)
        self._num_promised = 0  # slots that have been promised some
        self._tags[:] = np.arange(depth, dtype=np.uint16)[:, None, None]

    def promise(self, slot: int, num_top: int) -> None:
        """From the next submission of `slot` on, each of its draws reports `num_top` tokens."""
        self._num_promised += (num_top > 0) - int(self._num_top[slot] > 0)
        self._num_top[slot] = num_top

    def read(self, step: int, slots: np.ndarray) -> dict[int, Top] | None:
        """The reports of the slots that drew in `step`; None while a word is still to come."""
        tops: dict[int, Top] = {}
        if not self._num_promised:
            return tops
        num_top = self._num_top[slots]
        at, tag = step % len(self._words), (step + 1) & 0xFFFF
        ends = {
            slot: 2 * (1 + count) for slot, count in zip(slots.tolist(), num_top.tolist()) if count
        }
        for slot, end in ends.items():
            if np.any(self._tags[at, slot, :end] != tag):
                return None
        for slot, end in ends.items():
            values = (self._words[at, slot, :end:2] & 0xFFFFFF).tolist()
            logprobs = self._floats[at, slot, 1:end:2, 0].tolist()
            tops[slot] = Top(values[0], values[1:], logprobs[1:])
            self._tags[at, slot, :end] = at
        return tops
