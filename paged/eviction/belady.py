"""Belady's rule (1966): the page that is used again last goes first. An upper bound.

It reads the future, so it runs where a recorded workload is replayed: `foresee` gets all prompts
in the order they will be submitted. A page's next use is the first prompt that begins with its
tokens and has not been admitted yet. In the tree of prefixes a page is needed no later than those
behind it, so the rule takes the ends of chains first.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from paged.eviction.base import ScoreEviction
from paged.kernels.control.hashing import mix_ref
from paged.state import FORKING, WAITING, PagePool, RequestTable

NEVER = 2**31 - 1


class Belady(ScoreEviction):
    """Decides on the host."""

    capturable = False

    def __init__(self) -> None:
        super().__init__(self.scores)
        self.requests: RequestTable | None = None

    def foresee(self, prompts: Iterable[Any], requests: RequestTable) -> None:
        """Index the pages of every prompt; number i of them has arrival ticket i."""
        keys = [prefix_keys(prompt, requests.sizes.page_size) for prompt in prompts]
        self.requests, self.count = requests, len(keys)
        lengths = np.array([len(key) for key in keys], dtype=np.int64)
        users = np.repeat(np.arange(self.count), lengths)
        named = np.concatenate([np.empty(0, np.int64), *keys])
        self.keys, contents = np.unique(named, return_inverse=True)
        self.uses = np.sort(contents * self.count + users)  # by content, then by prompt

    def scores(self, pool: PagePool) -> torch.Tensor:
        if self.requests is None:
            raise ValueError(
                "eviction=belady reads the future, so it needs a recorded workload: task=simulate"
            )
        arrival = self.requests.arrival.cpu().numpy()
        status = self.requests.status.cpu().numpy()
        cached = ((pool.ref_count == 0) & (pool.serial > 0)).nonzero().flatten()
        wanted = pool.content_hash[cached].cpu().numpy()
        next_use = np.full(len(wanted), NEVER)
        content = np.searchsorted(self.keys, wanted)
        known = (np.append(self.keys, 0)[content] == wanted) & (content < len(self.keys))
        next_use[known] = self._next_use(
            content[known], arrival[(status == WAITING) | (status == FORKING)], arrival.max()
        )
        scores = torch.zeros_like(pool.hits)
        scores[cached] = torch.from_numpy(-next_use).to(scores)
        return scores

    def _next_use(self, content: np.ndarray, waiting: np.ndarray, last: int) -> np.ndarray:
        """The first prompt to come with each content: one of `waiting`, or any after the `last`
        that has a slot."""
        to_come = np.arange(self.count + 1) > last
        to_come[waiting] = True
        at = np.searchsorted(self.uses, content * self.count + int(to_come.argmax()))
        while True:  # admitted out of order: passed over one by one
            use = np.append(self.uses, -1)[at]
            mine = use // self.count == content
            passed = mine & ~to_come[use % self.count]
            if not passed.any():
                return np.where(mine, use % self.count, NEVER)
            at = at + passed


def prefix_keys(prompt: Any, page_size: int) -> np.ndarray:
    """Keys [pages] int64 that the prefix table has for the pages a prompt [tokens] can find."""
    ids = torch.as_tensor(np.asarray(prompt), dtype=torch.int64)
    words = mix_ref(ids, torch.arange(len(ids))).cumsum(0)
    return words[page_size - 1 : len(ids) - 1 : page_size].numpy()
