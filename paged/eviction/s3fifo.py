"""S3-FIFO (Yang et al., SOSP 2023): a small queue for newcomers, a main queue, and ghosts.

Newcomers enter the small queue, a tenth of the pages; those that were hit more than once when they
leave it move to the main queue, the others are evicted and remembered as ghosts. What is published
again while it is a ghost enters the main queue at once. The main queue is FIFO, and a page that was
hit goes round again for each hit, at most three times.

An eviction takes many pages at once; pages of the same visit stand at the same place.
"""

import torch

from paged.eviction.base import ScoreEviction
from paged.state import PagePool, next_power_of_2

FAR = 1 << 28


class S3FIFO(ScoreEviction):
    """Keeps each page's queue, place and hits already spent, and a table of ghosts.

    Args:
        small: share of the pages for the small queue.
    """

    def __init__(self, *, small: float = 0.1) -> None:
        if not 0 < small < 1:
            raise ValueError(f"eviction.small must be in (0, 1), got {small}")
        super().__init__(self.scores)
        self.small = small
        self.known: torch.Tensor | None = None  # [N] serial of what a page held at the last look

    def _begin(self, pool: PagePool) -> torch.Tensor:
        pages = pool.sizes.num_pages
        self.main = torch.zeros_like(pool.serial, dtype=torch.bool)
        self.place, self.spent = torch.zeros_like(pool.hits), torch.zeros_like(pool.hits)
        self.turn = self.place.new_zeros(())  # evictions so far: where newcomers stand
        self.num_ghosts = pool.serial.new_zeros(())  # ever
        self.ghosts = 4 * next_power_of_2(pages)
        self.ghost_key = pool.serial.new_zeros(self.ghosts + 1)  # the last takes what is no ghost
        self.ghost_time = torch.full_like(self.ghost_key, -pages)
        self.known = torch.zeros_like(pool.serial)
        return self.known

    def scores(self, pool: PagePool) -> torch.Tensor:
        known, pages = self._begin(pool) if self.known is None else self.known, pool.sizes.num_pages
        at, new = pool.content_hash & (self.ghosts - 1), pool.serial != known
        ghost = (self.ghost_key[at] == pool.content_hash) & (
            self.num_ghosts - self.ghost_time[at] <= pages
        )
        known.copy_(pool.serial)
        self.main.copy_(torch.where(new, ghost, self.main))
        self.place.copy_(torch.where(new, self.turn, self.place))
        self.spent.copy_(torch.where(new, 0, self.spent))
        in_small = (pool.serial > 0) & ~self.main
        places = torch.where(in_small, self.place, FAR).sort().values
        excess = (in_small.sum() - int(self.small * pages)).clamp(0, pages - 1)
        leaves = in_small & (excess > 0) & (self.place <= places[(excess - 1).clamp(min=0)])
        promoted = leaves & (pool.hits > 1)
        self.main |= promoted
        self.place.copy_(torch.where(promoted, self.turn, self.place))
        self.spent.copy_(torch.where(promoted, pool.hits, self.spent))
        hits = (pool.hits - self.spent).clamp(0, 3)
        queue = torch.where(self.main, hits, torch.where(leaves, -1, 4))
        return (queue * FAR + self.place).clamp(max=2**31 - 1).int()

    def settle(self, pool: PagePool) -> None:
        assert self.known is not None
        evicted = (self.known > 0) & (pool.serial == 0)
        ghost = evicted & ~self.main
        at = torch.where(ghost, pool.content_hash & (self.ghosts - 1), self.ghosts)
        self.num_ghosts += ghost.sum()
        self.ghost_key[at] = pool.content_hash
        self.ghost_time[at] = self.num_ghosts
        hand = torch.where(evicted & self.main, self.place, -1).max()
        again = self.main & (pool.hits > self.spent) & (self.place <= hand)
        self.turn += 1
        self.place.copy_(torch.where(again, self.turn, self.place))
        left = (pool.hits - self.spent).clamp(max=3) - 1
        self.spent.copy_(torch.where(again, pool.hits - left, self.spent))
