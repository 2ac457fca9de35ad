"""Bad words given as text, as the sequences of tokens that the engine forbids."""

import dataclasses
from collections.abc import Sequence

from paged.request import SamplingParams
from paged.tokenizer import Tokenizer


def with_bad_word_ids(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """`params` with every bad word as token ids.

    A word is forbidden as it is written at the beginning of a text and, as in vLLM, behind a space,
    unless that is a space and the same tokens.
    """
    if not any(isinstance(word, str) for word in params.bad_words):
        return params
    sequences: list[Sequence[int]] = []
    for word in params.bad_words:
        if not isinstance(word, str):
            sequences.append(word)
            continue
        bare = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        sequences.append(bare)
        if spaced[-len(bare) :] != bare:
            sequences.append(spaced)
    return dataclasses.replace(params, bad_words=sequences)
