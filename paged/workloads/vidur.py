"""Lengths in the form of Vidur (Agrawal et al., MLSys 2024), with or without arrival times."""

from collections.abc import Iterator, Sequence

import numpy as np

from paged.workloads.arrivals import arrival_times
from paged.workloads.files import count, csv_rows, seconds
from paged.workloads.request import Request
from paged.workloads.trace import Trace, find_file

USUAL = "vidur/arxiv_summarization_lengths.csv"
ORIGIN = (
    "https://github.com/microsoft/vidur (data/processed_traces, MIT), or write a .csv with the "
    "columns num_prefill_tokens, num_decode_tokens and, if you have it, arrived_at"
)


class Vidur(Trace):
    """Columns num_prefill_tokens, num_decode_tokens, and arrived_at (seconds) if there is one.

    Args:
        path: the .csv file; None looks for it (see `find_file`).
        rate: requests a second: of a Poisson process where the file has no times (None is all at
            once), else on average.
        cv, bursts: of that process, see `arrival_times`.
        shaping: see `Trace`.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        rate: float | None = None,
        cv: float = 1.0,
        bursts: Sequence[float] | None = None,
        seed: int = 0,
        **shaping,
    ) -> None:
        file = find_file(path, USUAL, ORIGIN)
        rows = list(csv_rows(file, ("num_prefill_tokens", "num_decode_tokens")))
        timed = bool(rows) and "arrived_at" in rows[0][1]
        if timed:
            times = [seconds(where, row, "arrived_at") for where, row in rows]
        else:
            rng = np.random.default_rng([seed, 20])
            times = arrival_times(rng, len(rows), rate, cv, bursts).tolist() if rows else []
        requests = _requests(rows, times)
        super().__init__(requests, rate=rate if timed else None, seed=seed, **shaping)


def _requests(rows: list[tuple[str, dict[str, str]]], times: list[float]) -> Iterator[Request]:
    for number, ((where, row), arrival) in enumerate(zip(rows, times)):
        prompt_len = count(where, row, "num_prefill_tokens", least=1)
        output_len = max(1, count(where, row, "num_decode_tokens"))
        yield Request(arrival, ((2 * number, prompt_len),), output_len, output=2 * number + 1)
