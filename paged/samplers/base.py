"""The sampler most ideas need: a score whose largest value over the kept tokens is the draw."""

from collections.abc import Callable

import torch

from paged.interfaces import Sampler
from paged.kernels.launch import is_kernel_function
from paged.kernels.sampling import sample
from paged.kernels.sampling_tiles import SampleWorkspace, sample_workspace
from paged.state import RequestTable, StepPlan


class ScoreSampler(Sampler):
    """Draws argmax of `score` over the tokens that min_tokens, min-p, top-k and top-p keep.

    Args:
        score: `@triton.jit` function `(logit, gumbel, temperature) -> float32`, elementwise over
            tokens. Greedy rows (temperature 0) get gumbel 0 and temperature 1.
    """

    def __init__(self, score: Callable) -> None:
        if not is_kernel_function(score):
            raise ValueError(f"sampler.score must be a @triton.jit function, got {score!r}")
        self.score = score
        self._workspaces: dict[tuple, SampleWorkspace] = {}

    def sample(self, logits: torch.Tensor, requests: RequestTable, plan: StepPlan) -> None:
        rows = logits.shape[0]
        offsets = plan.sample_offsets
        sample(
            logits, plan.sample_slots[:rows], plan.num_samples, requests.temperature,
            requests.top_k, requests.top_p, requests.min_p, requests.seed,
            requests.total_len, requests.stop_ids,
            requests.min_len, plan.sampled_tokens[:rows], plan.sampled_logprobs[:rows],
            self._workspace(plan.sample_slots.shape[0], logits), score=self.score,
            offsets=None if offsets is None else offsets[:rows],
        )  # fmt: skip

    def _workspace(self, max_rows: int, logits: torch.Tensor) -> SampleWorkspace:
        """Made on the first call for the largest step, and kept: captured graphs point to it."""
        key = (max_rows, logits.shape[1], logits.device)
        if key not in self._workspaces:
            self._workspaces[key] = sample_workspace(*key)
        return self._workspaces[key]
