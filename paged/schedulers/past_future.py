"""Past-future (LightLLM; Gong et al., ASPLOS 2025): admit what will still fit at the peak.

Requests of predicted lengths run until they end, so the pages they will hold rise and fall. When
request i ends, those that end no sooner have all grown by its remaining tokens:

    pages at the end of i = sum over j with remaining_j >= remaining_i of
                            cdiv(total_j + remaining_i, page_size)

Waiting requests are admitted in order of arrival while the largest of these fits the pool, so that
nothing is preempted if the predictions hold. The paper draws the lengths from those of requests
that ended lately; here they are the requests' own predictions.
"""

import numpy as np

from paged.kernels.control.columns import COLUMN_NAMES, HEAD, NUM_CACHED, TAIL
from paged.schedulers.base import RankScheduler
from paged.state import RUNNING, PagePool, RequestTable, StepPlan


class PastFuture(RankScheduler):
    """Decides on the host; takes the knobs of `RankScheduler` by name.

    Args:
        peak: share of the pages that the estimated peak may take.
    """

    capturable = False

    def __init__(self, *, peak: float = 1.0, **knobs) -> None:
        super().__init__(**knobs)
        if not 0 < peak <= 1:
            raise ValueError(f"scheduler.peak must be in (0, 1], got {peak}")
        self.peak = peak

    def spare_pages(self, requests: RequestTable, pool: PagePool, plan: StepPlan) -> int:
        size, num_pages = requests.sizes.page_size, pool.sizes.num_pages
        order = plan.order[: int(plan.num_active)].cpu().numpy()
        row = dict(zip(COLUMN_NAMES, requests.columns.cpu().numpy()[:, order]))
        running, total = row["status"] == RUNNING, row["total_len"]
        left = np.maximum(row["predicted_len"] - total, 1)
        count = int(running.sum())
        while count < len(total):
            if peak_pages(total[: count + 1], left[: count + 1], size) > self.peak * num_pages:
                break
            count += 1
        least = super().spare_pages(requests, pool, plan)
        if count == len(total):
            return least
        # The watermark that stops the scheduler's closed form behind the last of these.
        chunked = np.minimum(total, row["num_computed_tokens"] + self.chunk)
        has = np.where(running, row["num_pages"], row["cached_len"] // size - row["idle_hits"])
        demand = np.maximum(-(-np.where(running, chunked, total) // size) - has, 0)[:count].sum()
        head, tail, cached = pool.counters[[HEAD.value, TAIL.value, NUM_CACHED.value]].tolist()
        return max(least, tail - head + cached - int(demand))


def peak_pages(total: np.ndarray, left: np.ndarray, page_size: int) -> int:
    """Most pages that requests of `total` [n] tokens hold if they end after `left` [n] more."""
    lasts = left[None, :] >= left[:, None]
    pages = -(-(total[None, :] + left[:, None]) // page_size)
    return int((lasts * pages).sum(1).max())
