"""ShareGPT conversations: turns that repeat what was said before, from texts or from lengths."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from paged.tokenizer import Tokenizer, load_tokenizer
from paged.workloads.arrivals import arrival_times
from paged.workloads.files import count, csv_rows
from paged.workloads.request import Request, Span
from paged.workloads.trace import Trace, find_file

USUAL = "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json"
ORIGIN = (
    "https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered, or give a .csv "
    "with the columns conv, turn, role (h or g) and tokens"
)
HUMAN = ("human", "user", "h")
Message = tuple[str, int, str | None]  # role, tokens, text


class ShareGPT(Trace):
    """One request for each answer of each conversation.

    Args:
        path: a .json file of conversations, or a .csv of lengths (conv, turn, role, tokens);
            None looks for the usual .json (see `find_file`).
        tokenizer: folder of the model whose tokens are counted; a .json file needs it.
        turns: answers of a conversation at most; the first turn only is the usual benchmark.
        conversations: read at most so many of the file.
        rate, cv, bursts: when conversations begin, see `arrival_times`; None is all at once.
        think: mean seconds between an answer's expected end and the next turn (exponential).
        tpot: seconds a token that an answer is expected to take.
        shaping: see `Trace`.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        tokenizer: str | None = None,
        turns: int = 1,
        conversations: int | None = None,
        rate: float | None = None,
        cv: float = 1.0,
        bursts: Sequence[float] | None = None,
        think: float = 10.0,
        tpot: float = 0.02,
        seed: int = 0,
        **shaping,
    ) -> None:
        for name, value in (("turns", turns), ("conversations", conversations)):
            if value is not None and value < 1:
                raise ValueError(f"workload.{name} must be at least 1, got {value}")
        if think < 0 or tpot < 0:
            raise ValueError(f"workload.think and tpot must be at least 0, got {think}, {tpot}")
        file = find_file(path, USUAL, ORIGIN)
        if file.suffix == ".csv":
            chats = list(read_lengths(file))[:conversations]
        elif tokenizer is None:
            raise ValueError(
                f"workload.tokenizer: {file} holds texts, so name the folder of a model "
                f"whose tokens are counted"
            )
        else:
            chats = list(read_texts(file, load_tokenizer(tokenizer), conversations))
        rng = np.random.default_rng([seed, 20])
        times = arrival_times(rng, len(chats), rate, cv, bursts).tolist() if chats else []
        requests = [
            request
            for number, (chat, start) in enumerate(zip(chats, times))
            for request in _turns(chat, start, number, turns, rng, think, tpot)
        ]
        super().__init__(requests, seed=seed, **shaping)


def _turns(
    chat: list[Message],
    start: float,
    number: int,
    turns: int,
    rng: np.random.Generator,
    think: float,
    tpot: float,
) -> Iterator[Request]:
    """The requests of one conversation; its messages are contents of their own."""
    spans: tuple[Span, ...] = ()
    arrival, asked = start, 0
    for place, (role, tokens, _) in enumerate(chat):
        content = (number << 20) + place
        if role not in HUMAN and spans and asked < turns and tokens:
            said = chat[0][2] if place == 1 else None  # later turns need a chat template
            yield Request(arrival, spans, tokens, output=content, text=said)
            arrival += tokens * tpot + float(rng.exponential(think))
            asked += 1
        if tokens:
            spans = (*spans, (content, tokens))


def read_lengths(path: Path) -> Iterator[list[Message]]:
    rows = csv_rows(path, ("conv", "turn", "role", "tokens"))
    for _, lines in groupby(rows, key=lambda line: line[1]["conv"]):
        yield [(row["role"], count(where, row, "tokens"), None) for where, row in lines]


def read_texts(
    path: Path, tokenizer: Tokenizer | None, limit: int | None
) -> Iterator[list[Message]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"workload.path: cannot read {path} ({error})") from error
    if not isinstance(entries, list):
        raise ValueError(f"workload.path: {path} must hold a list of conversations")
    for number, entry in enumerate(entries[:limit]):
        try:
            messages = [(str(m["from"]), str(m["value"])) for m in entry["conversations"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"workload.path: {path}, entry {number} must have conversations of "
                f'{{"from": ..., "value": ...}}'
            ) from error
        yield [(role, _tokens(tokenizer, text), text) for role, text in messages]


def _tokens(tokenizer: Tokenizer | None, text: str) -> int:
    ids = text.encode() if tokenizer is None else tokenizer.encode(text, add_special_tokens=False)
    return len(ids)
