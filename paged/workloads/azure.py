"""The Azure LLM inference traces of 2023 and 2024: times and lengths of production requests.

Patel et al., Splitwise, ISCA 2024; Stojkovic et al., DynamoLLM, HPCA 2025. Nothing is said of the
contents, so no two prompts share a prefix.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from paged.workloads.files import count, csv_rows
from paged.workloads.request import Request
from paged.workloads.trace import Trace, find_file

USUAL = "azure/AzureLLMInferenceTrace_conv.csv"
ORIGIN = "https://github.com/Azure/AzurePublicDataset (AzureLLMInferenceTrace_conv.csv, CC-BY-4.0)"


class Azure(Trace):
    """Columns TIMESTAMP, ContextTokens, GeneratedTokens.

    Args:
        path: the .csv file; None looks for it (see `find_file`).
        shaping: see `Trace`.
    """

    def __init__(self, *, path: str | None = None, **shaping) -> None:
        super().__init__(read(find_file(path, USUAL, ORIGIN)), **shaping)


def read(path: Path) -> Iterator[Request]:
    rows = csv_rows(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    for number, (where, row) in enumerate(rows):
        try:
            time = datetime.fromisoformat(row["TIMESTAMP"])
        except ValueError as error:
            raise ValueError(f"workload.path: {where}: TIMESTAMP ({error})") from error
        arrival = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        prompt_len = max(1, count(where, row, "ContextTokens"))
        output_len = max(1, count(where, row, "GeneratedTokens"))
        yield Request(arrival, ((2 * number, prompt_len),), output_len, output=2 * number + 1)
