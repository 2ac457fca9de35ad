"""The host's two rings to the device: commands going in, events coming out.

Both are indexed by the step number and live in pinned memory that kernels read and write directly,
so neither side ever waits in a synchronising call. The host may have as many steps in flight as
the rings are deep; it reads a step's events before it writes commands over them.

Nothing orders the words of a step, so each is valid by itself: its top 16 bits are the step's tag.
A tag comes again after 65,536 steps, in the same entry of the ring, and by then a word of an old
lap could pass for one still on its way. So the host blanks what it has read, with a tag that no
step of that entry has.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from paged.edits import TokenMask
from paged.kernels.control import ingest as command
from paged.kernels.control import update as event
from paged.kernels.control.release import HEADER_FIELDS
from paged.kernels.logit_edits import EDIT_MASK, WORDS, mask_words
from paged.state import Sizes
from paged.submission import Submission
from paged.top_reports import Top, TopReports

HEADER_WORDS = event.HEADER_WORDS.value
NUM_HEADER_FIELDS = len(HEADER_FIELDS)
TAG_SHIFT = 48
LAST_KINDS = [
    event.EVENT_ADMITTED.value,
    event.EVENT_PREEMPTED.value,
    event.EVENT_TOKEN.value,
    event.EVENT_END.value,
]
SPIN_SECONDS = 30e-6  # the host polls without a pause for so long,
FIRST_PAUSE, LAST_PAUSE = 5e-6, 100e-6  # then sleeps, each time twice as long up to the last


class Header(NamedTuple):
    """What a step did as a whole; pages and rows as they are after it."""

    num_events: int
    num_tokens: int
    num_seqs: int
    free_pages: int
    cached_pages: int
    shortfall: int
    num_running: int
    num_waiting: int
    num_preempted: int
    num_admitted: int
    num_published_rows: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_swapped_out: int
    num_swapped_in: int
    num_keys: int


class Report(NamedTuple):
    """What a step did, request by request; the columns of one kind go together, by slot."""

    header: Header
    token_slots: np.ndarray  # [num_tokens] int64
    token_ids: np.ndarray  # [num_tokens] int32
    logprobs: np.ndarray  # [num_tokens] float32
    admitted_slots: Sequence[int] = ()
    cached_tokens: Sequence[int] = ()  # of each, taken from the prefix cache
    preempted_slots: Sequence[int] = ()
    dropped_tokens: Sequence[int] = ()
    end_slots: Sequence[int] = ()
    end_reasons: Sequence[int] = ()
    tops: Mapping[int, Top] = MappingProxyType({})  # by slot, of those that report them
    token_beams: Sequence[int] = ()  # of each token of a beam, the beam whose sequence it extends
    sequence_slots: Sequence[int] = ()  # beams whose sequence has ended, with their last tokens
    sequence_tokens: Sequence[int] = ()
    sequence_scores: Sequence[float] = ()


class SilentStep(RuntimeError):
    """A step's events did not come."""


class Mailbox:
    """Pinned rings for `depth` steps.

    Args:
        depth: a power of two from 2 to 32768, so that no two entries have a tag in common.
        max_commands: commands of one step at most; more wait for the next.
        prompt_capacity: tokens of prompts on their way to the device at most; None is enough for
            two of the longest.
        vocab_size: the tokens that a mask has a bit for.
    """

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device,
        *,
        depth: int = 8,
        max_commands: int = 64,
        prompt_capacity: int | None = None,
        vocab_size: int = 1,
    ) -> None:
        if not 2 <= depth <= 2**15 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 2 to 32768, got {depth}")
        if max_commands < 1:
            raise ValueError(f"max_commands must be at least 1, got {max_commands}")
        if prompt_capacity is not None and prompt_capacity < sizes.max_model_len:
            raise ValueError(
                f"prompt_capacity must hold the longest prompt, max_model_len="
                f"{sizes.max_model_len} tokens, got {prompt_capacity}"
            )
        pinned = device.type == "cuda"

        def ring(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned)

        self.depth, self.max_commands = depth, max_commands
        self.prompt_capacity = prompt_capacity or max(65536, 2 * sizes.max_model_len)
        self.commands = command.Commands(
            headers=ring(depth, 2),
            words=ring(depth, max_commands, command.COMMAND_WORDS),
            prompts=ring(self.prompt_capacity, dtype=torch.int32),
            edits=ring(sizes.num_slots, WORDS, dtype=torch.int32),
            masks=ring(sizes.num_slots, mask_words(vocab_size), dtype=torch.int32),
        )
        num_words = event.event_words(sizes.num_slots, sizes.num_draft_tokens)
        self.tops = TopReports(depth, sizes.num_slots, pinned)
        self.events = event.Events(words=ring(depth, num_words))
        self._headers = self.commands.headers.numpy()
        self._words = self.commands.words.numpy()
        self._prompts = self.commands.prompts.numpy()
        self._edits = self.commands.edits.numpy()
        self._masks = self.commands.masks.numpy()
        self._entries = list(self.events.words.numpy())
        for at, entry in enumerate(self._entries):
            entry.fill(at << TAG_SHIFT)  # entry `at` holds the tags of at + 1 modulo the depth
        self.beams = False  # whether to read what events say of beams
        self._written = 0  # prompt tokens ever put into their ring
        self._consumed = 0  # of those, tokens whose step is known to be over
        self._marks: dict[int, int] = {}  # step: `_written` after its commands

    def check_in_flight(self, steps: int) -> None:
        """Raise ValueError unless so many steps may be launched before the first is read."""
        if not 1 <= steps < self.depth:
            raise ValueError(f"in_flight must be from 1 to {self.depth - 1} steps, got {steps}")

    def room_for(self, num_tokens: int) -> bool:
        """Whether a prompt fits beside those the device may not have read yet."""
        return self._written - self._consumed + num_tokens <= self.prompt_capacity

    def post(
        self,
        step: int,
        now_ms: int,
        submissions: Sequence[Submission],
        aborted_slots: Sequence[int],
        masks: Sequence[TokenMask] = (),
    ) -> int:
        """Write the commands of `step`; returns how many there are."""
        words = self._words[step % self.depth]
        count = len(submissions) + len(aborted_slots) + len(masks)
        if count > self.max_commands:
            raise ValueError(f"a step takes at most {self.max_commands} commands, got {count}")
        for row, slot in enumerate(aborted_slots):
            words[row, :2] = command.ABORT.value, slot
        at, last = 0, None
        for row, sub in enumerate(submissions, start=len(aborted_slots)):
            if sub.prompt is not last:  # samples of one request bring the same prompt
                at, last = self._written % self.prompt_capacity, sub.prompt
                first = min(len(last), self.prompt_capacity - at)
                self._prompts[at : at + first] = last[:first]
                self._prompts[: len(last) - first] = last[first:]
                self._written += len(last)
            if sub.edits.words is not None:
                self._edits[sub.slot] = sub.edits.words
            if sub.edits.mask is not None:
                self._masks[sub.slot] = sub.edits.mask
            self.tops.promise(sub.slot, sub.num_logprobs)
            words[row] = sub.words(at)
        for row, mask in enumerate(masks, start=count - len(masks)):
            self._masks[mask.slot] = mask.mask
            words[row, :2] = command.MASK.value, mask.slot
            words[row, command.W_LOGIT_EDITS.value] = EDIT_MASK.value
            words[row, command.W_MASK_LEN.value] = mask.length
        self._marks[step] = self._written
        self._headers[step % self.depth] = (count, now_ms)
        return count

    def poll(self, step: int) -> Report | None:
        """What `step` did, or None while any of its words is still to come; read once."""
        at = step % self.depth
        entry, tag = self._entries[at], _tag_of(step)
        head = entry[:NUM_HEADER_FIELDS] - tag
        if not _all_valid(head):
            return None
        header = Header._make(head.tolist())
        end = HEADER_WORDS + 2 * header.num_events
        words = entry[HEADER_WORDS:end] - tag
        if not _all_valid(words):
            return None
        report = self._decoded(header, words)
        tops = self.tops.read(step, report.token_slots)
        if tops is None:
            return None
        entry[:end] = at << TAG_SHIFT
        self._consumed = self._marks.pop(step, self._consumed)
        return report._replace(tops=tops) if tops else report

    def _decoded(self, header: Header, words: np.ndarray) -> Report:
        """The report of a step, of its events' words without their tags."""
        events = words[::2]
        slots = (events >> 24) & 0xFFFFF
        values = words.view(np.int32)[::4] & 0xFFFFFF  # of the lower half of the first word
        floats = words.view(np.float32)[2::4]  # the lower half of the second
        token = event.EVENT_TOKEN.value
        if not self.beams and header.num_events and events[0] >> 44 == token == events[-1] >> 44:
            return Report(header, slots, values, floats)  # as most steps are
        kinds = events >> 44
        bounds = np.searchsorted(kinds, LAST_KINDS, side="right")
        admitted, preempted, drawn, ended = bounds.tolist()
        report = Report(
            header,
            slots[preempted:drawn],
            values[preempted:drawn],
            floats[preempted:drawn],
            slots[:admitted].tolist(),
            values[:admitted].tolist(),
            slots[admitted:preempted].tolist(),
            values[admitted:preempted].tolist(),
            slots[drawn:ended].tolist(),
            values[drawn:ended].tolist(),
        )
        if not self.beams:
            return report
        return report._replace(
            token_beams=(words[1 + 2 * preempted : 2 * drawn : 2] >> 32).tolist(),
            sequence_slots=slots[ended:].tolist(),
            sequence_tokens=values[ended:].tolist(),
            sequence_scores=floats[ended:].tolist(),
        )

    def wait(self, step: int, is_done: Callable[[], bool], timeout: float) -> Report:
        """Poll until `step` is over, without keeping a core busy: short sleeps after a short spin.

        `is_done` says, without waiting, that the device has nothing left to run; words missing
        after that will never come. Raises SilentStep then, and after `timeout` seconds.
        """
        report = self.poll(step)
        if report is not None:
            return report
        began, pause = time.perf_counter(), FIRST_PAUSE
        while True:
            idle = is_done()  # asked before the poll: what was written before is then visible
            report = self.poll(step)
            if report is not None:
                return report
            if idle:
                raise SilentStep(f"step {step} ended on the device without reporting its events")
            waited = time.perf_counter() - began
            if waited > timeout:
                raise SilentStep(f"step {step} reported nothing for {timeout:g} s")
            if waited > SPIN_SECONDS:
                time.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)


def _tag_of(step: int) -> int:
    """The tag of a step's words in its place: an int64 to be taken from them."""
    tag = (step + 1) & 0xFFFF
    return (tag - (1 << 16) if tag >> 15 else tag) << TAG_SHIFT


def _all_valid(words: np.ndarray) -> bool:
    """Whether all had the tag that was taken from them: what is left has 48 bits."""
    return int(np.bitwise_or.reduce(words)) >> TAG_SHIFT == 0
