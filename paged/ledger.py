"""What the host knows of the requests on the device, from the events of the steps it has read.

The counts are kept as they change, and what is drawn is written down for all requests at once, so
that a step costs the host little however many are live.
"""

from itertools import islice
from typing import Any

import numpy as np

from paged.kernels.control.columns import REASON_ABORT, REASON_ERROR, REASON_LENGTH, REASON_STOP
from paged.live_request import LiveRequest
from paged.mailbox import Report
from paged.state import Sizes
from paged.transcript import Transcript

REASONS = {
    REASON_STOP.value: "stop",
    REASON_LENGTH.value: "length",
    REASON_ABORT.value: "abort",
    REASON_ERROR.value: "error",
}


class Ledger:
    """The requests that hold a slot.

    Args:
        sizes: of the engine; slots, requests that run at once, and draft tokens count here.
        capacities: tokens that the graphs of a step hold, ascending.
    """

    def __init__(self, sizes: Sizes, capacities: tuple[int, ...]) -> None:
        num_slots = sizes.num_slots
        self.max_num_seqs, self.capacities = sizes.max_num_seqs, capacities
        self.num_draft_tokens = sizes.num_draft_tokens
        self.num_running = 0
        self.num_beams = 0  # of the requests, those that are beams
        self.free_pages: int | None = None  # None: no step has reported yet
        self.shortfall = 0
        self.ended: list[LiveRequest] = []  # those that the last step ended
        self._by_slot = np.full(num_slots, None)  # LiveRequest
        self._transcript = Transcript(num_slots)
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._waiting: dict[int, LiveRequest] = {}  # by slot
        self._waiting_tokens = 0
        self._prefilling = np.zeros(num_slots, bool)  # admitted, and has drawn nothing since
        self._prefill_tokens = 0  # that those have to compute before they draw
        self._drafted = 0  # draft tokens of the last step
        self._blocked = False  # the last step had room for waiting requests and took none

    def __len__(self) -> int:
        return len(self._by_slot) - len(self._free_slots)

    @property
    def num_free(self) -> int:
        """Slots nobody holds."""
        return len(self._free_slots)

    @property
    def longest(self) -> int:
        """Bound of the length any of the requests can reach."""
        return max((live.max_len for live in self._by_slot if live is not None), default=1)

    def check_empty(self) -> None:
        """Raise AssertionError unless nothing is counted; for tests, when all requests ended."""
        counts = (len(self), len(self._waiting), self.num_running)
        assert not any(counts), f"live, waiting and running requests are counted: {counts}"
        tokens = (self._waiting_tokens, self._prefill_tokens)
        assert not any(tokens), f"waiting tokens and tokens to prefill are counted: {tokens}"
        assert sorted(self._free_slots) == list(range(len(self._by_slot))), "a slot is lost"

    def names(self) -> list[str]:
        """Ids of the requests, for messages."""
        return [live.request_id for live in self._by_slot if live is not None]

    def enter(self, live: LiveRequest) -> None:
        """Give a slot to a request; there must be one."""
        live.enter(self._free_slots.pop(), self._transcript)
        self._by_slot[live.slot] = live
        self.num_beams += live.beams is not None
        self._wait(live)
        self._blocked = False

    def guess(self, underway: int) -> tuple[int, int]:
        """(capacity, prompt tokens) of the next step; `underway` prompt tokens are in flight.

        The smallest capacity for the tokens that will probably run. It is a guess: the policy may
        admit others than the first in line, and pages may be short. The device clamps to the
        capacity, so a guess too small only leaves work to the next step. Drafts are taken to be as
        many as one sequence can have, and twice those of the last step.
        """
        seats = 0 if self._blocked else self.max_num_seqs - self.num_running
        rows = min(self.num_running + min(seats, len(self._waiting)), self.max_num_seqs)
        prompts = self._prefill_tokens
        if seats >= len(self._waiting):
            prompts += self._waiting_tokens
        else:
            prompts += sum(live.to_prefill for live in islice(self._waiting.values(), seats))
        prompts = max(0, prompts - underway)
        drafts = min(rows * self.num_draft_tokens, 2 * self._drafted + self.num_draft_tokens)
        capacity = self.capacities[-1]
        for size in self.capacities:
            if size >= prompts + rows + drafts:
                capacity = size
                break
        return capacity, min(prompts, max(0, capacity - rows))

    def apply(self, report: Report, capacity: int, now: float) -> list[LiveRequest]:
        """Bring a step's events to the requests; returns those that got a token or ended.

        Of each that ended, `completion.finish_reason` is set and its slot is free.
        """
        by_slot: Any = self._by_slot
        if self.num_beams:
            self._follow_beams(report)
        for slot, cached in zip(report.admitted_slots, report.cached_tokens):
            self._admit(by_slot[slot], cached)
        for slot in report.preempted_slots:
            self._preempt(by_slot[slot])
        touched = self._take_tokens(report, now)
        for slot, top in report.tops.items():
            by_slot[slot].take_top(top)
        self.ended = [by_slot[slot] for slot in report.end_slots]
        for live, reason in zip(self.ended, report.end_reasons):
            self._leave(live, REASONS[reason])
            # The others drew a token, but for beams whose search has stopped.
            if reason in (REASON_ABORT.value, REASON_ERROR.value) or (
                live.beams is not None and reason == REASON_STOP.value
            ):
                touched.append(live)
        header = report.header
        self.free_pages, self.shortfall = header.free_pages, header.shortfall
        self._drafted = header.num_draft_tokens
        self._blocked = (
            header.num_waiting > 0
            and self.num_beams == 0  # a group of beams waits for room for all of them
            and header.num_admitted == 0
            and header.num_tokens < capacity
            and not report.end_slots
        )
        return touched

    def _take_tokens(self, report: Report, now: float) -> list[LiveRequest]:
        """Write down what was drawn; returns the requests that drew."""
        by_slot: Any = self._by_slot
        slots, token_ids, logprobs = report.token_slots, report.token_ids, report.logprobs
        if self.num_draft_tokens:  # a row may have drawn several; they come together
            place = np.arange(len(slots)) - np.searchsorted(slots, slots)
            for turn in range(place.max(initial=-1) + 1):
                those = place == turn
                self._write(slots[those], token_ids[those], logprobs[those], now)
            slots = slots[place == 0]
        else:
            self._write(slots, token_ids, logprobs, now)
        for slot in slots[self._prefilling[slots]].tolist():
            self._end_prefill(by_slot[slot], now)
        return by_slot[slots].tolist()

    def _write(
        self, slots: np.ndarray, token_ids: np.ndarray, logprobs: np.ndarray, now: float
    ) -> None:
        for slot in self._transcript.due():
            live = self._by_slot[slot]
            if live is not None:
                live.hear()
        self._transcript.write(slots, token_ids, logprobs, now)

    def _end_prefill(self, live: LiveRequest, now: float) -> None:
        self._prefilling[live.slot] = False
        self._prefill_tokens -= live.to_prefill
        live.metrics.first_token_time = live.metrics.first_token_time or now

    def _follow_beams(self, report: Report) -> None:
        """Tell the searches what their beams did in a step."""
        by_slot: Any = self._by_slot
        ended = zip(report.sequence_slots, report.sequence_tokens, report.sequence_scores)
        for slot, token, score in ended:
            by_slot[slot].beams.end(by_slot[slot].index, token, score)
        slots, tokens = report.token_slots.tolist(), report.token_ids.tolist()
        grown = [
            (by_slot[slot], source, token)
            for slot, source, token in zip(slots, report.token_beams, tokens)
            if by_slot[slot].beams is not None
        ]
        for live, source, token in grown:
            live.beams.append(live.index, source, token)
        for live, _, _ in grown:
            live.beams.settle()

    def _wait(self, live: LiveRequest) -> None:
        shares = live.index > 0 and not live.token_ids  # all but one token, if nothing goes wrong
        live.to_prefill = 1 if shares else live.num_tokens
        self._waiting[live.slot] = live
        self._waiting_tokens += live.to_prefill

    def _admit(self, live: LiveRequest, num_cached: int) -> None:
        if live.index == 0:
            live.metrics.num_cached_tokens += num_cached
        del self._waiting[live.slot]
        self._waiting_tokens -= live.to_prefill
        live.running = self._prefilling[live.slot] = True
        live.to_prefill = live.num_tokens - num_cached
        self._prefill_tokens += live.to_prefill
        self.num_running += 1

    def _preempt(self, live: LiveRequest) -> None:
        live.metrics.num_preemptions += 1
        self._stop_running(live)
        self._wait(live)

    def _stop_running(self, live: LiveRequest) -> None:
        live.running = False
        self.num_running -= 1
        if self._prefilling[live.slot]:
            self._prefilling[live.slot] = False
            self._prefill_tokens -= live.to_prefill

    def _leave(self, live: LiveRequest, reason: str) -> None:
        slot = live.slot
        if live.running:
            self._stop_running(live)
        else:
            del self._waiting[slot]
            self._waiting_tokens -= live.to_prefill
        live.leave(reason)
        self._by_slot[slot] = None
        self._free_slots.append(slot)
        self.num_beams -= live.beams is not None
