"""The engine on a virtual clock: its host side and its state are the engine's own.

Requests, slots, commands, the guess of a step's capacity, eviction ahead of need and events go
through `Engine` as ever. What differs is the device: stages run on the host (stages/host.py), there
is no model, a row draws the answer it is known to give, and a step takes as long as a model of
step times says.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch

from paged.engine import Engine
from paged.interfaces import Eviction, KVManager, Scheduler
from paged.kernels.control.ingest import ingest
from paged.kernels.control.swap import swap
from paged.kernels.control.update import update
from paged.ledger import Ledger
from paged.live_request import LiveRequest
from paged.mailbox import Report
from paged.request import SamplingParams
from paged.simulator.known import KnownAnswers
from paged.simulator.stages.host import HostStages
from paged.state import Sizes
from paged.stats import Flight
from paged.step import Step

StepSeconds = Callable[[int, int, int, int], float]  # see TimedEngine


class VirtualClock:
    """Time that passes when it is told to, in whole nanoseconds: sums are exact on any machine."""

    def __init__(self) -> None:
        self.ns = 0

    @property
    def now(self) -> float:
        """Seconds."""
        return self.ns / 1e9

    def __call__(self) -> float:
        return self.ns / 1e9


class Span(NamedTuple):
    """When a step ran."""

    begin: float
    seconds: float


class TimedEngine(Engine):
    """An engine whose steps take the time that `step_seconds` says.

    A step begins when it has been launched and the one before it has ended, as on a GPU; the host
    takes no time. With a model it computes as ever: only the clock is another.

    Args:
        step_seconds: `(tokens, sequences, keys, capacity) -> seconds` of a step, to the nanosecond;
            keys are the sum of the sequences' lengths, and the capacity is that of its launch.
        swap_page_seconds: for each page that is copied to host memory or from there.
        arguments: `Engine`'s, but its clock.
    """

    def __init__(
        self, *, step_seconds: StepSeconds, swap_page_seconds: float = 0.0, **arguments: Any
    ) -> None:
        self.virtual = VirtualClock()
        self.step_seconds, self.swap_page_seconds = step_seconds, swap_page_seconds
        self.on_report: Callable[[Report, Span], None] | None = None  # a step, as it ended
        self.on_launch: Callable[[], None] | None = None  # the step has changed the state
        self.idle_since = 0  # when the device ended the last step that has been read, ns
        self._launched: deque[tuple[int, int]] = deque()  # when, ns; pages swapped
        super().__init__(clock=self.virtual, **arguments)

    def submit_at(
        self,
        arrival: float,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        **names: Any,
    ) -> LiveRequest:
        """`submit` for a request that came at `arrival`, which is not later than now."""
        live = self.submit(prompt_token_ids, params, **names)
        live.output.metrics.arrival_time = arrival
        return live

    def _launch(self) -> None:
        super()._launch()
        if self.on_launch is not None:
            self.on_launch()
        self._launched.append((self.virtual.ns, self._swapped_pages()))

    def _swapped_pages(self) -> int:
        """Pages that the step just launched copies to host memory or from there."""
        swaps = self.pool.swaps
        return 0 if swaps is None else int(swaps.num_out) + int(swaps.num_in)

    def _wait(self, flight: Flight, timeout: float) -> Report:
        report = super()._wait(flight, timeout)
        header = report.header
        launched, swapped_pages = self._launched.popleft()
        begin = max(launched, self.idle_since)
        seconds = self.step_seconds(
            header.num_tokens, header.num_seqs, header.num_keys, flight.capacity
        )
        seconds += swapped_pages * self.swap_page_seconds
        duration = round(seconds * 1e9)
        self.idle_since = begin + duration
        self.virtual.ns = max(self.virtual.ns, self.idle_since)
        if self.on_report is not None:
            self.on_report(report, Span(begin / 1e9, duration / 1e9))
        return report


class SimulatedSteps:
    """Launches steps whose rows draw the answers they brought as forced tokens."""

    capture_seconds = 0.0

    def __init__(self, step: Step, stages: HostStages) -> None:
        self.step, self.stages = step, stages

    def run(self, capacity: int, num_commands: int, ledger: Ledger) -> None:
        step = self.step
        requests, plan, kv = step.requests, step.plan, step.kv
        ingest(requests, step.pool, step.mailbox.commands, num_commands)
        kv.lookup(requests)
        step.scheduler.schedule(
            requests, step.pool, plan, capacity=capacity, reserve=kv.reserve_len
        )
        kv.reserve(requests, plan)
        if step.pool.swaps is not None:
            swap(requests, step.pool, plan)
        update(requests, step.pool, plan, step.mailbox.events, known=True)
        kv.commit(requests, plan)
        kv.release(requests, plan, step.mailbox.events)

    def maintain(self) -> None:
        self.step.maintain()


class SimulatedEngine(TimedEngine):
    """The engine without a model.

    Requests must bring their whole answer as `forced_token_ids`.

    Args:
        in_flight: steps launched before the first is read, as the engine does: 2 with graphs.
    """

    def __init__(
        self,
        *,
        sizes: Sizes,
        scheduler: Scheduler,
        kv: KVManager,
        eviction: Eviction,
        step_seconds: StepSeconds,
        vocab_size: int,
        in_flight: int = 2,
        swap_page_seconds: float = 0.0,
    ) -> None:
        if kv.compression is not None:
            raise ValueError(
                "kv.compression looks at keys and values, which the simulator does not compute; "
                "use kv/compression=none with task=simulate"
            )
        nothing = cast(Any, None)  # a simulated step asks nothing of them
        super().__init__(
            step_seconds=step_seconds,
            swap_page_seconds=swap_page_seconds,
            model=nothing,
            attention=nothing,
            sampler=nothing,
            sizes=sizes,
            scheduler=scheduler,
            kv=kv,
            eviction=eviction,
            device=torch.device("cpu"),
            vocab_size=vocab_size,
            in_flight=in_flight,
        )
        self.ledger = KnownAnswers(sizes, self.capacities)
        self._queue.ledger = self.ledger
        self.stages = HostStages(self.requests, self.pool, self.device_step.plan)
        self.steps = cast(Any, SimulatedSteps(self.device_step, self.stages))

    def submit(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, **names: Any
    ) -> LiveRequest:
        whole = params.max_tokens is not None and len(params.forced_token_ids) >= params.max_tokens
        if not whole:
            raise ValueError(
                f"a simulated request must bring its answer: forced_token_ids of max_tokens="
                f"{params.max_tokens} tokens, got {len(params.forced_token_ids)}"
            )
        if params.prompt_logprobs is not None or params.logprobs is not None:
            raise ValueError("logprobs and prompt_logprobs must be None: nothing computes logits")
        return super().submit(prompt_token_ids, params, **names)
