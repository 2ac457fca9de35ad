"""The host's two rings to the device: commands going in, events coming out.

Both are indexed by the step number and live in pinned memory that kernels read and write directly,
so neither side ever waits in a synchronising call. The host may have as many steps in flight as
the rings are deep; it reads a step's events before it writes commands over them.
"""

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paged.kernels.control import ingest as command
from paged.kernels.control import update as event
from paged.kernels.control.release import HEADER_FIELDS
from paged.state import Sizes

HEADER_WORDS = event.HEADER_WORDS.value
KIND_NAMES = {
    event.EVENT_ADMITTED.value: "admitted",
    event.EVENT_PREEMPTED.value: "preempted",
    event.EVENT_TOKEN.value: "token",
    event.EVENT_END.value: "end",
}


@dataclass(frozen=True)
class Submission:
    """A request as the device takes it; lengths in tokens, times on the engine's clock in ms."""

    slot: int
    prompt: Sequence[int]
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


@dataclass(frozen=True)
class Event:
    """What a step did to one request. `value`: cached tokens, dropped tokens, token, or reason."""

    kind: str
    slot: int
    value: int
    logprob: float = 0.0


def float_bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", value))[0]


class Mailbox:
    """Pinned rings for `depth` steps.

    Args:
        max_commands: commands of one step at most; more wait for the next.
        prompt_capacity: tokens of prompts on their way to the device at most.
    """

    def __init__(
        self, sizes: Sizes, device: torch.device, *, depth: int = 8, max_commands: int = 64
    ) -> None:
        pinned = device.type == "cuda"

        def ring(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned)

        self.depth, self.max_commands = depth, max_commands
        self.prompt_capacity = max(65536, 2 * sizes.max_model_len)
        self.commands = command.Commands(
            headers=ring(depth, 2),
            words=ring(depth, max_commands, command.COMMAND_WORDS),
            prompts=ring(self.prompt_capacity, dtype=torch.int32),
        )
        self.events = event.Events(words=ring(depth, event.event_words(sizes.num_slots)))
        self._headers = self.commands.headers.numpy()
        self._words = self.commands.words.numpy()
        self._prompts = self.commands.prompts.numpy()
        self._events = self.events.words.numpy()
        self._written = 0  # prompt tokens ever put into their ring
        self._consumed = 0  # of those, tokens whose step is known to be over
        self._marks: dict[int, int] = {}  # step: `_written` after its commands

    def room_for(self, num_tokens: int) -> bool:
        """Whether a prompt fits beside those the device may not have read yet."""
        return self._written - self._consumed + num_tokens <= self.prompt_capacity

    def post(
        self,
        step: int,
        now_ms: int,
        submissions: Sequence[Submission],
        aborted_slots: Sequence[int],
    ) -> int:
        """Write the commands of `step`; returns how many there are."""
        words = self._words[step % self.depth]
        count = len(submissions) + len(aborted_slots)
        if count > self.max_commands:
            raise ValueError(f"a step takes at most {self.max_commands} commands, got {count}")
        for row, slot in enumerate(aborted_slots):
            words[row, command.KIND.value] = command.ABORT.value
            words[row, command.SLOT.value] = slot
        for row, sub in enumerate(submissions, start=len(aborted_slots)):
            at = self._written % self.prompt_capacity
            first = min(len(sub.prompt), self.prompt_capacity - at)
            self._prompts[at : at + first] = sub.prompt[:first]
            self._prompts[: len(sub.prompt) - first] = sub.prompt[first:]
            self._written += len(sub.prompt)
            stops = [*sub.stop_ids, *[-1] * event.NUM_STOP_IDS.value][: event.NUM_STOP_IDS.value]
            words[row] = (
                command.SUBMIT.value, sub.slot, at, sub.arrival, sub.arrival_ms, sub.priority,
                sub.client, len(sub.prompt), sub.max_len, sub.min_len, sub.predicted_len,
                sub.deadline_ms, sub.top_k, sub.seed, float_bits(sub.temperature),
                float_bits(sub.top_p), float_bits(sub.min_p), *stops,
            )  # fmt: skip
        self._marks[step] = self._written
        self._headers[step % self.depth] = (count, now_ms)
        return count

    def poll(self, step: int) -> tuple[dict[str, int], list[Event]] | None:
        """Header and events of `step`, or None while any of their words is still to come."""
        entry = self._events[step % self.depth]
        tag = (step + 1) & 0xFFFF
        fields = len(HEADER_FIELDS)
        header = entry[:fields].copy()
        if ((header >> 48) & 0xFFFF != tag).any():
            return None
        values = dict(zip(HEADER_FIELDS, (header & 0xFFFFFFFFFFFF).tolist()))
        words = entry[HEADER_WORDS : HEADER_WORDS + 2 * values["num_events"]].copy()
        if ((words >> 48) & 0xFFFF != tag).any():
            return None
        self._consumed = self._marks.pop(step, self._consumed)
        main, extra = words[0::2], words[1::2]
        logprobs = (extra & 0xFFFFFFFF).astype("uint32").view("float32").tolist()
        kinds, slots = ((main >> 44) & 0xF).tolist(), ((main >> 24) & 0xFFFFF).tolist()
        events = [
            Event(KIND_NAMES[kind], slot, value, logprob)
            for kind, slot, value, logprob in zip(
                kinds, slots, (main & 0xFFFFFF).tolist(), logprobs
            )
        ]
        return values, events

    def wait(
        self, step: int, is_done: Callable[[], bool], timeout: float = 60.0
    ) -> tuple[dict[str, int], list[Event]]:
        """Poll until `step` is over.

        `is_done` says, without waiting, that the device has nothing left to run; words missing
        after that will never come. Raises RuntimeError then, and after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            idle = is_done()  # asked before the poll: what was written before is then visible
            result = self.poll(step)
            if result is not None:
                return result
            if idle:
                raise RuntimeError(f"step {step} ended on the device without reporting its events")
            if time.monotonic() > deadline:
                raise RuntimeError(f"step {step} did not end within {timeout:.0f} s")
