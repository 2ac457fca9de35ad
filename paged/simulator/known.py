"""The ledger of an engine whose answers are known: it counts tokens and appends them later."""

import numpy as np

from paged.ledger import Ledger
from paged.live_request import LiveRequest
from paged.mailbox import Report
from paged.state import Sizes


class KnownAnswers(Ledger):
    """Counts the tokens of all rows at once, and tells the requests when somebody looks.

    That is when they are admitted, preempted or end: between those, `token_ids` and the metrics of
    a running request lag behind. Of the requests that drew, `apply` returns those that ended.
    """

    def __init__(self, sizes: Sizes, capacities: tuple[int, ...]) -> None:
        super().__init__(sizes, capacities)
        self._drawn = np.zeros(sizes.num_slots, np.int64)  # tokens not yet told
        self._last = np.zeros(sizes.num_slots)  # when the last one came

    def _take_tokens(self, report: Report, now: float) -> list[LiveRequest]:
        by_slot, slots = self._by_slot, report.token_slots
        self._drawn[slots] += 1
        self._last[slots] = now
        for slot in slots[self._prefilling[slots]].tolist():
            self._end_prefill(by_slot[slot], now)
        return [by_slot[slot] for slot in report.end_slots if self._drawn[slot]]

    def _tell(self, live: LiveRequest) -> None:
        count = int(self._drawn[live.slot])
        if count:
            begin, metrics = len(live.token_ids), live.metrics
            live.token_ids.extend(live.params.forced_token_ids[begin : begin + count])
            metrics.num_output_tokens += count
            metrics.last_token_time = float(self._last[live.slot])
            self._drawn[live.slot] = 0

    def _preempt(self, live: LiveRequest) -> None:
        self._tell(live)
        super()._preempt(live)

    def _leave(self, live: LiveRequest, reason: str) -> None:
        self._tell(live)
        super()._leave(live, reason)
