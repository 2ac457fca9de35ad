"""Text to token ids and back: a thin wrapper around transformers, and streaming detokenization."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 4  # of the prompt, so that a continuation keeps its first space
LONGEST_CHARACTER = 16  # tokens, generously; more without a complete character is no text
REPLACEMENT = "\ufffd"  # what bytes that are no character decode to


class Tokenizer:
    """Encodes and decodes; `hf` is the transformers tokenizer."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf

    @property
    def eos_id(self) -> int | None:
        return self.hf.eos_token_id

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.hf.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; ids the tokenizer has no entry for (padded vocabularies) are ""."""
        return self.hf.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )

    def chat_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Raises ValueError if the model has no chat template, or the template refuses the messages.
        """
        if not self.hf.chat_template:
            raise ValueError(
                "chat needs a tokenizer with a chat template, and this model's has none; "
                "use an instruction-tuned model, or generate from plain text"
            )
        try:
            return self.hf.apply_chat_template(
                list(messages), tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # templates raise whatever their author chose
            raise ValueError(
                f"messages must be dictionaries with role and content that the model's chat "
                f"template accepts: {error}"
            ) from error


def load_tokenizer(path: str | Path | None) -> Tokenizer | None:
    """The tokenizer of a model folder or GGUF file; None for a model without one.

    Raises ValueError if its files are missing or damaged.
    """
    if path is None:
        return None
    from transformers import AutoTokenizer

    path = Path(path)
    try:
        if path.suffix == ".gguf":
            return Tokenizer(AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
        return Tokenizer(AutoTokenizer.from_pretrained(path))
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise ValueError(f"cannot load the tokenizer of {path}: {error}") from error


class IncrementalDecoder:
    """Text of a growing list of tokens, in pieces that join to the whole.

    Only a window of tokens is ever decoded, so a token costs the same however long the text is:

        [0, boundary) is out, there as context | [boundary, end) is held back

    The window begins and is cut where characters are complete: half a character in front would
    spoil what follows. Joined, the pieces are `decode(prompt + tokens)` without the prompt's text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._window: list[int]
        self._boundary: int
        self._sent: int  # characters of the window that are out
        self._keep(_context(tokenizer, prompt_ids))

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that the next tokens complete; may be empty."""
        token_ids = list(token_ids)
        if len(token_ids) > LONGEST_CHARACTER:
            text = self.tokenizer.decode(self._window + token_ids)
            if REPLACEMENT not in text:  # whole characters: token by token makes the same of them
                piece = text[self._sent :]
                self._keep(_context(self.tokenizer, token_ids))
                return piece
        return "".join(map(self._add_one, token_ids))

    def _add_one(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self.tokenizer.decode(self._window)
        num_held = len(self._window) - self._boundary
        if text.endswith(REPLACEMENT) and num_held < LONGEST_CHARACTER:
            return ""
        piece = text[self._sent :]
        self._keep(self._window[self._boundary :])
        return piece

    def _keep(self, window: list[int]) -> None:
        """What these tokens say is out; go on behind them."""
        self._window, self._boundary = window, len(window)
        self._sent = len(self.tokenizer.decode(window))

    def finish(self) -> str:
        """What is left when no more tokens come: an incomplete character, as U+FFFD."""
        text = self.tokenizer.decode(self._window)
        rest, self._sent = text[self._sent :], len(text)
        return rest


def _context(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens of the prompt, from where a character begins."""
    for num_tokens in range(CONTEXT_TOKENS, LONGEST_CHARACTER):
        context = list(prompt_ids[-num_tokens:])
        if REPLACEMENT not in tokenizer.decode(context):
            return context
    return list(prompt_ids[-CONTEXT_TOKENS:])
