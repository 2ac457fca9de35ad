"""The scheduler most policies need: an order, and the engine's closed form for the rest.

A policy is `rank(row, now, *args) -> int32`, smallest first, at one of three levels:

- a `@triton.jit` function, inlined into the ordering kernel;
- a plain function on torch tensors: every field of `row` is [R] int32 on the device;
- a subclass of `HostScheduler`, whose `rank` sees one Python object a request and may do anything,
  at the price of one synchronisation a step.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from paged.interfaces import Scheduler
from paged.kernels.control.columns import COLUMN_NAMES, Now
from paged.kernels.control.order import now_view, order, row_view
from paged.kernels.control.schedule import schedule
from paged.kernels.launch import is_kernel_function
from paged.schedulers.fcfs import rank as fcfs
from paged.state import RUNNING, WAITING, PagePool, RequestTable, StepPlan


class RankScheduler(Scheduler):
    """Serves rows in the order of `rank`, under a token budget.

    Args:
        rank: Triton or torch function `(row, now, *args) -> int32 keys`.
        args: what `rank` gets beside the row and the clock: device tensors, ints, floats.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens of one step.
        chunk: tokens of one request in one step; None is the whole budget.
        watermark: share of the pages that an admission must leave available.
        preemptive: rank waiting rows among running ones, and preempt running rows for them.
        static_batch: admit only when nothing runs (a batch runs to completion).
    """

    def __init__(
        self,
        rank: Callable = fcfs,
        *,
        args: tuple = (),
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 8192,
        chunk: int | None = None,
        watermark: float = 0.01,
        preemptive: bool = False,
        static_batch: bool = False,
    ) -> None:
        for name, value in (
            ("max_num_seqs", max_num_seqs),
            ("max_num_batched_tokens", max_num_batched_tokens),
            ("chunk", chunk),
        ):
            if value is not None and value < 1:
                raise ValueError(f"scheduler.{name} must be at least 1, got {value}")
        if not 0 <= watermark < 1:
            raise ValueError(f"scheduler.watermark must be in [0, 1), got {watermark}")
        self.rank_function = rank
        self.args = tuple(args)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.chunk = chunk or max_num_batched_tokens
        self.watermark = watermark
        self.preemptive = preemptive
        self.static_batch = static_batch

    def order(self, requests: RequestTable, pool: PagePool, plan: StepPlan) -> None:
        """Write `plan.order` by the policy, at whichever level it is written."""
        if is_kernel_function(self.rank_function):
            order(requests, pool, plan, self.rank_function, self.args, self.preemptive)
            return
        keys = self.rank_function(row_view(requests), now_view(pool), *self.args)
        plan.key.copy_(keys)
        order(requests, pool, plan, preemptive=self.preemptive)

    def schedule(
        self, requests: RequestTable, pool: PagePool, plan: StepPlan, *, capacity: int, reserve
    ) -> None:
        self.order(requests, pool, plan)
        schedule(
            requests,
            pool,
            plan,
            budget=min(self.max_num_batched_tokens, capacity),
            chunk=self.chunk,
            watermark=int(self.watermark * pool.sizes.num_pages),
            reserve=reserve,
            static_batch=self.static_batch,
        )


@dataclass
class HostRow:
    """One waiting or running request, as a host policy sees it: plain ints, named as in `Row`."""

    slot: int
    running: bool
    arrival: int
    arrival_ms: int
    admitted: int
    priority: int
    client: int
    prompt_len: int
    total_len: int
    max_len: int
    predicted_len: int
    deadline_ms: int
    num_computed_tokens: int
    num_pages: int
    cached_len: int
    num_preemptions: int


class HostScheduler(RankScheduler):
    """A policy in plain Python: subclass and write `rank(request, now) -> int`.

    Takes the knobs of `RankScheduler` by name.
    """

    capturable = False

    def __init__(self, **knobs) -> None:
        super().__init__(**knobs)

    @abstractmethod
    def rank(self, request: HostRow, now: Now) -> int:
        """The request's key, smallest first; an int of 32 bits. Fields of `now` are ints."""

    def order(self, requests: RequestTable, pool: PagePool, plan: StepPlan) -> None:
        columns = dict(zip(COLUMN_NAMES, requests.columns.tolist()))  # the step's synchronisation
        now = Now(*(int(value) for value in now_view(pool)))
        names = [name for name in HostRow.__dataclass_fields__ if name in columns]
        keys = [0] * requests.sizes.num_slots
        for slot, status in enumerate(columns["status"]):
            if status not in (WAITING, RUNNING):
                continue
            fields = {name: columns[name][slot] for name in names}
            key = self.rank(HostRow(slot=slot, running=status == RUNNING, **fields), now)
            if not isinstance(key, int) or not -(2**31) <= key < 2**31:
                name = type(self).__name__
                raise ValueError(f"{name}.rank must return an int of 32 bits, got {key!r}")
            keys[slot] = key
        plan.key.copy_(torch.tensor(keys, dtype=torch.int32))
        order(requests, pool, plan, preemptive=self.preemptive)
