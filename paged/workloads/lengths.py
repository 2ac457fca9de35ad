"""Requests of given lengths, their tokens random: for measuring, not for reading."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from paged.workloads.prompts import WorkItem


class Lengths:
    """One request a pair of lengths, in order, all at once.

    Each pass over it draws new tokens, so a pass finds nothing of an earlier one in a prefix cache.

    Args:
        path: a .json file with a list of [prompt tokens, output tokens].
        num_requests: without a path, this many requests of
        input_len: so many prompt tokens, [low, high] drawn evenly if it is a pair, and
        output_len: so many output tokens, likewise.
        limit: only the first so many.
        vocab_size: token ids are drawn below it; the model's must not be smaller.
        seed: of lengths and tokens.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        num_requests: int = 64,
        input_len: int | Sequence[int] = 512,
        output_len: int | Sequence[int] = 128,
        limit: int | None = None,
        vocab_size: int = 2000,
        seed: int = 0,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"workload.limit must be at least 1, got {limit}")
        if num_requests < 1:
            raise ValueError(f"workload.num_requests must be at least 1, got {num_requests}")
        if vocab_size < 1:
            raise ValueError(f"workload.vocab_size must be at least 1, got {vocab_size}")
        self._random = random.Random(seed)
        self.vocab_size = vocab_size
        if path is not None:
            pairs = read_pairs(Path(path).expanduser())
        else:
            inputs = _bounds("input_len", input_len)
            outputs = _bounds("output_len", output_len)
            draw = self._random.randint
            pairs = [(draw(*inputs), draw(*outputs)) for _ in range(num_requests)]
        self.pairs = pairs[:limit]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[WorkItem]:
        for prompt_len, output_len in self.pairs:
            ids = self._random.choices(range(self.vocab_size), k=prompt_len)
            yield WorkItem(ids, {"max_tokens": output_len})


def read_pairs(path: Path) -> list[tuple[int, int]]:
    """The pairs of a file. Raises ValueError naming the file and the entry that is wrong."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"workload.path: cannot read {path} ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"workload.path: {path} must hold a list of [prompt, output] lengths")
    for number, entry in enumerate(entries):
        pair = isinstance(entry, list) and len(entry) == 2
        if not pair or not all(type(length) is int and length >= 1 for length in entry):
            raise ValueError(
                f"workload.path: {path}, entry {number} must be two lengths from 1 up, "
                f"got {entry!r}"
            )
    return [(prompt_len, output_len) for prompt_len, output_len in entries]


def _bounds(name: str, length: int | Sequence[int]) -> tuple[int, int]:
    bounds = (length, length) if isinstance(length, int) else tuple(length)
    if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(
            f"workload.{name} must be a length from 1 up or [low, high], got {length!r}"
        )
    return bounds[0], bounds[1]
