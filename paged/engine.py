"""The engine: the host's side. It takes requests, launches steps ahead, and reads their events.

It owns no policy and never waits in a synchronising call: what the device does is in step.py, and
the two talk through the mailbox.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from paged.beam_stage import BeamStage
from paged.beams import BeamGroup, BeamSearchParams, check_room
from paged.command_queue import CommandQueue
from paged.draft_stage import DraftStage
from paged.graphs import EagerSteps, GraphSteps, regimes
from paged.intake import Limits
from paged.interfaces import (
    Attention,
    Eviction,
    KVManager,
    LogitsProcessor,
    Model,
    Proposer,
    Sampler,
    Scheduler,
)  # fmt: skip
from paged.ledger import Ledger
from paged.live_request import LiveRequest
from paged.logits_stage import LogitsStage
from paged.mailbox import Mailbox, Report
from paged.request import SamplingParams
from paged.state import RequestTable, Sizes, StepPlan
from paged.stats import Flight, StepStats, describe_loss
from paged.step import Step
from paged.structured.base import Constraints, GrammarCompiler

COMPILE_SECONDS = 600.0  # a first step may compile every kernel


class Engine:
    """Runs steps over one model.

    Args:
        vocab_size: token ids of prompts must be below it.
        eos_ids: tokens that end a request unless it ignores them.
        seed: requests without a seed of their own draw theirs from it, in order of submission.
        graphs: capture the step in CUDA graphs and replay them.
        in_flight: steps launched before the events of the first are read.
        watchdog_seconds: a step that reports nothing for so long is taken for lost.
        mailbox: rings to the device; None is rings of eight steps.
        clock: seconds; every time in outputs and metrics is read from it.
        grammars: for requests with structured_outputs; None refuses them.
        logits_processors: changes of the logits of every request.
        proposer: of `sizes.num_draft_tokens`; None proposes nothing.

    A step whose events cannot come any more (a hung device, a CUDA error) makes `step` raise
    RuntimeError with the step and what was in flight; the engine is of no use after that.
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
        watchdog_seconds: float = 120.0,
        mailbox: Mailbox | None = None,
        clock: Callable[[], float] = time.perf_counter,
        grammars: GrammarCompiler | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        proposer: Proposer | None = None,
    ) -> None:
        self.model, self.sizes, self.device, self.seed = model, sizes, device, seed
        self.kv, self.in_flight, self.watchdog_seconds = kv, in_flight, watchdog_seconds
        self.requests = RequestTable(sizes, device, vocab_size)
        self.pool = kv.allocate(self.requests, device)
        self.mailbox = mailbox or Mailbox(sizes, device, vocab_size=vocab_size)
        self.mailbox.check_in_flight(in_flight)
        if not watchdog_seconds > 0:
            raise ValueError(f"watchdog_seconds must be positive, got {watchdog_seconds}")
        self.limits = Limits(sizes, vocab_size, tuple(eos_ids), kv.peak_pages)
        self.device_step = Step(
            sizes=sizes, requests=self.requests, pool=self.pool, plan=StepPlan(sizes, device),
            mailbox=self.mailbox, scheduler=scheduler, kv=kv, eviction=eviction,
            attention=attention, sampler=sampler, beams=BeamStage(),
            drafts=DraftStage(proposer, sizes, logits_processors),
            logits=LogitsStage(sizes, vocab_size, device, logits_processors),
            model=model, low_water=max(1, int(kv.low_water * sizes.num_pages)),
        )  # fmt: skip
        self.constraints = Constraints(grammars, vocab_size)
        self.capacities = regimes(sizes.max_num_batched_tokens)
        self.ledger = Ledger(sizes, self.capacities)
        self.on_step: Callable[[StepStats], None] | None = None
        self.ended: list[LiveRequest] = []  # outputs that the last `step` has ended
        self.report: Report | None = None  # what it has read; None if there was nothing to read
        self.num_steps = self._tickets = 0
        self.clock, self._started = clock, clock()
        self._queue = CommandQueue(self.mailbox, self.ledger, shares=kv.reserve_len is None)
        self._by_id: dict[str, LiveRequest] = {}
        self._flights: deque[Flight] = deque()
        self._failure: str | None = None
        self._awaits_capture = False  # a beam search waits for graphs of its own
        self.steps: EagerSteps | GraphSteps = EagerSteps(self.device_step)
        if graphs:
            steps = GraphSteps(self.device_step, self.capacities)
            self._capture(steps)
            self.steps = steps

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        prompt: str | None = None,
    ) -> LiveRequest:
        """Queue a request; returns its first output, and the others in its `group`.

        Raises ValueError if it can never be served; nothing else changes.
        """
        name = request_id if request_id is not None else str(self._tickets)
        if name in self._by_id:
            raise ValueError(f"request_id must be unique among live requests, got {name!r}")
        live = self.limits.accept(prompt_token_ids, params, name, prompt, ticket=self._tickets)
        live.metrics.arrival_time = self.clock()
        self.constraints.bind(live.group)
        self._tickets += len(live.group)
        self._by_id[name] = live
        self._queue.add(live.group)
        return live

    def submit_beams(
        self,
        prompt_token_ids: Sequence[int],
        params: BeamSearchParams,
        *,
        request_id: str | None = None,
        prompt: str | None = None,
    ) -> LiveRequest:
        """Queue a beam search, followed by the `beams` of what is returned; else as `submit`."""
        check_room(params, len(prompt_token_ids), self.sizes, shares=self.kv.takes_beams)
        sampling = params.sampling()
        live = self.submit(prompt_token_ids, sampling, request_id=request_id, prompt=prompt)
        search = BeamGroup(params)
        for beam in live.group:
            beam.follow(search)
        self.mailbox.beams = True
        return live

    def abort(self, request_id: str) -> None:
        """End a request; its pages return within the next step. Unknown or ended ids are no-ops."""
        first = self._by_id.get(request_id)
        for live in first.group if first is not None else ():
            self._abort(live)

    def _abort(self, live: LiveRequest) -> None:
        """End one output of a request."""
        if live.aborted or live.has_ended:
            return
        live.aborted = True
        if self._queue.abort(live):
            live.completion.finish_reason = "abort"
            self._end(live)

    def stop(self, live: LiveRequest, num_tokens: int, stop: str) -> None:
        """End an output whose first `num_tokens` tokens complete the string `stop`.

        The later ones are dropped. Like an abort, it has ended when the device says so.
        """
        live.cut(num_tokens, stop)
        if live.has_ended:
            live.settle()
        else:
            self._abort(live)

    def is_live(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def has_unfinished(self) -> bool:
        return bool(self._by_id)

    def step(self) -> list[LiveRequest]:
        """Bring one step to its end; returns the outputs that got tokens, by slot, or ended.

        Launches ahead first, until `in_flight` steps are on the device; what those do, the caller
        learns from the next calls. Without a live request nothing is launched.
        """
        if self._failure is not None:
            raise RuntimeError(f"the engine has stopped: {self._failure}")
        began = self.clock()
        while len(self._flights) < self.in_flight and self._by_id and not self._drains():
            try:
                self._launch()
            except Exception as error:  # part of the step may be on the device
                self._failure = f"step {self.num_steps} could not be launched: {error}"
                raise
        self.ended, self.report = [], None
        if not self._flights:
            return []
        flight = self._flights[0]
        waiting = self.clock()
        self.report = report = self._wait(flight, self.watchdog_seconds)
        self._flights.popleft()
        now = self.clock()
        touched = self.ledger.apply(report, flight.capacity, now)
        self.constraints.advance(touched)
        self.ended = self.ledger.ended
        for live in self.ended:
            self._end(live)
        if self.on_step is not None:
            ended = self.clock()
            worked = ended - began - (now - waiting)
            self.on_step(StepStats.of(report, flight, seconds=ended - began, host_seconds=worked))
        return touched

    def _launch(self) -> None:
        """Send the next step to the device, with the commands that are due."""
        aborted = self._queue.take_aborts()
        masks = self.constraints.take_masks(self.mailbox.max_commands - len(aborted))
        self._awaits_capture = False
        submissions = self._queue.take_submissions(
            len(aborted) + len(masks), self._started, self.seed, self._may_enter
        )
        now_ms = int((self.clock() - self._started) * 1000)
        num_commands = self.mailbox.post(self.num_steps, now_ms, submissions, aborted, masks)
        capacity, prompts = self.guess_capacity()
        ledger = self.ledger
        free_pages = self.sizes.num_pages if ledger.free_pages is None else ledger.free_pages
        if free_pages < self.device_step.low_water or ledger.shortfall > 0:
            self.steps.maintain()
        self.steps.run(capacity, num_commands, ledger)
        self._flights.append(Flight(self.num_steps, capacity, prompts, self._stream()))
        self.num_steps += 1

    def guess_capacity(self) -> tuple[int, int]:
        """(capacity, prompt tokens) of the next step. Any answer is safe; see `Ledger.guess`."""
        return self.ledger.guess(sum(flight.prompt_tokens for flight in self._flights))

    def _capture(self, steps: GraphSteps, beams: bool = False) -> None:
        """Run every capacity once without a request, then capture."""
        for capacity in steps.capacities:
            self.mailbox.post(self.num_steps, 0, [], [])
            steps.run_uncaptured(capacity, beams)
            self._wait(Flight(self.num_steps, capacity, 0, self._stream()), COMPILE_SECONDS)
            self.num_steps += 1
        steps.capture(beams)

    def _may_enter(self, live: LiveRequest) -> bool:
        """Whether a step that takes this output can be launched now."""
        steps = self.steps
        if live.beams is None or not isinstance(steps, GraphSteps) or steps.takes_beams:
            return True
        if len(self.ledger) or self._flights:
            self._awaits_capture = True
            return False
        self._capture(steps, beams=True)  # nothing else runs now
        return True

    def _drains(self) -> bool:
        """Whether all that is left to do before a capture is to read the steps in flight."""
        return self._awaits_capture and not len(self.ledger) and bool(self._flights)

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def _wait(self, flight: Flight, timeout: float) -> Report:
        """The report of a step. Raises RuntimeError if it cannot come any more."""
        stream = flight.stream
        try:
            return self.mailbox.wait(
                flight.number, stream.query if stream is not None else lambda: True, timeout
            )
        except RuntimeError as error:  # of the mailbox, or CUDA's own from the query
            loss = describe_loss(flight, self._flights, self.ledger.names())
            self._failure = f"{error}\n{loss}"
            raise RuntimeError(self._failure) from error

    def _end(self, live: LiveRequest) -> None:
        live.settle()
        self.constraints.forget(live)
        output = live.output
        if live.completion.finish_reason == "error":
            output.error = "the model produced NaN logits, or the request forbids every token"
        if not output.finished and all(one.has_ended for one in live.group):
            output.finished = True
            output.metrics.finished_time = self.clock()
            del self._by_id[output.request_id]
