"""The step, stage by stage: the device's side of the engine.

    ingest -> lookup -> rank -> schedule -> prepare -> swap -> model -> edit -> sample -> report
    -> update -> publish -> compress -> release

With a proposer, drafts are proposed and granted after `schedule` and verified before `update`.

Every stage is a launch over device-resident state. Nothing here looks at a result, so the whole can
be captured in a CUDA graph (see graphs.py) and replayed ahead of what the host knows.
"""

from dataclasses import dataclass, field

from paged.beam_stage import BeamStage
from paged.draft_stage import DraftStage
from paged.interfaces import (
    Attention,
    AttentionMeta,
    Eviction,
    KVManager,
    Model,
    Sampler,
    Scheduler,
)  # fmt: skip
from paged.kernels.control.ingest import ingest
from paged.kernels.control.update import update
from paged.kernels.copy_pages import copy_pages
from paged.logits_stage import LogitsStage
from paged.mailbox import Mailbox
from paged.state import PagePool, RequestTable, Sizes, StepPlan
from paged.swap_stage import SwapStage


@dataclass(frozen=True)
class Step:
    """The parts of one step."""

    sizes: Sizes
    requests: RequestTable
    pool: PagePool
    plan: StepPlan
    mailbox: Mailbox
    scheduler: Scheduler
    kv: KVManager
    eviction: Eviction
    attention: Attention
    sampler: Sampler
    logits: LogitsStage
    beams: BeamStage
    drafts: DraftStage
    model: Model
    low_water: int  # pages to keep free
    swap: SwapStage = field(default_factory=SwapStage)

    def run(self, capacity: int, num_commands: int, max_seq_len: int, beams: bool = False) -> None:
        """Launch every stage once.

        Args:
            capacity: tokens at most; the scheduler clamps its grants to it on the device.
            num_commands: bound of the host's commands for this step.
            max_seq_len: bound of every sequence's length.
            beams: whether to look for beams; without it none may be live.
        """
        requests, plan = self.requests, self.plan
        plan.beams = beams
        ingest(requests, self.pool, self.mailbox.commands, num_commands)
        self.kv.lookup(requests)
        self.scheduler.schedule(
            requests, self.pool, plan, capacity=capacity, reserve=self.kv.reserve_len
        )
        self.drafts.propose(requests, self.pool, plan, budget=capacity)
        self.kv.reserve(requests, plan)
        self.swap.run(requests, self.pool, plan, self.model.pages)
        copy_pages(self.model.pages, plan.copy_source, plan.copy_target, plan.num_copies)
        meta = AttentionMeta(
            block_table=plan.block_table,
            cu_seqlens_q=plan.cu_seqlens_q,
            seq_lens=plan.seq_lens,
            num_seqs=plan.num_seqs,
            num_tokens=plan.num_tokens,
            page_size=self.sizes.page_size,
            max_num_tokens=capacity,
            max_seq_len=max_seq_len,
        )
        attention = self.kv.observe(self.attention, requests, plan)
        logits = self.model.forward(plan, meta, attention, capacity)
        self.logits.edit(logits, requests, plan)
        self.sampler.sample(logits, requests, plan)
        self.logits.report(logits, requests, self.pool, plan, self.mailbox.tops.words)
        if beams:
            self.beams.choose(logits, requests, self.pool, plan, self.model.pages)
        self.drafts.verify(requests, plan)
        update(requests, self.pool, plan, self.mailbox.events)
        self.kv.commit(requests, plan)
        self.kv.compress(requests, self.model)
        self.kv.release(requests, plan, self.mailbox.events)

    def maintain(self) -> None:
        """Between steps: evict cached pages where free ones run short."""
        self.eviction.evict(self.pool, self.low_water)
