"""CLOCK, or second chance (Corbato, 1968): FIFO that passes over pages hit since its last visit."""

import torch

from paged.eviction.base import ScoreEviction
from paged.state import PagePool


class Clock(ScoreEviction):
    """Keeps each page's place in the circle and the hits it had when the hand passed it."""

    def __init__(self) -> None:
        super().__init__(self.scores)
        self.known: torch.Tensor | None = None  # [N] serial of what a page held at the last look

    def scores(self, pool: PagePool) -> torch.Tensor:
        if self.known is None:
            self.known = torch.zeros_like(pool.serial)
            self.place, self.passed = torch.zeros_like(pool.hits), torch.zeros_like(pool.hits)
            self.turn = self.place.new_zeros(())  # evictions so far: where newcomers stand
        new = pool.serial != self.known
        self.known.copy_(pool.serial)
        self.place.copy_(torch.where(new, self.turn, self.place))
        self.passed.copy_(torch.where(new, 0, self.passed))
        return self.place + torch.where(pool.hits > self.passed, 1 << 30, 0).int()

    def settle(self, pool: PagePool) -> None:
        assert self.known is not None
        referenced = pool.hits > self.passed
        evicted = (self.known > 0) & (pool.serial == 0)
        hand = torch.where(evicted & ~referenced, self.place, -1).max()
        hand = torch.where((evicted & referenced).any(), self.turn, hand)  # it went all the way
        chance = referenced & (self.place <= hand)
        self.turn += 1
        self.place.copy_(torch.where(chance, self.turn, self.place))
        self.passed.copy_(torch.where(chance, pool.hits, self.passed))
