"""The engine: it takes requests, runs steps, and holds the parts. It owns no policy.

    ingest -> lookup -> rank -> schedule -> prepare -> model -> sample -> update -> publish
    -> release

Every stage is a launch over device-resident state; the host only writes commands and reads events.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paged.intake import Limits, LiveRequest
from paged.interfaces import Attention, AttentionMeta, Eviction, KVManager, Sampler, Scheduler
from paged.kernels.control.columns import (
    REASON_ABORT,
    REASON_ERROR,
    REASON_LENGTH,
    REASON_STOP,
)  # fmt: skip
from paged.kernels.control.ingest import ingest
from paged.kernels.control.update import update
from paged.mailbox import Event, Mailbox, Submission
from paged.request import SamplingParams
from paged.state import RequestTable, Sizes, StepPlan, next_power_of_2

REASONS = {
    REASON_STOP.value: "stop",
    REASON_LENGTH.value: "length",
    REASON_ABORT.value: "abort",
    REASON_ERROR.value: "error",
}
CAPACITIES = (16, 64, 256, 1024)  # tile regimes of a step, below the token budget itself


@dataclass(frozen=True)
class StepStats:
    """What one step did. Pages are counted after it; `seconds` is its time on the host's clock."""

    step: int
    num_tokens: int
    num_seqs: int
    free_pages: int
    cached_pages: int
    shortfall: int
    num_running: int
    num_waiting: int
    num_preempted: int
    num_admitted: int
    cached_tokens: int
    recomputed_tokens: int
    capacity: int
    seconds: float


class Engine:
    """Runs steps over one model.

    Args:
        model: has `forward(plan, meta, attention, capacity) -> logits [S, vocab] float32`.
        vocab_size: token ids of prompts must be below it.
        eos_ids: tokens that end a request unless it ignores them.
        seed: requests without a seed of their own draw theirs from it, in order of submission.
    """

    def __init__(
        self,
        *,
        model,
        sizes: Sizes,
        scheduler: Scheduler,
        kv: KVManager,
        eviction: Eviction,
        attention: Attention,
        sampler: Sampler,
        device: torch.device,
        vocab_size: int,
        eos_ids: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.sizes, self.device = model, sizes, device
        self.scheduler, self.kv, self.eviction = scheduler, kv, eviction
        self.attention, self.sampler = attention, sampler
        self.seed = seed
        self.requests = RequestTable(sizes, device)
        self.pool = kv.allocate(self.requests, device)
        self.step_plan = StepPlan(sizes, device)
        self.mailbox = Mailbox(sizes, device)
        self.reserve_len = kv.reserve_len
        self.limits = Limits(sizes, vocab_size, tuple(eos_ids), reserves=kv.reserve_len is not None)
        self.low_water = max(1, int(kv.low_water * sizes.num_pages))
        below = [size for size in CAPACITIES if size < sizes.max_num_batched_tokens]
        self.capacities = (*below, sizes.max_num_batched_tokens)
        self.on_step: Callable[[StepStats], None] | None = None

        self.num_steps = 0
        self._started = time.perf_counter()
        self._tickets = 0
        self._queue: deque[LiveRequest] = deque()
        self._by_slot: dict[int, LiveRequest] = {}
        self._by_id: dict[str, LiveRequest] = {}
        self._free_slots = list(range(sizes.num_slots - 1, -1, -1))
        self._aborting: list[LiveRequest] = []
        self._free_pages, self._shortfall = sizes.num_pages, 0

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        prompt: str | None = None,
    ) -> LiveRequest:
        """Queue a request. Raises ValueError if it can never be served; nothing else changes."""
        name = request_id if request_id is not None else str(self._tickets)
        if name in self._by_id:
            raise ValueError(f"request_id must be unique among live requests, got {name!r}")
        live = self.limits.accept(prompt_token_ids, params, name, prompt, ticket=self._tickets)
        self._tickets += 1
        self._by_id[name] = live
        self._queue.append(live)
        return live

    def abort(self, request_id: str) -> None:
        """End a request; its pages return within the next step. Unknown or ended ids are no-ops."""
        live = self._by_id.get(request_id)
        if live is None or live in self._aborting:
            return
        if live.slot < 0:
            self._queue.remove(live)
            self._end(live, "abort")
        else:
            self._aborting.append(live)

    def is_live(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def has_unfinished(self) -> bool:
        return bool(self._by_id)

    def step(self) -> list[LiveRequest]:
        """Run one step; returns the requests that got tokens or ended."""
        began = time.perf_counter()
        submissions = self._take_submissions()
        aborted = [live.slot for live in self._aborting if live.slot >= 0]
        now_ms = int((began - self._started) * 1000)
        num_commands = self.mailbox.post(self.num_steps, now_ms, submissions, aborted)
        self._aborting.clear()
        capacity = self._capacity()
        self._launch(capacity, num_commands)
        header, events = self.mailbox.wait(self.num_steps, self._device_idle)
        self._free_pages, self._shortfall = header["free_pages"], header["shortfall"]
        touched = self._apply(events)
        header.pop("num_events"), header.pop("num_published_rows")
        stats = StepStats(
            step=self.num_steps,
            cached_tokens=sum(e.value for e in events if e.kind == "admitted"),
            recomputed_tokens=sum(e.value for e in events if e.kind == "preempted"),
            capacity=capacity,
            seconds=time.perf_counter() - began,
            **header,
        )
        self.num_steps += 1
        if self.on_step is not None:
            self.on_step(stats)
        return touched

    def _launch(self, capacity: int, num_commands: int) -> None:
        """The whole step, without a look at any result of it."""
        requests, plan = self.requests, self.step_plan
        if self._free_pages < self.low_water or self._shortfall > 0:
            self.eviction.evict(self.pool, self.low_water)
        ingest(requests, self.pool, self.mailbox.commands, num_commands)
        self.kv.lookup(requests)
        self.scheduler.schedule(
            requests, self.pool, plan, capacity=capacity, reserve=self.reserve_len
        )
        self.kv.reserve(requests, plan)
        meta = AttentionMeta(
            block_table=plan.block_table,
            cu_seqlens_q=plan.cu_seqlens_q,
            seq_lens=plan.seq_lens,
            num_seqs=plan.num_seqs,
            num_tokens=plan.num_tokens,
            page_size=self.sizes.page_size,
            max_num_tokens=capacity,
            max_seq_len=self._longest(),
        )
        logits = self.model.forward(plan, meta, self.attention, capacity)
        self.sampler.sample(logits, requests, plan)
        update(requests, self.pool, plan, self.mailbox.events)
        self.kv.commit(requests, plan)
        self.kv.release(requests, plan, self.mailbox.events)

    def _take_submissions(self) -> list[Submission]:
        """Give slots to queued requests, as far as slots and the mailbox allow."""
        submissions: list[Submission] = []
        room = self.mailbox.max_commands - len(self._aborting)
        while self._queue and self._free_slots and len(submissions) < room:
            live = self._queue[0]
            prompt = live.output.prompt_token_ids
            if not self.mailbox.room_for(len(prompt) + sum(len(s.prompt) for s in submissions)):
                break
            self._queue.popleft()
            live.slot = self._free_slots.pop()
            self._by_slot[live.slot] = live
            submissions.append(live.submission(self._started, self.seed))
        return submissions

    def _capacity(self) -> int:
        """The smallest regime that holds all tokens that could run; the device clamps to it."""
        wanted = sum(
            len(live.output.prompt_token_ids) + len(live.output.outputs[0].token_ids)
            if live.prefilling
            else 1
            for live in self._by_slot.values()
        )
        return next((size for size in self.capacities if size >= wanted), self.capacities[-1])

    def _longest(self) -> int:
        """A bound of every sequence's keys; powers of two, so that few values occur."""
        longest = max((live.max_len for live in self._by_slot.values()), default=1)
        return min(next_power_of_2(longest), self.sizes.max_model_len)

    def _device_idle(self) -> bool:
        return self.device.type != "cuda" or torch.cuda.current_stream(self.device).query()

    def _apply(self, events: list[Event]) -> list[LiveRequest]:
        """Bring what the device reports to the requests."""
        now = time.perf_counter()
        touched: dict[int, LiveRequest] = {}
        for event in events:
            live = self._by_slot[event.slot]
            output, metrics = live.output.outputs[0], live.output.metrics
            if event.kind == "admitted":
                metrics.num_cached_tokens += event.value
            elif event.kind == "preempted":
                metrics.num_preemptions += 1
                live.prefilling = True
            elif event.kind == "token":
                live.prefilling = False
                output.token_ids.append(event.value)
                output.logprobs.append(event.logprob)
                live.new_tokens.append(event.value)
                metrics.first_token_time = metrics.first_token_time or now
                metrics.last_token_time = now
                metrics.num_output_tokens += 1
                touched[event.slot] = live
            else:
                del self._by_slot[event.slot]
                self._free_slots.append(event.slot)
                live.slot = -1
                self._end(live, REASONS[event.value])
                touched[event.slot] = live
        return list(touched.values())

    def _end(self, live: LiveRequest, reason: str) -> None:
        live.output.outputs[0].finish_reason = reason
        live.output.finished = True
        live.output.metrics.finished_time = time.perf_counter()
        if reason == "error":
            live.output.error = "the model produced NaN logits for this request"
        del self._by_id[live.output.request_id]
