"""Prompts from a file, one from the command line, or a dozen of our own."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paged.request import SamplingParams

OPENING = (
    "Once upon a time there was a little girl named Lily who lived in a small house near the big "
    "forest with her mother, her father and her little brown dog. One sunny morning she woke up "
    "early and ran out to the garden. "
)
# Four share an opening longer than a page; the last three find it if they are admitted later.
DEFAULT_PROMPTS = (
    OPENING + "There she saw",
    "Once upon a time",
    "The little dog ran to the",
    "Tom and his mother went to the",
    "The old man looked at the sea and",
    "Anna had a red ball. She",
    "It was raining, so the cat",
    "One day, a bird fell from the tree.",
    "Ben was sad because",
    OPENING + "She wanted to",
    OPENING + "Her dog",
    OPENING + "Then her mother said",
)
ENTRY_KEYS = ("prompt", "prompt_token_ids")


@dataclass(frozen=True)
class WorkItem:
    """One request: text or token ids, and the fields of `SamplingParams` it sets for itself."""

    prompt: str | list[int]
    sampling: dict[str, Any] = field(default_factory=dict)


class Prompts:
    """All prompts at once, in order.

    Args:
        path: a .jsonl file with an object a line ("prompt" or "prompt_token_ids", and any field of
            `SamplingParams`), or any other text file with a prompt a line; None for the built-in
            ones.
        prompt: this one instead.
        limit: only the first so many.
    """

    def __init__(
        self, *, path: str | None = None, prompt: str | None = None, limit: int | None = None
    ) -> None:
        if path is not None and prompt is not None:
            raise ValueError("workload.path and prompt cannot both be given")
        if limit is not None and limit < 1:
            raise ValueError(f"workload.limit must be at least 1, got {limit}")
        if path is not None:
            items = read_prompts(Path(path).expanduser())
        else:
            texts = DEFAULT_PROMPTS if prompt is None else (prompt,)
            items = [WorkItem(text) for text in texts]
        self.items = items[:limit]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self.items)


def read_prompts(path: Path) -> list[WorkItem]:
    """The prompts of a file; blank lines are skipped. Raises ValueError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"workload.path: cannot read {path} ({error})") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"workload.path: {path} holds no prompt")
    if path.suffix != ".jsonl":
        return [WorkItem(line) for _, line in numbered]
    return [_entry(line, f"{path}, line {number}") for number, line in numbered]


def _entry(line: str, where: str) -> WorkItem:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"workload.path: {where} is not JSON ({error})") from error
    given = [key for key in ENTRY_KEYS if isinstance(entry, dict) and key in entry]
    if len(given) != 1:
        keys = " or ".join(map(repr, ENTRY_KEYS))
        raise ValueError(f"workload.path: {where} must be an object with {keys}")
    prompt = entry.pop(given[0])
    ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not (ids if given[0] == "prompt_token_ids" else isinstance(prompt, str)):
        kind = "a list of ints" if given[0] == "prompt_token_ids" else "a string"
        raise ValueError(f"workload.path: {where}: {given[0]} must be {kind}, got {prompt!r}")
    unknown = sorted(set(entry) - set(SamplingParams.__dataclass_fields__))
    if unknown:
        raise ValueError(f"workload.path: {where}: no such key {', '.join(unknown)}")
    return WorkItem(prompt, entry)
