"""Tokens of one growing output to text: characters whole, stop strings across tokens."""

from collections.abc import Sequence
from typing import Protocol

from paged.tokenizer import IncrementalDecoder, Tokenizer


class Decoder(Protocol):
    """Tokens of a growing list to text, in pieces that hold whole characters."""

    def add(self, token_ids: Sequence[int]) -> str: ...

    def finish(self) -> str: ...


class StopStrings:
    """Finds the first stop string in a growing text and holds back what may be its beginning.

        [ out | held: the longest suffix that begins a stop string ]

    Args:
        stops: none of them empty.
        include: a stop string that was met stays in the text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self.stops, self.include = tuple(stops), include
        self.met: str | None = None
        self._held = ""
        self._longest = max((len(stop) for stop in self.stops), default=1) - 1

    def add(self, text: str) -> str:
        """What is certain to be output of the text so far; `met` is set once a stop is complete."""
        if not self.stops:
            return text
        text = self._held + text
        found = [(at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.met = min(found, key=lambda pair: pair[0])
            self._held = ""
            return text[: at + len(self.met)] if self.include else text[:at]
        held = min(self._longest, len(text))
        while held and not any(stop.startswith(text[-held:]) for stop in self.stops):
            held -= 1
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest


class KeepSpecialTokens:
    """A tokenizer whose text shows special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)


class Detokenizer:
    """The text of one output.

    Args:
        tokenizer: None leaves every text empty.
        prompt_ids: what the output continues.
        stop: strings that end it.
        include_stop: keep the one that was met.
        min_tokens: stop strings are not looked for before this many tokens.
        skip_special_tokens: leave them out of the text.
        decoder: what makes text of tokens; None is one that works with any tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        decoder: Decoder | None = None,
    ) -> None:
        self.num_tokens = 0
        self._min_tokens = min_tokens
        self._stops = StopStrings(stop, include_stop)
        self._decoder = decoder
        if tokenizer is not None and decoder is None:
            shown = tokenizer if skip_special_tokens else KeepSpecialTokens(tokenizer)
            self._decoder = IncrementalDecoder(shown, prompt_ids)  # type: ignore[arg-type]

    @property
    def stop_met(self) -> str | None:
        return self._stops.met

    def add(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """(text, tokens taken): fewer than given if a stop string was met within them."""
        if self._decoder is None or not self._stops.stops:
            self.num_tokens += len(token_ids)
            text = "" if self._decoder is None else self._decoder.add(token_ids)
            return text, len(token_ids)
        pieces = []
        for taken, token_id in enumerate(token_ids, start=1):
            self.num_tokens += 1
            text = self._decoder.add((token_id,))
            if self.num_tokens > self._min_tokens:
                text = self._stops.add(text)
            pieces.append(text)
            if self._stops.met is not None:
                return "".join(pieces), taken
        return "".join(pieces), len(token_ids)

    def finish(self) -> str:
        """The rest, when no more tokens come: an incomplete character, held-back text.

        Even the incomplete character may complete a stop string, so it passes by the search too.
        """
        if self._decoder is None or self._stops.met is not None:
            return ""
        text = self._stops.add(self._decoder.finish())
        return text if self._stops.met is not None else text + self._stops.finish()
