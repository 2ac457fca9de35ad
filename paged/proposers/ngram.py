"""Prompt lookup (Saxena, 2023): what followed the last tokens where they stood before."""

from paged.interfaces import Proposer
from paged.kernels.ngram_draft import LARGEST_NGRAM, ngram_draft
from paged.state import RequestTable, StepPlan

MOST_DRAFTS = 16


class NgramProposer(Proposer):
    """Proposes the tokens behind the first earlier occurrence of a sequence's last tokens.

    Args:
        num_draft_tokens: proposed at most; each costs a token of the step's budget, and memory for
            one more row of logits a sequence.
        prompt_lookup_max, prompt_lookup_min: tokens of the suffix to look for; the longest suffix
            that is found counts.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        num_draft_tokens: int = 4,
        prompt_lookup_max: int = 5,
        prompt_lookup_min: int = 2,
    ) -> None:
        if not 1 <= num_draft_tokens <= MOST_DRAFTS:
            raise ValueError(
                f"proposer.num_draft_tokens must be from 1 to {MOST_DRAFTS}, got "
                f"{num_draft_tokens}; proposer=none turns speculation off"
            )
        if not 1 <= prompt_lookup_min <= prompt_lookup_max <= LARGEST_NGRAM:
            raise ValueError(
                f"proposer.prompt_lookup_min and prompt_lookup_max must be from 1 to "
                f"{LARGEST_NGRAM}, the least first, got {prompt_lookup_min} and {prompt_lookup_max}"
            )
        self.num_draft_tokens = num_draft_tokens
        self.prompt_lookup_max, self.prompt_lookup_min = prompt_lookup_max, prompt_lookup_min

    def propose(self, requests: RequestTable, plan: StepPlan) -> None:
        ngram_draft(
            requests.token_ids, requests.total_len, plan.slot_sample, plan.seq_slots,
            plan.num_seqs, plan.draft_tokens, plan.num_drafts, self.prompt_lookup_min,
            self.prompt_lookup_max,
        )  # fmt: skip
