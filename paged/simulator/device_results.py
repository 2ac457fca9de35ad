"""What a simulation on the device measured, from its log and its outcomes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from paged.kernels.control import drive_state as at
from paged.kernels.control.release import HEADER_FIELDS
from paged.ledger import REASONS
from paged.request import RequestMetrics
from paged.simulator.device import DeviceSimulation
from paged.simulator.totals import SPLIT, Totals

FIELD = {name: index for index, name in enumerate(HEADER_FIELDS)}


class DeviceResults(Totals):
    """Sums the log as it comes; one a run.

    Args:
        on_step: gets the record of each step, as from a simulation on the host; None makes none.
    """

    def __init__(
        self, simulation: DeviceSimulation, on_step: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        super().__init__(simulation.sizes)
        self.simulation, self.on_step = simulation, on_step

    def run(self, on_chunk: Callable[[], None] = lambda: None) -> None:
        """Run the simulation to its end; `on_chunk` is called whenever steps have come."""
        for rows in self.simulation.run():
            self._take(rows)
            on_chunk()
        self.seconds = self.simulation.seconds
        self._settle()

    def _take(self, rows: np.ndarray) -> None:
        """Add the log [steps, LOG_WORDS] of some steps."""
        if len(rows) == 0:
            return
        seconds = rows[:, at.DURATION.value] / 1e9
        used = self.sizes.num_pages - rows[:, FIELD["free_pages"]] - rows[:, FIELD["cached_pages"]]
        self.computed_tokens += int(rows[:, FIELD["num_tokens"]].sum())
        self.preemptions += int(rows[:, FIELD["num_preempted"]].sum())
        self.cached_tokens += int(rows[:, at.CACHED.value].sum())
        self.dropped_tokens += int(rows[:, at.DROPPED.value].sum())
        self.recomputed_tokens += int(rows[:, at.RECOMPUTED.value].sum())
        self.busy_seconds += float(seconds.sum())
        self.seq_seconds += float((rows[:, FIELD["num_seqs"]] * seconds).sum())
        self.peak_pages = max(self.peak_pages, int(used.max()))
        slots = seconds @ rows[:, at.SPLIT.value :]
        for name, sum_of_slots in zip(SPLIT, slots.tolist()):
            self.split[name] += sum_of_slots
        first = self.num_steps
        self.num_steps += len(rows)
        self.seconds = int(rows[-1, at.BEGIN.value] + rows[-1, at.DURATION.value]) / 1e9
        shown = rows if self.on_step is not None else rows[-1:]
        for number, row in enumerate(shown.tolist(), start=first + len(rows) - len(shown)):
            self.last = _record(number, row)
            if self.on_step is not None:
                self.on_step(self.last)

    def _settle(self) -> None:
        """The records of the requests, in the order in which they ended."""
        outcomes = self.simulation.outcomes()
        entries = self.simulation.script.entries
        for index in np.argsort(outcomes[:, at.LAST_TOKEN.value], kind="stable").tolist():
            entry, outcome = entries[index], outcomes[index].tolist()
            queued, first, last = (
                outcome[word.value] / 1e9 for word in (at.QUEUED, at.FIRST_TOKEN, at.LAST_TOKEN)
            )
            num_tokens = outcome[at.NUM_TOKENS.value]
            metrics = RequestMetrics(
                arrival_time=entry.time,
                first_token_time=first,
                last_token_time=last,
                finished_time=last,
                num_output_tokens=num_tokens,
                num_cached_tokens=outcome[at.CACHED_TOKENS.value],
                num_preemptions=outcome[at.PREEMPTIONS.value],
            )
            self.record(
                str(entry.number), entry.prompt_len, num_tokens, entry.params, metrics, queued,
                REASONS[outcome[at.REASON.value]], None,
            )  # fmt: skip


def _record(number: int, row: list[int]) -> dict[str, Any]:
    """The line of `steps.jsonl` for a row of the log."""
    return {
        "step": number,
        "time": row[at.BEGIN.value] / 1e9,
        "seconds": row[at.DURATION.value] / 1e9,
        "cached_tokens": row[at.CACHED.value],
        "recomputed_tokens": row[at.DROPPED.value],
        **dict(zip(HEADER_FIELDS, row)),
        "memory_split": dict(zip(SPLIT, row[at.SPLIT.value :])),
    }
