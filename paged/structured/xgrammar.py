"""Grammars by XGrammar (Dong et al., 2024): JSON schema, regular expressions, choices, GBNF.

Compiles a grammar ahead of the request, with masks of the states that need no context; the
compiler keeps what it has compiled.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from paged.kernels.logit_edits import mask_words
from paged.request import StructuredOutputsParams
from paged.structured.base import Grammar, GrammarCompiler
from paged.tokenizer import Tokenizer


class XGrammar(GrammarCompiler):
    """Args: vocab_size: of the model, which may be padded; eos_ids: what ends an output."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.tokenizer, self.vocab_size, self.eos_ids = tokenizer, vocab_size, list(eos_ids)
        self._compiler: Any = None  # made when first needed

    def compile(self, wanted: StructuredOutputsParams) -> Grammar:
        try:
            import xgrammar
        except ImportError as error:
            raise ValueError(
                "grammars=paged.structured.xgrammar.XGrammar needs xgrammar; pip install xgrammar"
            ) from error
        if not self.eos_ids:
            raise ValueError("structured_outputs needs a model with an end-of-sequence token")
        if self._compiler is None:
            info = xgrammar.TokenizerInfo.from_huggingface(
                self.tokenizer.hf, vocab_size=self.vocab_size, stop_token_ids=self.eos_ids
            )
            self._compiler = xgrammar.GrammarCompiler(info)
        try:
            compiled = _compiled(self._compiler, wanted)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"structured_outputs.{wanted.kind}: {error}") from error
        return Matcher(xgrammar.GrammarMatcher(compiled), mask_words(self.vocab_size))


def _compiled(compiler: Any, wanted: StructuredOutputsParams) -> Any:
    if wanted.json_object or wanted.json is not None:
        schema: Any = {"type": "object"} if wanted.json_object else wanted.json
        text = schema if isinstance(schema, str) else json.dumps(schema)
        # Not strict: properties that the schema does not name are allowed, as it says.
        spaces = not wanted.disable_any_whitespace
        return compiler.compile_json_schema(text, any_whitespace=spaces, strict_mode=False)
    if wanted.choice is not None:
        return compiler.compile_grammar("root ::= " + " | ".join(map(json.dumps, wanted.choice)))
    if wanted.regex is not None:
        return compiler.compile_regex(wanted.regex)
    return compiler.compile_grammar(wanted.grammar)


class Matcher(Grammar):
    """One output's place in its grammar."""

    def __init__(self, matcher: Any, num_words: int) -> None:
        self.matcher, self.num_words = matcher, num_words

    def accept(self, token: int) -> bool:
        return self.matcher.accept_token(token)

    def mask(self) -> np.ndarray:
        words = np.zeros((1, self.num_words), np.int32)
        self.matcher.fill_next_token_bitmask(words)
        return words[0]
