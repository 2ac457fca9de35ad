"""A researcher's own change of the logits, at the three levels of a policy.

They run in order on the rows of every request, after what the requests ask for themselves and
before the sampler, whose min_tokens holds whatever they do. Reported log-probabilities stay those
of the model.
"""

import inspect
from collections.abc import Callable

import torch

from paged.interfaces import LogitsProcessor
from paged.kernels.launch import is_kernel_function
from paged.kernels.map_logits import map_logits
from paged.state import RequestTable, StepPlan


class TritonLogitsProcessor(LogitsProcessor):
    """Inlines a @triton.jit function `(logit, token_id, row) -> logit`, elementwise over tokens."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def process(self, logits: torch.Tensor, requests: RequestTable, plan: StepPlan) -> None:
        slots = plan.sample_slots[: logits.shape[0]]
        map_logits(logits, slots, plan.num_samples, requests.columns, self.function)


class TorchLogitsProcessor(LogitsProcessor):
    """A function `(logits, requests, plan) -> None` of static-shape torch operations in place.

    `logits` is [B, vocab] float32, row i of slot `plan.sample_slots[i]`; those from
    `plan.num_samples` on hold anything.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function

    def process(self, logits: torch.Tensor, requests: RequestTable, plan: StepPlan) -> None:
        self.function(logits, requests, plan)


class HostLogitsProcessor(LogitsProcessor):
    """A function `(prompt_ids, output_ids, logits) -> logits` of one request, on the host.

    Ids are lists, logits [vocab] float32 on the device. Costs a synchronisation a step and a launch
    or more a request, and the step cannot be captured: engine=eager.
    """

    capturable = False

    def __init__(self, function: Callable) -> None:
        self.function = function

    def process(self, logits: torch.Tensor, requests: RequestTable, plan: StepPlan) -> None:
        slots = plan.sample_slots[: int(plan.num_samples)].tolist()
        for row, slot in enumerate(slots):
            tokens = requests.token_ids[slot, : int(requests.total_len[slot])].tolist()
            prompt_len = int(requests.prompt_len[slot])
            changed = self.function(tokens[:prompt_len], tokens[prompt_len:], logits[row].clone())
            if changed.shape != logits[row].shape:
                raise ValueError(
                    f"a logits processor must return logits of shape {list(logits[row].shape)}, "
                    f"got {list(changed.shape)}"
                )
            logits[row] = changed


def logits_processor(given: LogitsProcessor | Callable) -> LogitsProcessor:
    """An object of the interface as it is; a function in the class for its kind."""
    if isinstance(given, LogitsProcessor):
        return given
    if is_kernel_function(given):
        return TritonLogitsProcessor(given)
    if not callable(given):
        raise ValueError(f"logits_processors must hold functions, got {given!r}")
    if list(inspect.signature(given).parameters)[-1:] == ["logits"]:
        raise ValueError(
            "logits_processors: a torch function takes (logits, requests, plan), got one of "
            "(..., logits); one of (prompt_ids, output_ids, logits) goes into HostLogitsProcessor"
        )
    return TorchLogitsProcessor(given)
