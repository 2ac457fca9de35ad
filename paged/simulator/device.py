"""A simulation that runs on the device alone: its own control kernels, and nobody between steps.

`drive` does the host's part of every step, so a CUDA graph of several steps is replayed until all
requests have ended, and the host reads the log of the steps as it goes. On a CPU the same launches
are made one by one through Triton's interpreter, which is for tests. Decisions are those of
`SimulatedEngine`.
"""

from collections.abc import Iterator

import numpy as np
import torch

from paged.eviction.base import ScoreEviction
from paged.graphs import regimes
from paged.interfaces import Eviction, KVManager, Scheduler
from paged.kernels.control import drive_state as at
from paged.kernels.control.columns import STEP
from paged.kernels.control.drive import drive
from paged.kernels.control.ingest import ingest
from paged.kernels.control.update import Events, update
from paged.mailbox import Mailbox
from paged.simulator.script import Script
from paged.simulator.step_time import StepTime
from paged.state import RequestTable, Sizes, StepPlan

STEPS_OF_A_GRAPH = 32
CHUNK = 128  # steps between two looks of the host; up to twice as many are empty ones at the end
LOG_STEPS = 2 * CHUNK


def why_not(scheduler: Scheduler, kv: KVManager, eviction: Eviction) -> str | None:
    """What keeps these parts from a simulation on the device; None if nothing does."""
    for name, part in (("scheduler", scheduler), ("kv", kv), ("eviction", eviction)):
        if not part.capturable:
            return f"{name} {type(part).__name__} runs on the host"
    if kv.compression is not None:
        return "kv.compression looks at keys, which nothing computes"
    if scheduler.preemption == "swap":
        return "scheduler.preemption=swap is not among the stages of a step there"
    if not isinstance(eviction, ScoreEviction) or type(eviction).scores is not ScoreEviction.scores:
        return f"eviction {type(eviction).__name__} keeps a state that only an eviction may change"
    return None


class DeviceSimulation:
    """One run of a script. Raises ValueError if a part cannot run on the device; see `why_not`.

    Args:
        in_flight: steps launched before the first is heard of, as the engine does.
    """

    def __init__(
        self,
        script: Script,
        *,
        sizes: Sizes,
        scheduler: Scheduler,
        kv: KVManager,
        eviction: Eviction,
        step_time: StepTime,
        device: torch.device,
        in_flight: int = 2,
    ) -> None:
        reason = why_not(scheduler, kv, eviction)
        if reason is not None:
            raise ValueError(f"the simulation cannot run on the device: {reason}; use device=cpu")
        self.script, self.sizes, self.device = script, sizes, device
        self.scheduler, self.kv, self.eviction = scheduler, kv, eviction
        self.in_flight = in_flight
        self.low_water = max(1, int(kv.low_water * sizes.num_pages))
        self.requests = RequestTable(sizes, device)
        self.pool = kv.allocate(self.requests, device)
        self.plan = StepPlan(sizes, device)
        self.plan.inputs = False
        rings = Mailbox(sizes, torch.device("cpu"))  # as an engine has them, but on the device
        self.room = rings.prompt_capacity
        self.events = Events(rings.events.words.to(device))
        tokens = torch.from_numpy(np.concatenate(script.tokens))
        self.commands = type(rings.commands)(
            *(ring.to(device) for ring in rings.commands._replace(prompts=tokens))
        )
        self.run_state = self._new_state(step_time, rings.depth)
        self._graph: torch.cuda.CUDAGraph | None = None

    def _new_state(self, step_time: StepTime, depth: int) -> at.Drive:
        script, sizes = self.script, self.sizes
        count = len(script.entries)
        capacities = regimes(sizes.max_num_batched_tokens)
        ledger = np.zeros((at.LEDGER_ROWS, sizes.num_slots), np.int32)
        ledger[at.FREE_SLOTS.value] = np.arange(sizes.num_slots)[::-1]
        outcomes = np.zeros((count, at.OUTCOME_WORDS.value), np.int64)
        outcomes[:, [at.QUEUED.value, at.FIRST_TOKEN.value]] = -1
        state = np.zeros(at.NUM_STATE, np.int64)
        state[at.NUM_FREE.value] = sizes.num_slots
        state[at.FREE_PAGES.value] = sizes.num_pages
        state[at.NUM_REQUESTS.value] = count
        arrays = {
            "arrivals": np.array(script.arrivals, np.int64),
            "lengths": np.array([len(tokens) for tokens in script.tokens], np.int32),
            "script": np.array(script.commands, np.int64),
            "outcomes": outcomes,
            "state": state,
            "flights": np.zeros((depth, at.FLIGHT_WORDS.value), np.int64),
            "ledger": ledger,
            "log": np.zeros((LOG_STEPS, at.LOG_WORDS), np.int64),
            "cost": np.array(
                [[step_time.free_tokens, *step_time.femtoseconds(size)] for size in capacities],
                np.int64,
            ),
            "capacities": np.array(capacities, np.int64),
        }
        return at.Drive(**{name: torch.from_numpy(a).to(self.device) for name, a in arrays.items()})

    def step(self) -> None:
        """Launch one step."""
        requests, pool, plan, kv = self.requests, self.pool, self.plan, self.kv
        drive(
            requests, pool, plan, self.commands, self.events, self.run_state,
            in_flight=self.in_flight, low_water=self.low_water, room=self.room,
            reserves=kv.reserve_len is not None,
        )  # fmt: skip
        self.eviction.evict(pool, self.low_water)
        ingest(requests, pool, self.commands, self.commands.words.shape[1])
        kv.lookup(requests)
        budget = self.sizes.max_num_batched_tokens  # `drive` sets the limit within it
        self.scheduler.schedule(requests, pool, plan, capacity=budget, reserve=kv.reserve_len)
        kv.reserve(requests, plan)
        update(requests, pool, plan, self.events, known=True)
        kv.commit(requests, plan)
        kv.release(requests, plan, self.events)

    def run(self) -> Iterator[np.ndarray]:
        """Run to the end; yields the log [steps, LOG_WORDS] of the steps since the last time."""
        taken = 0
        chunks = self._replayed() if self.device.type == "cuda" else self._stepped()
        for log, state in chunks:
            num_steps = int(state[at.NUM_STEPS.value])
            yield log[np.arange(taken, num_steps) % LOG_STEPS]
            taken = num_steps
            if state[at.ENDED.value] == state[at.NUM_REQUESTS.value]:
                return

    def outcomes(self) -> np.ndarray:
        """[N, OUTCOME_WORDS] what has come of the requests, in the order of the script."""
        return self.run_state.outcomes.cpu().numpy()

    @property
    def seconds(self) -> float:
        """The virtual clock (reads the device)."""
        return int(self.run_state.state[at.NOW.value]) / 1e9

    def _stepped(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            self.step()
            yield self.run_state.log.numpy(), self.run_state.state.numpy()

    def _replayed(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chunks of replayed steps; the next one runs while the caller has the last."""
        graph = self.prepare()
        sources = self.run_state.log, self.run_state.state
        copies = [
            [torch.empty(s.shape, dtype=s.dtype, pin_memory=True) for s in sources]
            for _ in range(2)
        ]
        copied = [torch.cuda.Event() for _ in copies]

        def launch(chunk: int) -> None:
            for _ in range(CHUNK // STEPS_OF_A_GRAPH):
                graph.replay()
            for copy, source in zip(copies[chunk % 2], sources):
                copy.copy_(source, non_blocking=True)
            copied[chunk % 2].record()

        launch(0)
        chunk = 0
        while True:
            launch(chunk + 1)
            copied[chunk % 2].synchronize()
            log, state = copies[chunk % 2]
            yield log.numpy(), state.numpy()
            chunk += 1

    def prepare(self) -> torch.cuda.CUDAGraph:
        """Capture a graph of some steps, once; an empty step first compiles what it launches."""
        if self._graph is not None:
            return self._graph
        state = self.run_state.state
        count = int(state[at.NUM_REQUESTS.value])
        state[at.NUM_REQUESTS.value] = 0
        self.step()
        state[at.NUM_REQUESTS.value] = count
        self.pool.counters[STEP.value] = 0
        torch.cuda.synchronize(self.device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(STEPS_OF_A_GRAPH):
                self.step()
        return self._graph
