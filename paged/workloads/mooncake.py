"""Mooncake's traces (Qin et al., FAST 2025): times, lengths, and which prefixes are equal.

`hash_ids` names each block of 512 prompt tokens by the prompt up to its end: equal names are equal
prefixes. Answers are not named, so they are found by nobody.
"""

from collections.abc import Iterator
from pathlib import Path

from paged.workloads.files import count, json_rows, seconds
from paged.workloads.request import Request
from paged.workloads.trace import Trace, find_file

USUAL = "mooncake/conversation_trace.jsonl"
ORIGIN = "https://github.com/kvcache-ai/Mooncake (FAST25-release/traces, Apache-2.0)"
BLOCK = 512  # prompt tokens of one name
ANSWERS = 1 << 40  # names of answers, above all of the file's


class Mooncake(Trace):
    """Objects with timestamp (ms), input_length, output_length and hash_ids.

    Args:
        path: the .jsonl file; None looks for it (see `find_file`).
        shaping: see `Trace`. Prefer `limit` to `fraction`: thinning removes reuse.
    """

    def __init__(self, *, path: str | None = None, **shaping) -> None:
        super().__init__(read(find_file(path, USUAL, ORIGIN)), **shaping)


def read(path: Path) -> Iterator[Request]:
    for number, (where, row) in enumerate(json_rows(path)):
        prompt_len = count(where, row, "input_length", least=1)
        names = row.get("hash_ids")
        blocks = -(-prompt_len // BLOCK)
        if not isinstance(names, list) or len(names) < blocks:
            raise ValueError(
                f"workload.path: {where}: hash_ids must name {blocks} blocks of {BLOCK} tokens, "
                f"got {names!r}"
            )
        spans = tuple(
            (int(name), min(BLOCK, prompt_len - index * BLOCK))
            for index, name in enumerate(names[:blocks])
        )
        output_len = max(1, count(where, row, "output_length"))
        arrival = seconds(where, row, "timestamp") / 1000
        yield Request(arrival, spans, output_len, output=ANSWERS + number)
