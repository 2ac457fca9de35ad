"""The stage of a step that chooses beams, after the draw and before the rows are advanced."""

import torch

from paged.kernels.beam_candidates import beam_candidates, beam_workspace
from paged.kernels.control.beam_repoint import beam_repoint
from paged.kernels.control.beam_select import beam_select
from paged.kernels.copy_pages import copy_pages
from paged.state import PagePool, RequestTable, StepPlan


class BeamStage:
    """Makes its memory with the first choice and keeps it: captured graphs point to it."""

    def __init__(self) -> None:
        self._workspace: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def choose(
        self,
        logits: torch.Tensor,
        requests: RequestTable,
        pool: PagePool,
        plan: StepPlan,
        pages: torch.Tensor,
    ) -> None:
        """Settle which sequence each beam of this step goes on with, by `logits` [B, vocab].

        Writes the beams' tokens to `plan.sampled_tokens`, ends the groups that are done, and moves
        and copies `pages` [planes, N, elements of a page].
        """
        rows = logits.shape[0]
        if self._workspace is None:
            self._workspace = beam_workspace(
                plan.sizes.max_num_samples, logits.shape[1], logits.device
            )
        beam_candidates(
            logits, plan.sample_slots[:rows], plan.num_samples, requests.columns,
            requests.temperature, requests.stop_ids, self._workspace, plan.beam_tokens,
            plan.beam_logprobs,
        )  # fmt: skip
        beam_select(requests, plan)
        beam_repoint(requests, pool, plan)
        copy_pages(pages, plan.copy_beam_source, plan.copy_beam_target, plan.num_beam_copies)
