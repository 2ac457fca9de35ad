"""A request on its way to the device, and the words of the command that carries it."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paged.edits import NO_EDITS, Edits
from paged.kernels.control import ingest as command
from paged.kernels.control.columns import NUM_STOP_IDS

WORD = 2**64 - 1


def sample_seed(seed: int, index: int) -> int:
    """The seed of output `index` of a request, int64; of output 0 the request's own.

    Output `index` of splitmix64 (Steele et al., 2014) started at `seed`.
    """
    if index == 0:
        return seed
    word = (seed + index * 0x9E3779B97F4A7C15) & WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    word ^= word >> 31
    return word - 2**64 if word >> 63 else word


def float_bits(value: float) -> int:
    return _bits_of(value)[0]


def _bits_of(*values: float) -> tuple[int, ...]:
    """The float32 bits of each, as int32."""
    return struct.unpack(f"<{len(values)}i", struct.pack(f"<{len(values)}f", *values))


@dataclass(frozen=True)
class Submission:
    """A request as the device takes it; lengths in tokens, times on the engine's clock in ms."""

    slot: int
    prompt: Sequence[int] | np.ndarray
    arrival: int
    arrival_ms: int
    max_len: int
    min_len: int
    predicted_len: int
    deadline_ms: int
    priority: int
    client: int
    top_k: int
    top_p: float
    min_p: float
    temperature: float
    seed: int
    stop_ids: Sequence[int]
    parent: int = -1  # slot of the request whose prompt this one shares, -1 = none
    parent_arrival: int = 0
    num_forks: int = 0  # requests that share this one's prompt
    num_forced: int = 0  # of `prompt`, the last tokens: the beginning of the output
    penalties: tuple[float, float, float] = (1.0, 0.0, 0.0)  # repetition, presence, frequency
    edits: Edits = NO_EDITS
    mask_len: int = 0
    num_logprobs: int = 0  # most probable tokens to report of each draw
    total_len: int = 0  # tokens to begin with, 0 = the prompt
    beam_width: int = 0  # beams of the request, 0 = this is no beam
    beam_index: int = 0
    early_stopping: bool = False
    length_penalty: float = 1.0

    def words(self, prompt_at: int) -> tuple[int, ...]:
        """The command, in the order of `paged.kernels.control.ingest`; the prompt begins at
        `prompt_at` of its ring."""
        prompt_len = len(self.prompt) - self.num_forced
        floats = _bits_of(self.temperature, self.top_p, self.min_p, *self.penalties)
        stops = [*self.stop_ids, *[-1] * NUM_STOP_IDS.value][: NUM_STOP_IDS.value]
        return (
            command.SUBMIT.value, self.slot, prompt_at, self.arrival, self.arrival_ms,
            self.priority, self.client, prompt_len, self.max_len, self.min_len, self.predicted_len,
            self.deadline_ms, self.top_k, self.seed, *floats, self.parent + 1, self.parent_arrival,
            self.num_forks, self.edits.asked, self.num_forced, self.mask_len, self.num_logprobs,
            self.beam_width, self.beam_index, self.early_stopping,
            float_bits(self.length_penalty), self.total_len or prompt_len, *stops,
        )  # fmt: skip
