"""No speculation: a step draws one token for each sequence."""

from paged.interfaces import Proposer
from paged.state import RequestTable, StepPlan


class NoProposer(Proposer):
    """Proposes nothing, and costs nothing: the stages of speculation are not launched."""

    num_draft_tokens = 0

    def propose(self, requests: RequestTable, plan: StepPlan) -> None:
        return
