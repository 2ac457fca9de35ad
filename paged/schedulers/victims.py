"""Who gives way when running requests run short of pages: the largest key does.

Each takes a row of tensors (`row_view`) and returns int32 keys; the choice alone decides much of
what is computed again (vLLM preempts the last admitted, SGLang the one with the least output).
"""

from collections.abc import Callable

import torch

from paged.kernels.control.columns import Row

PREEMPTIONS = ("recompute", "swap")
VICTIMS: dict[str, Callable[[Row], torch.Tensor]] = {
    "last_admitted": lambda row: row.admitted,
    "lowest_priority": lambda row: row.priority,
    "least_computed": lambda row: -row.num_computed_tokens,
}
