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
LOW_48 = 2**48 - 1
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


class Report(NamedTuple):
    """What a step did, request by request; the lists of one kind go together, by slot."""

    header: Header
    admitted_slots: list[int]
    cached_tokens: list[int]  # of each, taken from the prefix cache
    preempted_slots: list[int]
    dropped_tokens: list[int]
    token_slots: list[int]
    token_ids: list[int]
    logprobs: list[float]
    end_slots: list[int]
    end_reasons: list[int]
    tops: Mapping[int, Top] = MappingProxyType({})  # by slot, of those that report them
    token_beams: Sequence[int] = ()  # of each token of a beam, the beam whose sequence it extends
    sequence_slots: Sequence[int] = ()  # beams whose sequence has ended, with their last tokens
    sequence_tokens: Sequence[int] = ()
    sequence_scores: Sequence[float] = ()


class EntryViews(NamedTuple):
    """One step's entry of the event ring, as numpy reads it: all [words]."""

    words: np.ndarray  # int64
    tags: np.ndarray  # uint16, the top quarter of each word
    kind_quarters: np.ndarray  # uint16, the quarter below, whose upper four bits are the kind
    floats: np.ndarray  # float32, the lower half of each word


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
        self._events = self.events.words.numpy()
        # Views of the same words: [..., 3] is the tag, the lower half of an odd word a float.
        quarters = self._events.view(np.uint16).reshape(depth, -1, 4)
        floats = self._events.view(np.float32).reshape(depth, -1, 2)[:, :, 0]
        self._entries = [
            EntryViews(self._events[at], quarters[at, :, 3], quarters[at, :, 2], floats[at])
            for at in range(depth)
        ]
        for at, entry in enumerate(self._entries):
            entry.tags[:] = at  # entry `at` holds the tags of at + 1 modulo the depth
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
        at, tag = step % self.depth, (step + 1) & 0xFFFF
        words, tags, kind_quarters, floats = self._entries[at]
        if tags[0] != tag or tags[:NUM_HEADER_FIELDS].tolist().count(tag) < NUM_HEADER_FIELDS:
            return None
        header = Header(*[word & LOW_48 for word in words[:NUM_HEADER_FIELDS].tolist()])
        end = HEADER_WORDS + 2 * header.num_events
        if np.count_nonzero(tags[HEADER_WORDS:end] != tag):
            return None
        events = words[HEADER_WORDS:end:2]
        slots = ((events >> 24) & 0xFFFFF).tolist()
        values = (events & 0xFFFFFF).tolist()
        kinds = (kind_quarters[HEADER_WORDS:end:2] >> 12).tolist()  # ascending
        admitted = kinds.count(event.EVENT_ADMITTED.value)
        preempted = admitted + kinds.count(event.EVENT_PREEMPTED.value)
        ended = len(kinds) - kinds.count(event.EVENT_SEQUENCE.value)
        drawn = ended - kinds.count(event.EVENT_END.value)
        first = HEADER_WORDS + 1 + 2 * preempted
        tops = self.tops.read(step, slots[preempted:drawn])
        if tops is None:
            return None
        report = Report(
            header,
            slots[:admitted],
            values[:admitted],
            slots[admitted:preempted],
            values[admitted:preempted],
            slots[preempted:drawn],
            values[preempted:drawn],
            floats[first : HEADER_WORDS + 2 * drawn : 2].tolist(),
            slots[drawn:ended],
            values[drawn:ended],
            tops,
        )
        if self.beams:
            report = report._replace(
                token_beams=kind_quarters[first : HEADER_WORDS + 2 * drawn : 2].tolist(),
                sequence_slots=slots[ended:],
                sequence_tokens=values[ended:],
                sequence_scores=floats[HEADER_WORDS + 1 + 2 * ended : end : 2].tolist(),
            )
        tags[:end] = at
        self._consumed = self._marks.pop(step, self._consumed)
        return report

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
