"""The stages of speculation: proposals before the model runs, and their proof after the draw."""

from collections.abc import Sequence

from paged.interfaces import LogitsProcessor, Proposer
from paged.kernels.control.drafts import grant_drafts, verify_drafts
from paged.state import PagePool, RequestTable, Sizes, StepPlan


class DraftStage:
    """Launches nothing where the proposer proposes nothing.

    Args:
        proposer: None proposes nothing.
        processors: must be none with a proposer, for they see a request's tokens so far, and not
            the drafts that stand behind them in a row.

    Raises:
        ValueError: the sizes are for another number of drafts, or there are processors.
    """

    def __init__(
        self, proposer: Proposer | None, sizes: Sizes, processors: Sequence[LogitsProcessor] = ()
    ) -> None:
        drafts = 0 if proposer is None else proposer.num_draft_tokens
        if sizes.num_draft_tokens != drafts:
            raise ValueError(
                f"num_draft_tokens of the engine's sizes must be the proposer's, {drafts}, "
                f"got {sizes.num_draft_tokens}"
            )
        if drafts and processors:
            raise ValueError(
                "logits_processors must be empty with a proposer, since they do not know of draft "
                f"tokens, got {len(processors)} of them; use proposer=none"
            )
        self.proposer = proposer if drafts else None

    @property
    def capturable(self) -> bool:
        return self.proposer is None or self.proposer.capturable

    def propose(
        self, requests: RequestTable, pool: PagePool, plan: StepPlan, *, budget: int
    ) -> None:
        """Add drafts to a plan that the scheduler has made, up to `budget` tokens in all."""
        if self.proposer is not None:
            self.proposer.propose(requests, plan)
            grant_drafts(requests, pool, plan, budget=budget)

    def verify(self, requests: RequestTable, plan: StepPlan) -> None:
        """Take the drafts that were drawn as tokens."""
        if self.proposer is not None:
            verify_drafts(requests, plan)
