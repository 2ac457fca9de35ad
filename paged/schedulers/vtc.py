"""Virtual token counter (Sheng et al., OSDI 2024): who got least is served first.

A counter for each client grows by its served tokens, weighted: a prompt's when it is admitted, an
answer's as they are drawn. The next request is the one whose client has the smallest counter. A
client that comes back after a pause is lifted to the smallest counter of those that waited all the
time, so that it cannot spend what it did not use. What is computed again after a preemption is not
charged.
"""

import torch

from paged.schedulers.base import RankScheduler
from paged.state import RUNNING, WAITING, PagePool, RequestTable, StepPlan

FAR = 1 << 62


class VTC(RankScheduler):
    """Fair between clients.

    Args:
        num_clients: counters; clients share one modulo this number.
        prompt_weight, output_weight: cost of a token, whole numbers.
        knobs: `RankScheduler`'s, by name.
    """

    def __init__(
        self, *, num_clients: int = 64, prompt_weight: int = 1, output_weight: int = 2, **knobs
    ) -> None:
        super().__init__(self.keys, **knobs)
        for name, value in (("num_clients", num_clients), ("prompt_weight", prompt_weight)):
            if value < 1:
                raise ValueError(f"scheduler.{name} must be at least 1, got {value}")
        if output_weight < 0:
            raise ValueError(f"scheduler.output_weight must be at least 0, got {output_weight}")
        self.num_clients = num_clients
        self.prompt_weight, self.output_weight = prompt_weight, output_weight
        self.counters: torch.Tensor | None = None  # [num_clients] int64, tokens by weight

    def _accounts(self, requests: RequestTable) -> torch.Tensor:
        if self.counters is None:
            self.counters = requests.seed.new_zeros(self.num_clients)
            self.waited = torch.zeros_like(self.counters, dtype=torch.bool)
            self.last_left = self.counters.new_zeros(())  # counter of the last that waited
        return self.counters

    def keys(self, requests: RequestTable, pool: PagePool) -> torch.Tensor:
        counters, client = self._accounts(requests), requests.client.long() % self.num_clients
        waiting = requests.status == WAITING
        waits = torch.zeros_like(counters).index_add_(0, client, waiting.long()) > 0
        floor = torch.where(waits & self.waited, counters, FAR).min()
        floor = torch.where(floor == FAR, self.last_left, floor)
        lifted = torch.where(waits & ~self.waited, torch.maximum(counters, floor), counters)
        counters.copy_(lifted)
        self.waited.copy_(waits)
        self.last_left.copy_(torch.where(waits.any(), _least(counters, waits), self.last_left))
        # One admission raises its client's counter before the next is chosen: each request's key
        # is its client's counter with the waiting requests in front of it charged.
        by_client = torch.argsort((client << 32) + requests.arrival)
        cost = torch.where(waiting, requests.prompt_len, 0)[by_client]
        before = torch.cumsum(cost, 0) - cost
        owner = client[by_client]
        begins = torch.cat([owner[:1] >= 0, owner[1:] != owner[:-1]])
        ahead = torch.empty_like(before)
        ahead[by_client] = before - torch.cummax(torch.where(begins, before, 0), 0).values
        key = counters[client] + self.prompt_weight * ahead
        key = key - torch.where(waiting | (requests.status == RUNNING), key, FAR).min()
        return key.clamp(0, 2**31 - 1).to(torch.int32)

    def charge(self, requests: RequestTable, plan: StepPlan) -> None:
        client = requests.client.long() % self.num_clients
        first = (plan.admitted != 0) & (requests.num_preemptions == 0)
        cost = torch.where(first, requests.prompt_len.long() * self.prompt_weight, 0)
        cost += (plan.slot_sample >= 0).long() * self.output_weight
        self._accounts(requests).index_add_(0, client, cost)


def _least(counters: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    return torch.where(among, counters, FAR).min()
