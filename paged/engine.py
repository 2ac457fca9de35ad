"""The engine: the host's side. It takes requests, launches steps ahead, and reads their events.

It owns no policy and never waits in a synchronising call: what the device does is in step.py, and
the two talk through the mailbox.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from paged.graphs import EagerSteps, GraphSteps
from paged.intake import Limits, LiveRequest
from paged.interfaces import Attention, Eviction, KVManager, Model, Sampler, Scheduler
from paged.kernels.control.columns import (
    REASON_ABORT,
    REASON_ERROR,
    REASON_LENGTH,
    REASON_STOP,
)  # fmt: skip
from paged.mailbox import Event, Mailbox, Submission
from paged.request import SamplingParams
from paged.state import RequestTable, Sizes, StepPlan
from paged.step import Step

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
        vocab_size: token ids of prompts must be below it.
        eos_ids: tokens that end a request unless it ignores them.
        seed: requests without a seed of their own draw theirs from it, in order of submission.
        graphs: capture the step in CUDA graphs and replay them.
        in_flight: steps launched before the events of the first are read.
    """

    def __init__(
        self,
        *,
        model: Model,
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
        graphs: bool = False,
        in_flight: int = 1,
    ) -> None:
        self.model, self.sizes, self.device, self.seed = model, sizes, device, seed
        self.kv, self.in_flight = kv, in_flight
        self.requests = RequestTable(sizes, device)
        self.pool = kv.allocate(self.requests, device)
        self.mailbox = Mailbox(sizes, device)
        if not 1 <= in_flight < self.mailbox.depth:
            raise ValueError(
                f"in_flight must be from 1 to {self.mailbox.depth - 1} steps, got {in_flight}"
            )
        self.limits = Limits(sizes, vocab_size, tuple(eos_ids), reserves=kv.reserve_len is not None)
        self.device_step = Step(
            sizes=sizes,
            requests=self.requests,
            pool=self.pool,
            plan=StepPlan(sizes, device),
            mailbox=self.mailbox,
            scheduler=scheduler,
            kv=kv,
            eviction=eviction,
            attention=attention,
            sampler=sampler,
            model=model,
            low_water=max(1, int(kv.low_water * sizes.num_pages)),
        )
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
        self._launched: deque[tuple[int, int]] = deque()  # steps in flight: number, capacity
        self._free_pages, self._shortfall = sizes.num_pages, 0
        self._steps: EagerSteps | GraphSteps = EagerSteps(self.device_step)
        if graphs:
            steps = GraphSteps(self.device_step, self.capacities)
            self._capture(steps)
            self._steps = steps

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
        """Bring one step to its end; returns the requests that got tokens or ended.

        Launches ahead first, until `in_flight` steps are on the device; what those do, the caller
        learns from the next calls.
        """
        began = time.perf_counter()
        while len(self._launched) < self.in_flight and self.has_unfinished:
            self._launch()
        if not self._launched:
            return []
        number, capacity = self._launched.popleft()
        header, events = self.mailbox.wait(number, self._device_idle)
        self._free_pages, self._shortfall = header["free_pages"], header["shortfall"]
        touched = self._apply(events)
        header.pop("num_events"), header.pop("num_published_rows")
        stats = StepStats(
            step=number,
            cached_tokens=sum(e.value for e in events if e.kind == "admitted"),
            recomputed_tokens=sum(e.value for e in events if e.kind == "preempted"),
            capacity=capacity,
            seconds=time.perf_counter() - began,
            **header,
        )
        if self.on_step is not None:
            self.on_step(stats)
        return touched

    def _launch(self) -> None:
        """Send the next step to the device, with the commands that are due."""
        submissions = self._take_submissions()
        num_aborts = self.mailbox.max_commands - len(submissions)
        aborting = [live for live in self._aborting if live.slot >= 0]
        self._aborting = aborting[num_aborts:]
        aborted = [live.slot for live in aborting[:num_aborts]]
        now_ms = int((time.perf_counter() - self._started) * 1000)
        num_commands = self.mailbox.post(self.num_steps, now_ms, submissions, aborted)
        capacity = self._capacity()
        if self._free_pages < self.device_step.low_water or self._shortfall > 0:
            self._steps.maintain()
        longest = max((live.max_len for live in self._by_slot.values()), default=1)
        self._steps.run(capacity, num_commands, longest)
        self._launched.append((self.num_steps, capacity))
        self.num_steps += 1

    def _capture(self, steps: GraphSteps) -> None:
        """Run every capacity once without a request, then capture."""
        for capacity in steps.capacities:
            self.mailbox.post(self.num_steps, 0, [], [])
            steps.run_uncaptured(capacity)
            self.mailbox.wait(self.num_steps, self._device_idle, timeout=600)
            self.num_steps += 1
        steps.capture()

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
        """The smallest regime that holds the tokens that will probably run.

        A guess: steps in flight may have taken prompt tokens the host has not heard of yet, and
        the policy may admit others than the first in line. The device clamps to the capacity, so a
        guess too small only leaves work to the next step.
        """
        running = [live for live in self._by_slot.values() if live.running]
        seats = max(0, self.sizes.max_num_seqs - len(running))
        waiting = (live for live in self._by_slot.values() if not live.running)
        prompts = [live for live in running if live.prefilling] + list(islice(waiting, seats))
        wanted = sum(
            len(live.output.prompt_token_ids) + len(live.output.outputs[0].token_ids)
            for live in prompts
        )
        seats = min(len(self._by_slot), self.sizes.max_num_seqs)
        underway = sum(max(0, capacity - seats) for _, capacity in self._launched)
        wanted = max(0, wanted - underway) + seats
        return next((size for size in self.capacities if size >= wanted), self.capacities[-1])

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
                live.running = True
            elif event.kind == "preempted":
                metrics.num_preemptions += 1
                live.prefilling, live.running = True, False
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
