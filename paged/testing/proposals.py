"""Proposals that are often right, for tests of what becomes of them."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from paged.interfaces import Proposer
from paged.state import RequestTable, StepPlan

Continuation = Callable[[Sequence[int], int], Sequence[int]]  # (tokens, count) -> what follows


class KnowingProposer(Proposer):
    """Proposes up to `num_draft_tokens` of what follows, each token wrong with a chance; on the
    host.

    Args:
        continuation: of a sequence's tokens.
        wrong: how probable it is that a token is another.
        vocab_size: of which wrong tokens are.
    """

    capturable = False

    def __init__(
        self,
        continuation: Continuation,
        *,
        num_draft_tokens: int = 3,
        wrong: float = 0.25,
        vocab_size: int = 64,
        seed: int = 0,
    ) -> None:
        self.continuation = continuation
        self.num_draft_tokens, self.wrong, self.vocab_size = num_draft_tokens, wrong, vocab_size
        self.rng = random.Random(seed)

    def propose(self, requests: RequestTable, plan: StepPlan) -> None:
        for seq, slot in enumerate(plan.seq_slots[: int(plan.num_seqs)].tolist()):
            known = requests.token_ids[slot, : int(requests.total_len[slot])].tolist()
            count = self.rng.randint(0, self.num_draft_tokens)
            drafts = [
                self.rng.randrange(self.vocab_size) if self.rng.random() < self.wrong else token
                for token in self.continuation(known, count)
            ]
            plan.num_drafts[seq] = len(drafts)
            plan.draft_tokens[seq, : len(drafts)] = torch.tensor(drafts, dtype=torch.int32)


def propose_alike(proposer: Proposer, sides: Sequence[Any]) -> None:
    """Propose the same to every side of a comparison (see sides.py)."""
    first, *others = sides
    proposer.propose(first.requests, first.plan)
    for side in others:
        side.plan.num_drafts.copy_(first.plan.num_drafts)
        side.plan.draft_tokens.copy_(first.plan.draft_tokens)
