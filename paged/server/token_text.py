"""Single tokens as text and as bytes: for logprobs, and for detokenizing without the tokenizer."""

import codecs
from collections.abc import Sequence

from tokenizers.decoders import ByteLevel

from paged.tokenizer import Tokenizer

CONTEXT_TOKENS = 4  # of the prompt: no character is longer in bytes


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes every byte as a printable character (GPT-2, Radford et al., 2019):
    itself where it is one, else the next character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update({chr(0x100 + place): byte for place, byte in enumerate(hidden)})
    return characters


class TokenText:
    """What a token stands for. Tokens are looked up once and kept."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(() if tokenizer is None else tokenizer.hf.all_special_ids)
        self._bytes: dict[int, bytes] = {}
        self._byte_of = _byte_of_character()
        backend = getattr(getattr(tokenizer, "hf", None), "backend_tokenizer", None)
        self._byte_level = isinstance(getattr(backend, "decoder", None), ByteLevel)

    def is_special(self, texts: Sequence[str]) -> bool:
        """Whether any of these is a special token."""
        if self.tokenizer is None:
            return False
        return not set(texts).isdisjoint(self.tokenizer.hf.all_special_tokens)

    def decoder(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool
    ) -> "ByteDecoder | None":
        """A fast decoder for the continuation of a prompt; None if the tokenizer needs its own."""
        return ByteDecoder(self, prompt_ids, skip_special_tokens) if self._byte_level else None

    def bytes_of(self, token_id: int) -> bytes:
        """UTF-8 of the token, which may begin or end inside a character; empty if unknown."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._look_up(token_id)
        return found

    def text_of(self, token_id: int) -> str:
        """The token as OpenAI shows it: its text, or bytes:\\x.. where that is no whole one."""
        data = self.bytes_of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _look_up(self, token_id: int) -> bytes:
        if self.tokenizer is None:
            return b""
        token = self.tokenizer.hf.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            return b""
        if self._byte_level:
            known = all(character in self._byte_of for character in token)
            return bytes(map(self._byte_of.__getitem__, token)) if known else token.encode()
        if token_id in self.special:
            return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        if token.startswith("\u2581"):  # a word mark, which decoding drops at the beginning
            return token.replace("\u2581", " ").encode()
        return self.tokenizer.decode([token_id], skip_special_tokens=False).encode()


class ByteDecoder:
    """Text of a continuation, for tokenizers whose tokens are bytes (GPT-2, Llama 3, Qwen).

    A token costs a look-up. Bytes that are no character come out as U+FFFD, as the tokenizer has
    it; the end of the prompt goes through first, for a character that it may have begun.
    """

    def __init__(
        self, tokens: TokenText, prompt_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._bytes_of = tokens.bytes_of
        self._hidden = tokens.special if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.add(prompt_ids[-CONTEXT_TOKENS:])

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that the next tokens complete; may be empty."""
        hidden, bytes_of = self._hidden, self._bytes_of
        return self._utf8.decode(b"".join([bytes_of(t) for t in token_ids if t not in hidden]))

    def finish(self) -> str:
        """What is left when no more tokens come."""
        return self._utf8.decode(b"", final=True)
