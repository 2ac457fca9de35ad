"""The stage of a step between the model and the sampler, and the one right after the draw."""

from collections.abc import Sequence

import torch

from paged.interfaces import LogitsProcessor
from paged.kernels.logits import edit_logits, logits_workspace
from paged.kernels.report_draws import report_draws
from paged.state import PagePool, RequestTable, Sizes, StepPlan


class LogitsStage:
    """Changes logits as requests ask, and reports draws in terms of the model's own logits.

    Makes its memory at once: captured graphs point to it.
    """

    def __init__(
        self,
        sizes: Sizes,
        vocab_size: int,
        device: torch.device,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        self.processors = tuple(processors)
        self.workspace = logits_workspace(sizes.max_num_samples, vocab_size, device)

    def edit(self, logits: torch.Tensor, requests: RequestTable, plan: StepPlan) -> None:
        """Change `logits` [B, vocab] float32 in place; row i belongs to plan.sample_slots[i]."""
        rows = logits.shape[0]
        edit_logits(
            logits, plan.sample_slots[:rows], plan.num_samples, requests.columns,
            requests.sampling, requests.token_ids, requests.edits, requests.token_mask,
            self.workspace, keep_all=bool(self.processors),
        )  # fmt: skip
        for processor in self.processors:
            processor.process(logits, requests, plan)

    @property
    def capturable(self) -> bool:
        return all(processor.capturable for processor in self.processors)

    def report(
        self,
        logits: torch.Tensor,
        requests: RequestTable,
        pool: PagePool,
        plan: StepPlan,
        reports: torch.Tensor,
    ) -> None:
        """Settle `plan.sampled_tokens` and `plan.sampled_logprobs`, and write the top tokens."""
        rows = logits.shape[0]
        report_draws(
            logits, plan.sample_slots[:rows], plan.num_samples, requests.columns, pool.counters,
            requests.token_ids, plan.sampled_tokens[:rows], plan.sampled_logprobs[:rows],
            self.workspace, reports, keep_all=bool(self.processors),
        )  # fmt: skip
