"""From sampling parameters to the words by which the device changes a request's logits."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from paged.kernels import logit_edits as layout
from paged.request import SamplingParams

MAX_BIAS = layout.MAX_BIAS.value
MAX_BAD_WORDS = layout.MAX_BAD_WORDS.value
BAD_WORD_TOKENS = layout.BAD_WORD_TOKENS.value


@dataclass(frozen=True)
class Edits:
    """What a request changes of its logits; see `paged.kernels.logit_edits`."""

    asked: int = 0  # EDIT_* bits
    words: np.ndarray | None = None  # [WORDS] int32, if it has a bias or bad words
    mask: np.ndarray | None = None  # [vocab / 32] int32, if it forbids tokens from the start


NO_EDITS = Edits()


class TokenMask(NamedTuple):
    """The tokens that the request in a slot may draw when it is `length` tokens long."""

    slot: int
    length: int
    mask: np.ndarray  # see mask_of


def edits_of(params: SamplingParams, vocab_size: int) -> Edits:
    """Raises ValueError if something does not fit its place or the vocabulary."""
    asked, mask = 0, None
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    if penalties != (1, 0, 0):
        asked |= layout.EDIT_PENALTIES.value
    bias, bad_words = params.logit_bias or {}, params.bad_words or ()
    words = np.zeros(layout.WORDS, np.int32) if bias or bad_words else None
    if words is not None and bias:
        asked |= layout.EDIT_BIAS.value
        _put_bias(words, bias, vocab_size)
    if words is not None and bad_words:
        asked |= layout.EDIT_BAD_WORDS.value
        _put_bad_words(words, bad_words, vocab_size)
    if params.allowed_token_ids is not None:
        asked |= layout.EDIT_MASK.value
        _check_ids("allowed_token_ids", params.allowed_token_ids, vocab_size)
        mask = mask_of(params.allowed_token_ids, vocab_size)
    if params.forced_token_ids:
        asked |= layout.EDIT_FORCED.value
        _check_ids("forced_token_ids", params.forced_token_ids, vocab_size)
    return Edits(asked, words, mask) if asked else NO_EDITS


def mask_of(token_ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """The mask that allows these tokens, a bit a token: [vocab / 32] int32."""
    bits = np.zeros(32 * layout.mask_words(vocab_size), np.uint8)
    bits[np.fromiter(token_ids, np.int64)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def _put_bias(words: np.ndarray, bias: dict[int, float], vocab_size: int) -> None:
    if len(bias) > MAX_BIAS:
        raise ValueError(f"logit_bias can name at most {MAX_BIAS} tokens, got {len(bias)}")
    _check_ids("logit_bias", bias, vocab_size)
    words[0] = len(bias)
    words[layout.BIAS_IDS.value :][: len(bias)] = list(bias)
    words[layout.BIAS.value :][: len(bias)] = np.array([*bias.values()], np.float32).view(np.int32)


def _put_bad_words(words: np.ndarray, bad_words: Sequence, vocab_size: int) -> None:
    if len(bad_words) > MAX_BAD_WORDS:
        raise ValueError(
            f"bad_words can name at most {MAX_BAD_WORDS} sequences of tokens, got {len(bad_words)}"
        )
    words[1] = len(bad_words)
    table = words[layout.BAD_WORDS.value :].reshape(MAX_BAD_WORDS, BAD_WORD_TOKENS)
    table.fill(-1)
    for line, tokens in zip(table, bad_words):
        if isinstance(tokens, str):
            raise ValueError(
                f"bad_words must be token ids where there is no tokenizer, got {tokens!r}"
            )
        if not 1 <= len(tokens) <= BAD_WORD_TOKENS:
            raise ValueError(
                f"a bad word must have from 1 to {BAD_WORD_TOKENS} tokens, got {list(tokens)}"
            )
        _check_ids("bad_words", tokens, vocab_size)
        line[-len(tokens) :] = tokens


def _check_ids(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    if len(token_ids) == 0 or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
    raise ValueError(f"{name} must be token ids in [0, {vocab_size}), the vocabulary, got {wrong}")
