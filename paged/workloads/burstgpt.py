"""BurstGPT (Wang et al., 2024): two months of times and lengths of a campus's ChatGPT and GPT-4."""

from collections.abc import Iterator
from pathlib import Path

from paged.workloads.files import count, csv_rows, seconds
from paged.workloads.request import Request
from paged.workloads.trace import Trace, find_file

USUAL = "burstgpt/BurstGPT_1.csv"
ORIGIN = "https://github.com/HPMLL/BurstGPT (data/BurstGPT_1.csv, CC-BY-4.0)"
COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")


class BurstGPT(Trace):
    """Columns Timestamp (s), Model, Request tokens, Response tokens, Log Type.

    Requests that failed, which have no response tokens, are left out.

    Args:
        path: the .csv file; None looks for it (see `find_file`).
        model: keep the requests to one model only, "ChatGPT" or "GPT-4".
        log_type: keep one kind only, "Conversation log" or "API log".
        shaping: see `Trace`.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        model: str | None = None,
        log_type: str | None = None,
        **shaping,
    ) -> None:
        super().__init__(read(find_file(path, USUAL, ORIGIN), model, log_type), **shaping)


def read(path: Path, model: str | None, log_type: str | None) -> Iterator[Request]:
    for number, (where, row) in enumerate(csv_rows(path, COLUMNS)):
        output_len = count(where, row, "Response tokens")
        kept = model in (None, row["Model"]) and log_type in (None, row["Log Type"])
        if not kept or output_len == 0:
            continue
        spans = ((2 * number, max(1, count(where, row, "Request tokens"))),)
        arrival = seconds(where, row, "Timestamp")
        yield Request(arrival, spans, output_len, output=2 * number + 1)
