"""The stage that swaps preempted rows out to host memory and in again."""

import torch

from paged.kernels.control.swap import swap
from paged.kernels.swap_pages import swap_pages
from paged.state import PagePool, RequestTable, StepPlan


class SwapStage:
    """Launches nothing where the pool has no host pages."""

    def __init__(self) -> None:
        self.host_pages: torch.Tensor | None = None  # [planes, H, elements of a page], pinned

    def run(
        self, requests: RequestTable, pool: PagePool, plan: StepPlan, pages: torch.Tensor
    ) -> None:
        """Decide and copy, when pages are booked and before the model writes to any of `pages`
        [planes, N, elements of a page]."""
        swaps = pool.swaps
        if swaps is None:
            return
        if self.host_pages is None:  # the first step is never captured
            planes, _, elements = pages.shape
            self.host_pages = torch.empty(
                planes, pool.sizes.num_host_pages, elements, dtype=pages.dtype,
                pin_memory=pages.is_cuda,
            )  # fmt: skip
        swap(requests, pool, plan)
        swap_pages(
            pages, self.host_pages, swaps.out_source, swaps.out_target, swaps.num_out,
            swaps.in_source, swaps.in_target, swaps.num_in,
        )  # fmt: skip
