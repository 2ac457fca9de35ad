"""What quality is measured on: prompts, texts that go on, and needles in them."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paged.request import SamplingParams
from paged.tokenizer import Tokenizer
from paged.workloads.prompts import WorkItem

CITIES = ("Oakville", "Riverton", "Springdale", "Lakewood", "Fairview")
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
NEEDLE = "\nThe secret number of {city} is {number}.\n"
QUESTION = (
    "\nQuestion: What is the secret number of {city}?\nAnswer: The secret number of {city} is"
)
ANSWER_TOKENS = 12


@dataclass(frozen=True)
class Case:
    """A prompt, and how the configuration continues it.

    Args:
        following: how the text goes on; None where there is only a prompt.
    """

    prompt_ids: list[int]
    params: SamplingParams
    following: list[int] | None = None


@dataclass(frozen=True)
class Needle:
    """A prompt that hides a number and asks for it."""

    prompt_ids: list[int]
    number: str


def cases_of_workload(
    tokenizer: Tokenizer | None, workload: Iterable[WorkItem], sampling: SamplingParams
) -> list[Case]:
    """The workload's prompts. Raises ValueError for one whose output has no bound."""
    cases = []
    for item in workload:
        params = replace(sampling, **item.sampling)
        _check_bound(params)
        prompt = item.prompt
        if isinstance(prompt, str):
            prompt = tokenizer.encode(prompt) if tokenizer else list(prompt.encode())
        cases.append(Case(list(prompt), params))
    if not cases:
        raise ValueError("workload: there is no prompt")
    return cases


def cases_of_text(
    tokenizer: Tokenizer,
    path: str,
    sampling: SamplingParams,
    *,
    num_prompts: int,
    prompt_len: int,
    seed: int,
) -> list[Case]:
    """Stretches of a file, drawn by the seed: `prompt_len` tokens, then as many as are sampled."""
    for name, value in (("num_prompts", num_prompts), ("prompt_len", prompt_len)):
        if value < 1:
            raise ValueError(f"task.{name} must be at least 1, got {value}")
    output_len = _check_bound(sampling)
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"task.text: cannot read {path} ({error})") from error
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.encode(text[:64])
    head = whole[: len(whole) - len(tokenizer.encode(text[:64], add_special_tokens=False))]  # BOS
    room = len(ids) - prompt_len - output_len
    if room < 0:
        raise ValueError(
            f"task.text: {path} has {len(ids)} tokens, fewer than prompt_len + "
            f"sampling.max_tokens = {prompt_len + output_len}"
        )
    starts = np.random.default_rng([seed, 5]).integers(room + 1, size=num_prompts)
    cases = []
    for start in starts.tolist():
        middle = start + prompt_len - len(head)
        cases.append(Case([*head, *ids[start:middle]], sampling, ids[middle : middle + output_len]))
    return cases


def hide_needles(
    tokenizer: Tokenizer, cases: Sequence[Case], count: int, seed: int
) -> list[Needle]:
    """`count` prompts as long as those of the cases, a number hidden at each depth in turn.

    After Kamradt, "Needle in a Haystack" (2023); the prompt ends where the number is due.
    """
    rng = random.Random(seed)
    found = []
    for place in range(count):
        filler = cases[place % len(cases)].prompt_ids
        city, number = rng.choice(CITIES), str(rng.randrange(1000, 10000))
        hidden, asked = (
            tokenizer.encode(text.format(city=city, number=number), add_special_tokens=False)
            for text in (NEEDLE, QUESTION)
        )
        kept = filler[: max(0, len(filler) - len(hidden) - len(asked))]
        at = round(DEPTHS[place % len(DEPTHS)] * len(kept))
        found.append(Needle([*kept[:at], *hidden, *kept[at:], *asked], number))
    return found


def _check_bound(params: SamplingParams) -> int:
    if params.max_tokens is None:
        raise ValueError("sampling.max_tokens must be given: quality is measured on so many tokens")
    return params.max_tokens
