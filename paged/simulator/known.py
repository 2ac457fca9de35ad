"""The ledger of an engine whose answers are known: it counts tokens and appends them later."""

import numpy as np

from paged.intake import LiveRequest
from paged.ledger import Ledger
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
        self._prefilling: set[int] = set()  # slots

    def _take_tokens(self, report: Report, now: float) -> list[LiveRequest]:
        by_slot: list = self._by_slot
        self._drawn[report.token_slots] += 1
        self._last[report.token_slots] = now
        for slot in self._prefilling.intersection(report.token_slots):
            self._end_prefill(by_slot[slot], now)
            self._prefilling.discard(slot)
        return [by_slot[slot] for slot in report.end_slots if self._drawn[slot]]

    def _tell(self, live: LiveRequest) -> None:
        count = int(self._drawn[live.slot])
        if count:
            begin, metrics = len(live.token_ids), live.output.metrics
            live.token_ids.extend(live.params.forced_token_ids[begin : begin + count])
            metrics.num_output_tokens += count
            metrics.last_token_time = float(self._last[live.slot])
            self._drawn[live.slot] = 0

    def _admit(self, live: LiveRequest, num_cached: int) -> None:
        super()._admit(live, num_cached)
        self._prefilling.add(live.slot)

    def _preempt(self, live: LiveRequest) -> None:
        self._tell(live)
        self._prefilling.discard(live.slot)
        super()._preempt(live)

    def _leave(self, live: LiveRequest, reason: str) -> None:
        self._tell(live)
        self._prefilling.discard(live.slot)
        super()._leave(live, reason)
