"""What the engine asks of a grammar, and how masks follow the tokens of the requests they bind.

A request with a grammar draws only from the tokens that its mask allows, and the mask of its next
token depends on the one it has just drawn. So the device holds such a row, and no other, until the
mask for its length has come with the commands of a later step; masks are made while the steps in
flight run.
"""

from abc import ABC, abstractmethod
from collections import deque

import numpy as np

from paged.edits import Edits, TokenMask, mask_of
from paged.kernels.logit_edits import EDIT_MASK
from paged.live_request import LiveRequest
from paged.request import StructuredOutputsParams


class Grammar(ABC):
    """Where one output is in its grammar."""

    @abstractmethod
    def accept(self, token: int) -> bool:
        """Go on by a token; False if the grammar does not allow it, and then nothing is known."""

    @abstractmethod
    def mask(self) -> np.ndarray:
        """The tokens allowed next, as `edits.mask_of` has them; at the end those that end it."""


class GrammarCompiler(ABC):
    """Makes grammars over one vocabulary."""

    @abstractmethod
    def compile(self, wanted: StructuredOutputsParams) -> Grammar:
        """A grammar at its beginning. Raises ValueError if `wanted` cannot be understood."""


class Constraints:
    """The live outputs that are bound by a grammar."""

    def __init__(self, compiler: GrammarCompiler | None, vocab_size: int) -> None:
        self.compiler, self.vocab_size = compiler, vocab_size
        self._grammars: dict[LiveRequest, Grammar] = {}
        self._due: deque[LiveRequest] = deque()

    def bind(self, group: list[LiveRequest]) -> None:
        """Bind the outputs of a request that asks for it, before any of them is submitted.

        Raises ValueError if the engine cannot serve it.
        """
        params = group[0].params
        wanted = params.structured_outputs
        if wanted is None:
            return
        if self.compiler is None:
            raise ValueError("structured_outputs needs a tokenizer, and this model has none")
        grammars = [self.compiler.compile(wanted) for _ in group]
        for live, grammar in zip(group, grammars):
            asked = live.edits.asked | EDIT_MASK.value
            live.edits = Edits(asked, live.edits.words, self._mask(live, grammar))
            live.is_bound = True
            self._grammars[live] = grammar

    def advance(self, touched: list[LiveRequest]) -> None:
        """Follow the tokens that a step has brought."""
        if not self._grammars:
            return
        for live in touched:
            grammar = self._grammars.get(live)
            if grammar is None:
                continue
            if live.slot < 0 or live.aborted:
                del self._grammars[live]
            elif grammar.accept(live.token_ids[-1]):
                self._due.append(live)
            else:  # a mask of nothing ends the output with an error
                self._grammars[live] = Dead(self.vocab_size)
                self._due.append(live)

    def take_masks(self, room: int) -> list[TokenMask]:
        """Masks that are due, at most `room`."""
        masks: list[TokenMask] = []
        while self._due and len(masks) < room:
            live = self._due.popleft()
            if live.slot >= 0 and not live.aborted:
                mask = self._mask(live, self._grammars[live])
                masks.append(TokenMask(live.slot, live.num_tokens, mask))
        return masks

    def forget(self, live: LiveRequest) -> None:
        """It has ended."""
        self._grammars.pop(live, None)

    def _mask(self, live: LiveRequest, grammar: Grammar) -> np.ndarray:
        allowed = live.params.allowed_token_ids
        mask = grammar.mask()
        return mask if allowed is None else mask & mask_of(allowed, self.vocab_size)


class Dead(Grammar):
    """Allows nothing."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def accept(self, token: int) -> bool:
        return False

    def mask(self) -> np.ndarray:
        return mask_of((), self.vocab_size)
