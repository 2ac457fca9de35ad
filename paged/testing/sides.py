"""The control kernels and their references, each on a copy of the state of its own."""

from dataclasses import dataclass
from typing import Any

import torch

from paged.eviction.lru import score as lru
from paged.kernels.control.beam_repoint import beam_repoint, beam_repoint_ref
from paged.kernels.control.beam_select import beam_select, beam_select_ref
from paged.kernels.control.budget import PageBudget
from paged.kernels.control.compress import (
    Drops,
    compress_rows,
    compress_rows_ref,
    drop_pages,
    drop_pages_ref,
)  # fmt: skip
from paged.kernels.control.drafts import (
    grant_drafts,
    grant_drafts_ref,
    verify_drafts,
    verify_drafts_ref,
)
from paged.kernels.control.evict import evict, evict_ref, page_view
from paged.kernels.control.ingest import ingest
from paged.kernels.control.ingest_ref import ingest_ref
from paged.kernels.control.lookup import lookup, lookup_ref
from paged.kernels.control.order import now_view, order, order_ref, row_view
from paged.kernels.control.prepare import prepare, prepare_ref
from paged.kernels.control.publish import publish, publish_ref
from paged.kernels.control.release import release, release_ref
from paged.kernels.control.schedule import schedule
from paged.kernels.control.schedule_ref import schedule_ref
from paged.kernels.control.swap import swap, swap_ref
from paged.kernels.control.update import update
from paged.kernels.control.update_ref import update_ref
from paged.mailbox import Mailbox
from paged.schedulers.fcfs import rank as fcfs
from paged.state import WAITING, PagePool, RequestTable, Sizes, StepPlan
from paged.testing.hash_model import HashModel


@dataclass(frozen=True)
class Knobs:
    """A scheduler's and an allocator's settings. `rank`, `score` and `reserve` are Triton
    functions of plain arithmetic, so that the references can call what they wrap."""

    rank: Any = fcfs
    score: Any = lru
    reserve: Any = None
    budget: int = 64
    chunk: int = 64
    watermark: int = 0
    low_water: int = 1
    preemptive: bool = False
    static_batch: bool = False
    prefix_caching: bool = True
    page_budget: PageBudget | None = None  # of compression


class Side:
    """One copy of the state and the stages that work on it; by kernels."""

    def __init__(self, sizes: Sizes, device: str, num_buckets: int | None) -> None:
        self.requests = RequestTable(sizes, device)
        self.pool = PagePool(sizes, device, num_buckets)
        self.plan = StepPlan(sizes, device)
        self.mailbox = Mailbox(sizes, torch.device(device), depth=4, max_commands=16)
        self.model = HashModel(sizes)
        self.drops = Drops(sizes, device)

    def ingest(self, knobs: Knobs, num_commands: int) -> None:
        ingest(self.requests, self.pool, self.mailbox.commands, num_commands)

    def lookup(self, knobs: Knobs) -> None:
        lookup(self.requests, self.pool)

    def order(self, knobs: Knobs) -> None:
        order(self.requests, self.pool, self.plan, knobs.rank, preemptive=knobs.preemptive)

    def schedule(self, knobs: Knobs) -> None:
        schedule(
            self.requests, self.pool, self.plan, budget=knobs.budget, chunk=knobs.chunk,
            watermark=knobs.watermark, reserve=knobs.reserve, static_batch=knobs.static_batch,
        )  # fmt: skip

    def grant_drafts(self, knobs: Knobs) -> None:
        grant_drafts(self.requests, self.pool, self.plan, budget=knobs.budget)

    def verify_drafts(self, knobs: Knobs) -> None:
        verify_drafts(self.requests, self.plan)

    def prepare(self, knobs: Knobs) -> None:
        prepare(self.requests, self.pool, self.plan)

    def swap(self, knobs: Knobs) -> None:
        swap(self.requests, self.pool, self.plan)

    def update(self, knobs: Knobs) -> None:
        update(self.requests, self.pool, self.plan, self.mailbox.events)

    def publish(self, knobs: Knobs) -> None:
        publish(self.requests, self.pool, self.plan)

    def compress_rows(self, knobs: Knobs) -> None:
        compress_rows(self.requests, self.drops)
        self.model.score(self.requests, self.drops)

    def drop_pages(self, knobs: Knobs) -> None:
        drop_pages(self.requests, self.pool, self.drops)

    def release(self, knobs: Knobs) -> None:
        release(self.requests, self.pool, self.plan, self.mailbox.events)

    def beam_select(self, knobs: Knobs) -> None:
        beam_select(self.requests, self.plan)

    def beam_repoint(self, knobs: Knobs) -> None:
        beam_repoint(self.requests, self.pool, self.plan)

    def evict(self, knobs: Knobs, low_water: int) -> None:
        evict(self.pool, low_water, knobs.score)


class ReferenceSide(Side):
    """The same by the references; on the CPU."""

    def ingest(self, knobs: Knobs, num_commands: int) -> None:
        ingest_ref(self.requests, self.pool, self.mailbox.commands, num_commands)

    def lookup(self, knobs: Knobs) -> None:
        lookup_ref(self.requests, self.pool)

    def order(self, knobs: Knobs) -> None:
        self.plan.key.copy_(knobs.rank.fn(row_view(self.requests), now_view(self.pool)))
        order_ref(self.requests, self.pool, self.plan, preemptive=knobs.preemptive)

    def schedule(self, knobs: Knobs) -> None:
        schedule_ref(
            self.requests, self.pool, self.plan, budget=knobs.budget, chunk=knobs.chunk,
            watermark=knobs.watermark, reserve=knobs.reserve and knobs.reserve.fn,
            static_batch=knobs.static_batch,
        )  # fmt: skip

    def grant_drafts(self, knobs: Knobs) -> None:
        grant_drafts_ref(self.requests, self.pool, self.plan, budget=knobs.budget)

    def verify_drafts(self, knobs: Knobs) -> None:
        verify_drafts_ref(self.requests, self.plan)

    def prepare(self, knobs: Knobs) -> None:
        prepare_ref(self.requests, self.pool, self.plan)

    def swap(self, knobs: Knobs) -> None:
        swap_ref(self.requests, self.pool, self.plan)

    def update(self, knobs: Knobs) -> None:
        update_ref(self.requests, self.pool, self.plan, self.mailbox.events)

    def publish(self, knobs: Knobs) -> None:
        publish_ref(self.requests, self.pool, self.plan)

    def compress_rows(self, knobs: Knobs) -> None:
        compress_rows_ref(self.requests, self.drops)
        self.model.score(self.requests, self.drops)

    def drop_pages(self, knobs: Knobs) -> None:
        drop_pages_ref(self.requests, self.pool, self.drops)

    def release(self, knobs: Knobs) -> None:
        release_ref(self.requests, self.pool, self.plan, self.mailbox.events)

    def beam_select(self, knobs: Knobs) -> None:
        beam_select_ref(self.requests, self.plan)

    def beam_repoint(self, knobs: Knobs) -> None:
        beam_repoint_ref(self.requests, self.pool, self.plan)

    def evict(self, knobs: Knobs, low_water: int) -> None:
        self.pool.score.copy_(knobs.score.fn(page_view(self.pool), now_view(self.pool)))
        evict_ref(self.pool, low_water)


SCRATCH = {"score", "evict_counts", "evict_arrivals", "publish_arrivals"}
APPROXIMATE = {"beam_finished"}  # of exp2, log2 and a division, whose last bits are the hardware's


def assert_same_state(side: Side, reference: Side, stage: str, step: int) -> None:
    """Every specified bit of the two states is equal after a stage of a step, but APPROXIMATE's."""
    parts = ("pool", "plan", "drops")
    pairs = [(name, getattr(side, name), getattr(reference, name)) for name in parts]
    if side.pool.swaps is not None:
        pairs.append(("swaps", side.pool.swaps, reference.pool.swaps))
    for owner, mine, theirs in [("requests", side.requests, reference.requests), *pairs]:
        for name, tensor in vars(mine).items():
            if not isinstance(tensor, torch.Tensor) or name in SCRATCH:
                continue
            ours, want = tensor.cpu(), getattr(theirs, name)
            if name == "block_table" and owner == "requests":
                # Booked pages are written by `prepare`.
                if stage in ("schedule", "grant_drafts"):
                    continue
                held = torch.where(
                    theirs.status == WAITING, theirs.cached_len // theirs.sizes.page_size,
                    theirs.num_pages,
                )  # fmt: skip
                ours, want = _leading(ours, held), _leading(want, held)
            elif name == "canonical":
                ours = _leading(ours, theirs.num_published)
                want = _leading(want, theirs.num_published)
            same = torch.equal(ours, want)
            if name in APPROXIMATE:
                same = torch.allclose(ours, want, rtol=1e-6, atol=0.0)
            if not same:
                at = (ours != want).nonzero()[0].tolist()
                raise AssertionError(
                    f"after {stage} of step {step}: {owner}.{name}{at} is {ours[tuple(at)]}, "
                    f"the reference says {want[tuple(at)]}"
                )
    words, wanted = side.mailbox.events.words, reference.mailbox.events.words
    assert torch.equal(words, wanted), f"after {stage} of step {step}: the event words differ"


def _leading(table: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The first `count[i]` entries of row i; what is past them is unspecified."""
    return torch.where(torch.arange(table.shape[1]) < count[:, None], table, -1)
