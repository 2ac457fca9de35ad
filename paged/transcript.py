"""What the last steps have drawn, until somebody wants to know what one request has got.

A step writes a row over all slots, whatever the batch; a request reads its column:

              slot 0   slot 1   slot 2
    step 7       311       -1       17     -1: drew nothing
    step 8         9        4       -1
"""

from typing import NamedTuple

import numpy as np

DEPTH = 1024  # rows, of 8 KB each with 1,024 slots
PADDING = 16


class Passage(NamedTuple):
    """Tokens of one slot that nobody had read, and when the last of them came."""

    token_ids: np.ndarray  # [num_tokens] int32
    logprobs: np.ndarray  # [num_tokens] float32
    last_time: float


class Transcript:
    """A ring of rows. A slot has to be read within `depth` rows; `due` says whose turn it is."""

    def __init__(self, num_slots: int, depth: int = DEPTH) -> None:
        self.num_slots, self.depth = num_slots, depth
        # Columns are read at one stride, which as a power of two would use little of a cache.
        shape = (depth, num_slots + PADDING)
        self._token_ids = np.full(shape, -1, np.int32)
        self._logprobs = np.zeros(shape, np.float32)
        self._times = np.zeros(depth)  # when the row was written
        self._end = 0  # rows ever written
        self._read = [0] * num_slots  # of each slot, rows read

    def write(
        self, slots: np.ndarray, token_ids: np.ndarray, logprobs: np.ndarray, now: float
    ) -> None:
        """A row for slots [n] that drew a token each; one that is not in it drew none."""
        row = self._end % self.depth
        drawn = self._token_ids[row]
        drawn.fill(-1)
        drawn[slots] = token_ids
        self._logprobs[row][slots] = logprobs
        self._times[row] = now
        self._end += 1

    def due(self) -> list[int]:
        """The slots to be read before the next row is written.

        A slot has a turn every half `depth` rows, and is due if it could not wait for the next.
        """
        turns = self.depth // 2
        share = -(-self.num_slots // turns)
        first = self._end % turns * share
        longest = self._end - (self.depth - turns)
        slots = range(first, min(first + share, self.num_slots))
        return [slot for slot in slots if self._read[slot] < longest]

    def skip(self, slot: int) -> None:
        """Begin to read a slot here."""
        self._read[slot] = self._end

    def read(self, slot: int) -> Passage | None:
        """What a slot has drawn since it was last read; None if nothing."""
        first, end = self._read[slot], self._end
        if first == end:
            return None
        self._read[slot] = end
        first, end = first % self.depth, end % self.depth
        parts = [slice(first, end)] if first < end else [slice(first, None), slice(end)]
        token_ids = np.concatenate([self._token_ids[part, slot] for part in parts])
        drawn = np.flatnonzero(token_ids >= 0)
        if not len(drawn):
            return None
        logprobs = np.concatenate([self._logprobs[part, slot] for part in parts])
        last_time = float(self._times[(first + drawn[-1]) % self.depth])
        return Passage(token_ids[drawn], logprobs[drawn], last_time)
