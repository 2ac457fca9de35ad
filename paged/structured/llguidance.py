"""Grammars by llguidance (Microsoft, 2025): JSON schema, regular expressions, choices, Lark, GBNF.

It walks the tokenizer's trie in Rust, tens of microseconds a mask, and needs nothing compiled in
advance.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from paged.kernels.logit_edits import mask_words
from paged.request import StructuredOutputsParams
from paged.structured.base import Grammar, GrammarCompiler
from paged.tokenizer import Tokenizer


class LLGuidance(GrammarCompiler):
    """Args: vocab_size: of the model, which may be padded; eos_ids: what ends an output."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.tokenizer, self.vocab_size, self.eos_ids = tokenizer, vocab_size, list(eos_ids)
        self._tokens: Any = None  # llguidance's view of the tokenizer, made when first needed

    def compile(self, wanted: StructuredOutputsParams) -> Grammar:
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise ValueError(
                "structured_outputs needs llguidance; pip install 'paged[structured]'"
            ) from error
        if not self.eos_ids:
            raise ValueError("structured_outputs needs a model with an end-of-sequence token")
        if self._tokens is None:
            self._tokens = llguidance.hf.from_tokenizer(
                self.tokenizer.hf, n_vocab=self.vocab_size, eos_token=self.eos_ids
            )
        try:
            grammar = _source(llguidance, wanted)
        except ValueError as error:
            raise ValueError(f"structured_outputs.{wanted.kind}: {error}") from error
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"structured_outputs.{wanted.kind}: {matcher.get_error()}")
        return Matcher(matcher, mask_words(self.vocab_size))


def _source(llguidance: Any, wanted: StructuredOutputsParams) -> str:
    """The grammar in llguidance's own form."""
    if wanted.json_object or wanted.json is not None:
        schema: Any = {"type": "object"} if wanted.json_object else wanted.json
        text = schema if isinstance(schema, str) else json.dumps(schema)
        flexible = {"whitespace_flexible": not wanted.disable_any_whitespace}
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=flexible)
    if wanted.choice is not None:
        return llguidance.grammar_from("choice", json.dumps(list(wanted.choice)))
    if wanted.regex is not None:
        return llguidance.grammar_from("regex", wanted.regex)
    return llguidance.grammar_from("grammar", wanted.grammar)


class Matcher(Grammar):
    """One output's place in its grammar."""

    def __init__(self, matcher: Any, num_words: int) -> None:
        self.matcher, self.num_words = matcher, num_words

    def accept(self, token: int) -> bool:
        return self.matcher.consume_token(token)

    def mask(self) -> np.ndarray:
        return np.frombuffer(self.matcher.compute_bitmask(), np.int32)[: self.num_words]
