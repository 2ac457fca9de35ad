"""The scheduler most policies need: an order, and the engine's closed form for the rest.

A policy is `rank(row, now, *args) -> int32`, smallest first, at one of three levels:

- a `@triton.jit` function, inlined into the ordering kernel;
- a plain function on torch tensors: every field of `row` is [R] int32 on the device;
- a subclass of `HostScheduler`, whose `rank` sees one Python object a request and may do anything,
  at the price of one synchronisation a step.

A policy that is more than an order is a subclass of `RankScheduler` with one of its hooks: `keys`
for an order that needs the whole table, `charge` for accounts of what was served, `spare_pages` for
admission. The simulator runs the same hooks.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from paged.arguments import check_fields
from paged.interfaces import Scheduler
from paged.kernels.control.columns import COLUMN_NAMES, Now, Row
from paged.kernels.control.order import now_view, order, row_view
from paged.kernels.control.schedule import schedule
from paged.kernels.launch import is_kernel_function
from paged.schedulers.fcfs import rank as fcfs
from paged.schedulers.victims import PREEMPTIONS, VICTIMS
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
        victim: who gives way when running rows run short of pages, "last_admitted",
            "lowest_priority" or "least_computed"; None takes the last by `rank`. Where the order
            is preemptive, it decides this too.
        static_batch: choose a batch when nothing runs, all that fits; it runs to completion.
        preemption: "recompute" drops the keys and values of who gives way; "swap" keeps them in
            `kv.num_host_pages` of host memory, as far as they have room.
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
        victim: str | None = None,
        preemption: str = "recompute",
    ) -> None:
        check_fields("scheduler", rank, Row, Now)
        for name, value in (
            ("max_num_seqs", max_num_seqs),
            ("max_num_batched_tokens", max_num_batched_tokens),
            ("chunk", chunk),
        ):
            if value is not None and value < 1:
                raise ValueError(f"scheduler.{name} must be at least 1, got {value}")
        if not 0 <= watermark < 1:
            raise ValueError(f"scheduler.watermark must be in [0, 1), got {watermark}")
        if victim is not None and victim not in VICTIMS:
            names = ", ".join(VICTIMS)
            raise ValueError(f"scheduler.victim must be one of {names} or null, got {victim!r}")
        if victim is not None and preemptive:
            raise ValueError(
                f"scheduler.victim must be null with preemptive=true, whose order decides who "
                f"gives way, got {victim!r}"
            )
        if preemption not in PREEMPTIONS:
            names = " or ".join(PREEMPTIONS)
            raise ValueError(f"scheduler.preemption must be {names}, got {preemption!r}")
        self.preemption = preemption
        self.rank_function = rank
        self.args = tuple(args)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.chunk = chunk or max_num_batched_tokens
        self.watermark = watermark
        self.preemptive = preemptive
        self.static_batch = static_batch
        self.victim = victim

    def keys(self, requests: RequestTable, pool: PagePool) -> torch.Tensor:
        """[R] int32, where `rank` is not a Triton function. Rows that are neither waiting nor
        running hold what is left of earlier requests; their keys are not looked at."""
        return self.rank_function(row_view(requests), now_view(pool), *self.args)

    def rank_victims(self, requests: RequestTable, plan: StepPlan) -> None:
        """Replace the keys of running rows in `plan.key` by the victim's, if there is a rule."""
        if self.victim is not None:
            row = row_view(requests)
            plan.key.copy_(torch.where(row.running != 0, VICTIMS[self.victim](row), plan.key))

    def spare_pages(self, requests: RequestTable, pool: PagePool, plan: StepPlan) -> int:
        """Pages that an admission of this step must leave available; `plan.order` is known."""
        return int(self.watermark * pool.sizes.num_pages)

    def charge(self, requests: RequestTable, plan: StepPlan) -> None:
        """Called when the grants of a step are decided, for policies that keep accounts."""

    def order(self, requests: RequestTable, pool: PagePool, plan: StepPlan) -> None:
        """Write `plan.order` by the policy, at whichever level it is written."""
        in_triton = is_kernel_function(self.rank_function)
        if in_triton:
            order(requests, pool, plan, self.rank_function, self.args, self.preemptive)
        else:
            plan.key.copy_(self.keys(requests, pool))
        if not in_triton or self.victim is not None:
            self.rank_victims(requests, plan)
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
            watermark=self.spare_pages(requests, pool, plan),
            reserve=reserve,
            static_batch=self.static_batch,
        )
        self.charge(requests, plan)


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
        super().__init__(self.rank, **knobs)

    @abstractmethod
    def rank(self, request: HostRow, now: Now) -> int:
        """The request's key, smallest first; an int of 32 bits. Fields of `now` are ints."""

    def keys(self, requests: RequestTable, pool: PagePool) -> torch.Tensor:
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
        return torch.tensor(keys, dtype=torch.int32)
